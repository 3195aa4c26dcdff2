//! Whether the servers behind can be asked: their Service, its port, its endpoints, and an answer to a question about what they
//! serve. What comes of it stands in the APIService's condition `Available`, and what they serve becomes part of discovery.

use super::{GROUP, Known, RESOURCE, Remote, all, proxy, remote_of};
use crate::{Server, User, body, openapi::merged};
use api::{Status, Value, object::ObjectExt};
use http::{Request, header};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

const AVAILABLE: &str = "Available";
/// How often a look is taken at what costs nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long what was answered counts, and what was not.
const ASK_EVERY: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3));
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of such an answer.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The condition of an APIService, if it has one.
pub fn condition(service: &Value) -> Option<&Value> {
    service.list_at("status.conditions").iter().find(|condition| condition.str_at("type") == Some(AVAILABLE))
}

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    passed: bool,
    reason: &'static str,
    message: String,
}

impl Finding {
    fn failed(reason: &'static str, message: String) -> Finding {
        Finding { passed: false, reason, message }
    }
}

/// When a server was last asked, under which circumstances, and what came of it.
struct Asked {
    at: Instant,
    of: Arc<Remote>,
    finding: Finding,
}

/// Looks after all APIServices until the shutdown.
pub async fn run(server: Arc<Server>) {
    let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = server.config.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !server.health.is_bootstrapped() || server.cache.lost().is_some() {
            continue;
        }
        let services = all(&server);
        asked.retain(|name, _| services.iter().any(|service| service.name() == name));
        let mut questions = vec![];
        for service in &services {
            let finding = match remote_of(service) {
                None => Finding { passed: true, reason: "Local", message: "Local APIServices are always available".into() },
                Some(remote) => match standing(&server, &remote) {
                    Err(finding) => {
                        asked.remove(service.name());
                        finding
                    }
                    Ok(()) => {
                        let same = |asked: &&Asked| Remote { available: remote.available, ..Remote::clone(&asked.of) } == remote;
                        let known = asked.get(service.name()).filter(same);
                        let due = known.is_none_or(|known| known.at.elapsed() >= if known.finding.passed { ASK_EVERY.0 } else { ASK_EVERY.1 });
                        if due {
                            questions.push(Arc::new(remote));
                        }
                        match known {
                            Some(known) => known.finding.clone(),
                            None => continue,
                        }
                    }
                },
            };
            write(&server, service, &finding).await;
        }
        let answers = questions.into_iter().map(|remote| async {
            let finding = ask(&server, &remote).await;
            (remote, finding)
        });
        for (remote, finding) in futures::future::join_all(answers).await {
            if let Some(service) = services.iter().find(|service| service.name() == remote.name) {
                write(&server, service, &finding).await;
            }
            asked.insert(remote.name.clone(), Asked { at: Instant::now(), of: remote, finding });
        }
    }
}

/// What the cluster's objects say of a server: whether its Service has that port and somebody behind it.
fn standing(server: &Server, remote: &Remote) -> Result<(), Finding> {
    let (name, namespace) = (remote.service.as_str(), remote.namespace.as_str());
    let service = server.lookup("", "services", namespace, name).ok().flatten().map(|entry| entry.value());
    let Some(service) = service else {
        return Err(Finding::failed("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    if service.str_at("spec.type") == Some("ExternalName") {
        return Ok(());
    }
    let Some(port) = service.list_at("spec.ports").iter().find(|port| port.i64_at("port") == Some(i64::from(remote.port))) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {}", remote.port);
        return Err(Finding::failed("ServicePortError", message));
    };
    let port_name = port.str_at("name").unwrap_or_default();
    let slices = server.entries("discovery.k8s.io", "endpointslices", Some(namespace)).unwrap_or_default();
    let slices: Vec<Value> =
        slices.iter().filter(|slice| slice.label("kubernetes.io/service-name") == Some(name)).map(|slice| slice.value()).collect();
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Err(Finding::failed("EndpointsNotFound", message));
    }
    let has_port = |slice: &&Value| slice.list_at("ports").iter().any(|port| port.str_at("name").unwrap_or_default() == port_name);
    let ready = slices
        .iter()
        .filter(has_port)
        .flat_map(|slice| slice.list_at("endpoints"))
        .any(|endpoint| endpoint.bool_at("conditions.ready") != Some(false) && !endpoint.list_at("addresses").is_empty());
    if !ready {
        let message = format!("endpoints for service/{name} in {namespace:?} have no addresses with port name {port_name:?}");
        return Err(Finding::failed("MissingEndpoints", message));
    }
    Ok(())
}

