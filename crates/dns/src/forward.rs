//! Names of others: asked from the resolvers above, remembered for a moment.
//!
//! A query is passed on byte for byte under an id of our own from a port of its own, so that only the resolver that was
//! asked can answer. Over UDP first; where the answer was cut and the client came by TCP, again over TCP. When no resolver
//! answers, an answer that was remembered is given although it is old: a name known once is not lost with the network.
//!
//! What must stay true: it never asks itself. The listening address is no upstream, and a query of ours that comes back to us
//! (an upstream that forwards here) is recognised by its id and question, and refused.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::{limits, wire};

/// Why there is no answer from above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No resolver is known.
    #[error("no resolver is known")]
    NoUpstream,
    /// None has answered.
    #[error("no resolver has answered")]
    NoAnswer,
    /// The query is damaged.
    #[error("the query is damaged")]
    Damaged,
}

/// The resolvers that a resolv.conf names, without `own`.
pub fn upstreams(resolv_conf: &str, own: IpAddr) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().map(|line| line.split(['#', ';']).next().unwrap_or("").trim());
    let addresses = lines.filter_map(|line| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    addresses.filter(|ip| *ip != own && !ip.is_unspecified()).take(limits::UPSTREAMS_MAX).map(|ip| SocketAddr::new(ip, 53)).collect()
}

/// Asks the resolvers above.
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    failed: Mutex<HashMap<SocketAddr, Instant>>,
    cache: Mutex<HashMap<Vec<u8>, Remembered>>,
    in_flight: Mutex<HashSet<(u16, Vec<u8>)>>,
}

struct Remembered {
    response: Vec<u8>,
    since: Instant,
    lasts: Duration,
}

impl Forwarder {
    /// A forwarder to these resolvers, in order of preference.
    pub fn new(upstreams: Vec<SocketAddr>) -> Forwarder {
        Forwarder { upstreams, failed: Mutex::default(), cache: Mutex::default(), in_flight: Mutex::default() }
    }

    /// Whether this query is one of our own that came back.
    pub fn is_own(&self, query: &[u8]) -> bool {
        let (Some(id), Some(question)) = (wire::id(query), wire::question(query)) else { return false };
        let in_flight = self.in_flight.lock();
        !in_flight.is_empty() && in_flight.contains(&(id, query[question].to_ascii_lowercase()))
    }

    /// What is remembered of the query's answer and has not expired.
    pub fn remembered(&self, query: &[u8]) -> Option<Vec<u8>> {
        self.recall(query, false)
    }

    /// Asks for the answer to `query`; over TCP where it does not fit a datagram and `whole` is wanted.
    pub async fn ask(&self, query: &[u8], whole: bool) -> Result<Vec<u8>, Error> {
        let question = wire::question(query).ok_or(Error::Damaged)?;
        if let Some(response) = self.remembered(query)
            && !(whole && wire::is_truncated(&response))
        {
            return Ok(response);
        }
        let own_id: u16 = rand::random();
        let mut ours = query.to_vec();
        wire::set_id(&mut ours, own_id);
        let flight = (own_id, query[question].to_ascii_lowercase());
        self.in_flight.lock().insert(flight.clone());
        let _landed = Landing { forwarder: self, flight };
        for upstream in self.in_order() {
            match ask_one(upstream, &ours, whole).await {
                Ok(mut response) => {
                    self.failed.lock().remove(&upstream);
                    wire::set_id(&mut response, wire::id(query).unwrap_or_default());
                    self.remember(query, &response);
                    return Ok(response);
                }
                Err(error) => {
                    tracing::debug!(%upstream, %error, "no answer");
                    self.failed.lock().insert(upstream, Instant::now());
                }
            }
        }
        let none = if self.upstreams.is_empty() { Error::NoUpstream } else { Error::NoAnswer };
        self.recall(query, true).ok_or(none)
    }

    /// The upstreams, those that have just failed last.
    fn in_order(&self) -> Vec<SocketAddr> {
        let failed = self.failed.lock();
        let just_failed = |upstream: &SocketAddr| failed.get(upstream).is_some_and(|at| at.elapsed() < limits::UPSTREAM_PENALTY);
        let mut order = self.upstreams.clone();
        order.sort_by_key(just_failed);
        order
    }

