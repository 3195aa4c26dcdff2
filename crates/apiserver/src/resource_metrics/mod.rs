//! `metrics.k8s.io`: what nodes and pods use now, for `kubectl top` and for autoscalers, as metrics-server serves it.
//!
//! ```text
//! APIService v1beta1.metrics.k8s.io --local?--> the kinds join the catalogue --> get, list --> the nodes are asked
//! ```
//!
//! The APIService is the switch, and the same for all servers: as long as it leads to nobody ([`keep`] makes it when the first
//! node is there, together with the role that lets readers read), this server answers; when a user lets it lead to a Service,
//! that is asked instead; when it is deleted, it is made anew. `--resource-metrics=false` takes all of this away.
//!
//! Nothing is measured while nobody asks. Who asks first waits for two answers of each node, a second apart; from then on
//! what is known serves all who ask for [`readings::RESOLUTION_MS`].
//!
//! What must stay true: a node that does not answer costs one request a bounded time, and is left out; what is kept of a node
//! is two answers; nothing is said of a pod of which not every container is known.

mod readings;

use crate::{
    Server, aggregation,
    cache::Entry,
    connect::{Answer, Call},
    encode::Shape,
    read, tunnel,
};
use api::{
    Status, Value,
    kinds::metrics::{GROUP, VERSION, measured_name},
    object::ObjectExt,
    quantity::{Format, Quantity},
    request::ListOptions,
};
use futures::StreamExt;
use http::StatusCode;
use jiff::Timestamp;
use parking_lot::Mutex;
use readings::{Need, Readings, Usage};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// The APIService that says who serves the group.
const SERVICE: &str = "v1beta1.metrics.k8s.io";
/// The role that lets whoever may read objects read what they use.
const READER: &str = "system:aggregated-metrics-reader";
/// Where a node tells it.
const PATH: &str = "/metrics/resource";
/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of such an answer: some two hundred per container.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Nodes that are asked at the same time.
const ASKED_MAX: usize = 64;

/// What is told to this part of the server.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Whether the group is served where nobody else serves it.
    pub enabled: bool,
}

/// What is known of the nodes.
#[derive(Default)]
pub struct ResourceMetrics {
    served: AtomicBool,
    /// By name. Whoever asks a node holds its lock, so that others wait for the same answer.
    nodes: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Readings>>>>,
}

impl ResourceMetrics {
    /// Whether this server answers for the group.
    pub fn is_served(&self) -> bool {
        self.served.load(Relaxed)
    }
}

fn leads_to_nobody(service: &Value) -> bool {
    service.at("spec.service").is_none_or(Value::is_null)
}

/// Finds out from the APIServices whether this server answers for the group.
pub fn look(server: &Server, services: &[Value]) {
    let local = services.iter().find(|service| service.name() == SERVICE).is_some_and(leads_to_nobody);
    server.resource_metrics.served.store(server.config.resource_metrics.enabled && local, Relaxed);
}

/// Whether the APIService is missing that [`keep`] makes.
pub fn is_due(server: &Server) -> bool {
    server.config.resource_metrics.enabled
        && !server.resource_metrics.is_served()
        && server.health.is_bootstrapped()
        && !server.cache.resource("", "nodes").is_empty()
        && server.cache.resource(aggregation::GROUP, aggregation::RESOURCE).get("", SERVICE).is_none()
}

