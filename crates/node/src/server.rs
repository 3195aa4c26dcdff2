//! The node's own HTTPS API: logs, exec, attach, port-forward, statistics, health.
//!
//! Only the API server may ask, known by its client certificate. Streams are tunnelled: the request goes on to the
//! runtime's streaming server as it is, and after its `101` bytes are copied both ways.

use crate::{Serving, agent::Context, logs, spec, streaming};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use membership::cluster::EPOCH_BYTES_MAX;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Connections at once; more wait in the kernel.
const CONNECTIONS_MAX: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Who may ask, beside members of `system:masters`.
const ALLOWED_USER: &str = "kube-apiserver-kubelet-client";
const ALLOWED_GROUP: &str = "system:masters";

/// A body of an answer.
pub type Body = BoxBody<Bytes, Infallible>;

/// Why the server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the node API's certificate, key or CA cannot be used: {0}")]
    Tls(String),
    #[error("the node API cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// An answer of plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(crate) fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = text(StatusCode::OK, bytes);
            response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn tls(cx: &Context, serving: &Serving) -> Result<Arc<rustls::ServerConfig>, Error> {
    let wrong = |error: &dyn std::fmt::Display| Error::Tls(error.to_string());
    let config = &cx.config;
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(serving.certificate_pem.as_bytes()).collect::<Result<_, _>>().map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes()).map_err(|error| wrong(&error))?;
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(config.client_ca_pem.as_bytes()) {
        roots.add(authority.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(&error))?;
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)
        .map_err(|error| wrong(&error))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(server))
}

/// What the client's certificate allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Granted,
    Unknown,
    Refused,
}

/// Judges a certificate that the CA has signed.
fn access(certificate: Option<&[u8]>) -> Access {
    let Some(bytes) = certificate else { return Access::Unknown };
    let Ok((_, certificate)) = X509Certificate::from_der(bytes) else { return Access::Unknown };
    let subject = certificate.subject();
    let named = subject.iter_common_name().any(|name| name.as_str().is_ok_and(|name| name == ALLOWED_USER));
    let member = subject.iter_organization().any(|name| name.as_str().is_ok_and(|name| name == ALLOWED_GROUP));
    if named || member { Access::Granted } else { Access::Refused }
}