/// Asks a server what it serves, and remembers it.
async fn ask(server: &Arc<Server>, remote: &Remote) -> Finding {
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    match fetch(server, remote, &path).await {
        Ok(list) => {
            let open_api = fetch(server, remote, "/openapi/v3").await.map(|index| documents(remote, &index)).unwrap_or_default();
            let list = list.list_at("resources").to_vec();
            let before = server.aggregation.known(remote);
            let open_api_v2 = match &before {
                // Where a document is tells its contents, and those of the other form with it.
                Some(known) if known.open_api == open_api && !open_api.is_empty() => known.open_api_v2.clone(),
                _ => {
                    let document = fetch(server, remote, "/openapi/v2").await.ok();
                    document.and_then(|document| merged::part(&document, &remote.group, &remote.version)).map(Arc::new)
                }
            };
            let is_news = before.and_then(|known| known.open_api_v2.clone()) != open_api_v2;
            server.aggregation.learn(remote, Known { resources: resources(&list), list, open_api, open_api_v2 });
            if is_news {
                server.openapi.forget_all_groups();
            }
            Finding { passed: true, reason: "Passed", message: "all checks passed".into() }
        }
        Err(why) => {
            let url = format!("https://{}.{}.svc:{}{path}", remote.service, remote.namespace, remote.port);
            Finding::failed("FailedDiscoveryCheck", format!("failing or missing response from {url}: {why}"))
        }
    }
}

/// A JSON document of a server behind.
async fn fetch(server: &Arc<Server>, remote: &Remote, path: &str) -> Result<Value, String> {
    let mut request = Request::get(path).header(header::ACCEPT, "application/json").body(body::empty()).map_err(|error| error.to_string())?;
    proxy::identify(request.headers_mut(), &User::new("system:kube-aggregator", &["system:masters"]));
    let asked = async {
        let answer = proxy::send(server, remote, request).await?;
        if !answer.status().is_success() {
            return Err(format!("bad status from the server: {}", answer.status().as_u16()));
        }
        let bytes = body::read(crate::Body::new(answer.into_body()), ANSWER_BYTES_MAX).await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&bytes).map_err(|error| format!("the answer is not JSON: {error}"))
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asked).await.unwrap_or_else(|_| Err("context deadline exceeded".into()))
}

/// The documents in an index of OpenAPI that are about what a server serves here.
fn documents(remote: &Remote, index: &Value) -> BTreeMap<String, String> {
    let name = format!("apis/{}/{}", remote.group, remote.version);
    let place = index.get("paths").and_then(|paths| paths.get(&name)).and_then(|entry| entry.str_at("serverRelativeURL"));
    place.map(|place| (name.clone(), place.to_string())).into_iter().collect()
}

