//! Questions over UDP and TCP, answered from the zone or by others.
//!
//! A question for the zone is answered on the spot, in the loop that read it: that is faster than any hand-over, and
//! nothing can crowd it out. Only what waits for others (upstreams, the first list) becomes a task of its own, and there
//! may be so many of those at once and no more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::forward::Forwarder;
use crate::zone::{Answer, Records, Zone};
use crate::{limits, wire};

/// The server: one per process.
pub struct Server {
    zone: Arc<RwLock<Zone>>,
    ready: watch::Receiver<bool>,
    forwarder: Forwarder,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    turn: AtomicUsize,
}

/// What becomes of a question at once.
enum First {
    /// The answer.
    Done(Vec<u8>),
    /// It must wait for others.
    Later,
    /// Not a question: no answer at all.
    Silence,
}

impl Server {
    /// A server over this zone, which is whole once `ready` says so.
    pub fn new(zone: Arc<RwLock<Zone>>, ready: watch::Receiver<bool>, forwarder: Forwarder) -> Server {
        Server {
            zone,
            ready,
            forwarder,
            waiting: Arc::new(Semaphore::new(limits::WAITING_MAX)),
            connections: Arc::new(Semaphore::new(limits::CONNECTIONS_MAX)),
            turn: AtomicUsize::new(0),
        }
    }

    /// Answers on these sockets until `shutdown`.
    pub async fn serve(self: &Arc<Self>, udp: UdpSocket, tcp: TcpListener, shutdown: CancellationToken) {
        tokio::select! {
            _ = shutdown.cancelled() => {}
            () = self.serve_udp(Arc::new(udp)) => {}
            () = self.serve_tcp(tcp) => {}
        }
    }

