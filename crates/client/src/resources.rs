//! Amounts of resources as plain integers, and what a pod asks for in them: what the scheduler finds room for, and what the
//! node that takes the pod counts once more.
//!
//! Quantities are parsed once, when a pod or node arrives; every later comparison in a cycle is integer arithmetic.
//! CPU is in thousandths of a core, everything else in its own unit.
//!
//! What must stay true: an amount that is kept up by adding and subtracting the same pod comes back to where it was,
//! and a quantity that can't be read counts as zero here (the API server has already refused it there).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What a container that asks for no CPU is taken to use when nodes are compared, in thousandths of a core.
pub const ASSUMED_CPU_MILLI: i64 = 100;
/// What a container that asks for no memory is taken to use when nodes are compared.
pub const ASSUMED_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// An amount of every resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of node-local storage.
    pub ephemeral_storage: i64,
    /// Everything else by name: huge pages, extended resources.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a resource list; `pods` is not an amount that a pod asks for and is left out.
    pub fn of(list: Option<&BTreeMap<String, Quantity>>) -> Resources {
        let mut resources = Resources::default();
        for (name, quantity) in list.into_iter().flatten() {
            if name != "pods" {
                resources.set(name, amount(name, quantity));
            }
        }
        resources
    }

    /// The amount of the resource `name`.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu_milli,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            _ => self.others.get(name).copied().unwrap_or(0),
        }
    }

    /// Sets the amount of the resource `name`.
    pub fn set(&mut self, name: &str, amount: i64) {
        match name {
            "cpu" => self.cpu_milli = amount,
            "memory" => self.memory = amount,
            "ephemeral-storage" => self.ephemeral_storage = amount,
            _ => {
                self.others.insert(name.to_owned(), amount);
            }
        }
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Resources) {
        self.combine(other, |mine, theirs| mine.saturating_add(theirs));
    }

    /// Takes `other` away again.
    pub fn subtract(&mut self, other: &Resources) {
        self.combine(other, |mine, theirs| mine.saturating_sub(theirs));
    }

    /// Raises every amount to at least that of `other`.
    pub fn raise_to(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    /// Whether nothing at all is asked for.
    pub fn is_zero(&self) -> bool {
        self.cpu_milli == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.others.values().all(|amount| *amount == 0)
    }

    fn combine(&mut self, other: &Resources, join: impl Fn(i64, i64) -> i64) {
        self.cpu_milli = join(self.cpu_milli, other.cpu_milli);
        self.memory = join(self.memory, other.memory);
        self.ephemeral_storage = join(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.others {
            let mine = self.others.entry(name.clone()).or_insert(0);
            *mine = join(*mine, *amount);
        }
    }
}

/// The integer amount of one quantity: thousandths for `cpu`, units (rounded up) for all else.
pub fn amount(name: &str, quantity: &Quantity) -> i64 {
    let Ok(parsed) = api::quantity::Quantity::parse(&quantity.0) else {
        return 0;
    };
    if name == "cpu" { parsed.milli() } else { parsed.value() }
}

/// What a pod needs from its node: the larger of what its containers need together while it runs and what any init
/// container needs while it starts (with the sidecars before it), replaced by the pod's own resources where it names
/// them, plus the overhead of its runtime class.
pub fn requests(pod: &Pod) -> Resources {
    requests_with(pod, |_| {})
}

/// The same with an assumption for containers that name no CPU or memory, for comparing nodes: (CPU in thousandths,
/// memory in bytes).
pub fn assumed_requests(pod: &Pod) -> (i64, i64) {
    let with_assumptions = requests_with(pod, |container| {
        if container.cpu_milli == 0 {
            container.cpu_milli = ASSUMED_CPU_MILLI;
        }
        if container.memory == 0 {
            container.memory = ASSUMED_MEMORY_BYTES;
        }
    });
    (with_assumptions.cpu_milli, with_assumptions.memory)
}

fn requests_with(pod: &Pod, assume: impl Fn(&mut Resources)) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let status = pod.status.as_ref();
    let statuses = status.and_then(|status| status.container_statuses.as_deref());
    let init_statuses = status.and_then(|status| status.init_container_statuses.as_deref());

    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is_infeasible = conditions.iter().any(|condition| condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible"));

    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of_container(container, statuses, is_infeasible, &assume));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut step = of_container(container, init_statuses, is_infeasible, &assume);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&step);
            sidecars.add(&step);
            starting.raise_to(&sidecars);
        } else {
            step.add(&sidecars);
            starting.raise_to(&step);
        }
    }
    running.raise_to(&starting);
    if let Some(whole) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        for (name, quantity) in whole {
            running.set(name, amount(name, quantity));
        }
    }
    running.add(&Resources::of(spec.overhead.as_ref()));
    running
}

