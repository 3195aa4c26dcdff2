//! How many replicas a metric of the pods asks for, from its readings. Pure.
//!
//! Who has just started, or is not ready, is not believed; who says nothing is counted so that the answer is rather too calm
//! than too wild: at its target when the others say fewer, idle when the others say more.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::common::owner::name_of;
use crate::common::pod_state::{condition, is_deleting, phase};

/// `--horizontal-pod-autoscaler-cpu-initialization-period`.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// `--horizontal-pod-autoscaler-initial-readiness-delay`.
const READINESS_DELAY: Duration = Duration::from_secs(30);

/// What one pod uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// In thousandths.
    pub milli: i64,
    /// The end of the time over which it was measured.
    pub at: Timestamp,
    /// How long that was.
    pub window: Duration,
}

/// Readings by the pods' names.
pub type Readings = BTreeMap<String, Reading>;

/// What is aimed at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This share of what the pods request, in percent.
    Utilization(i64),
    /// This much for each pod, in thousandths.
    Average(i64),
}

/// How far off the target nothing is done.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Upwards.
    pub up: f64,
    /// Downwards.
    pub down: f64,
}

impl Tolerance {
    /// Whether this share of the target is as good as the target.
    pub fn covers(&self, ratio: f64) -> bool {
        ratio >= 1.0 - self.down && ratio <= 1.0 + self.up
    }
}

/// What a metric asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The number of replicas.
    pub replicas: i32,
    /// What the pods use of their requests, in percent.
    pub utilization: Option<i32>,
    /// What a pod uses on average, in thousandths.
    pub average: i64,
}

/// What is asked about one metric.
pub struct Question<'a> {
    /// The replicas that are wanted now.
    pub current: i32,
    /// What is aimed at.
    pub target: Target,
    /// The resource's name (`cpu` is believed later than others), `None` for any other metric.
    pub resource: Option<&'a str>,
    /// Only this container counts.
    pub container: Option<&'a str>,
    /// See [`Tolerance`].
    pub tolerance: Tolerance,
    /// The pods that are scaled.
    pub pods: &'a [&'a Pod],
    /// Now.
    pub now: Timestamp,
}

/// Pods by what can be made of their readings.
#[derive(Debug, Default, PartialEq)]
struct Groups {
    ready: Vec<String>,
    unready: Vec<String>,
    missing: Vec<String>,
}

fn group(question: &Question<'_>, readings: &Readings) -> Groups {
    let mut groups = Groups::default();
    for pod in question.pods {
        let name = name_of(*pod).to_owned();
        if is_deleting(pod) || matches!(phase(pod), "Failed" | "Succeeded") {
            continue;
        }
        if phase(pod) == "Pending" {
            groups.unready.push(name);
            continue;
        }
        match readings.get(&name) {
            None => groups.missing.push(name),
            Some(reading) if question.resource == Some("cpu") && !is_believed(pod, reading, question.now) => groups.unready.push(name),
            Some(_) => groups.ready.push(name),
        }
    }
    groups
}

/// Whether a pod's use of CPU says something about its work, not about its start.
fn is_believed(pod: &Pod, reading: &Reading, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let (Some(ready), Some(started)) = (condition(pod, "Ready"), started) else { return false };
    let is_ready = ready.status == "True";
    let Some(changed) = ready.last_transition_time.as_ref().map(|time| time.0) else { return is_ready };
    if started + CPU_INITIALIZATION > now {
        return is_ready && reading.at >= changed + reading.window;
    }
    // One that was never ready since its start is still starting.
    is_ready || started + READINESS_DELAY <= changed
}

/// What a pod requests, in thousandths; the names of what lacks a request otherwise.
fn request(pod: &Pod, resource: &str, only: Option<&str>) -> Result<i64, String> {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten().filter(|each| each.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    });
    let of_container = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let text = requests.and_then(|requests| requests.get(resource));
        let amount = text.and_then(|text| api::quantity::Quantity::parse(&text.0).ok()).map(|quantity| quantity.milli());
        amount.ok_or_else(|| format!("missing request for {resource} in container {} of Pod {}", container.name, name_of(pod)))
    };
    let mut sum = 0;
    for container in containers.filter(|container| only.is_none_or(|name| container.name == name)) {
        sum += of_container(container)?;
    }
    Ok(sum)
}

/// The share of the target that is used, with utilization where that is aimed at.
fn share(question: &Question<'_>, used: &BTreeMap<&str, i64>, requests: &BTreeMap<&str, i64>) -> Option<(f64, Option<i32>)> {
    let sum: i64 = used.values().sum();
    match question.target {
        Target::Average(target) => (!used.is_empty() && target > 0).then(|| (sum as f64 / used.len() as f64 / target as f64, None)),
        Target::Utilization(target) => {
            let requested: i64 = used.keys().filter_map(|name| requests.get(name)).sum();
            if requested == 0 || target <= 0 {
                return None;
            }
            let utilization = (i128::from(sum) * 100 / i128::from(requested)) as i64;
            Some((utilization as f64 / target as f64, i32::try_from(utilization).ok()))
        }
    }
}

