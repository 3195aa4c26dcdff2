//! One page by HTTP/1.1, over a new connection or one that is kept.

use crate::limits::ANSWER_BYTES_MAX;
use std::{io::ErrorKind, net::SocketAddr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The header in which the workload says which pod answers.
pub const POD_HEADER: &str = "x-pod";

/// Asks once and closes. The pod that answered, or why none did.
pub async fn get(address: SocketAddr, host: &str) -> Result<Option<String>, String> {
    let mut stream = connect(address).await?;
    send(&mut stream, host, "close").await?;
    let mut answer = Vec::with_capacity(1024);
    let mut room = (&mut stream).take(ANSWER_BYTES_MAX as u64);
    room.read_to_end(&mut answer).await.map_err(|error| why("answer", &error))?;
    let head = Head::of(&answer).ok_or("the connection closed before an answer")?;
    head.pod()
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| why("connect", &error))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn send(stream: &mut TcpStream, host: &str, connection: &str) -> Result<(), String> {
    let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(text.as_bytes()).await.map_err(|error| why("send", &error))
}

/// A connection on which one request follows the other.
pub struct Kept {
    stream: TcpStream,
}

impl Kept {
    pub async fn connect(address: SocketAddr) -> Result<Kept, String> {
        Ok(Kept { stream: connect(address).await? })
    }

    /// The pod that answered, and whether the connection can be used again.
    pub async fn get(&mut self, host: &str) -> Result<(Option<String>, bool), String> {
        send(&mut self.stream, host, "keep-alive").await?;
        let mut answer = Vec::with_capacity(1024);
        loop {
            if let Some(head) = Head::of(&answer)
                && answer.len() >= head.length + head.body
            {
                return Ok((head.pod()?, head.value("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"))));
            }
            if answer.len() >= ANSWER_BYTES_MAX {
                return Err("the answer is too long".into());
            }
            let read = self.stream.read_buf(&mut answer).await.map_err(|error| why("answer", &error))?;
            if read == 0 {
                return Err("the connection closed before an answer".into());
            }
        }
    }
}

/// The first part of an answer.
struct Head<'a> {
    text: &'a str,
    /// Its bytes.
    length: usize,
    /// Bytes that follow.
    body: usize,
}

impl Head<'_> {
    /// `None` until it is whole.
    fn of(answer: &[u8]) -> Option<Head<'_>> {
        let length = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let mut head = Head { text: std::str::from_utf8(&answer[..length]).ok()?, length, body: 0 };
        head.body = head.value("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        Some(head)
    }

    fn value(&self, name: &str) -> Option<&str> {
        let lines = self.text.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    fn pod(&self) -> Result<Option<String>, String> {
        let code = self.text.split(' ').nth(1).unwrap_or_default();
        if code == "200" { Ok(self.value(POD_HEADER).map(str::to_owned)) } else { Err(format!("status {code}")) }
    }
}

/// Few words, so that equal failures look equal.
fn why(step: &str, error: &std::io::Error) -> String {
    let kind = match error.kind() {
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset".to_owned(),
        ErrorKind::TimedOut => "no answer in time".to_owned(),
        ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        _ => error.to_string(),
    };
    format!("{step}: {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\nX-Pod: web-1\r\nContent-Length: 5\r\n\r\nhello";

    /// Answers so many requests on the first connection, then closes it; and every further connection once.
    async fn serve(requests: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut left = requests;
            while let Ok((mut stream, _)) = listener.accept().await {
                for _ in 0..left {
                    let mut buffer = [0; 1024];
                    if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                        break;
                    }
                    let _ = stream.write_all(ANSWER.as_bytes()).await;
                }
                left = 1;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_page_names_its_pod() {
        let address = serve(1).await;
        assert_eq!(get(address, "web").await, Ok(Some("web-1".into())));
    }

    #[tokio::test]
    async fn a_kept_connection_is_used_again_until_it_is_closed() {
        let address = serve(2).await;
        let mut kept = Kept::connect(address).await.unwrap();
        assert_eq!(kept.get("web").await, Ok((Some("web-1".into()), true)));
        assert_eq!(kept.get("web").await, Ok((Some("web-1".into()), true)));
        assert!(kept.get("web").await.is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_a_refusal() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(get(address, "web").await, Err("connect: refused".into()));
    }

    #[test]
    fn another_status_is_a_failure() {
        let head = Head::of(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert_eq!(head.pod(), Err("status 503".into()));
    }
}