/// A container's requests; while it is being resized in place, the larger of what is wanted and what it has. What its node has
/// refused for good is not wanted from anybody.
fn of_container(container: &Container, statuses: Option<&[ContainerStatus]>, is_infeasible: bool, assume: &impl Fn(&mut Resources)) -> Resources {
    let requests_of = |resources: Option<&ResourceRequirements>| Resources::of(resources.and_then(|resources| resources.requests.as_ref()));
    let mut resources = requests_of(container.resources.as_ref());
    let status = statuses.into_iter().flatten().find(|status| status.name == container.name);
    if let Some(status) = status {
        if is_infeasible && status.allocated_resources.is_some() {
            resources = Resources::default();
        }
        resources.raise_to(&requests_of(status.resources.as_ref()));
        resources.raise_to(&Resources::of(status.allocated_resources.as_ref()));
    }
    assume(&mut resources);
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": spec})).expect("a pod")
    }

    fn container(name: &str, cpu: &str) -> serde_json::Value {
        serde_json::json!({"name": name, "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn init_containers_count_by_the_largest_step_and_sidecars_stay() {
        let mut sidecar = container("sidecar", "200m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = pod(serde_json::json!({
            "initContainers": [container("first", "900m"), sidecar, container("second", "800m")],
            "containers": [container("main", "500m")],
            "overhead": {"cpu": "50m"},
        }));
        // first: 900; second with sidecar: 1000; running with sidecar: 700.
        assert_eq!(requests(&pod).cpu_milli, 1050);
    }

    #[test]
    fn a_pod_that_is_resized_counts_with_what_it_has_and_wants_but_not_with_what_is_refused_for_good() {
        let mut pod = pod(serde_json::json!({"containers": [container("a", "4")]}));
        let status = |reason: &str| {
            serde_json::from_value(serde_json::json!({
                "containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "2"}}}],
                "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
            }))
            .expect("a status")
        };
        pod.status = Some(status("Deferred"));
        assert_eq!(requests(&pod).cpu_milli, 4000);
        pod.status = Some(status("Infeasible"));
        assert_eq!(requests(&pod).cpu_milli, 2000);
    }

    #[test]
    fn pod_level_resources_replace_the_sum() {
        let pod = pod(serde_json::json!({
            "resources": {"requests": {"cpu": "2", "memory": "1Gi"}},
            "containers": [container("a", "100m"), container("b", "100m")],
        }));
        assert_eq!(requests(&pod).cpu_milli, 2000);
        assert_eq!(requests(&pod).memory, 1 << 30);
    }

    #[test]
    fn nothing_asked_for_is_zero_but_assumed_when_comparing() {
        let pod = pod(serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        assert!(requests(&pod).is_zero());
        assert_eq!(assumed_requests(&pod), (2 * ASSUMED_CPU_MILLI, 2 * ASSUMED_MEMORY_BYTES));
    }

    #[test]
    fn adding_and_subtracting_comes_back() {
        let one = Resources { cpu_milli: 5, memory: 7, others: [("example.com/gpu".to_owned(), 2)].into(), ..Default::default() };
        let mut sum = one.clone();
        sum.add(&one);
        assert_eq!(sum.get("example.com/gpu"), 4);
        sum.subtract(&one);
        assert_eq!(sum, one);
    }
}
