//! exec, attach and port-forward: HTTP upgrades, joined to the node's byte for byte.

use super::nodes::refusal;
use super::target::{NodeAddress, Target, encode_query};
use crate::body;
use crate::connect::{Answer, Call};
use api::Status;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};

/// The WebSocket protocols that the container runtime speaks. Newer ones are refused, and kubectl goes back to SPDY.
const WEBSOCKET_PROTOCOLS: [&str; 5] =
    ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", "portforward.k8s.io"];
/// Headers of the client's that make the upgrade.
const PASSED_ON: [&str; 8] = [
    "connection",
    "upgrade",
    "x-stream-protocol-version",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "origin",
];

/// A command in a container.
pub async fn exec(call: Call) -> Answer {
    let target = Target::of_container(&call)?;
    let mut options = streams(&call)?;
    let command: Vec<_> = call.query.all("command").map(|word| ("command", word.to_string())).collect();
    if command.is_empty() {
        return Err(Status::bad_request("you must specify at least 1 command for the container"));
    }
    options.extend(command);
    let path = format!("/exec/{}/{}/{}{}", call.info.namespace, call.info.name, target.container, encode_query(options));
    let node = target.node(&call)?.clone();
    tunnel(call, node, path).await
}

/// The streams of a container's own process.
pub async fn attach(call: Call) -> Answer {
    let target = Target::of_container(&call)?;
    let path = format!("/attach/{}/{}/{}{}", call.info.namespace, call.info.name, target.container, encode_query(streams(&call)?));
    let node = target.node(&call)?.clone();
    tunnel(call, node, path).await
}

/// Connections to ports of a pod.
pub async fn port_forward(call: Call) -> Answer {
    let target = Target::of_pod(&call)?;
    let ports: Vec<_> = call.query.all("ports").flat_map(|ports| ports.split(',')).map(|port| ("port", port.to_string())).collect();
    let path = format!("/portForward/{}/{}{}", call.info.namespace, call.info.name, encode_query(ports));
    let node = target.node(&call)?.clone();
    tunnel(call, node, path).await
}

/// Which streams are wanted, as the node names them.
fn streams(call: &Call) -> Result<Vec<(&'static str, String)>, Status> {
    let wanted = |option: &str| call.query.get(option).is_some_and(|text| !matches!(text, "" | "0" | "f" | "F" | "false" | "False" | "FALSE"));
    let tty = wanted("tty");
    let all = [("input", wanted("stdin")), ("output", wanted("stdout")), ("error", wanted("stderr") && !tty), ("tty", tty)];
    if !all[..3].iter().any(|(_, wanted)| *wanted) {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(all.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| (name, "1".to_string())).collect())
}

async fn tunnel(mut call: Call, node: NodeAddress, path: String) -> Answer {
    let headers = upgrade_headers(call.request.headers())?;
    let mut request = Request::builder().method(call.request.method().clone()).uri(path).body(body::empty()).map_err(Status::internal)?;
    *request.headers_mut() = headers;
    // Taken before the answer, or it would be gone.
    let client = hyper::upgrade::on(&mut call.request);
    let mut answer =
        call.server.nodes.send(&call.server, &node, request).await.map_err(|error| Status::unknown(format!("error dialing backend: {error}")))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(answer).await);
    }
    let upstream = hyper::upgrade::on(&mut answer);
    super::join(&call.server, client, upstream, "a tunnel to a node");
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(response)
}

/// The headers that ask the node for the same upgrade; 400 for one that nobody here can do.
fn upgrade_headers(given: &HeaderMap) -> Result<HeaderMap, Status> {
    let text = |name: &str| given.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let upgrade = text("upgrade");
    if upgrade.is_empty() {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let mut headers = HeaderMap::new();
    for name in PASSED_ON {
        for value in given.get_all(name) {
            headers.append(HeaderName::from_static(name), value.clone());
        }
    }
    if upgrade.eq_ignore_ascii_case("websocket") {
        let wanted: Vec<&str> = given
            .get_all(header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .collect();
        let spoken: Vec<&str> = wanted.iter().copied().filter(|protocol| WEBSOCKET_PROTOCOLS.contains(protocol)).collect();
        if spoken.is_empty() && !wanted.is_empty() {
            return Err(Status::bad_request(format!(
                "unable to upgrade websocket connection: websocket server cannot find protocols {} in {}",
                bracketed(&wanted),
                bracketed(&WEBSOCKET_PROTOCOLS)
            )));
        }
        if let Ok(value) = HeaderValue::from_str(&spoken.join(", "))
            && !spoken.is_empty()
        {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
    Ok(headers)
}

fn bracketed(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &'static str)]) -> Result<HeaderMap, u16> {
        let given = headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
        upgrade_headers(&given).map_err(|status| status.code)
    }

    #[test]
    fn spdy_is_passed_on_and_new_websockets_are_refused() {
        let spdy = check(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("authorization", "Bearer x"),
        ])
        .unwrap();
        assert_eq!(spdy["upgrade"], "SPDY/3.1");
        assert_eq!(spdy["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert!(!spdy.contains_key("authorization"), "the caller's credentials stay here");
        assert_eq!(check(&[("upgrade", "websocket"), ("sec-websocket-protocol", "v5.channel.k8s.io")]), Err(400));
        assert_eq!(check(&[("upgrade", "websocket"), ("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")]), Err(400));
        let old = check(&[("upgrade", "websocket"), ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io")]).unwrap();
        assert_eq!(old["sec-websocket-protocol"], "v4.channel.k8s.io");
        assert_eq!(check(&[]), Err(400));
    }
}
