//! exec, attach and port-forward: the runtime says where it will stream, and the request is tunnelled there.
//!
//! The runtime's streaming server speaks the protocols; nothing of them is read here. What must stay true: the tunnel
//! ends when either side does, and what the runtime refuses reaches the client as the runtime said it.

use crate::{
    agent::Context,
    server::{Body, is_on, query, text},
    spec,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use std::{sync::Arc, time::Duration};
use tokio::net::TcpStream;

/// As much of a refusal as is passed on.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client wants to be connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

fn wanted(parameters: Vec<(String, String)>) -> Wanted {
    let mut out = Wanted::default();
    for (key, value) in parameters {
        match key.as_str() {
            "command" => out.command.push(value),
            "input" | "stdin" => out.stdin = is_on(&value),
            "output" | "stdout" => out.stdout = is_on(&value),
            "error" | "stderr" => out.stderr = is_on(&value),
            "tty" => out.tty = is_on(&value),
            _ => {}
        }
    }
    // A terminal has one output.
    out.stderr &= !out.tty;
    out
}

fn find(cx: &Context, namespace: &str, name: &str) -> Result<Arc<Pod>, Response<Body>> {
    cx.pod_by_name(namespace, name).ok_or_else(|| text(StatusCode::NOT_FOUND, format!("pod does not exist: pod \"{name}\" not found")))
}

async fn running_container(cx: &Context, pod: &Pod, container: &str) -> Result<String, Response<Body>> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let listed =
        cx.cri.list_containers(crate::runtime::of_pod(&uid)).await.map_err(|error| text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let found = listed.into_iter().find(|listed| {
        listed.labels.get(spec::names::CONTAINER_NAME).is_some_and(|name| name == container)
            && listed.state() == cri::v1::ContainerState::ContainerRunning
    });
    found.map(|found| found.id).ok_or_else(|| text(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found (\"{container}\")")))
}

fn refused(error: &cri::Error) -> Response<Body> {
    text(if error.is_not_found() { StatusCode::NOT_FOUND } else { StatusCode::INTERNAL_SERVER_ERROR }, error.to_string())
}

/// Runs a command in a container.
pub async fn exec(cx: &Arc<Context>, namespace: &str, pod: &str, container: &str, request: Request<Incoming>) -> Response<Body> {
    let wanted = wanted(query(request.uri().query().unwrap_or_default()));
    if wanted.command.is_empty() || !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return text(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr, and a command");
    }
    let result = async {
        let pod = find(cx, namespace, pod)?;
        let container_id = running_container(cx, &pod, container).await?;
        let message = cri::v1::ExecRequest {
            container_id,
            cmd: wanted.command,
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
        };
        cx.cri.exec(message).await.map_err(|error| refused(&error))
    };
    match result.await {
        Ok(url) => tunnel(&url, request).await,
        Err(response) => response,
    }
}

/// Connects to a container's main process.
pub async fn attach(cx: &Arc<Context>, namespace: &str, pod: &str, container: &str, request: Request<Incoming>) -> Response<Body> {
    let wanted = wanted(query(request.uri().query().unwrap_or_default()));
    let result = async {
        let pod = find(cx, namespace, pod)?;
        let container_id = running_container(cx, &pod, container).await?;
        // The terminal is the container's, whatever the client asks for.
        let tty = spec::find_container(&pod, container).is_some_and(|(_, container)| container.tty.unwrap_or(false));
        let message = cri::v1::AttachRequest { container_id, stdin: wanted.stdin, tty, stdout: wanted.stdout, stderr: wanted.stderr && !tty };
        cx.cri.attach(message).await.map_err(|error| refused(&error))
    };
    match result.await {
        Ok(url) => tunnel(&url, request).await,
        Err(response) => response,
    }
}

/// Connects to ports of a pod.
pub async fn port_forward(cx: &Arc<Context>, namespace: &str, pod: &str, request: Request<Incoming>) -> Response<Body> {
    let ports = query(request.uri().query().unwrap_or_default());
    let port = ports.into_iter().filter(|(key, _)| key == "port").filter_map(|(_, value)| value.parse().ok()).collect();
    let result = async {
        let pod = find(cx, namespace, pod)?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let listed = cx.cri.list_pod_sandboxes(crate::runtime::of_pod(&uid)).await.map_err(|error| refused(&error))?;
        let sandbox = listed.into_iter().find(|listed| listed.state() == cri::v1::PodSandboxState::SandboxReady);
        let sandbox = sandbox.ok_or_else(|| text(StatusCode::INTERNAL_SERVER_ERROR, "the pod has no running sandbox"))?;
        cx.cri.port_forward(cri::v1::PortForwardRequest { pod_sandbox_id: sandbox.id, port }).await.map_err(|error| refused(&error))
    };
    match result.await {
        Ok(url) => tunnel(&url, request).await,
        Err(response) => response,
    }
}

/// Host with port, and path with query, of an `http` address.
fn split(url: &str) -> Option<(String, String)> {
    let uri: http::Uri = url.parse().ok()?;
    let authority = uri.authority()?.to_string();
    Some((authority, uri.path_and_query()?.to_string()))
}

fn is_hop(name: &http::HeaderName) -> bool {
    matches!(name.as_str(), "host" | "authorization" | "content-length" | "transfer-encoding")
}

/// Sends the request on to `url` and joins the two connections once they have switched protocols.
async fn tunnel(url: &str, mut request: Request<Incoming>) -> Response<Body> {
    let Some((authority, target)) = split(url) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the runtime's streaming address cannot be read");
    };
    let broken = |error: &dyn std::fmt::Display| text(StatusCode::BAD_GATEWAY, format!("error dialing backend: {error}"));
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&authority)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return broken(&error),
        Err(error) => return broken(&error),
    };
    let (mut sender, connection) = match hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(error) => return broken(&error),
    };
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a stream to the runtime broke");
        }
    });
    let mut message = Request::new(Empty::<Bytes>::new());
    *message.method_mut() = request.method().clone();
    let Ok(uri) = target.parse() else { return broken(&"unreadable address") };
    *message.uri_mut() = uri;
    let headers: HeaderMap = request.headers().iter().filter(|(name, _)| !is_hop(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    *message.headers_mut() = headers;
    if let Ok(host) = authority.parse() {
        message.headers_mut().insert("host", host);
    }
    let answer = match sender.send_request(message).await {
        Ok(answer) => answer,
        Err(error) => return broken(&error),
    };
    let (status, headers) = (answer.status(), answer.headers().clone());
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        return text(status, body);
    }
    let client = hyper::upgrade::on(&mut request);
    let runtime = hyper::upgrade::on(answer);
    tokio::spawn(async move {
        let (Ok(client), Ok(runtime)) = (client.await, runtime.await) else { return };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut runtime).await {
            tracing::debug!(%error, "a stream ended");
        }
    });
    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_by_either_name() {
        let read = wanted(query("command=ls&command=-l&stdin=true&output=1&error=1&tty=true"));
        assert_eq!(read, Wanted { command: vec!["ls".into(), "-l".into()], stdin: true, stdout: true, stderr: false, tty: true });
        assert_eq!(split("http://127.0.0.1:4321/exec/abc?x=1"), Some(("127.0.0.1:4321".into(), "/exec/abc?x=1".into())));
    }
}
