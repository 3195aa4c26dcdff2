//! From what a Pod says to what the runtime is told: pure translations, no I/O.
//!
//! [`resources`] (QoS and cgroup figures), [`security`], [`env`], [`sandbox`], [`container`]. What must stay true: the
//! same pod always gives the same configuration, and labels and annotations carry all that the agent needs to take up
//! its containers again after it was restarted.

pub mod container;
pub mod env;
pub mod referred;
pub mod resources;
pub mod sandbox;
pub mod security;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// Labels and annotations on sandboxes and containers, by the names that every tool around CRI knows.
pub mod names {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const POD_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
    /// The resources that the container was made with.
    pub const RESOURCES: &str = "regent.dev/resources";
    /// Where on the node the container's termination message file is.
    pub const TERMINATION_MESSAGE_FILE: &str = "regent.dev/termination-message-file";
}

/// Which part of the pod a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Runs to its end before the next one.
    Init,
    /// An init container that restarts always: runs beside the rest until they are done.
    Sidecar,
    Regular,
    /// Added for debugging; never restarted, never counted.
    Ephemeral,
}

/// A pod's identity, as it is written everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl PodId {
    pub fn of(pod: &Pod) -> PodId {
        PodId {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for PodId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}({})", self.name, self.namespace, self.uid)
    }
}

/// The pod's spec, or an empty one: the API server lets no pod without a spec pass.
pub fn spec_of(pod: &Pod) -> std::borrow::Cow<'_, PodSpec> {
    match &pod.spec {
        Some(spec) => std::borrow::Cow::Borrowed(spec),
        None => std::borrow::Cow::Owned(PodSpec::default()),
    }
}

/// The role of an init container.
pub fn init_role(container: &Container) -> Role {
    if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init }
}

/// All containers that the pod declares, in the order in which they are started, ephemeral ones last.
pub fn containers(pod: &Pod) -> Vec<(Role, Container)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut all = Vec::new();
    for container in spec.init_containers.iter().flatten() {
        all.push((init_role(container), container.clone()));
    }
    for container in &spec.containers {
        all.push((Role::Regular, container.clone()));
    }
    for ephemeral in spec.ephemeral_containers.iter().flatten() {
        all.push((Role::Ephemeral, ephemeral_as_container(ephemeral)));
    }
    all
}

/// The container of that name, whatever its role.
pub fn find_container(pod: &Pod, name: &str) -> Option<(Role, Container)> {
    containers(pod).into_iter().find(|(_, container)| container.name == name)
}

fn ephemeral_as_container(e: &k8s_openapi::api::core::v1::EphemeralContainer) -> Container {
    Container {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        name: e.name.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..Default::default()
    }
}

/// Where events about this container point to.
pub fn field_path(role: Role, name: &str) -> String {
    let list = match role {
        Role::Init | Role::Sidecar => "initContainers",
        Role::Regular => "containers",
        Role::Ephemeral => "ephemeralContainers",
    };
    format!("spec.{list}{{{name}}}")
}

/// What must not change under a running container; a different hash makes the agent start it anew. Only name and
/// image count: all else that the API lets change is applied in place.
pub fn container_hash(container: &Container) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in container.name.bytes().chain([0]).chain(container.image.as_deref().unwrap_or_default().bytes()) {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:x}")
}

/// The file part of a pod's log directory.
pub fn log_directory_name(id: &PodId) -> String {
    format!("{}_{}_{}", id.namespace, id.name, id.uid)
}

/// Whether the pod uses the node's own network.
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

#[cfg(test)]
pub mod testing {
    //! Pods for tests, from JSON as a user writes it.
    use k8s_openapi::api::core::v1::Pod;

    /// A pod of the given spec, named `web` in `default`.
    pub fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": "web", "namespace": "default", "uid": "u-1", "generation": 1 },
            "spec": spec,
        }))
        .expect("a test's pod is well-formed")
    }
}
