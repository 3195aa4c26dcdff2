//! One container's configuration for the runtime.

use super::{PodId, container_hash, env, names, resources, sandbox, security};
use cri::v1::{ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig, Mount, MountPropagation};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashMap;

/// What is known about the image that the container runs from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The reference to run, as the runtime resolved it.
    pub reference: String,
    pub user: Option<i64>,
    pub user_name: String,
}

/// A directory or file of the node, at its place in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bind {
    pub host_path: String,
    pub container_path: String,
    pub read_only: bool,
    pub propagation: Option<String>,
}

/// All that the configuration is made from beside the pod.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    pub attempt: u32,
    pub image: Image,
    pub environment: Vec<(String, String)>,
    pub binds: Vec<Bind>,
    /// Where the termination message will be written on the node.
    pub termination_message_file: String,
    pub node_memory_bytes: i64,
}

/// The path of a container's log below the pod's log directory.
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// Where the container writes its last words.
pub fn termination_message_path(container: &Container) -> String {
    container.termination_message_path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/dev/termination-log".into())
}

fn mount(bind: &Bind) -> Mount {
    let propagation = match bind.propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    };
    Mount {
        container_path: bind.container_path.clone(),
        host_path: bind.host_path.clone(),
        readonly: bind.read_only,
        propagation: propagation.into(),
        ..Default::default()
    }
}

/// The configuration of one attempt to run a container.
pub fn config(pod: &Pod, container: &Container, parts: &Parts) -> ContainerConfig {
    let id = PodId::of(pod);
    let spec = super::spec_of(pod);
    let known: HashMap<&str, &str> = parts.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| env::expand(text, |name| known.get(name).map(|value| (*value).to_owned()))).collect()
    };
    let mut labels = sandbox::labels(&id);
    labels.insert(names::CONTAINER_NAME.into(), container.name.clone());
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".into());
    let annotations = HashMap::from([
        (names::CONTAINER_HASH.to_owned(), container_hash(container)),
        (names::RESTART_COUNT.to_owned(), parts.attempt.to_string()),
        (names::TERMINATION_MESSAGE_PATH.to_owned(), termination_message_path(container)),
        (names::TERMINATION_MESSAGE_POLICY.to_owned(), policy),
        (names::TERMINATION_MESSAGE_FILE.to_owned(), parts.termination_message_file.clone()),
        (names::POD_GRACE_PERIOD.to_owned(), grace.to_string()),
        (names::RESOURCES.to_owned(), serde_json::to_string(&container.resources.clone().unwrap_or_default()).unwrap_or_default()),
    ]);
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: parts.attempt }),
        image: Some(ImageSpec {
            image: parts.image.reference.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: parts.environment.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts: parts.binds.iter().map(mount).collect(),
        labels,
        annotations,
        log_path: log_path(&container.name, parts.attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::container_resources(pod, container, parts.node_memory_bytes)),
            security_context: Some(security::container_context(pod, container, parts.image.user, &parts.image.user_name)),
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::pod;
    use serde_json::json;

    #[test]
    fn commands_are_expanded_and_labels_are_enough_to_find_it_again() {
        let pod = pod(json!({ "containers": [{ "name": "a", "image": "busybox", "command": ["sh", "-c", "echo $(X)"] }] }));
        let parts = Parts { attempt: 3, environment: vec![("X".into(), "y".into())], ..Default::default() };
        let config = config(&pod, &pod.spec.as_ref().unwrap().containers[0], &parts);
        assert_eq!(config.command, ["sh", "-c", "echo y"]);
        assert_eq!(config.log_path, "a/3.log");
        assert_eq!(config.annotations[names::RESTART_COUNT], "3");
        assert_eq!(config.labels[names::POD_UID], "u-1");
    }
}