/// Serves until shutdown.
pub async fn run(cx: Arc<Context>, shutdown: CancellationToken) -> Result<(), Error> {
    let mut known = cx.config.serving.clone();
    let serving = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        serving = known.wait_for(Option::is_some) => serving.ok().and_then(|serving| serving.clone()),
    };
    // Without anybody left who could bring a certificate there is no API; the pods are kept all the same.
    let Some(serving) = serving else {
        shutdown.cancelled().await;
        return Ok(());
    };
    let mut acceptor = TlsAcceptor::from(tls(&cx, &serving)?);
    let address = SocketAddr::new(cx.config.bind_address, cx.config.port);
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot,
            () = shutdown.cancelled() => return Ok(()),
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the node API cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            // A renewed certificate is for new connections; those that are open go on.
            Ok(()) = known.changed() => {
                let renewed = known.borrow_and_update().clone();
                match renewed.map(|serving| tls(&cx, &serving)) {
                    Some(Ok(renewed)) => acceptor = TlsAcceptor::from(renewed),
                    Some(Err(error)) => tracing::warn!(%error, "the renewed certificate cannot be used; the one before is used on"),
                    None => {}
                }
                continue;
            },
            () = shutdown.cancelled() => return Ok(()),
        };
        let (cx, acceptor, shutdown) = (cx.clone(), acceptor.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
            let access = access(stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(AsRef::as_ref));
            let service = hyper::service::service_fn(move |request| {
                let cx = cx.clone();
                async move { Ok::<_, Infallible>(answer(cx, access, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
            tokio::select! {
                result = connection => if let Err(error) = result { tracing::debug!(%error, "a connection to the node API broke") },
                () = shutdown.cancelled() => {}
            }
        });
    }
}

async fn answer(cx: Arc<Context>, access: Access, request: Request<Incoming>) -> Response<Body> {
    match access {
        Access::Granted => {}
        Access::Unknown => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
        Access::Refused => return text(StatusCode::FORBIDDEN, "Forbidden"),
    }
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["healthz"] | ["healthz", "ping" | "log" | "syncloop"]) => text(StatusCode::OK, "ok"),
        (&Method::GET, ["configz"]) => json(&configuration(&cx)),
        (&Method::GET, ["regent", "v1", "epoch"]) => vote(&cx, StatusCode::OK),
        (&Method::POST, ["regent", "v1", "epoch"]) => promise(&cx, request).await,
        (&Method::GET, ["pods"]) => json(&pod_list(&cx)),
        (&Method::GET, ["stats", "summary"]) => match cx.stats.summary(&cx).await {
            Ok(summary) => json(&summary),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        (&Method::GET, ["runningpods"]) => match running_pods(&cx).await {
            Ok(pods) => json(&pods),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        (&Method::GET, ["metrics", "cadvisor"]) => match cx.stats.cadvisor(&cx).await {
            Ok(body) => text(StatusCode::OK, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        (&Method::GET, ["metrics", "probes"]) => text(StatusCode::OK, crate::probe_counts::render()),
        (&Method::GET, ["metrics", "resource"]) => match cx.stats.metrics(&cx).await {
            Ok(body) => text(StatusCode::OK, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        (&Method::GET, ["metrics"]) => text(StatusCode::OK, cx.metrics()),
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            let (head, _) = request.into_parts();
            container_logs(&cx, namespace, pod, container, &head).await
        }
        (&Method::GET | &Method::POST, ["exec", namespace, pod, container]) => streaming::exec(&cx, namespace, pod, container, request).await,
        (&Method::GET | &Method::POST, ["attach", namespace, pod, container]) => streaming::attach(&cx, namespace, pod, container, request).await,
        (&Method::GET | &Method::POST, ["portForward", namespace, pod]) => streaming::port_forward(&cx, namespace, pod, request).await,
        (_, ["healthz" | "configz" | "runningpods" | "pods" | "stats" | "metrics" | "containerLogs" | "exec" | "attach" | "portForward", ..]) => {
            text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed")
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// What this node has promised of the cluster's epoch, and whether it reaches a server.
fn vote(cx: &Context, code: StatusCode) -> Response<Body> {
    let Some(ledger) = &cx.config.ledger else { return text(StatusCode::NOT_FOUND, "404 page not found") };
    let mut response = json(&serde_json::json!({"epoch": ledger.known(), "apiReachable": cx.contact.is_there_now()}));
    if response.status() == StatusCode::OK {
        *response.status_mut() = code;
    }
    response
}

/// Takes a server's epoch, if none above it was promised; it is on disk before the answer.
async fn promise(cx: &Context, request: Request<Incoming>) -> Response<Body> {
    let Some(ledger) = cx.config.ledger.clone() else { return text(StatusCode::NOT_FOUND, "404 page not found") };
    let body = http_body_util::Limited::new(request.into_body(), EPOCH_BYTES_MAX).collect().await.map(|body| body.to_bytes());
    let asked = body.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(asked) = asked else { return text(StatusCode::BAD_REQUEST, "this is not an epoch") };
    match tokio::task::spawn_blocking(move || ledger.promise(asked)).await {
        Ok(Ok(Ok(()))) => vote(cx, StatusCode::OK),
        Ok(Ok(Err(_))) => vote(cx, StatusCode::CONFLICT),
        Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// How this node is set up, in the words of Kubernetes' own configuration file.
fn configuration(cx: &Context) -> serde_json::Value {
    let config = &cx.config;
    serde_json::json!({ "kubeletconfig": {
        "staticPodPath": config.static_pods,
        "address": config.bind_address,
        "port": config.port,
        "maxPods": config.max_pods,
        "podPidsLimit": config.pod_pids_max.unwrap_or(-1),
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns,
        "cgroupRoot": config.cgroup_root,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": config.runtime_endpoint,
        "allowedUnsafeSysctls": config.allowed_unsafe_sysctls,
        "imageGCHighThresholdPercent": config.image_gc_high_percent,
        "imageGCLowThresholdPercent": config.image_gc_low_percent,
        "maxParallelImagePulls": config.parallel_image_pulls,
        "containerLogMaxFiles": config.logs.files_max,
        "nodeLeaseDurationSeconds": config.lease_duration.as_secs(),
        "nodeStatusUpdateFrequency": format!("{}s", config.status_update_frequency.as_secs()),
        "readOnlyPort": 0,
    }})
}

/// The pods that the runtime has, whatever the API says.
async fn running_pods(cx: &Context) -> Result<serde_json::Value, cri::Error> {
    let containers = cx.cri.list_containers(std::collections::HashMap::new()).await?;
    let mut pods: std::collections::BTreeMap<String, serde_json::Value> = std::collections::BTreeMap::new();
    for listed in containers.iter().filter(|listed| listed.state() == cri::v1::ContainerState::ContainerRunning) {
        let label = |name: &str| listed.labels.get(name).cloned().unwrap_or_default();
        let id = spec::PodId { namespace: label(spec::names::POD_NAMESPACE), name: label(spec::names::POD_NAME), uid: label(spec::names::POD_UID) };
        let pod = pods.entry(id.uid.clone()).or_insert_with(|| {
            serde_json::json!({
                "metadata": { "name": id.name, "namespace": id.namespace, "uid": id.uid },
                "spec": { "containers": [] },
                "status": {},
            })
        });
        if let Some(all) = pod["spec"]["containers"].as_array_mut() {
            let image = listed.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
            all.push(serde_json::json!({ "name": label(spec::names::CONTAINER_NAME), "image": image, "resources": {} }));
        }
    }
    let items: Vec<_> = pods.into_values().collect();
    Ok(serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

fn pod_list(cx: &Context) -> serde_json::Value {
    let items: Vec<Pod> = cx.pods_as_seen();
    serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}

/// The parameters of a query, in order, decoded.
pub fn query(head: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut out = Vec::with_capacity(text.len());
        let bytes = text.as_bytes();
        let mut index = 0;
        while index < bytes.len() {
            let hex =
                bytes.get(index + 1..index + 3).and_then(|pair| std::str::from_utf8(pair).ok()).and_then(|pair| u8::from_str_radix(pair, 16).ok());
            match (bytes[index], hex) {
                (b'%', Some(byte)) => {
                    out.push(byte);
                    index += 3;
                    continue;
                }
                (b'+', _) => out.push(b' '),
                (byte, _) => out.push(byte),
            }
            index += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    head.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// Whether a query parameter is switched on.
pub fn is_on(value: &str) -> bool {
    matches!(value, "1" | "true" | "True" | "t")
}

fn log_options(head: &Parts) -> Result<(logs::Options, bool), String> {
    let (mut options, mut previous) = (logs::Options::default(), false);
    for (key, value) in query(head.uri.query().unwrap_or_default()) {
        let number = || value.parse::<u64>().map_err(|_| format!("invalid {key}: {value}"));
        match key.as_str() {
            "follow" => options.follow = is_on(&value),
            "previous" => previous = is_on(&value),
            "timestamps" => options.timestamps = is_on(&value),
            "tailLines" => options.tail_lines = Some(number()?),
            "limitBytes" => options.limit_bytes = Some(number()?),
            "sinceSeconds" => {
                let seconds = SignedDuration::from_secs(i64::try_from(number()?).unwrap_or(i64::MAX));
                options.since = Some(Timestamp::now().saturating_sub(seconds).unwrap_or(Timestamp::MIN));
            }
            "sinceTime" => options.since = Some(value.parse().map_err(|_| format!("invalid {key}: {value}"))?),
            "stream" => options.stream = Some(value),
            _ => {}
        }
    }
    Ok((options, previous))
}

pub(crate) async fn container_logs(cx: &Arc<Context>, namespace: &str, name: &str, container: &str, head: &Parts) -> Response<Body> {
    let (options, previous) = match log_options(head) {
        Ok(read) => read,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let Some(pod) = cx.pod_by_name(namespace, name) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found"));
    };
    if spec::find_container(&pod, container).is_none() {
        return text(StatusCode::NOT_FOUND, format!("container \"{container}\" not found in pod \"{name}\""));
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let mut attempts = match cx.cri.list_containers(crate::runtime::of_pod(&uid)).await {
        Ok(listed) => listed,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    attempts.retain(|listed| listed.labels.get(spec::names::CONTAINER_NAME).is_some_and(|known| known == container));
    attempts.retain(|listed| listed.state() != cri::v1::ContainerState::ContainerCreated);
    attempts.sort_by_key(|listed| std::cmp::Reverse((listed.metadata.as_ref().map(|metadata| metadata.attempt), listed.created_at)));
    let found = if previous {
        let running = attempts.first().is_some_and(|listed| listed.state() == cri::v1::ContainerState::ContainerRunning);
        let waiting = pod.status.as_ref().is_some_and(|status| {
            let all = [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().flatten();
            all.into_iter().any(|own| own.name == container && own.state.as_ref().is_some_and(|state| state.waiting.is_some()))
        });
        // While a container waits for its restart, the one that crashed is the previous one.
        if running || !waiting { attempts.get(1) } else { attempts.first() }
    } else {
        attempts.first()
    };
    let Some(found) = found else {
        if previous {
            return text(StatusCode::BAD_REQUEST, format!("previous terminated container \"{container}\" in pod \"{name}\" not found"));
        }
        let reason = pod.status.as_ref().and_then(|status| {
            let all =
                [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses].into_iter().flatten().flatten();
            all.into_iter().find(|own| own.name == container)?.state.as_ref()?.waiting.as_ref()?.reason.clone()
        });
        let message = match reason.as_deref() {
            Some(reason @ ("ErrImagePull" | "ImagePullBackOff")) => {
                format!("container \"{container}\" in pod \"{name}\" is waiting to start: trying and failing to pull image ({reason})")
                    .replace(&format!(" ({reason})"), "")
            }
            Some(reason) => format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"),
            None => format!("container \"{container}\" in pod \"{name}\" is not available"),
        };
        return text(StatusCode::BAD_REQUEST, message);
    };
    let attempt = found.metadata.as_ref().map(|metadata| metadata.attempt).unwrap_or_default();
    let Some(path) = logs::path_of(&cx.config.log_dir, &found.labels, attempt) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the container's log cannot be found");
    };
    if !path.exists() {
        return text(
            StatusCode::NOT_FOUND,
            format!("failed to try resolving symlinks in path \"{0}\": lstat {0}: no such file or directory", path.display()),
        );
    }
    let (sender, receiver) = mpsc::channel(logs::PIECES_MAX);
    let (cri, id) = (cx.cri.clone(), found.id.clone());
    tokio::spawn(async move {
        let is_running = || {
            let (cri, id) = (cri.clone(), id.clone());
            async move {
                cri.container_status(&id)
                    .await
                    .map_or_else(|error| !error.is_not_found(), |status| status.state() == cri::v1::ContainerState::ContainerRunning)
            }
        };
        if let Err(error) = logs::read(path, options, sender, is_running).await {
            tracing::debug!(%error, "a log could not be read to its end");
        }
    });
    let stream = ReceiverStream::new(receiver).map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(stream)));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_in_order() {
        let read = query("command=sh&command=-c&command=echo+%27a%26b%27&tty=1");
        let values: Vec<&str> = read.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["sh", "-c", "echo 'a&b'", "1"]);
        assert_eq!(query("a=%zz&b"), [("a".to_owned(), "%zz".to_owned()), ("b".to_owned(), String::new())]);
    }

    #[test]
    fn nobody_without_a_certificate() {
        assert_eq!(access(None), Access::Unknown);
        assert_eq!(access(Some(b"nonsense")), Access::Unknown);
    }
}
