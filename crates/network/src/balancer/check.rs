//! How a server is found to be alive: `GET /readyz` on a connection that stays open, a few times a second.
//!
//! ```text
//! kept connection answers 200          Ready       (any other word but 5xx counts as well: it may not tell strangers)
//! answers 5xx                          Unready
//! breaks or is refused                 once more on a new connection at once; refused again: Gone
//! no answer in time                    a bare TCP connection: taken: Slow (busy or hung); silence or refused: Gone
//! ```
//!
//! So a power cut or a cut cable, where nothing comes back, is told from a machine that is only busy: its kernel answers.
//! A check costs the server one tiny request, without a handshake; a check of a dead one costs a few packets.
//! The answer proves life, and with [`Probe::Readyz`] also that the server is of this cluster; what clients send through the
//! balancer is protected by their own TLS, end to end.

use super::Server;
use super::servers::Verdict;
use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, pki_types::ServerName};

/// How long an answer may take. Together with the pause between checks and the last attempt it stays under a second.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(350);
/// How long a first answer may take, where TLS is to be agreed on first; a server that hangs is found by the later ones.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a bare connection may take after that.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(350);
/// Bytes of an answer's head, and of its body, that are read at most.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How servers are checked.
#[derive(Clone)]
pub enum Probe {
    /// `GET /readyz` over TLS.
    Readyz(Arc<ClientConfig>),
    /// A TCP connection is enough.
    Connect,
}

/// The checks of one server.
pub struct Checker {
    server: Server,
    probe: Probe,
    kept: Option<TlsStream<TcpStream>>,
    /// A status is said once, not four times a second.
    last_status: u16,
}

impl Checker {
    /// Nothing is sent before the first [`Checker::check`].
    pub fn new(server: Server, probe: Probe) -> Checker {
        Checker { server, probe, kept: None, last_status: 200 }
    }

    /// Checks the server once, in less than a second unless it answers nothing but TCP.
    pub async fn check(&mut self) -> Verdict {
        let Probe::Readyz(tls) = self.probe.clone() else { return self.connects(Verdict::Ready).await };
        let was_kept = self.kept.is_some();
        match self.asked(&tls).await {
            Asked::Broken if was_kept => match self.asked(&tls).await {
                Asked::Broken => Verdict::Gone,
                Asked::Silent => self.connects(Verdict::Slow).await,
                Asked::Answered(verdict) => verdict,
            },
            Asked::Broken => Verdict::Gone,
            Asked::Silent => self.connects(Verdict::Slow).await,
            Asked::Answered(verdict) => verdict,
        }
    }

    async fn asked(&mut self, tls: &Arc<ClientConfig>) -> Asked {
        let patience = if self.kept.is_some() { ANSWER_TIMEOUT } else { FIRST_ANSWER_TIMEOUT };
        match tokio::time::timeout(patience, self.ask(tls)).await {
            Ok(Ok(status)) => {
                if status != self.last_status && status != 200 {
                    tracing::info!(server = %self.server, status, "/readyz does not answer 200");
                }
                self.last_status = status;
                Asked::Answered(if status >= 500 { Verdict::Unready } else { Verdict::Ready })
            }
            Ok(Err(error)) => {
                tracing::debug!(server = %self.server, %error, "a check broke");
                self.kept = None;
                Asked::Broken
            }
            Err(_) => {
                self.kept = None;
                Asked::Silent
            }
        }
    }

    async fn ask(&mut self, tls: &Arc<ClientConfig>) -> Result<u16, Error> {
        let mut stream = match self.kept.take() {
            Some(stream) => stream,
            None => self.open(tls).await?,
        };
        let request =
            format!("GET /readyz HTTP/1.1\r\nHost: {}\r\nUser-Agent: regent-balancer\r\nAccept: text/plain\r\n\r\n", bracketed(self.server.host()));
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let (status, reusable) = read_answer(&mut stream).await?;
        if reusable {
            self.kept = Some(stream);
        }
        Ok(status)
    }

    async fn open(&self, tls: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, Error> {
        // Silence at this point is silence of the machine, so it is not given the time that TLS is given.
        let connected = tokio::time::timeout(2 * CONNECT_TIMEOUT, self.connect()).await;
        let stream = connected.map_err(|_| Error::from(ErrorKind::HostUnreachable))??;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(self.server.host().to_owned()).map_err(Error::other)?;
        TlsConnector::from(tls.clone()).connect(name, stream).await
    }

    async fn connect(&self) -> Result<TcpStream, Error> {
        TcpStream::connect((self.server.host(), self.server.port())).await
    }

    async fn connects(&self, then: Verdict) -> Verdict {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await {
            Ok(Ok(_)) => then,
            Ok(Err(_)) | Err(_) => Verdict::Gone,
        }
    }
}

enum Asked {
    Answered(Verdict),
    Broken,
    Silent,
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Reads one HTTP/1.1 answer: its status, and whether the connection can be used again.
async fn read_answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<(u16, bool), Error> {
    let mut bytes = Vec::with_capacity(512);
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if bytes.len() > ANSWER_BYTES_MAX || stream.read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(bytes.get(..head_end).unwrap_or_default()).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(ErrorKind::InvalidData)?;
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    let closes = header("connection").is_some_and(|value| value.contains("close"));
    let Some(length) = header("content-length").and_then(|value| value.parse::<usize>().ok()).filter(|length| *length <= ANSWER_BYTES_MAX) else {
        return Ok((status, false));
    };
    while bytes.len() < head_end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((status, !closes && bytes.len() == head_end + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_read_whole() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Some((200, true))),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 2\r\n\r\nok", Some((200, false))),
            ("HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n", Some((503, false))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", None),
            ("HTTP/1.1 200 OK\r\n", None),
            ("", None),
            ("nonsense\r\n\r\n", None),
        ] {
            assert_eq!(read_answer(&mut answer.as_bytes()).await.ok(), expected, "{answer:?}");
        }
    }
}
