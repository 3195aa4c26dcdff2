//! Bytes to and from nodes: `log`, `exec`, `attach`, `portforward`, `proxy`.
//!
//! The API server understands nothing of what flows here. It finds out where the pod is, goes there over TLS with a client
//! certificate, and passes on headers and bytes. exec, attach and port-forward are HTTP upgrades: when the node has switched
//! protocols, the answer goes back as it is, and from then on both ends are joined byte for byte.
//!
//! kubectl asks for the newer WebSocket protocols first. The container runtime does not speak them, so they are refused
//! here ([`streams`]); kubectl then asks again with SPDY, which is tunnelled.
//!
//! What must stay true: nothing is trusted that a node answers, beyond being that pod's bytes; a node that does not
//! answer costs one request a bounded time.

mod nodes;
mod proxy;
mod streams;
mod target;

pub use nodes::{Config, Nodes};
pub use proxy::{node_proxy, pod_proxy, service_proxy};
pub use streams::{attach, exec, port_forward};

use crate::body;
use crate::connect::{Answer, Call};
use crate::context::Server;
use crate::encode::respond;
use crate::websocket;
use api::Status;
use http::{Method, Request, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use target::{Target, encode_query};

/// What of a log request is for the node.
const LOG_OPTIONS: [&str; 8] = ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"];
const PLAIN_TEXT: &str = "text/plain";

/// What is read of one end before it is written to the other.
const TUNNEL_BUFFER_BYTES: usize = 32 * 1024;

/// Joins two upgraded connections byte for byte, until one ends or the server stops.
pub(crate) fn join(server: &Server, client: OnUpgrade, upstream: OnUpgrade, what: &'static str) {
    let shutdown = server.config.shutdown.clone();
    tokio::spawn(async move {
        let joined = async {
            let (client, upstream) = tokio::try_join!(client, upstream)?;
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, TUNNEL_BUFFER_BYTES, TUNNEL_BUFFER_BYTES).await?;
            Ok::<_, crate::BoxError>(())
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = joined => if let Err(error) = ended {
                tracing::debug!(%error, "{what} ended");
            },
        }
    });
}

/// What a node answers to a question of this server's own; the error is text.
pub(crate) async fn ask(server: &Server, node: &str, path: &str, limit_bytes: usize) -> Result<bytes::Bytes, String> {
    let node = target::NodeAddress::find(server, node).map_err(|status| status.message)?;
    let request = Request::get(path).body(body::empty()).map_err(|error| error.to_string())?;
    let answer = server.nodes.send(server, &node, request).await.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(format!("the node answered {}", answer.status()));
    }
    body::read(nodes::incoming(answer.into_body()), limit_bytes).await.map_err(|error| error.to_string())
}

/// A container's log.
pub async fn log(mut call: Call) -> Answer {
    let socket = websocket::asked(&mut call.request, websocket::READER_PROTOCOLS)?;
    Ok(websocket::answer(&call.server.clone(), socket, read_log(call).await?))
}

async fn read_log(call: Call) -> Answer {
    check_log_options(&call)?;
    let target = Target::of_container(&call)?;
    let Some(node) = target.node else {
        // It runs nowhere yet and has said nothing yet.
        return Ok(respond(StatusCode::NO_CONTENT, PLAIN_TEXT, body::empty()));
    };
    let options = LOG_OPTIONS.iter().filter_map(|option| Some((*option, call.query.get(option)?.to_string())));
    let path = format!("/containerLogs/{}/{}/{}{}", call.info.namespace, call.info.name, target.container, encode_query(options));
    let request = Request::builder().method(Method::GET).uri(&path).body(body::empty()).map_err(Status::internal)?;
    let response = call
        .server
        .nodes
        .send(&call.server, &node, request)
        .await
        .map_err(|error| Status::unknown(format!("Get \"https://{node}{path}\": {error}")))?;
    if response.status() != StatusCode::OK {
        return Err(nodes::refusal(response).await);
    }
    Ok(respond(StatusCode::OK, PLAIN_TEXT, nodes::incoming(response.into_body())))
}

/// Numbers that a node would not understand are refused before it is asked.
fn check_log_options(call: &Call) -> Result<(), Status> {
    let mut errors = api::field::Errors::default();
    let said = |option: &str| call.query.get(option).is_some_and(|text| !text.is_empty());
    if said("sinceSeconds") && said("sinceTime") {
        errors.forbidden(api::field::Path::new("[]"), "at most one of `sinceTime` or `sinceSeconds` may be specified");
    }
    for (option, least) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
        let Some(text) = call.query.get(option).filter(|text| !text.is_empty()) else { continue };
        let number: i64 = text.parse().map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))?;
        if number < least {
            let detail = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.invalid(api::field::Path::new(option), number, detail);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", &call.info.name, &errors)) }
}
