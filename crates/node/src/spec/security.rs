//! Security contexts: the pod's, overridden by the container's, as the runtime takes them.

use cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, SeLinuxOption,
    SecurityProfile, security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext};

/// Parts of /proc that no unprivileged container may read, or write.
const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A container that must not be started as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageRunsAsRoot { pod: String, container: String },
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RunsAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    UnknownUser { user: String, pod: String, container: String },
}

fn int64(value: i64) -> Int64Value {
    Int64Value { value }
}

fn seccomp(profile: Option<&SeccompProfile>) -> SecurityProfile {
    let (profile_type, localhost_ref) = match profile {
        Some(p) if p.type_ == "RuntimeDefault" => (ProfileType::RuntimeDefault, String::new()),
        Some(p) if p.type_ == "Localhost" => (ProfileType::Localhost, p.localhost_profile.clone().unwrap_or_default()),
        _ => (ProfileType::Unconfined, String::new()),
    };
    SecurityProfile { profile_type: profile_type.into(), localhost_ref }
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<SeLinuxOption> {
    options.map(|o| SeLinuxOption {
        user: o.user.clone().unwrap_or_default(),
        role: o.role.clone().unwrap_or_default(),
        r#type: o.type_.clone().unwrap_or_default(),
        level: o.level.clone().unwrap_or_default(),
    })
}

fn namespaces(pod: &Pod) -> NamespaceOption {
    let spec = super::spec_of(pod);
    let mode = |host: Option<bool>| if host.unwrap_or(false) { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = if spec.host_pid.unwrap_or(false) {
        NamespaceMode::Node
    } else if spec.share_process_namespace.unwrap_or(false) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption { network: mode(spec.host_network).into(), pid: pid.into(), ipc: mode(spec.host_ipc).into(), ..Default::default() }
}

fn supplemental_groups(context: Option<&PodSecurityContext>) -> Vec<i64> {
    let Some(context) = context else { return Vec::new() };
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group);
    groups
}

/// The sandbox's context: the pod's own words only.
pub fn sandbox_context(pod: &Pod) -> LinuxSandboxSecurityContext {
    let spec = super::spec_of(pod);
    let context = spec.security_context.as_ref();
    let privileged = super::containers(pod).iter().any(|(_, container)| is_privileged(container));
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: context.and_then(|c| c.run_as_user).map(int64),
        run_as_group: context.and_then(|c| c.run_as_user.and(c.run_as_group)).map(int64),
        supplemental_groups: supplemental_groups(context),
        selinux_options: selinux(context.and_then(|c| c.se_linux_options.as_ref())),
        privileged,
        seccomp: Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() }),
        ..Default::default()
    }
}

/// Kernel parameters that belong to a pod alone and can harm no other.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Why a pod may not set the kernel parameters that it wants to, if it may not. `allowed` are those that the node's owner
/// allows beside the safe ones.
pub fn forbidden_sysctl(pod: &Pod, allowed: &[String]) -> Option<String> {
    let spec = super::spec_of(pod);
    let is_allowed = |name: &str| {
        let mut patterns = SAFE_SYSCTLS.into_iter().chain(allowed.iter().map(String::as_str));
        patterns.any(|pattern| pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix)))
    };
    spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten()).find_map(|sysctl| {
        let name = sysctl.name.replace('/', ".");
        let is_of_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix));
        if !is_allowed(&name) {
            Some(format!("forbidden sysctl: \"{name}\" not allowlisted"))
        } else if name.starts_with("net.") && spec.host_network.unwrap_or(false) {
            Some(format!("forbidden sysctl: \"{name}\" not allowed with host net enabled"))
        } else if is_of_ipc && spec.host_ipc.unwrap_or(false) {
            Some(format!("forbidden sysctl: \"{name}\" not allowed with host ipc enabled"))
        } else {
            None
        }
    })
}

/// Whether the container runs with all rights.
pub fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false)
}

/// The user that the container will run as: its own word, the pod's, or the image's.
pub fn effective_user(pod: &Pod, container: &Container) -> Option<i64> {
    let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
    own.or_else(|| super::spec_of(pod).security_context.as_ref().and_then(|context| context.run_as_user))
}

