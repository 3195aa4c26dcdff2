//! A server behind the API server, over real TLS: what it is asked is written down, what it answers a test says.

use http::{Request, StatusCode, request::Parts};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc};
use tokio_util::sync::CancellationToken;

/// One question: method and URI, the asker's headers, and the common name of its certificate.
pub struct Asked {
    pub line: String,
    pub headers: http::HeaderMap,
    pub certificate: Option<String>,
}

/// A server that runs until it is dropped.
pub struct Behind {
    pub address: SocketAddr,
    pub authority: String,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    stop: CancellationToken,
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts one with a certificate for `name`. An answer that is a string goes out as its text.
pub async fn behind(name: &str, answer: impl Fn(&Parts, &Value) -> (StatusCode, Value) + Send + Sync + 'static) -> Behind {
    let authority = pki::Authority::generate("behind").expect("an authority");
    let issued = authority.issue(&pki::Identity::server("behind", vec![name.into()])).expect("a certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(pki::tls::server(&issued).expect("a configuration")));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, stop, asked) = (listener.local_addr().expect("an address"), CancellationToken::new(), Arc::new(Mutex::new(vec![])));
    let made = Behind { address, authority: authority.certificate_pem().into(), asked: asked.clone(), stop: stop.clone() };
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((tcp, _)) = accepted else { continue };
            let (acceptor, asked, answer) = (acceptor.clone(), asked.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let first = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let certificate = first.and_then(|certificate| pki::Subject::of(certificate).ok()).map(|subject| subject.common_name);
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (asked, answer, certificate) = (asked.clone(), answer.clone(), certificate.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let bytes = body.collect().await?.to_bytes();
                        let (code, value) = answer(&parts, &serde_json::from_slice(&bytes).unwrap_or_default());
                        let line = format!("{} {}", parts.method, parts.uri);
                        asked.lock().push(Asked { line, headers: parts.headers, certificate });
                        let text = value.as_str().map_or_else(|| value.to_string(), String::from);
                        let mut response = http::Response::new(http_body_util::Full::new(bytes::Bytes::from(text)));
                        *response.status_mut() = code;
                        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
                        Ok::<_, hyper::Error>(response)
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    made
}
