//! The proxy's health on a port: `GET /healthz` and `/livez`, answered from a shared flag; and whatever else a probe asks for
//! ([`Respond`]).
//!
//! Just enough of HTTP/1.1 for a probe; one request per connection, bounded in size, time and number.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::limits;

/// What the component says about itself.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Since when changes wait for the kernel; none: it has all.
    waiting_since: Arc<Mutex<Option<Instant>>>,
}

impl Health {
    /// Changes wait for the kernel.
    pub fn waiting(&self) {
        self.waiting_since.lock().get_or_insert_with(Instant::now);
    }

    /// The kernel has everything.
    pub fn settled(&self) {
        *self.waiting_since.lock() = None;
    }

    /// Whether the component does its work.
    pub fn is_healthy(&self) -> bool {
        self.waiting_since.lock().is_none_or(|since| since.elapsed() < limits::UNHEALTHY_AFTER)
    }
}

/// An answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Code and phrase.
    pub status: &'static str,
    /// What the body is.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Answer {
    fn text(status: &'static str, body: &str) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", body: body.to_owned() }
    }

    /// There is nothing at this path.
    pub fn not_found() -> Answer {
        Answer::text("404 Not Found", "404 page not found")
    }
}

/// Who answers probes.
pub trait Respond: Clone + Send + Sync + 'static {
    /// The answer to a request for this path.
    fn respond(&self, path: &str) -> Answer;
}

impl Respond for Health {
    fn respond(&self, path: &str) -> Answer {
        match (path, self.is_healthy()) {
            ("/healthz" | "/livez", true) => Answer::text("200 OK", "ok"),
            ("/healthz" | "/livez", false) => Answer::text("503 Service Unavailable", "changes have waited too long for the kernel"),
            _ => Answer::not_found(),
        }
    }
}

/// Serves until `shutdown`.
pub async fn serve(listener: TcpListener, health: impl Respond, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(limits::HEALTH_CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            _ = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a health connection could not be accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(limits::RETRY_FIRST_MS)).await;
                    continue;
                }
            },
        };
        let health = health.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(limits::HEALTH_TIMEOUT, answer(stream, &health)).await;
            drop(permit);
        });
    }
}

/// Listens on the address; a busy port is worth a warning, not the component.
pub async fn listen(address: SocketAddr) -> Option<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(%address, %error, "no health endpoint");
            None
        }
    }
}

async fn answer(mut stream: TcpStream, health: &impl Respond) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0u8; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < limits::HEALTH_REQUEST_BYTES_MAX {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            break;
        }
        request.extend_from_slice(&chunk[..read]);
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let path = line.split(' ').nth(1).unwrap_or("");
    let Answer { status, content_type, body } = health.respond(path.split('?').next().unwrap_or(""));
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
