//! Requests that another API server answers: passed on over TLS, with the user's identity in headers that the other server
//! believes because of this server's front-proxy certificate. Watches and upgrades flow through as they come.

use super::Remote;
use crate::{Body, Server, User, admission::webhooks, body::full, connect::Answer, encode::respond};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::{sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long the connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers that are about one connection, and the credentials that were for this server.
const NOT_PASSED_ON: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "host",
    "authorization",
];

/// How another server cannot be asked, as text for clients.
pub type Unreachable = String;

/// The answer of a server that nobody can ask now.
pub fn refused(why: &str) -> Response<Body> {
    respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", full(format!("{why}\n")))
}

/// Passes a request on in the name of `user`.
pub async fn forward(server: &Arc<Server>, remote: &Remote, user: &User, mut request: Request<Body>) -> Answer {
    if !remote.available {
        return Ok(refused("service unavailable"));
    }
    let upgrade = request.headers().contains_key(header::UPGRADE);
    let client = upgrade.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    parts.headers = outgoing(&parts.headers, user, upgrade);
    if let Some(path) = parts.uri.path_and_query().cloned() {
        parts.uri = Uri::from(path);
    }
    parts.version = http::Version::HTTP_11;
    parts.extensions = Default::default();
    let sent = send(server, remote, Request::from_parts(parts, body)).await;
    let mut answer = match sent {
        Ok(answer) => answer,
        Err(why) => return Ok(refused(&format!("error trying to reach service: {why}"))),
    };
    if let (Some(client), StatusCode::SWITCHING_PROTOCOLS) = (client, answer.status()) {
        let upstream = hyper::upgrade::on(&mut answer);
        crate::tunnel::join(server, client, upstream, "an upgraded connection to an aggregated API server");
        let mut response = Response::new(crate::body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        return Ok(response);
    }
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts
        .headers
        .into_iter()
        .filter_map(|(name, value)| Some((name?, value)))
        .filter(|(name, _)| !NOT_PASSED_ON.contains(&name.as_str()))
        .collect();
    Ok(response)
}

/// Sends a request to a server behind, on a connection of its own.
pub(super) async fn send(server: &Arc<Server>, remote: &Remote, mut request: Request<Body>) -> Result<Response<Incoming>, Unreachable> {
    let service = server.lookup("", "services", &remote.namespace, &remote.service).ok().flatten();
    let service = service.ok_or_else(|| format!("service {:?} not found", remote.service))?.value();
    let (host, port) =
        webhooks::endpoint(server, &service, remote.port).ok_or_else(|| format!("no endpoints available for service {:?}", remote.service))?;
    let name = format!("{}.{}.svc", remote.service, remote.namespace);
    let certificates = server.config.aggregation.client_files.clone();
    let tls = match (remote.insecure, certificates) {
        (true, certificates) => pki::tls::trusting_client(certificates.map(|files| files as _)),
        (false, Some(files)) => pki::tls::client_of(&remote.authorities_pem, files),
        (false, None) => pki::tls::client(&remote.authorities_pem, None),
    };
    let tls = tls.map_err(|error| format!("the caBundle of APIService {} cannot be used: {error}", remote.name))?;
    let server_name = ServerName::try_from(name.clone()).map_err(|_| format!("{name:?} is not a name that can be certified"))?;
    let connected = async {
        let tcp =
            TcpStream::connect((host.as_str(), port)).await.map_err(|error| format!("dial tcp {host}:{port}: {}", webhooks::dial_error(&error)))?;
        // Small answers should not wait for more bytes; a socket that refuses this still works.
        let _ = tcp.set_nodelay(true);
        TlsConnector::from(Arc::new(tls)).connect(server_name, tcp).await.map_err(|error| format!("tls: {error}"))
    };
    let io = tokio::time::timeout(CONNECT_TIMEOUT, connected).await.map_err(|_| format!("dial tcp {host}:{port}: i/o timeout"))??;
    if let Ok(host) = HeaderValue::from_str(&format!("{name}:{}", remote.port)) {
        request.headers_mut().insert(header::HOST, host);
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an aggregated API server ended");
        }
    });
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// The client's headers as they go on: without what ends here, and with who asks.
fn outgoing(given: &HeaderMap, user: &User, upgrade: bool) -> HeaderMap {
    let ends_here = |name: &str| {
        (NOT_PASSED_ON.contains(&name) && !(upgrade && name == "connection")) || name.starts_with("impersonate-") || name.starts_with("x-remote-")
    };
    let mut headers: HeaderMap =
        given.iter().filter(|(name, _)| !ends_here(name.as_str())).map(|(name, value)| (name.clone(), value.clone())).collect();
    identify(&mut headers, user);
    headers
}

/// Says who asks. What cannot stand in a header is left out.
pub(super) fn identify(headers: &mut HeaderMap, user: &User) {
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        for value in values {
            add(&format!("x-remote-extra-{}", escape(key)), value);
        }
    }
}

/// A key of extra information as part of a header's name: all but letters, digits and `-._~` in percent form.
fn escape(key: &str) -> String {
    key.bytes().fold(String::with_capacity(key.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02x}"));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_said_here_and_nowhere_else() {
        let mut given = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("impersonate-user", "y"),
            ("accept", "a/b"),
        ] {
            given.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut user = User::new("jane", &["devs", "system:authenticated"]);
        user.extra.insert("example.com/Team".into(), vec!["a".into(), "b".into()]);
        let headers = outgoing(&given, &user, false);
        let all = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-group"), ["devs", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2fteam"), ["a", "b"]);
        assert_eq!(all("accept"), ["a/b"]);
        assert!(all("authorization").is_empty() && all("impersonate-user").is_empty());
    }
}
