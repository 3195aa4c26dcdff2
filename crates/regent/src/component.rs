//! What a component that serves nothing else serves: `/healthz`, `/livez`, `/readyz` for everybody who can reach it, `/metrics` for
//! whom the API server knows and lets. Over TLS with a certificate of its own making, on loopback unless told otherwise.
//!
//! What must stay true: a component goes on without this if its port is taken.

use anyhow::{Context, Result};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, api::PostParams};
use pki::{Authority, Identity};
use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Connections at a time; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take for its handshake or the head of its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kubernetes' port of the controller manager.
pub const CONTROLLER_MANAGER_PORT: u16 = 10257;
/// Kubernetes' port of the scheduler.
pub const SCHEDULER_PORT: u16 = 10259;

/// Serves until the shutdown; port 0: not at all. `client` asks the API server whom it may show its metrics to.
pub async fn serve(name: &'static str, address: IpAddr, port: u16, client: kube::Client, shutdown: CancellationToken) {
    if port == 0 {
        return;
    }
    let listener = TcpListener::bind((address, port)).await.context("listening");
    let served = async { attempt(name, listener?, client, shutdown).await };
    if let Err(error) = served.await {
        tracing::warn!(component = name, %address, port, "health and metrics are not served: {error:#}");
    }
}

async fn attempt(name: &'static str, listener: TcpListener, client: kube::Client, shutdown: CancellationToken) -> Result<()> {
    let own = Authority::generate(name)?.issue(&Identity::node_serving("localhost", &[listener.local_addr()?.ip()]))?;
    let mut tls = pki::tls::server(&own)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let stream = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, client, shutdown) = (acceptor.clone(), client.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _place = place;
            let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else { return };
            let service = hyper::service::service_fn(move |request| {
                let client = client.clone();
                async move { Ok::<_, Infallible>(answer(&client, &request).await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            let connection = builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                ended = connection => if let Err(error) = ended { tracing::debug!(%error, "a connection broke") },
                () = shutdown.cancelled() => {}
            }
        });
    }
}

fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

async fn answer(client: &kube::Client, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz" | "/livez" | "/readyz") => text(StatusCode::OK, "ok"),
        (&Method::GET, "/metrics") => match may_read(client, request).await {
            Ok(true) => text(StatusCode::OK, client::metrics::render()),
            Ok(false) => text(StatusCode::FORBIDDEN, "Forbidden: this user may not get /metrics\n"),
            Err(None) => text(StatusCode::UNAUTHORIZED, "Unauthorized: a bearer token of the cluster is needed\n"),
            Err(Some(why)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("the API server cannot be asked who this is: {why}\n")),
        },
        (_, "/healthz" | "/livez" | "/readyz" | "/metrics") => text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n"),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// Asks the API server whose token it is and whether they may `get` the path. `Err(None)`: nobody's.
async fn may_read(client: &kube::Client, request: &Request<Incoming>) -> Result<bool, Option<String>> {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or(None)?;
    let token = header.strip_prefix("Bearer ").map(str::trim).filter(|token| !token.is_empty()).ok_or(None)?;
    let failed = |error: kube::Error| Some(error.to_string());
    let review = TokenReview { spec: TokenReviewSpec { token: token.into(), audiences: None }, ..TokenReview::default() };
    let known = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await.map_err(failed)?;
    let status = known.status.filter(|status| status.authenticated == Some(true)).ok_or(None)?;
    let user = status.user.ok_or(None)?;
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username,
            groups: user.groups,
            uid: user.uid,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes { path: Some("/metrics".into()), verb: Some("get".into()) }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let decided = Api::<SubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await.map_err(failed)?;
    Ok(decided.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::apiserver::{Config, Server, User, authentication::StaticToken};
    use http_body_util::{BodyExt, Empty};
    use rustls::pki_types::ServerName;
    use std::net::SocketAddr;

    async fn get(address: SocketAddr, path: &str, token: Option<&str>) -> (u16, String) {
        let tls = tokio_rustls::TlsConnector::from(Arc::new(pki::tls::trusting_client(None).unwrap()));
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let stream = tls.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::get(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let code = answer.status().as_u16();
        (code, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn health_is_for_everybody_and_metrics_for_whom_the_api_server_lets() {
        pki::tls::install_provider();
        let mut config = Config::new(Arc::new(store::memory::Memory::default()));
        let token = |token: &str, groups: &[&str]| StaticToken { token: token.into(), user: User::new(token, groups) };
        config.authentication.static_tokens = vec![token("prometheus", &["system:monitoring"]), token("jane", &[])];
        let shutdown = config.shutdown.clone();
        let server = Server::new(config).await.unwrap();
        let bootstrapped = async {
            while !server.health.is_bootstrapped() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), bootstrapped).await.unwrap();
        let client = client::transport::in_process(server.local_service(User::new("system:kube-scheduler", &["system:authenticated"])));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(attempt("kube-scheduler", listener, client, shutdown.clone()));
        client::metrics::add("component_test_total", &[], 1);
        assert_eq!(get(address, "/healthz", None).await, (200, "ok".into()));
        assert_eq!(get(address, "/metrics", None).await.0, 401);
        assert_eq!(get(address, "/metrics", Some("nobody")).await.0, 401);
        assert_eq!(get(address, "/metrics", Some("jane")).await.0, 403);
        let (code, text) = get(address, "/metrics", Some("prometheus")).await;
        assert_eq!(code, 200, "{text}");
        assert!(text.contains("component_test_total 1") && text.contains("process_cpu_seconds_total"), "{text}");
        assert_eq!(get(address, "/elsewhere", None).await.0, 404);
        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }
}
