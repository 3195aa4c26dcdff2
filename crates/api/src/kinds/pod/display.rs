//! What a row of `kubectl get pods` says about a pod.

use crate::{
    kinds::values::{flag, int, list, member, text},
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};
use std::collections::HashSet;

/// The state of a pod in one word, and its counts.
pub struct Summary {
    pub reason: String,
    pub ready: usize,
    pub total: usize,
    pub restarts: i64,
    /// When a container last ended before it was restarted, in seconds since 1970.
    pub last_restart_unix_s: Option<i64>,
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    list(status, "conditions").iter().find(|c| text(c, "type") == kind)
}
fn is_true(status: &Value, kind: &str) -> bool {
    condition(status, kind).is_some_and(|c| text(c, "status") == "True")
}
/// `Signal:9`, `ExitCode:1` or the reason of an ended container.
fn ended(terminated: &Value) -> String {
    match (text(terminated, "reason"), int(terminated, "signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_string(),
    }
}
fn state<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    member(status.get("state")?, name)
}
fn last_ended(status: &Value) -> Option<i64> {
    status.str_at("lastState.terminated.finishedAt").and_then(table::unix_s)
}

/// Sums up a pod.
pub fn summary(pod: &Value) -> Summary {
    let nothing = Value::Null;
    let (spec, status) = (pod.get("spec").unwrap_or(&nothing), pod.get("status").unwrap_or(&nothing));
    let phase = text(status, "phase");
    let mut reason = if text(status, "reason").is_empty() { phase } else { text(status, "reason") }.to_string();
    if condition(status, "PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let sidecars = || list(spec, "initContainers").iter().filter(|c| text(c, "restartPolicy") == "Always").map(|c| text(c, "name"));
    let is_sidecar: HashSet<&str> = sidecars().collect();
    let total = list(spec, "containers").len() + sidecars().count();
    let (mut ready, mut restarts, mut last) = (0, 0, None);
    let (mut sidecar_restarts, mut sidecar_last) = (0, None);
    let mut initializing = false;
    for (i, container) in list(status, "initContainerStatuses").iter().enumerate() {
        restarts += int(container, "restartCount").unwrap_or(0);
        last = last.max(last_ended(container));
        let sidecar = is_sidecar.contains(text(container, "name"));
        if sidecar {
            sidecar_restarts += int(container, "restartCount").unwrap_or(0);
            sidecar_last = sidecar_last.max(last_ended(container));
        }
        let terminated = state(container, "terminated");
        if terminated.is_some_and(|t| int(t, "exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if sidecar && flag(container, "started") {
            ready += usize::from(flag(container, "ready"));
            continue;
        }
        let waiting = state(container, "waiting").map(|w| text(w, "reason")).unwrap_or_default();
        reason = match terminated {
            Some(terminated) => format!("Init:{}", ended(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", list(spec, "initContainers").len()),
        };
        initializing = true;
        break;
    }
    if !initializing || is_true(status, "Initialized") {
        (restarts, last) = (sidecar_restarts, sidecar_last);
        let mut running = false;
        for container in list(status, "containerStatuses").iter().rev() {
            restarts += int(container, "restartCount").unwrap_or(0);
            last = last.max(last_ended(container));
            let waiting = state(container, "waiting").map(|w| text(w, "reason")).unwrap_or_default();
            if !waiting.is_empty() {
                reason = waiting.into();
            } else if let Some(terminated) = state(container, "terminated") {
                reason = ended(terminated);
            } else if flag(container, "ready") && state(container, "running").is_some() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            reason = if is_true(status, "Ready") { "Running".into() } else { "NotReady".into() };
        }
    }
    if pod.deletion_timestamp().is_some() {
        if text(status, "reason") == "NodeLost" {
            reason = "Unknown".into();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            reason = "Terminating".into();
        }
    }
    Summary { reason, ready, total, restarts, last_restart_unix_s: last }
}

/// The cells of a pod's row.
pub fn cells(pod: &Value, now_unix_s: i64) -> Vec<Value> {
    let nothing = Value::Null;
    let (spec, status) = (pod.get("spec").unwrap_or(&nothing), pod.get("status").unwrap_or(&nothing));
    let sum = summary(pod);
    let restarts = match sum.last_restart_unix_s {
        Some(at) if sum.restarts != 0 => format!("{} ({} ago)", sum.restarts, table::human_duration(now_unix_s.saturating_sub(at))),
        _ => sum.restarts.to_string(),
    };
    let or_none = |text: &str| if text.is_empty() { json!("<none>") } else { json!(text) };
    let ip = list(status, "podIPs").first().map(|ip| text(ip, "ip")).filter(|ip| !ip.is_empty()).unwrap_or_else(|| text(status, "podIP"));
    let gates = list(spec, "readinessGates");
    let gates_text = if gates.is_empty() {
        json!("<none>")
    } else {
        let met = gates.iter().filter(|gate| is_true(status, text(gate, "conditionType"))).count();
        json!(format!("{met}/{}", gates.len()))
    };
    vec![
        table::name(pod),
        json!(format!("{}/{}", sum.ready, sum.total)),
        json!(sum.reason),
        json!(restarts),
        table::age(pod, now_unix_s),
        or_none(ip),
        or_none(text(spec, "nodeName")),
        or_none(text(status, "nominatedNodeName")),
        gates_text,
    ]
}