    fn recall(&self, query: &[u8], stale: bool) -> Option<Vec<u8>> {
        let key = cache_key(query)?;
        let cache = self.cache.lock();
        let known = cache.get(&key)?;
        let age = known.since.elapsed();
        if age >= known.lasts && !(stale && age < limits::CACHE_STALE) {
            return None;
        }
        let mut response = known.response.clone();
        let age_seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for (at, ttl) in wire::ttls(&response)? {
            let left = if stale { limits::TTL_ENDPOINT_SECONDS } else { ttl.saturating_sub(age_seconds) };
            wire::set_ttl(&mut response, at, left);
        }
        wire::set_id(&mut response, wire::id(query)?);
        // The question is repeated as this client has spelled it.
        let (asked, answered) = (wire::question(query)?, wire::question(&response)?);
        response.get_mut(answered)?.copy_from_slice(query.get(asked)?);
        Some(response)
    }

    fn remember(&self, query: &[u8], response: &[u8]) {
        let (Some(key), Some(ttls), Some(code)) = (cache_key(query), wire::ttls(response), wire::code(response)) else { return };
        const NO_ERROR: u8 = 0;
        const NO_NAME: u8 = 3;
        let positive = code == NO_ERROR && response.get(6..8).is_some_and(|answers| answers != [0, 0]);
        if !(code == NO_ERROR || code == NO_NAME) || wire::is_truncated(response) {
            return;
        }
        let longest = if positive { limits::CACHE_SECONDS_MAX } else { limits::CACHE_NEGATIVE_SECONDS_MAX };
        let Some(seconds) = ttls.iter().map(|(_, ttl)| *ttl).min().map(|ttl| ttl.min(longest)).filter(|s| *s > 0) else { return };
        let mut cache = self.cache.lock();
        if cache.len() >= limits::CACHE_ENTRIES_MAX && !cache.contains_key(&key) {
            // Rare, and the whole is small: a tenth that expires first makes room.
            let mut ends: Vec<Instant> = cache.values().map(|known| known.since + known.lasts).collect();
            ends.sort();
            let until = ends[ends.len() / 10];
            cache.retain(|_, known| known.since + known.lasts > until);
        }
        let lasts = Duration::from_secs(u64::from(seconds));
        cache.insert(key, Remembered { response: response.to_vec(), since: Instant::now(), lasts });
    }
}

/// Takes the query out of what is in flight, however the asking ends.
struct Landing<'a> {
    forwarder: &'a Forwarder,
    flight: (u16, Vec<u8>),
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.forwarder.in_flight.lock().remove(&self.flight);
    }
}

/// All of a query but its id, without case in the question: flags and EDNS make other answers.
fn cache_key(query: &[u8]) -> Option<Vec<u8>> {
    let question = wire::question(query)?;
    let mut key = query.get(2..)?.to_vec();
    key[question.start - 2..question.end - 2].make_ascii_lowercase();
    Some(key)
}

async fn ask_one(upstream: SocketAddr, query: &[u8], whole: bool) -> std::io::Result<Vec<u8>> {
    let response = tokio::time::timeout(limits::UPSTREAM_TIMEOUT, over_udp(upstream, query)).await??;
    if !(whole && wire::is_truncated(&response)) {
        return Ok(response);
    }
    tokio::time::timeout(limits::UPSTREAM_TIMEOUT, over_tcp(upstream, query)).await?
}

async fn over_udp(upstream: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; limits::DATAGRAM_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let response = &buffer[..length];
        // What is not the answer to this question may be forged, and is not listened to.
        if wire::id(response) == wire::id(query) && wire::answers(query, response) {
            return Ok(response.to_vec());
        }
    }
}

async fn over_tcp(upstream: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(query.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(query).await?;
    let length = stream.read_u16().await?;
    let mut response = vec![0; usize::from(length)];
    stream.read_exact(&mut response).await?;
    if wire::id(&response) == wire::id(query) && wire::answers(query, &response) { Ok(response) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolvers_of_resolv_conf_without_ourselves() {
        let text = "# made by hand\nsearch a b\nnameserver 10.96.0.10\nnameserver 192.0.2.1 # first\nnameserver  192.0.2.2\nnameserver ::1\nnameserver 192.0.2.4\n";
        let found: Vec<String> = upstreams(text, "10.96.0.10".parse().unwrap()).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "192.0.2.2:53", "[::1]:53"]);
    }
}