/// A list of resources in the form of aggregated discovery.
fn resources(list: &[Value]) -> Vec<Value> {
    let mut made: Vec<Value> = vec![];
    let kind_of = |resource: &Value| {
        let text = |key: &str| resource.str_at(key).unwrap_or_default();
        json!({"group": text("group"), "version": text("version"), "kind": text("kind")})
    };
    for resource in list {
        let name = resource.str_at("name").unwrap_or_default();
        let verbs = resource.get("verbs").cloned().unwrap_or_else(|| json!([]));
        let Some((parent, part)) = name.split_once('/') else {
            let scope = if resource.bool_at("namespaced") == Some(true) { "Namespaced" } else { "Cluster" };
            let mut shown = json!({"resource": name, "responseKind": kind_of(resource), "scope": scope,
                "singularResource": resource.str_at("singularName").unwrap_or_default(), "verbs": verbs});
            for key in ["shortNames", "categories"] {
                if let Some(names) = resource.get(key) {
                    shown[key] = names.clone();
                }
            }
            made.push(shown);
            continue;
        };
        if let Some(parent) = made.iter_mut().find(|known| known.str_at("resource") == Some(parent)) {
            let part = json!({"subresource": part, "responseKind": kind_of(resource), "verbs": verbs});
            match parent.get_mut("subresources").and_then(Value::as_array_mut) {
                Some(parts) => parts.push(part),
                None => parent["subresources"] = json!([part]),
            }
        }
    }
    made
}

/// Puts a finding into an APIService's status, if it is news.
async fn write(server: &Arc<Server>, service: &Value, finding: &Finding) {
    let says = |service: &Value| {
        let status = if finding.passed { "True" } else { "False" };
        condition(service).is_some_and(|condition| {
            (condition.str_at("status"), condition.str_at("reason"), condition.str_at("message"))
                == (Some(status), Some(finding.reason), Some(finding.message.as_str()))
        })
    };
    if says(service) {
        return;
    }
    let change = |current: &mut Value| {
        if says(current) || current.uid() != service.uid() {
            return Ok(false);
        }
        set(current, finding, &crate::write::now());
        Ok(true)
    };
    match server.update_internal(GROUP, RESOURCE, "", service.name(), "status", change).await {
        Err(status) if !status.is_not_found() => report(service.name(), &status),
        _ => {}
    }
}

fn report(name: &str, status: &Status) {
    tracing::debug!(name, error = %status, "whether an APIService is available could not be written; will try again");
}

/// The time is that of the last change from available to not, or back.
fn set(service: &mut Value, finding: &Finding, now: &str) {
    let status = if finding.passed { "True" } else { "False" };
    let since = condition(service).filter(|known| known.str_at("status") == Some(status)).and_then(|known| known.str_at("lastTransitionTime"));
    let since = since.unwrap_or(now).to_string();
    let fresh = json!({"type": AVAILABLE, "status": status, "lastTransitionTime": since, "reason": finding.reason, "message": finding.message});
    let mut conditions = service.list_at("status.conditions").to_vec();
    match conditions.iter_mut().find(|known| known.str_at("type") == Some(AVAILABLE)) {
        Some(known) => *known = fresh,
        None => conditions.push(fresh),
    }
    service.set("status.conditions", conditions);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_has_its_time_and_a_new_reason_has_none() {
        let mut service = json!({"metadata": {"name": "v1.example.com"}});
        set(&mut service, &Finding::failed("ServiceNotFound", "no".into()), "t1");
        set(&mut service, &Finding::failed("MissingEndpoints", "none".into()), "t2");
        assert_eq!(condition(&service).unwrap()["lastTransitionTime"], "t1");
        set(&mut service, &Finding { passed: true, reason: "Passed", message: "ok".into() }, "t3");
        assert_eq!(condition(&service).unwrap()["lastTransitionTime"], "t3");
        assert_eq!(service.list_at("status.conditions").len(), 1);
    }

    #[test]
    fn the_old_list_becomes_the_new_one() {
        let list = [
            json!({"name": "nodes", "singularName": "node", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"], "shortNames": ["nm"]}),
            json!({"name": "nodes/scale", "namespaced": false, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get"]}),
        ];
        let made = resources(&list);
        assert_eq!(made.len(), 1);
        assert_eq!((made[0]["scope"].as_str(), made[0]["shortNames"][0].as_str()), (Some("Cluster"), Some("nm")));
        assert_eq!(made[0]["subresources"][0]["responseKind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    }
}
