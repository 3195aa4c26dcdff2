//! The node's own API on its own machine, with no server and no certificate: a Unix socket that only root can open.
//!
//! It is what `regent node` asks. Of Kubernetes' API it has this node's pods (read, `log`, `exec`), under their usual paths,
//! so that the usual clients understand it; beside these, how the node stands and a way to restart containers.
//!
//! What must stay true: nothing here asks a server, and everything answers from what the node sees itself.

use crate::{
    Error,
    agent::Context,
    server::{self, Body, json, query, text},
    spec::{self, PodId},
    streaming,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::json as value;
use std::{convert::Infallible, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::UnixListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// The socket's name in the node's directory.
pub const SOCKET: &str = "node.sock";
/// Connections at once; more wait in the kernel.
const CONNECTIONS_MAX: usize = 32;

/// How the node stands, by its own lights.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub node: String,
    pub address: String,
    pub started_at: Timestamp,
    /// Whether a server answers now.
    pub has_server: bool,
    /// Whether none has answered since the agent started: what it knows is what the disk held.
    pub is_stale: bool,
    /// Why the runtime or the pod network is not ready, if so.
    pub problems: Vec<String>,
    pub pods: usize,
    pub pods_ready: usize,
    /// Events and statuses that wait for a server.
    pub statuses_waiting: usize,
    pub checkpoint: Option<client::checkpoint::Report>,
}

/// Serves the socket until shutdown.
pub async fn run(cx: Arc<Context>, shutdown: CancellationToken) -> Result<(), Error> {
    let path = cx.config.data_dir.join(SOCKET);
    let listener = listen(&path).map_err(|source| Error::Directory { path: path.clone(), source })?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot,
            () = shutdown.cancelled() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the node's socket cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => break,
        };
        let (cx, shutdown) = (cx.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let service = hyper::service::service_fn(move |request| {
                let cx = cx.clone();
                async move { Ok::<_, Infallible>(answer(cx, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
            tokio::select! {
                result = connection => if let Err(error) = result { tracing::debug!(%error, "a connection to the node's socket broke") },
                () = shutdown.cancelled() => {}
            }
        });
    }
    let _ = std::fs::remove_file(&path);
    Ok(())
}

/// Makes the socket, readable by its owner alone from its first moment; one that a life before left is replaced.
fn listen(path: &PathBuf) -> std::io::Result<UnixListener> {
    let beside = path.with_extension("new");
    for old in [path, &beside] {
        match std::fs::remove_file(old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, path)?;
    Ok(listener)
}

async fn answer(cx: Arc<Context>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let container = query(request.uri().query().unwrap_or_default()).into_iter().find(|(key, _)| key == "container").map(|(_, name)| name);
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["regent", "v1", "status"]) => json(&status(&cx).await),
        (&Method::POST, ["regent", "v1", "restart", namespace, name]) => restart(&cx, namespace, name, container.as_deref()).await,
        (&Method::GET, ["api", "v1", "pods"]) => json(&list(cx.pods_as_seen())),
        (&Method::GET, ["api", "v1", "namespaces", namespace, "pods"]) => {
            json(&list(cx.pods_as_seen().into_iter().filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace)).collect()))
        }
        (&Method::GET, ["api", "v1", "namespaces", namespace, "pods", name]) => match named(&cx, namespace, name) {
            Ok(pod) => json(&cx.as_seen(&pod)),
            Err(response) => response,
        },
        (&Method::GET, ["api", "v1", "namespaces", namespace, "pods", name, "log"]) => match chosen(&cx, namespace, name, container) {
            Ok(container) => {
                let (head, _) = request.into_parts();
                server::container_logs(&cx, namespace, name, &container, &head).await
            }
            Err(response) => response,
        },
        (&Method::GET | &Method::POST, ["api", "v1", "namespaces", namespace, "pods", name, "exec"]) => {
            match chosen(&cx, namespace, name, container) {
                Ok(container) => streaming::exec(&cx, namespace, name, &container, request).await,
                Err(response) => response,
            }
        }
        _ => failure(StatusCode::NOT_FOUND, "NotFound", "this node's own API has no such page"),
    }
}