/// Makes the APIService and the readers' role when there is a node to ask; takes away what is ours where the group is disabled.
pub async fn keep(server: &Arc<Server>) -> Result<(), Status> {
    if !server.health.is_bootstrapped() {
        return Ok(());
    }
    if !server.config.resource_metrics.enabled {
        let ours = server.lookup(aggregation::GROUP, aggregation::RESOURCE, "", SERVICE)?.map(|entry| entry.value());
        if ours.is_some_and(|service| leads_to_nobody(&service) && aggregation::is_kept(&service)) {
            server.delete_internal(aggregation::GROUP, aggregation::RESOURCE, "", SERVICE).await?;
        }
        return Ok(());
    }
    if !is_due(server) {
        return Ok(());
    }
    let role = json!({
        "metadata": {"name": READER, "labels": {
            "rbac.authorization.k8s.io/aggregate-to-admin": "true",
            "rbac.authorization.k8s.io/aggregate-to-edit": "true",
            "rbac.authorization.k8s.io/aggregate-to-view": "true",
        }},
        "rules": [{"apiGroups": [GROUP], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}],
    });
    for (group, resource, object) in
        [("rbac.authorization.k8s.io", "clusterroles", role), (aggregation::GROUP, aggregation::RESOURCE, aggregation::own_service(GROUP, VERSION))]
    {
        match server.create_internal(group, resource, "", object).await {
            Err(status) if !status.is_already_exists() => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

/// Answers get and list of either kind.
pub async fn answer(call: Call) -> Answer {
    let of_pods = call.kind.resource == "pods";
    let one = call.info.verb == "get";
    call.output.check_list(!one, if one { &call.kind.kind } else { &call.kind.list_kind })?;
    let about: Vec<Arc<Entry>> = if one {
        let found = call.server.lookup("", &call.kind.resource, call.namespace(), &call.info.name)?;
        found.into_iter().collect()
    } else {
        let selection = read::selection(&call, &ListOptions::parse(&call.query)?)?;
        let cache = call.server.cache.resource("", &call.kind.resource);
        cache.snapshot().entries(selection.namespace.as_deref()).filter(|entry| selection.matches(entry)).cloned().collect()
    };
    let mut metrics = if of_pods { pods(&call.server, &about).await } else { nodes(&call.server, &about).await };
    if one {
        return match metrics.pop() {
            Some(object) => Ok(call.output.object(StatusCode::OK, &call.view(), object)),
            None => Err(missing(&call)),
        };
    }
    let list = match call.output.shape {
        Shape::Table { version } => call.output.table(&call.view(), metrics, json!({}), true, version),
        Shape::Metadata { version } => {
            let items: Vec<Value> = metrics.iter().map(|object| crate::encode::metadata_value(object, version)).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": {}, "items": items})
        }
        Shape::Object => {
            for object in metrics.iter_mut().filter_map(Value::as_object_mut) {
                object.remove("kind");
                object.remove("apiVersion");
            }
            json!({"kind": call.kind.list_kind, "apiVersion": call.view().api_version(), "metadata": {}, "items": metrics})
        }
    };
    Ok(call.answer(StatusCode::OK, &list))
}

fn missing(call: &Call) -> Status {
    let name = match call.namespace() {
        "" => call.info.name.clone(),
        namespace => format!("{namespace}/{}", call.info.name),
    };
    Status::not_found((GROUP, &measured_name(&call.kind)), &name)
}

/// What nodes use; those that do not say are left out.
async fn nodes(server: &Arc<Server>, about: &[Arc<Entry>]) -> Vec<Value> {
    let known = ask(server, about.iter().map(|node| node.name().to_string()).collect()).await;
    let metrics = |node: &Arc<Entry>| {
        let usage = known.get(node.name())?.node()?;
        let mut object = object("NodeMetrics", node, usage);
        object.set("usage", amounts(usage));
        Some(object)
    };
    about.iter().filter_map(metrics).collect()
}

/// What pods use that run; those of which not every container is known are left out.
async fn pods(server: &Arc<Server>, about: &[Arc<Entry>]) -> Vec<Value> {
    let Ok(kind) = server.kind("", "pods") else { return vec![] };
    let position = |field: &str| kind.selectable_fields.iter().position(|known| known == field);
    let (phase, node) = (position("status.phase"), position("spec.nodeName"));
    let field = |pod: &Entry, position: Option<usize>| position.and_then(|at| pod.fields.get(at)).map(|text| text.to_string()).unwrap_or_default();
    let running: Vec<(&Arc<Entry>, String)> =
        about.iter().filter(|pod| field(pod, phase) == "Running").map(|pod| (pod, field(pod, node))).filter(|(_, node)| !node.is_empty()).collect();
    let known = ask(server, running.iter().map(|(_, node)| node.clone()).collect()).await;
    let metrics = |(pod, node): &(&Arc<Entry>, String)| {
        let containers = known.get(node)?.pod(&pod.place)?;
        // All together are as old as the oldest.
        let (_, oldest) = *containers.iter().min_by_key(|(_, usage)| usage.at_ms)?;
        let mut object = object("PodMetrics", pod, oldest);
        let shown = containers.iter().map(|(name, usage)| json!({"name": name, "usage": amounts(*usage)}));
        object.set("containers", shown.collect::<Vec<_>>());
        Some(object)
    };
    running.iter().filter_map(metrics).collect()
}

/// What is the same for both kinds.
fn object(kind: &str, about: &Entry, usage: Usage) -> Value {
    let labels: serde_json::Map<String, Value> = about.labels.iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
    let mut metadata = json!({"name": about.name(), "creationTimestamp": crate::write::now()});
    if !about.namespace().is_empty() {
        metadata["namespace"] = json!(about.namespace());
    }
    if !labels.is_empty() {
        metadata["labels"] = Value::Object(labels);
    }
    let at = Timestamp::from_second(usage.at_ms.div_euclid(1000)).unwrap_or_default();
    json!({"kind": kind, "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata,
        "timestamp": at.to_string(), "window": window(usage.window_ms)})
}

fn amounts(usage: Usage) -> Value {
    let cpu = Quantity::parse(&format!("{}n", usage.nano_cores)).unwrap_or(Quantity::ZERO);
    let memory = Quantity::from_units(i64::try_from(usage.memory_bytes).unwrap_or(i64::MAX), Format::BinarySi);
    json!({"cpu": cpu.to_string(), "memory": memory.to_string()})
}

/// A time span as Go writes it: `15.02s`, `1m0.5s`.
fn window(milliseconds: i64) -> String {
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let seconds =
        if rest % 1000 == 0 { (rest / 1000).to_string() } else { format!("{}.{:03}", rest / 1000, rest % 1000).trim_end_matches('0').into() };
    match minutes {
        0 => format!("{seconds}s"),
        _ => format!("{minutes}m{seconds}s"),
    }
}

/// The readings of these nodes, those that are not current asked for anew.
async fn ask(server: &Arc<Server>, names: BTreeSet<String>) -> BTreeMap<String, Readings> {
    let shelves: Vec<(String, Arc<tokio::sync::Mutex<Readings>>)> = {
        let nodes = server.cache.resource("", "nodes");
        let mut known = server.resource_metrics.nodes.lock();
        known.retain(|name, _| nodes.get("", name).is_some());
        // Of nodes that are not there nothing is kept.
        let there = names.into_iter().filter(|name| nodes.get("", name).is_some());
        there.map(|name| (name.clone(), known.entry(name).or_default().clone())).collect()
    };
    let current = shelves.into_iter().map(|(name, shelf)| async move {
        let mut readings = shelf.lock().await;
        bring_up_to_date(server, &name, &mut readings).await;
        (name, readings.clone())
    });
    futures::stream::iter(current).buffer_unordered(ASKED_MAX).collect().await
}

/// Asks a node until its readings are current or it has failed: twice at most.
async fn bring_up_to_date(server: &Arc<Server>, name: &str, readings: &mut Readings) {
    for _ in 0..2 {
        let Need::Answer { after_ms } = readings.need(now_ms()) else { return };
        tokio::time::sleep(Duration::from_millis(after_ms.unsigned_abs())).await;
        match tokio::time::timeout(ANSWER_TIMEOUT, tunnel::ask(server, name, PATH, ANSWER_BYTES_MAX)).await {
            Ok(Ok(text)) => readings.take(readings::Answer::read(&String::from_utf8_lossy(&text), now_ms())),
            failed => {
                let why = failed.map_or_else(|_| "no answer in time".to_string(), |answer| answer.err().unwrap_or_default());
                tracing::debug!(node = name, why, "a node does not say what it uses");
                return readings.failed(now_ms());
            }
        }
    }
}

fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_amounts_are_written_as_go_does() {
        for (milliseconds, text) in [(15_000, "15s"), (15_020, "15.02s"), (1_500, "1.5s"), (60_500, "1m0.5s"), (120_000, "2m0s"), (7, "0.007s")] {
            assert_eq!(window(milliseconds), text);
        }
        let usage = Usage { at_ms: 0, window_ms: 1, nano_cores: 1_500_000, memory_bytes: 3 * 1024 * 1024 };
        assert_eq!(amounts(usage), json!({"cpu": "1500u", "memory": "3Mi"}));
    }
}
