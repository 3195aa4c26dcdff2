//! Taint-based eviction: a pod leaves a node that has a NoExecute taint which it does not tolerate, or not for longer.
//!
//! What must stay true: the time that a pod tolerates a taint runs from when the taint was added (or the pod came), so a
//! restart of this controller neither shortens nor extends it.
//!
//! A pod may ask to be set aside instead of deleted while its node is lost ([`crate::common::on_return`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{Normal, Recorder};
use client::taints::tolerates;
use client::{Change, Clock, Deletion, ErrorExt, Informer, Key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::api::Patch;
use parking_lot::Mutex;
use tracing::info;

use crate::Context;
use crate::common::disruption;
use crate::common::on_return;
use crate::common::owner::name_of;
use crate::common::pod_state::{is_deleting, is_finished, node_name};
use crate::node_lifecycle::{NOT_READY, UNREACHABLE};

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(TaintEviction {
        pods: context.informers.all(),
        nodes: context.informers.all(),
        recorder: context.recorder_for("taint-eviction-controller"),
        clock: context.clock.clone(),
        eviction_timeout: context.options.pod_eviction_timeout,
        scheduled: Mutex::default(),
    })
}

/// How often a pod whose node is back is looked at until it is ready.
const RETURN_LOOK_EVERY: Duration = Duration::from_millis(500);

struct TaintEviction {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    recorder: Recorder,
    clock: Clock,
    /// In place of the tolerations' default, if it was given.
    eviction_timeout: Option<Duration>,
    /// Pods that will be evicted, by key: their UID and since when that is known.
    scheduled: Mutex<HashMap<Key, (String, Timestamp)>>,
}

#[async_trait]
impl Controller for TaintEviction {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.mapped(&self.pods, |change| match change {
            Change::Applied { old: Some(old), new } if node_name(old) == node_name(new) && tolerations(old) == tolerations(new) => Vec::new(),
            change => vec![Key::of(&**change.object())],
        });
        let pods = self.pods.clone();
        inputs.mapped(&self.nodes, move |change| {
            let node = change.object();
            let before = change.old().map(|old| executing(old)).unwrap_or_default();
            if executing(node) == before {
                return Vec::new();
            }
            let on_it = pods.list().into_iter().filter(|pod| node_name(pod) == Some(name_of(&**node)));
            on_it.map(|pod| Key::of(&*pod)).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key).filter(|pod| !is_deleting(pod) && !is_finished(pod)) else {
            self.scheduled.lock().remove(key);
            return Ok(Next::Done);
        };
        let node = node_name(&pod).and_then(|name| self.nodes.get(&Key::new("", name)));
        let taints = node.as_deref().map(executing).unwrap_or_default();
        let now = self.clock.now();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let known_since = {
            let scheduled = self.scheduled.lock();
            scheduled.get(key).filter(|(known, _)| *known == uid).map_or(now, |(_, since)| *since)
        };
        match decide(&pod, &taints, known_since, now, self.eviction_timeout) {
            Verdict::Stay if on_return::is_set_aside(&pod) => {
                // The node reports first: a pod that counts before it is known to be ready would be the first to go.
                if !on_return::counts_again(&pod) {
                    return Ok(Next::After(RETURN_LOOK_EVERY));
                }
                info!(pod = %key, "its node is back, and it runs there: it counts again");
                self.recorder.about(&*pod, Normal, "TakenBack", format!("Pod {key} counts again: its node is back"));
                self.change(key, on_return::take_back(&pod, &now.to_string())).await?;
                Ok(Next::Done)
            }
            Verdict::Stay => {
                if self.scheduled.lock().remove(key).is_some_and(|(known, _)| known == uid) {
                    let message = format!("Cancelling deletion of Pod {key}");
                    self.recorder.about(&*pod, Normal, "TaintManagerEviction", message);
                }
                Ok(Next::Done)
            }
            Verdict::LeaveIn(delay) => {
                self.scheduled.lock().insert(key.clone(), (uid, known_since));
                Ok(Next::After(delay))
            }
            Verdict::Leave if on_return::sets_aside(&pod, &taints) => {
                if !on_return::is_set_aside(&pod) {
                    info!(pod = %key, "set aside: its node is lost, and it asks not to be deleted for that");
                    let message = format!("Pod {key} is set aside while its node is away; it may be replaced");
                    self.recorder.about(&*pod, Normal, "SetAside", message);
                    self.change(key, on_return::set_aside(&pod, &now.to_string())).await?;
                }
                self.scheduled.lock().remove(key);
                Ok(Next::Done)
            }
            Verdict::Leave => {
                self.evict(key, &pod).await?;
                self.scheduled.lock().remove(key);
                Ok(Next::Done)
            }
        }
    }
}

