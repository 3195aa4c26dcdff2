//! SchedulingGates: a pod with `spec.schedulingGates` waits until the last gate is removed.

use crate::framework::{Causes, Plugin};
use crate::pod::PodInfo;

/// The plugin.
pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn gate(&self, pod: &PodInfo) -> Option<String> {
        let gates = pod.pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or(&[]);
        if gates.is_empty() {
            return None;
        }
        let names: Vec<_> = gates.iter().map(|gate| gate.name.as_str()).collect();
        Some(format!("waiting for scheduling gates: [{}]", names.join(" ")))
    }

    fn unblocked_by(&self) -> Causes {
        Causes::POD_ITSELF
    }
}
