//! How often probes have been answered and how: `/metrics/probes`.
//!
//! What must stay true: the series of a pod go with its worker, so their number is bounded by the pods of the node.

use crate::probes::{Kind, Outcome};
use k8s_openapi::api::core::v1::ObjectReference;
use parking_lot::Mutex;
use std::{collections::BTreeMap, fmt::Write};

/// A pod's UID, and the other labels as they are written.
type Series = (String, String);

static COUNTS: Mutex<BTreeMap<Series, u64>> = Mutex::new(BTreeMap::new());

/// Counts one answer of a container of the pod that `reference` points to.
pub fn count(reference: &ObjectReference, container: &str, kind: Kind, outcome: &Outcome) {
    let result = match outcome {
        Outcome::Success => "successful",
        Outcome::Failure(_) => "failed",
        Outcome::Error(_) => "unknown",
    };
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let uid = text(&reference.uid);
    let labels = format!(
        "container=\"{container}\",namespace=\"{}\",pod=\"{}\",pod_uid=\"{uid}\",probe_type=\"{}\",result=\"{result}\"",
        text(&reference.namespace),
        text(&reference.name),
        kind.title()
    );
    *COUNTS.lock().entry((uid, labels)).or_default() += 1;
}

/// Forgets a pod.
pub fn forget(uid: &str) {
    COUNTS.lock().retain(|(known, _), _| known != uid);
}

/// In Prometheus' text form.
pub fn render() -> String {
    let mut out = String::from(
        "# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.\n# TYPE prober_probe_total counter\n",
    );
    for ((_, labels), count) in COUNTS.lock().iter() {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "prober_probe_total{{{labels}}} {count}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_until_their_pod_has_gone() {
        let reference =
            ObjectReference { uid: Some("u-probed".into()), namespace: Some("ns".into()), name: Some("web".into()), ..Default::default() };
        count(&reference, "a", Kind::Readiness, &Outcome::Success);
        count(&reference, "a", Kind::Readiness, &Outcome::Success);
        count(&reference, "a", Kind::Liveness, &Outcome::Failure("no".into()));
        let text = render();
        let series = |kind: &str, result: &str| {
            format!(
                "prober_probe_total{{container=\"a\",namespace=\"ns\",pod=\"web\",pod_uid=\"u-probed\",probe_type=\"{kind}\",result=\"{result}\"}}"
            )
        };
        assert!(text.contains(&format!("{} 2\n", series("Readiness", "successful"))), "{text}");
        assert!(text.contains(&format!("{} 1\n", series("Liveness", "failed"))), "{text}");
        forget("u-probed");
        assert!(!render().contains("u-probed"));
    }
}