impl TaintEviction {
    /// Patches the pod. One that is gone, or another by now, is no failure.
    async fn change(&self, key: &Key, patch: serde_json::Value) -> Result<(), Error> {
        match self.pods.patch(key, &Patch::Merge(patch)).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn evict(&self, key: &Key, pod: &Pod) -> Result<(), Error> {
        info!(pod = %key, "evicting: its node has a taint that it does not tolerate (any longer)");
        self.recorder.about(pod, Normal, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        let condition = disruption::condition("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", self.clock.now());
        disruption::announce(&self.pods, pod, condition).await?;
        match self.pods.delete(key, &Deletion::of(pod)).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// The node's NoExecute taints.
fn executing(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    Leave,
    LeaveIn(Duration),
}

/// For how long pods tolerate a lost node that nobody asked about it (the admission plugin's default).
const DEFAULT_TOLERATION_S: i64 = 300;

/// Whether and when the pod leaves. A taint that does not say when it was added counts from `known_since`. With an eviction
/// timeout, pods that tolerate a lost node for the default time stay for that long instead.
fn decide(pod: &Pod, taints: &[Taint], known_since: Timestamp, now: Timestamp, eviction_timeout: Option<Duration>) -> Verdict {
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let tolerating: Vec<_> = tolerations(pod).iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if tolerating.is_empty() {
            return Verdict::Leave;
        }
        let Some(seconds) = tolerating.iter().filter_map(|toleration| toleration.toleration_seconds).min() else { continue };
        let seconds = match eviction_timeout {
            Some(timeout) if seconds == DEFAULT_TOLERATION_S && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) => {
                i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX)
            }
            _ => seconds,
        };
        let since = taint.time_added.as_ref().map_or(known_since, |time| time.0);
        let since = created.map_or(since, |created| created.max(since));
        let deadline = since.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX);
        earliest = Some(earliest.map_or(deadline, |earliest| earliest.min(deadline)));
    }
    match earliest {
        None => Verdict::Stay,
        Some(deadline) if deadline <= now => Verdict::Leave,
        Some(deadline) => Verdict::LeaveIn(Duration::try_from(deadline.duration_since(now)).unwrap_or(Duration::ZERO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, pod};
    use serde_json::json;

    fn check(taints: &[(&str, Option<&str>)], tolerations: serde_json::Value, now: i64) -> Verdict {
        let mut pod = pod("p", "n1", "Running", Some(100));
        pod.spec.as_mut().expect("a spec").tolerations = serde_json::from_value(tolerations).expect("tolerations");
        let taint = |(key, added): &(&str, Option<&str>)| -> Taint {
            serde_json::from_value(json!({"key": key, "effect": "NoExecute", "timeAdded": added})).expect("a taint")
        };
        decide(&pod, &taints.iter().map(taint).collect::<Vec<_>>(), at(1000), at(now), Some(Duration::from_secs(60)))
    }

    #[test]
    fn time_runs_from_the_taint() {
        let patient = json!([{"key": "gone", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
        let added = Some("1970-01-01T00:15:00Z");
        assert_eq!(check(&[], json!([]), 1000), Verdict::Stay);
        assert_eq!(check(&[("gone", None)], json!([]), 1000), Verdict::Leave);
        assert_eq!(check(&[("gone", None)], json!([{"operator": "Exists"}]), 1000), Verdict::Stay);
        assert_eq!(check(&[("gone", added)], patient.clone(), 1000), Verdict::LeaveIn(Duration::from_secs(200)));
        assert_eq!(check(&[("gone", added)], patient.clone(), 1200), Verdict::Leave);
        assert_eq!(check(&[("gone", None)], patient.clone(), 1000), Verdict::LeaveIn(Duration::from_secs(300)));
        assert_eq!(check(&[("gone", added), ("other", added)], patient, 1000), Verdict::Leave);
    }

    #[test]
    fn an_eviction_timeout_takes_the_place_of_the_default_alone() {
        let lost = |seconds: i64| json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        let added = Some("1970-01-01T00:15:00Z");
        assert_eq!(check(&[(UNREACHABLE, added)], lost(300), 930), Verdict::LeaveIn(Duration::from_secs(30)));
        assert_eq!(check(&[(UNREACHABLE, added)], lost(300), 960), Verdict::Leave);
        assert_eq!(check(&[(UNREACHABLE, added)], lost(301), 960), Verdict::LeaveIn(Duration::from_secs(241)));
    }
}