/// The number of replicas that brings the pods to the target, or why there is no telling.
pub fn propose(question: &Question<'_>, readings: &Readings) -> Result<Proposal, String> {
    let groups = group(question, readings);
    let mut requests = BTreeMap::new();
    if let (Target::Utilization(_), Some(resource)) = (question.target, question.resource) {
        for pod in question.pods.iter().filter(|pod| !is_deleting(pod)) {
            requests.insert(name_of(*pod), request(pod, resource, question.container)?);
        }
    }
    let mut used: BTreeMap<&str, i64> =
        groups.ready.iter().filter_map(|name| readings.get(name).map(|reading| (name.as_str(), reading.milli))).collect();
    if used.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let Some((ratio, utilization)) = share(question, &used, &requests) else {
        return Err("no metrics returned matched known pods".to_owned());
    };
    let average = used.values().sum::<i64>() / used.len() as i64;
    let proposal = |replicas: i32| Proposal { replicas, utilization, average };
    let waits_for_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !waits_for_unready && groups.missing.is_empty() {
        let enough = question.tolerance.covers(ratio);
        return Ok(proposal(if enough { question.current } else { ceil(ratio * used.len() as f64) }));
    }
    let at_target = |name: &str| match question.target {
        Target::Average(target) => target,
        Target::Utilization(target) => requests.get(name).copied().unwrap_or(0) * target.max(100) / 100,
    };
    for name in &groups.missing {
        used.insert(name, if ratio < 1.0 { at_target(name) } else { 0 });
    }
    if waits_for_unready {
        used.extend(groups.unready.iter().map(|name| (name.as_str(), 0)));
    }
    let Some((calmer, _)) = share(question, &used, &requests) else { return Ok(proposal(question.current)) };
    // What was guessed must not turn the direction round.
    let turned = (ratio < 1.0 && calmer > 1.0) || (ratio > 1.0 && calmer < 1.0);
    if question.tolerance.covers(calmer) || turned {
        return Ok(proposal(question.current));
    }
    let replicas = ceil(calmer * used.len() as f64);
    let against = (calmer < 1.0 && replicas > question.current) || (calmer > 1.0 && replicas < question.current);
    Ok(proposal(if against { question.current } else { replicas }))
}

/// The number of replicas for a metric of one object (or from outside), which is not the pods' own.
pub fn propose_for_value(question: &Question<'_>, value: i64, target: i64, ready: usize) -> i32 {
    if target <= 0 {
        return question.current;
    }
    let ratio = value as f64 / target as f64;
    if question.current == 0 {
        return ceil(ratio);
    }
    if question.tolerance.covers(ratio) { question.current } else { ceil(ratio * ready as f64) }
}

/// The number of replicas where each should have this much of the whole.
pub fn propose_for_average(question: &Question<'_>, value: i64, target: i64) -> i32 {
    if target <= 0 {
        return question.current;
    }
    let ratio = value as f64 / (target as f64 * f64::from(question.current.max(1)));
    if question.current > 0 && question.tolerance.covers(ratio) { question.current } else { ceil(value as f64 / target as f64) }
}

fn ceil(number: f64) -> i32 {
    // A hair above a whole number is that number.
    (number - 1e-9).ceil().clamp(0.0, f64::from(i32::MAX)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, pod};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    /// Pods as `state:used`, all requesting 1000; `-` says nothing.
    fn run(words: &str, target: Target, current: i32) -> Result<(i32, Option<i32>), String> {
        let mut pods = Vec::new();
        let mut readings = Readings::new();
        for (index, word) in words.split_whitespace().enumerate() {
            let (state, used) = word.split_once(':').expect("state:used");
            let name = format!("p{index}");
            let phase = if state == "pending" { "Pending" } else { "Running" };
            let mut pod = pod(&name, "n", phase, (state == "ready").then_some(1));
            pod.status.as_mut().unwrap().start_time = Some(Time(at(if state == "starting" { 9_900 } else { 0 })));
            let containers = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}]);
            pod.spec.as_mut().unwrap().containers = serde_json::from_value(containers).unwrap();
            if let Ok(milli) = used.parse() {
                readings.insert(name, Reading { milli, at: at(9_990), window: Duration::from_secs(15) });
            }
            pods.push(pod);
        }
        let pods: Vec<&Pod> = pods.iter().collect();
        let tolerance = Tolerance { up: 0.1, down: 0.1 };
        let question = Question { current, target, resource: Some("cpu"), container: None, tolerance, pods: &pods, now: at(10_000) };
        propose(&question, &readings).map(|proposal| (proposal.replicas, proposal.utilization))
    }

    #[test]
    fn the_share_of_the_target_decides() {
        let half = Target::Utilization(50);
        assert_eq!(run("ready:500 ready:500", half, 2), Ok((2, Some(50))));
        assert_eq!(run("ready:540 ready:540", half, 2), Ok((2, Some(54))), "within the tolerance");
        assert_eq!(run("ready:1000 ready:1000", half, 2), Ok((4, Some(100))));
        assert_eq!(run("ready:100 ready:100 ready:100 ready:100", half, 4), Ok((1, Some(10))));
        assert_eq!(run("ready:300 ready:600", Target::Average(300), 2), Ok((3, None)));
    }

    #[test]
    fn who_says_nothing_makes_it_calmer() {
        let half = Target::Utilization(50);
        // Up: the silent one counts as idle. Down: it counts as fully used.
        assert_eq!(run("ready:1000 ready:1000 ready:-", half, 3), Ok((4, Some(100))));
        assert_eq!(run("ready:100 ready:100 ready:-", half, 3), Ok((3, Some(10))));
        assert_eq!(run("ready:1000 pending:-", half, 2), Ok((2, Some(100))));
        assert_eq!(run("ready:1000 starting:2000", half, 2), Ok((2, Some(100))), "one that starts is not believed");
        assert!(run("pending:-", half, 1).is_err());
        assert!(run("ready:-", half, 1).is_err());
    }
}