/// A refusal as Kubernetes' clients understand it.
fn failure(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let status = value!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code.as_u16(), "message": message });
    let mut response = text(code, Bytes::from(status.to_string()));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

fn list(pods: Vec<Pod>) -> serde_json::Value {
    value!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods })
}

fn named(cx: &Context, namespace: &str, name: &str) -> Result<Arc<Pod>, Response<Body>> {
    cx.pod_by_name(namespace, name)
        .ok_or_else(|| failure(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{name}\" is not on this node (namespace {namespace})")))
}

/// The container that was asked for, or the pod's first.
fn chosen(cx: &Context, namespace: &str, name: &str, container: Option<String>) -> Result<String, Response<Body>> {
    let pod = named(cx, namespace, name)?;
    let first = || spec::spec_of(&pod).containers.first().map(|container| container.name.clone());
    container.filter(|name| !name.is_empty()).or_else(first).ok_or_else(|| failure(StatusCode::BAD_REQUEST, "BadRequest", "the pod has no container"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn status(cx: &Context) -> Status {
    let runtime = crate::node::runtime_state(&cx.cri).await;
    let pods = cx.pods_as_seen();
    Status {
        node: cx.config.node_name.clone(),
        address: cx.config.node_ip.to_string(),
        started_at: cx.started_at,
        has_server: cx.contact.is_there_now(),
        is_stale: cx.contact.is_stale(),
        problems: runtime.runtime_problem.into_iter().chain(runtime.network_problem).collect(),
        pods: pods.len(),
        pods_ready: pods.iter().filter(|pod| is_ready(pod)).count(),
        statuses_waiting: cx.reporter.waiting(),
        checkpoint: cx.config.informers.checkpoint().map(client::Checkpoint::report),
    }
}

/// Stops the pod's containers (or the one); their pod's worker starts them again as after any other end.
async fn restart(cx: &Context, namespace: &str, name: &str, container: Option<&str>) -> Response<Body> {
    let pod = match named(cx, namespace, name) {
        Ok(pod) => pod,
        Err(response) => return response,
    };
    let id = PodId::of(&pod);
    let grace = spec::spec_of(&pod).termination_grace_period_seconds.unwrap_or(30).max(0).unsigned_abs();
    let listed = match cx.cri.list_containers(crate::runtime::of_pod(&id.uid)).await {
        Ok(listed) => listed,
        Err(error) => return failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &error.to_string()),
    };
    let mut stopped = Vec::new();
    for listed in listed.into_iter().filter(|listed| listed.state() == cri::v1::ContainerState::ContainerRunning) {
        let own = listed.labels.get(spec::names::CONTAINER_NAME).cloned().unwrap_or_default();
        if container.is_some_and(|wanted| wanted != own) {
            continue;
        }
        if let Err(error) = cx.cri.stop_container(&listed.id, Duration::from_secs(grace)).await {
            return failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &error.to_string());
        }
        let (role, _) = spec::find_container(&pod, &own).unzip();
        let reference = crate::worker::container_reference(&pod, role.unwrap_or(spec::Role::Regular), &own);
        cx.recorder.event(&reference, client::events::Normal, "Killing", "", format!("Container {own} was restarted by hand on its node"));
        stopped.push(own);
    }
    if stopped.is_empty() {
        return failure(StatusCode::CONFLICT, "Conflict", "no such container of the pod runs");
    }
    json(&value!({ "restarted": stopped }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_replaces_an_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET);
        drop(listen(&path).unwrap());
        assert!(path.exists(), "a process that was killed leaves it");
        let _listener = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(tokio::net::UnixStream::connect(&path).await.is_ok());
    }
}
