//! Small HTTP requests to pods: probes and hooks. One connection each, no redirect followed, bodies bounded.
//!
//! HTTPS is spoken without verification, as Kubernetes does: a probe asks whether the container answers, not who it is.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use std::sync::Arc;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// The authorities that the machine trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// As much of an answer's body as is kept for messages.
const BODY_BYTES_MAX: usize = 10 * 1024;

/// Where and what to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The URL, for messages.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", authority(&self.host, self.port), self.path)
    }
}

/// Why a connection was not made, in the words that people search for.
pub fn dial_error(address: &str, error: &std::io::Error) -> String {
    let why = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {address}: connect: {why}")
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// GETs and returns the status code and the beginning of the body.
pub async fn get(request: &Request) -> Result<(u16, String), String> {
    let address = authority(&request.host, request.port);
    let stream = TcpStream::connect(&address).await.map_err(|error| dial_error(&address, &error))?;
    if request.tls {
        let name = ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
        let trusting = pki::tls::trusting_client(None).map_err(|error| error.to_string())?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(trusting)).connect(name, stream).await.map_err(|error| error.to_string())?;
        send(stream, request).await
    } else {
        send(stream, request).await
    }
}

/// GETs a document whole: an error if it is larger. Who answers is verified by the authorities that the machine trusts.
pub async fn fetch(request: &Request, limit_bytes: usize) -> Result<(u16, Bytes), String> {
    let address = authority(&request.host, request.port);
    let stream = TcpStream::connect(&address).await.map_err(|error| dial_error(&address, &error))?;
    if !request.tls {
        return exchange(stream, request, limit_bytes).await;
    }
    let name = ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
    let authorities = tokio::fs::read_to_string(AUTHORITIES).await.map_err(|error| format!("{AUTHORITIES}: {error}"))?;
    let client = pki::tls::client(&authorities, None).map_err(|error| error.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.map_err(|error| error.to_string())?;
    exchange(stream, request, limit_bytes).await
}

async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, request: &Request) -> Result<(u16, String), String> {
    let (code, body) = exchange(stream, request, 0).await?;
    Ok((code, String::from_utf8_lossy(&body).into_owned()))
}

/// One request and its answer. With a limit of 0 the beginning of the body is enough.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: &Request,
    limit_bytes: usize,
) -> Result<(u16, Bytes), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(async move { connection.await.is_ok() });
    let named = |name: &str| request.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    let mut builder = http::Request::get(if request.path.is_empty() { "/" } else { &request.path });
    if !named("host") {
        builder = builder.header("host", authority(&request.host, request.port));
    }
    if !named("user-agent") {
        builder = builder.header("user-agent", "kube-probe/1.36");
    }
    if !named("accept") {
        builder = builder.header("accept", "*/*");
    }
    builder = builder.header("connection", "close");
    for (name, value) in request.headers.iter().filter(|(_, value)| !value.is_empty()) {
        builder = builder.header(name, value);
    }
    let message = builder.body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
    let answer = sender.send_request(message).await.map_err(|error| error.to_string())?;
    let code = answer.status().as_u16();
    let limit = if limit_bytes == 0 { BODY_BYTES_MAX } else { limit_bytes };
    let body = Limited::new(answer.into_body(), limit).collect().await.map(|body| body.to_bytes());
    connection.abort();
    match body {
        Ok(body) => Ok((code, body)),
        Err(_) if limit_bytes == 0 => Ok((code, Bytes::new())),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks a gRPC server for its health, by the standard protocol. `Ok(true)` means serving.
pub async fn grpc_health(host: &str, port: u16, service: &str) -> Result<bool, String> {
    let address = authority(host, port);
    let stream = TcpStream::connect(&address).await.map_err(|error| dial_error(&address, &error))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(async move { connection.await.is_ok() });
    let message = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(Bytes::from(health_request(service))))
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(message).await.map_err(|error| error.to_string())?;
    let headers = answer.headers().clone();
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    connection.abort();
    let status = |map: &http::HeaderMap| map.get("grpc-status").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let code = body.trailers().and_then(status).or_else(|| status(&headers)).unwrap_or_else(|| "0".into());
    match code.as_str() {
        "0" => Ok(health_status(&body.to_bytes()) == Some(1)),
        "12" => Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".into()),
        "5" => Err("service is unknown to the grpc health server".into()),
        code => Err(format!("grpc status {code}")),
    }
}

/// A framed `HealthCheckRequest`: the service is field 1.
fn health_request(service: &str) -> Vec<u8> {
    let name = &service.as_bytes()[..service.len().min(127)];
    let mut message = Vec::new();
    if !name.is_empty() {
        message.extend([0x0a, name.len() as u8]);
        message.extend(name);
    }
    let mut framed = vec![0, 0, 0, 0, message.len() as u8];
    framed.extend(message);
    framed
}

/// The status (field 1, a small number) of a framed `HealthCheckResponse`.
fn health_status(framed: &[u8]) -> Option<u8> {
    match framed.get(5..)? {
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_messages_are_framed() {
        assert_eq!(health_request("a"), [0, 0, 0, 0, 3, 0x0a, 1, b'a']);
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_status(&[0, 0, 0, 0, 2, 0x08, 1]), Some(1));
        assert_eq!(health_status(&[0, 0, 0, 0, 0]), None);
    }

    #[tokio::test]
    async fn a_get_returns_code_and_body() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = vec![0; 4096];
            let length = stream.read(&mut read).await.unwrap();
            stream.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
            String::from_utf8_lossy(&read[..length]).into_owned()
        });
        let request =
            Request { host: "127.0.0.1".into(), port, path: "/healthz".into(), headers: vec![("X-A".into(), "b".into())], ..Default::default() };
        assert_eq!(get(&request).await.unwrap(), (503, "no".to_owned()));
        let asked = server.await.unwrap();
        assert!(asked.starts_with("GET /healthz HTTP/1.1\r\n") && asked.contains("x-a: b"), "{asked}");
    }
}
