//! What pods use, as their nodes say: for clusters in which nothing serves `metrics.k8s.io`.
//!
//! A node tells how much CPU a container has used since its start (`/stats/summary`); how much it uses now follows from two
//! such answers, so there is nothing to be said before the second.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use parking_lot::Mutex;
use serde_json::Value;

use super::metrics::get;
use super::replicas::{Reading, Readings};
use crate::common::pod_state::node_name;

/// Two answers that are closer together than this say nothing about the use of CPU.
const APART_MIN: Duration = Duration::from_secs(5);
/// An answer that is older than this is forgotten.
const KEPT: Duration = Duration::from_secs(300);

/// How much CPU a container had used, and how much it used then in thousandths of a core, if that is known.
#[derive(Clone, Copy, Debug)]
struct Used {
    at: Timestamp,
    nanoseconds: i64,
    milli: Option<i64>,
    window: Duration,
}

/// What was heard the last time: by the pod's UID and the container.
#[derive(Default)]
pub struct Nodes(Mutex<HashMap<(String, String), Used>>);

impl Nodes {
    /// What the pods use of a resource.
    pub async fn ask(&self, client: &Client, pods: &[&Pod], resource: &str, container: Option<&str>) -> Result<Readings, String> {
        let nodes: BTreeSet<&str> = pods.iter().filter_map(|pod| node_name(pod)).collect();
        let ask = |node: &str| {
            let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
            async move { get(client, &path, &[]).await }
        };
        let answers = futures::future::join_all(nodes.into_iter().map(ask)).await;
        let namespace = pods.iter().find_map(|pod| pod.metadata.namespace.as_deref()).unwrap_or_default();
        let mut readings = Readings::new();
        let mut failure = None;
        for answer in answers {
            match answer {
                Ok(summary) => readings.extend(self.read(&summary, namespace, resource, container)),
                Err(failed) => failure = Some(failed.message),
            }
        }
        match failure {
            Some(failure) if readings.is_empty() => Err(failure),
            _ => Ok(readings),
        }
    }

    fn read(&self, summary: &Value, namespace: &str, resource: &str, only: Option<&str>) -> Readings {
        let mut last = self.0.lock();
        let mut readings = Readings::new();
        let mut newest = None;
        for pod in summary["pods"].as_array().into_iter().flatten().filter(|pod| pod["podRef"]["namespace"].as_str() == Some(namespace)) {
            let (Some(name), Some(uid)) = (pod["podRef"]["name"].as_str(), pod["podRef"]["uid"].as_str()) else { continue };
            let (mut whole, mut complete) = (None::<Reading>, true);
            for container in pod["containers"].as_array().into_iter().flatten() {
                let Some(container_name) = container["name"].as_str().filter(|name| only.is_none_or(|only| only == *name)) else { continue };
                let reading = match resource {
                    "cpu" => cpu(&mut last, (uid.to_owned(), container_name.to_owned()), &container["cpu"]),
                    "memory" => memory(&container["memory"]),
                    _ => None,
                };
                let Some(reading) = reading else {
                    complete = false;
                    continue;
                };
                newest = newest.max(Some(reading.at));
                match &mut whole {
                    Some(whole) => whole.milli += reading.milli,
                    None => whole = Some(reading),
                }
            }
            if let Some(reading) = whole.filter(|_| complete) {
                readings.insert(name.to_owned(), reading);
            }
        }
        if let Some(newest) = newest {
            last.retain(|_, used| used.at + KEPT > newest);
        }
        readings
    }
}

fn time(value: &Value) -> Option<Timestamp> {
    value["time"].as_str()?.parse().ok()
}

fn memory(value: &Value) -> Option<Reading> {
    let bytes = value["workingSetBytes"].as_i64()?;
    Some(Reading { milli: bytes.saturating_mul(1000), at: time(value)?, window: Duration::ZERO })
}

fn cpu(last: &mut HashMap<(String, String), Used>, key: (String, String), value: &Value) -> Option<Reading> {
    let (at, nanoseconds) = (time(value)?, value["usageCoreNanoSeconds"].as_i64()?);
    let before = last.get(&key).copied();
    let used = match before {
        Some(before) if at < before.at + APART_MIN && nanoseconds >= before.nanoseconds => before,
        // One that counts from the beginning again has been restarted.
        Some(before) if nanoseconds >= before.nanoseconds => {
            let window = Duration::try_from(at.duration_since(before.at)).unwrap_or(APART_MIN);
            let milli = i128::from(nanoseconds - before.nanoseconds) * 1000 / i128::try_from(window.as_nanos()).unwrap_or(i128::MAX).max(1);
            Used { at, nanoseconds, milli: i64::try_from(milli).ok(), window }
        }
        _ => Used { at, nanoseconds, milli: None, window: Duration::ZERO },
    };
    last.insert(key, used);
    Some(Reading { milli: used.milli?, at: used.at, window: used.window })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn summary(second: i64, cpu_ns: i64) -> Value {
        let time = Timestamp::from_second(second).expect("in range").to_string();
        json!({"pods": [{"podRef": {"name": "web", "namespace": "ns", "uid": "u"}, "containers": [
            {"name": "main", "cpu": {"time": time, "usageCoreNanoSeconds": cpu_ns}, "memory": {"time": time, "workingSetBytes": 2048}}]}]})
    }

    #[test]
    fn the_use_of_cpu_follows_from_two_answers() {
        let nodes = Nodes::default();
        let cpu = |second: i64, ns: i64| nodes.read(&summary(second, ns), "ns", "cpu", None).get("web").map(|reading| reading.milli);
        assert_eq!(cpu(100, 5_000_000_000), None);
        assert_eq!(cpu(110, 7_000_000_000), Some(200));
        assert_eq!(cpu(111, 9_000_000_000), Some(200), "too close together");
        assert_eq!(cpu(120, 7_000_000_000), Some(0), "idle");
        assert_eq!(cpu(130, 1_000_000), None, "restarted");
        assert_eq!(nodes.read(&summary(140, 0), "ns", "memory", Some("main"))["web"].milli, 2_048_000);
        assert!(nodes.read(&summary(140, 0), "other", "memory", None).is_empty());
    }
}