    async fn serve_udp(self: &Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; limits::DATAGRAM_BYTES_MAX];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // The kernel reports an earlier answer that did not arrive; that is the client's affair.
                Err(error) => {
                    tracing::debug!(%error, "receive");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let query = &buffer[..length];
            match self.first(query, false) {
                First::Done(answer) => send(&socket, client, &answer).await,
                First::Silence => {}
                First::Later => match self.waiting.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                        tokio::spawn(async move {
                            if let Some(answer) = server.later(&query, false).await {
                                send(&socket, client, &answer).await;
                            }
                            drop(permit);
                        });
                    }
                    Err(_) => {
                        if let Some(answer) = failure(query, ResponseCode::ServFail) {
                            send(&socket, client, &answer).await;
                        }
                    }
                },
            }
        }
    }

    async fn serve_tcp(self: &Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        let _ = server.converse(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(limits::BIND_RETRY).await;
                }
            }
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let length = tokio::time::timeout(limits::CONNECTION_IDLE, stream.read_u16()).await??;
            let mut query = vec![0; usize::from(length)];
            tokio::time::timeout(limits::CONNECTION_IDLE, stream.read_exact(&mut query)).await??;
            let answer = match self.first(&query, true) {
                First::Done(answer) => Some(answer),
                First::Silence => return Ok(()),
                First::Later => match self.waiting.clone().try_acquire_owned() {
                    Ok(_permit) => self.later(&query, true).await,
                    Err(_) => failure(&query, ResponseCode::ServFail),
                },
            };
            let Some(answer) = answer else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            tokio::time::timeout(limits::CONNECTION_IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// Answers if that needs nobody else.
    fn first(&self, query: &[u8], tcp: bool) -> First {
        let done = |answer: Option<Vec<u8>>| answer.map_or(First::Silence, First::Done);
        let message = match parse(query) {
            Ok(message) => message,
            Err(None) => return First::Silence,
            Err(Some(code)) => return done(failure(query, code)),
        };
        let Some(question) = message.queries.first() else { return done(failure(query, ResponseCode::FormErr)) };
        if question.query_class() != DNSClass::IN {
            return done(failure(query, ResponseCode::Refused));
        }
        let zone = self.zone.read();
        if !*self.ready.borrow() && zone.covers(question.name()) {
            return First::Later;
        }
        match zone.answer(question.name(), question.query_type()) {
            Answer::Here(records) => done(self.render(&message, records, tcp)),
            Answer::Alias(..) => First::Later,
            Answer::Elsewhere => {
                drop(zone);
                if self.forwarder.is_own(query) {
                    tracing::warn!(name = %question.name(), "a resolver above forwards to this server: refused");
                    return done(failure(query, ResponseCode::Refused));
                }
                match self.forwarder.remembered(query).filter(|answer| fits(&message, answer, tcp)) {
                    Some(answer) => First::Done(answer),
                    None => First::Later,
                }
            }
        }
    }

    /// Answers with the help of others.
    async fn later(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let message = Message::from_vec(query).ok()?;
        let question = message.queries.first()?;
        if self.zone.read().covers(question.name()) {
            let mut ready = self.ready.clone();
            let whole = tokio::time::timeout(limits::FIRST_LIST_WAIT, ready.wait_for(|ready| *ready)).await;
            if !matches!(whole, Ok(Ok(_))) {
                return failure(query, ResponseCode::ServFail);
            }
        }
        let mut aliases = Vec::new();
        let mut name = question.name().clone();
        loop {
            let answer = self.zone.read().answer(&name, question.query_type());
            match answer {
                Answer::Here(mut records) => {
                    aliases.append(&mut records.answers);
                    records.answers = aliases;
                    return self.render(&message, records, tcp);
                }
                Answer::Alias(record, target) => {
                    aliases.push(record);
                    name = target;
                    let found = || Records { answers: aliases.clone(), ..Records::default() };
                    if question.query_type() == RecordType::CNAME {
                        return self.render(&message, found(), tcp);
                    }
                    if aliases.len() >= limits::ALIASES_MAX {
                        return failure(query, ResponseCode::ServFail);
                    }
                }
                Answer::Elsewhere if aliases.is_empty() => {
                    return match self.forwarder.ask(query, tcp).await {
                        Ok(answer) => Some(answer),
                        Err(error) => {
                            tracing::debug!(name = %name, %error, "not answered");
                            failure(query, ResponseCode::ServFail)
                        }
                    };
                }
                Answer::Elsewhere => {
                    let mut onward = Message::query();
                    onward.metadata.recursion_desired = true;
                    onward.add_query(Query::query(name, question.query_type()));
                    let bytes = onward.to_vec().ok()?;
                    // The alias itself is known, whatever becomes of its target.
                    let mut records = Records::default();
                    match self.forwarder.ask(&bytes, true).await.map(|bytes| Message::from_vec(&bytes)) {
                        Ok(Ok(mut found)) => {
                            records.code = found.metadata.response_code;
                            aliases.append(&mut found.answers);
                            records.authorities = found.authorities;
                        }
                        _ => records.code = ResponseCode::ServFail,
                    }
                    records.answers = aliases;
                    return self.render(&message, records, tcp);
                }
            }
        }
    }

    /// The response to `query`, cut to what the client can take.
    fn render(&self, query: &Message, mut records: Records, tcp: bool) -> Option<Vec<u8>> {
        let mut response = Message::response(query.metadata.id, query.metadata.op_code);
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.metadata.authoritative = true;
        response.metadata.response_code = records.code;
        response.add_queries(query.queries.iter().cloned());
        // Each client begins with another one of several addresses.
        let addresses = records.answers.iter().take_while(|record| record.record_type() == RecordType::A).count();
        if addresses > 1 {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            records.answers[..addresses].rotate_left(turn % addresses);
        }
        response.answers = records.answers;
        response.authorities = records.authorities;
        response.additionals = records.additionals;
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(u16::try_from(limits::UDP_ANSWER_BYTES_MAX).unwrap_or(u16::MAX));
            edns.set_version(0);
            response.set_edns(edns);
        }
        let limit = if tcp { usize::from(u16::MAX) } else { datagram_limit(query) };
        let mut bytes = response.to_vec().ok()?;
        if bytes.len() > limit {
            response.additionals.clear();
            bytes = response.to_vec().ok()?;
        }
        if bytes.len() > limit {
            // What does not fit is cut, and the client is told to come by TCP for the rest.
            response.metadata.truncation = true;
            let all = std::mem::take(&mut response.answers);
            let (mut fits, mut too_many) = (0, all.len());
            while fits + 1 < too_many {
                let middle = fits.midpoint(too_many);
                response.answers = all[..middle].to_vec();
                if response.to_vec().ok()?.len() <= limit { fits = middle } else { too_many = middle }
            }
            response.answers = all[..fits].to_vec();
            bytes = response.to_vec().ok()?;
        }
        Some(bytes)
    }
}

fn datagram_limit(query: &Message) -> usize {
    match &query.edns {
        Some(edns) => usize::from(edns.max_payload()).clamp(limits::UDP_ANSWER_BYTES_PLAIN, limits::UDP_ANSWER_BYTES_MAX),
        None => limits::UDP_ANSWER_BYTES_PLAIN,
    }
}

fn fits(query: &Message, answer: &[u8], tcp: bool) -> bool {
    tcp || answer.len() <= datagram_limit(query)
}

/// The query, or the code to refuse it with; no code: silence.
pub fn parse(query: &[u8]) -> Result<Message, Option<ResponseCode>> {
    if query.len() < 12 || wire::is_response(query) {
        return Err(None);
    }
    let message = Message::from_vec(query).map_err(|_| Some(ResponseCode::FormErr))?;
    if message.metadata.message_type != MessageType::Query || message.metadata.op_code != OpCode::Query {
        return Err(Some(ResponseCode::NotImp));
    }
    if message.queries.len() != 1 {
        return Err(Some(ResponseCode::FormErr));
    }
    Ok(message)
}

/// A response that only says why there is none.
fn failure(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let mut response = Message::response(wire::id(query)?, OpCode::Query);
    if let Ok(message) = Message::from_vec(query) {
        response.metadata.op_code = message.metadata.op_code;
        response.metadata.recursion_desired = message.metadata.recursion_desired;
        response.add_queries(message.queries.iter().take(1).cloned());
    }
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.to_vec().ok()
}

async fn send(socket: &UdpSocket, client: SocketAddr, answer: &[u8]) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "the answer could not be sent");
    }
}

#[cfg(test)]
mod tests;