/// Refuses a container that would run as root though it must not.
pub fn check_non_root(pod: &Pod, container: &Container, image_user: Option<i64>, image_user_name: &str) -> Result<(), Error> {
    let own = container.security_context.as_ref().and_then(|context| context.run_as_non_root);
    let pods = super::spec_of(pod).security_context.as_ref().and_then(|context| context.run_as_non_root);
    if !own.or(pods).unwrap_or(false) {
        return Ok(());
    }
    let (pod_name, name) = (super::PodId::of(pod).to_string(), container.name.clone());
    match effective_user(pod, container) {
        Some(0) => Err(Error::RunsAsRoot { pod: pod_name, container: name }),
        Some(_) => Ok(()),
        None if !image_user_name.is_empty() => Err(Error::UnknownUser { user: image_user_name.into(), pod: pod_name, container: name }),
        None if image_user.unwrap_or(0) == 0 => Err(Error::ImageRunsAsRoot { pod: pod_name, container: name }),
        None => Ok(()),
    }
}

/// The container's context, with the pod's where it says nothing. `image_user` is what the image asks for.
pub fn container_context(pod: &Pod, container: &Container, image_user: Option<i64>, image_user_name: &str) -> LinuxContainerSecurityContext {
    let spec = super::spec_of(pod);
    let pods = spec.security_context.as_ref();
    let empty = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&empty);
    let privileged = own.privileged.unwrap_or(false);
    let user = effective_user(pod, container);
    let group = own.run_as_group.or_else(|| pods.and_then(|c| c.run_as_group));
    let hide_proc = !privileged && own.proc_mount.as_deref() != Some("Unmasked");
    let paths = |list: &[&str]| if hide_proc { list.iter().map(|path| (*path).to_owned()).collect() } else { Vec::new() };
    LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|c| Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        selinux_options: selinux(own.se_linux_options.as_ref().or_else(|| pods.and_then(|c| c.se_linux_options.as_ref()))),
        run_as_user: match (user, image_user) {
            (Some(user), _) => Some(int64(user)),
            (None, Some(user)) if image_user_name.is_empty() => Some(int64(user)),
            _ => None,
        },
        run_as_group: group.map(int64),
        run_as_username: if user.is_none() { image_user_name.to_owned() } else { String::new() },
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: supplemental_groups(pods),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED_PATHS),
        readonly_paths: paths(READONLY_PATHS),
        seccomp: Some(if privileged {
            seccomp(None)
        } else {
            seccomp(own.seccomp_profile.as_ref().or_else(|| pods.and_then(|c| c.seccomp_profile.as_ref())))
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
    fn the_container_overrides_the_pod() {
        let pod = pod(json!({
            "securityContext": { "runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [3000] },
            "containers": [{ "name": "a", "securityContext": { "runAsUser": 7, "allowPrivilegeEscalation": false } }, { "name": "b" }],
        }));
        let containers = &pod.spec.as_ref().unwrap().containers;
        let own = container_context(&pod, &containers[0], Some(0), "");
        assert_eq!(own.run_as_user.unwrap().value, 7);
        assert!(own.no_new_privs);
        assert_eq!(own.supplemental_groups, [3000, 2000]);
        assert_eq!(container_context(&pod, &containers[1], None, "www").run_as_user.unwrap().value, 1000);
    }

    #[test]
    fn only_safe_and_allowed_kernel_parameters_are_set() {
        let with = |more: serde_json::Value, name: &str| {
            let mut spec = json!({ "containers": [], "securityContext": { "sysctls": [{ "name": name, "value": "1" }] } });
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            pod(spec)
        };
        let allowed = ["kernel.msg*".to_owned()];
        assert_eq!(forbidden_sysctl(&with(json!({}), "kernel.shm_rmid_forced"), &[]), None);
        assert_eq!(forbidden_sysctl(&with(json!({}), "kernel.msgmax"), &[]).unwrap(), "forbidden sysctl: \"kernel.msgmax\" not allowlisted");
        assert_eq!(forbidden_sysctl(&with(json!({}), "kernel/msgmax"), &allowed), None);
        let host = with(json!({ "hostNetwork": true }), "net.ipv4.tcp_syncookies");
        assert!(forbidden_sysctl(&host, &allowed).unwrap().ends_with("not allowed with host net enabled"));
    }

    #[test]
    fn non_root_is_checked_against_the_image() {
        let pod = pod(json!({ "securityContext": { "runAsNonRoot": true }, "containers": [{ "name": "a" }] }));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert!(matches!(check_non_root(&pod, container, Some(0), ""), Err(Error::ImageRunsAsRoot { .. })));
        assert!(matches!(check_non_root(&pod, container, None, "www"), Err(Error::UnknownUser { .. })));
        assert!(check_non_root(&pod, container, Some(101), "").is_ok());
    }
}
