//! The rules of the Pod Security Standards, each a function of the pod and the rules' version.
//!
//! Findings come in Kubernetes' order: the rules of `baseline`, then those that `restricted` adds, each by name. A stricter
//! rule on the same thing takes the place of the other.

use api::{Value, object::ObjectExt};
use std::collections::BTreeSet;

/// How much pods may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub(super) fn parse(text: &str) -> Option<Level> {
        [Level::Privileged, Level::Baseline, Level::Restricted].into_iter().find(|level| level.name() == text)
    }
    pub(super) fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// A rule that a pod breaks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub reason: &'static str,
    pub detail: String,
}

fn found(reason: &'static str, detail: impl Into<String>) -> Option<Finding> {
    Some(Finding { reason, detail: detail.into() })
}

/// All findings for a pod at a level, under the rules of Kubernetes 1.`minor`.
pub(super) fn run(level: Level, minor: u32, metadata: &Value, spec: &Value) -> Vec<Finding> {
    let restricted = level == Level::Restricted;
    let windows = spec.str_at("os.name") == Some("windows") && minor >= 25;
    let mut findings = Vec::new();
    if level >= Level::Baseline {
        findings.extend(app_armor(metadata, spec));
        findings.extend(if restricted && minor >= 22 { None } else { default_capabilities(spec) });
        findings.extend(host_namespaces(spec));
        findings.extend(if restricted { None } else { host_path(spec) });
        findings.extend(host_ports(spec));
        findings.extend(if minor >= 34 { probe_hosts(spec) } else { None });
        findings.extend(privileged(spec));
        findings.extend(proc_mount(spec));
        findings.extend(selinux(spec, minor));
        findings.extend(if restricted && minor >= 19 { None } else { seccomp_unconfined(spec) });
        findings.extend(sysctls(spec, minor));
        findings.extend(windows_host_process(spec));
    }
    if restricted {
        findings.extend(if windows || minor < 8 { None } else { privilege_escalation(spec) });
        findings.extend(if windows || minor < 22 { None } else { drop_capabilities(spec) });
        findings.extend(volume_types(spec));
        findings.extend(run_as_non_root(spec));
        findings.extend(if minor >= 23 { run_as_user(spec) } else { None });
        findings.extend(if windows || minor < 19 { None } else { seccomp_set(spec) });
    }
    findings
}

/// All containers: those that run first, last.
fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| spec.list_at(list))
}

fn name(object: &Value) -> &str {
    object.str_at("name").unwrap_or_default()
}

fn names_where(spec: &Value, breaks: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec).filter(|container| breaks(container)).map(name).collect()
}

fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    names.iter().map(|name| format!("{:?}", name.as_ref())).collect::<Vec<_>>().join(", ")
}

fn plural<'a, T>(one: &'a str, many: &'a str, of: &[T]) -> &'a str {
    if of.len() == 1 { one } else { many }
}

/// `container "a"` or `containers "a", "b"`.
fn named(containers: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", containers), quoted(containers))
}

/// `pod`, containers, or both.
fn setters(pod: bool, containers: &[&str]) -> Option<String> {
    match (pod, containers.is_empty()) {
        (false, true) => None,
        (true, true) => Some("pod".into()),
        (false, false) => Some(named(containers)),
        (true, false) => Some(format!("pod and {}", named(containers))),
    }
}

fn list_text(set: &BTreeSet<String>) -> String {
    quoted(&set.iter().collect::<Vec<_>>())
}

fn app_armor(metadata: &Value, spec: &Value) -> Option<Finding> {
    let unconfined =
        |object: &Value| object.str_at("securityContext.appArmorProfile.type").is_some_and(|kind| !matches!(kind, "RuntimeDefault" | "Localhost"));
    let mut kinds = BTreeSet::new();
    for object in std::iter::once(spec).chain(containers(spec)).filter(|object| unconfined(object)) {
        kinds.insert(object.str_at("securityContext.appArmorProfile.type").unwrap_or_default().to_string());
    }
    if let Some(setters) = setters(unconfined(spec), &names_where(spec, unconfined)) {
        let reason = if kinds.len() > 1 { "forbidden AppArmor profiles" } else { "forbidden AppArmor profile" };
        return found(reason, format!("{setters} must not set AppArmor profile type to {}", list_text(&kinds)));
    }
    let annotations = metadata.map_at("annotations").into_iter().flatten();
    let allowed = |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
    let bad: Vec<String> = annotations
        .filter(|(key, value)| key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !allowed(value.as_str().unwrap_or_default()))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if bad.is_empty() {
        return None;
    }
    found(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", &bad),
        format!("{} {}", plural("annotation", "annotations", &bad), bad.join(", ")),
    )
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    container.list_at("securityContext.capabilities.add").iter().filter_map(Value::as_str)
}

fn forbidden_capabilities<'a>(spec: &'a Value, allowed: &[&str]) -> (Vec<&'a str>, BTreeSet<String>) {
    let bad = |container: &Value| added(container).any(|capability| !allowed.contains(&capability));
    let capabilities = containers(spec).flat_map(added).filter(|capability| !allowed.contains(capability)).map(String::from).collect();
    (names_where(spec, bad), capabilities)
}

fn default_capabilities(spec: &Value) -> Option<Finding> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let (bad, capabilities) = forbidden_capabilities(spec, &ALLOWED);
    if bad.is_empty() {
        return None;
    }
    found("non-default capabilities", format!("{} must not include {} in securityContext.capabilities.add", named(&bad), list_text(&capabilities)))
}

fn drop_capabilities(spec: &Value) -> Option<Finding> {
    let keeps = |container: &Value| !container.list_at("securityContext.capabilities.drop").iter().any(|capability| capability == "ALL");
    let keeping = names_where(spec, keeps);
    let (adding, capabilities) = forbidden_capabilities(spec, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keeping)));
    }
    if !adding.is_empty() {
        details.push(format!("{} must not include {} in securityContext.capabilities.add", named(&adding), list_text(&capabilities)));
    }
    if details.is_empty() { None } else { found("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(spec: &Value) -> Option<Finding> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| spec.bool_at(field) == Some(true))
        .map(|field| format!("{field}=true"))
        .collect();
    if shared.is_empty() { None } else { found("host namespaces", shared.join(", ")) }
}

fn host_path(spec: &Value) -> Option<Finding> {
    let bad: Vec<&str> =
        spec.list_at("volumes").iter().filter(|volume| volume.get("hostPath").is_some_and(|path| !path.is_null())).map(name).collect();
    if bad.is_empty() {
        return None;
    }
    found("hostPath volumes", format!("{} {}", plural("volume", "volumes", &bad), quoted(&bad)))
}

fn host_ports(spec: &Value) -> Option<Finding> {
    let of = |container: &Value| {
        container.list_at("ports").iter().filter_map(|port| port.i64_at("hostPort")).filter(|port| *port != 0).collect::<Vec<_>>()
    };
    let bad = names_where(spec, |container| !of(container).is_empty());
    let ports: BTreeSet<i64> = containers(spec).flat_map(of).collect();
    let ports: Vec<String> = ports.iter().map(i64::to_string).collect();
    if bad.is_empty() {
        return None;
    }
    found("hostPort", format!("{} {} {} {}", named(&bad), plural("uses", "use", &bad), plural("hostPort", "hostPorts", &ports), ports.join(", ")))
}

fn probe_hosts(spec: &Value) -> Option<Finding> {
    const PLACES: [&str; 5] = ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
    let of = |container: &Value| {
        let hosts = PLACES.iter().flat_map(|place| ["httpGet", "tcpSocket"].map(|kind| format!("{place}.{kind}.host")));
        hosts
            .filter_map(|path| container.str_at(&path).map(String::from))
            .filter(|host| !host.is_empty() && host != "127.0.0.1" && host != "::1")
            .collect::<Vec<_>>()
    };
    let bad = names_where(spec, |container| !of(container).is_empty());
    let hosts: BTreeSet<String> = containers(spec).flat_map(of).collect();
    if bad.is_empty() {
        return None;
    }
    let what = if hosts.len() == 1 { "probe or lifecycle host" } else { "probe or lifecycle hosts" };
    found("probe or lifecycle host", format!("{} {} {what} {}", named(&bad), plural("uses", "use", &bad), list_text(&hosts)))
}

fn privileged(spec: &Value) -> Option<Finding> {
    let bad = names_where(spec, |container| container.bool_at("securityContext.privileged") == Some(true));
    if bad.is_empty() { None } else { found("privileged", format!("{} must not set securityContext.privileged=true", named(&bad))) }
}

fn proc_mount(spec: &Value) -> Option<Finding> {
    let mount = |container: &Value| container.str_at("securityContext.procMount").filter(|mount| *mount != "Default").map(String::from);
    let bad = names_where(spec, |container| mount(container).is_some());
    let mounts: BTreeSet<String> = containers(spec).filter_map(mount).collect();
    if bad.is_empty() {
        None
    } else {
        found("procMount", format!("{} must not set securityContext.procMount to {}", named(&bad), list_text(&mounts)))
    }
}

fn selinux(spec: &Value, minor: u32) -> Option<Finding> {
    let allowed =
        |kind: &str| matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t") || kind == "container_engine_t" && minor >= 31;
    let text = |object: &Value, key: &str| object.str_at(&format!("securityContext.seLinuxOptions.{key}")).unwrap_or_default().to_string();
    let breaks = |object: &Value| !allowed(&text(object, "type")) || !text(object, "user").is_empty() || !text(object, "role").is_empty();
    let setters = setters(breaks(spec), &names_where(spec, breaks))?;
    let all: Vec<&Value> = std::iter::once(spec).chain(containers(spec)).filter(|object| breaks(object)).collect();
    let kinds: BTreeSet<String> = all.iter().map(|object| text(object, "type")).filter(|kind| !allowed(kind)).collect();
    let mut details = Vec::new();
    if !kinds.is_empty() {
        details.push(format!("{} {}", if kinds.len() == 1 { "type" } else { "types" }, list_text(&kinds)));
    }
    for key in ["user", "role"] {
        if all.iter().any(|object| !text(object, key).is_empty()) {
            details.push(format!("{key} may not be set"));
        }
    }
    found("seLinuxOptions", format!("{setters} set forbidden securityContext.seLinuxOptions: {}", details.join("; ")))
}

fn seccomp(object: &Value) -> Option<&str> {
    object.str_at("securityContext.seccompProfile.type")
}

fn is_confined(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

/// Who sets a seccomp profile that confines nothing.
fn unconfined(spec: &Value) -> Option<String> {
    let breaks = |object: &Value| seccomp(object).is_some_and(|kind| !is_confined(kind));
    let kinds: BTreeSet<String> = std::iter::once(spec)
        .chain(containers(spec))
        .filter(|object| breaks(object))
        .filter_map(|object| seccomp(object).map(String::from))
        .collect();
    let setters = setters(breaks(spec), &names_where(spec, breaks))?;
    Some(format!("{setters} must not set securityContext.seccompProfile.type to {}", list_text(&kinds)))
}

fn seccomp_unconfined(spec: &Value) -> Option<Finding> {
    found("seccompProfile", unconfined(spec)?)
}

fn seccomp_set(spec: &Value) -> Option<Finding> {
    if let Some(detail) = unconfined(spec) {
        return found("seccompProfile", detail);
    }
    if seccomp(spec).is_some_and(is_confined) {
        return None;
    }
    let open = names_where(spec, |container| seccomp(container).is_none());
    if open.is_empty() {
        return None;
    }
    found("seccompProfile", format!("pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"", named(&open)))
}

fn sysctls(spec: &Value, minor: u32) -> Option<Finding> {
    let allowed = |name: &str| match name {
        "kernel.shm_rmid_forced"
        | "net.ipv4.ip_local_port_range"
        | "net.ipv4.tcp_syncookies"
        | "net.ipv4.ping_group_range"
        | "net.ipv4.ip_unprivileged_port_start" => true,
        "net.ipv4.ip_local_reserved_ports" => minor >= 27,
        "net.ipv4.tcp_keepalive_time" | "net.ipv4.tcp_fin_timeout" | "net.ipv4.tcp_keepalive_intvl" | "net.ipv4.tcp_keepalive_probes" => minor >= 29,
        "net.ipv4.tcp_rmem" | "net.ipv4.tcp_wmem" => minor >= 32,
        _ => false,
    };
    let bad: Vec<&str> = spec.list_at("securityContext.sysctls").iter().map(name).filter(|name| !allowed(name)).collect();
    if bad.is_empty() { None } else { found("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(spec: &Value) -> Option<Finding> {
    let breaks = |object: &Value| object.bool_at("securityContext.windowsOptions.hostProcess") == Some(true);
    let setters = setters(breaks(spec), &names_where(spec, breaks))?;
    found("hostProcess", format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(spec: &Value) -> Option<Finding> {
    let bad = names_where(spec, |container| container.bool_at("securityContext.allowPrivilegeEscalation") != Some(false));
    if bad.is_empty() {
        None
    } else {
        found("allowPrivilegeEscalation != false", format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&bad)))
    }
}

fn volume_types(spec: &Value) -> Option<Finding> {
    const ALLOWED: [&str; 8] = ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    let kind = |volume: &Value| -> Option<String> {
        let sources: Vec<&String> =
            volume.as_object()?.iter().filter(|(key, value)| *key != "name" && !value.is_null()).map(|(key, _)| key).collect();
        sources.iter().find(|kind| !ALLOWED.contains(&kind.as_str())).map(|kind| kind.to_string())
    };
    let bad: Vec<(&str, String)> = spec.list_at("volumes").iter().filter_map(|volume| Some((name(volume), kind(volume)?))).collect();
    let kinds: BTreeSet<String> = bad.iter().map(|(_, kind)| kind.clone()).collect();
    let names: Vec<&str> = bad.iter().map(|(name, _)| *name).collect();
    if bad.is_empty() {
        return None;
    }
    let what = if kinds.len() == 1 { "restricted volume type" } else { "restricted volume types" };
    found(
        "restricted volume types",
        format!("{} {} {} {what} {}", plural("volume", "volumes", &names), quoted(&names), plural("uses", "use", &names), list_text(&kinds)),
    )
}

fn run_as_non_root(spec: &Value) -> Option<Finding> {
    const REASON: &str = "runAsNonRoot != true";
    let field = |object: &Value| object.bool_at("securityContext.runAsNonRoot");
    let explicit = names_where(spec, |container| field(container) == Some(false));
    if !explicit.is_empty() {
        return found(REASON, format!("{} must not set securityContext.runAsNonRoot=false", named(&explicit)));
    }
    if field(spec) == Some(true) {
        return None;
    }
    let silent = names_where(spec, |container| field(container).is_none());
    match (silent.is_empty(), field(spec)) {
        (true, _) => None,
        (false, Some(false)) => found(REASON, "pod must not set securityContext.runAsNonRoot=false"),
        (false, _) => found(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", named(&silent))),
    }
}

fn run_as_user(spec: &Value) -> Option<Finding> {
    let root = |object: &Value| object.i64_at("securityContext.runAsUser") == Some(0);
    let setters = setters(root(spec), &names_where(spec, root))?;
    found("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(level: Level, minor: u32, spec: Value, expected: &[&str]) {
        let findings: Vec<String> =
            run(level, minor, &Value::Null, &spec).iter().map(|finding| format!("{} ({})", finding.reason, finding.detail)).collect();
        assert_eq!(findings, expected);
    }

    #[test]
    fn baseline() {
        let baseline = |spec, expected: &[&str]| check(Level::Baseline, u32::MAX, spec, expected);
        baseline(json!({"containers": [{"name": "c"}]}), &[]);
        baseline(
            json!({"hostNetwork": true, "hostPID": true, "containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}),
            &["host namespaces (hostNetwork=true, hostPID=true)", "hostPort (container \"c\" uses hostPort 80)"],
        );
        baseline(
            json!({"initContainers": [{"name": "x", "securityContext": {"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}}}], "containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["SYS_TIME"]}}}]}),
            &[r#"non-default capabilities (containers "x", "c" must not include "NET_ADMIN", "SYS_TIME" in securityContext.capabilities.add)"#],
        );
        baseline(
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}], "seLinuxOptions": {"user": "u", "type": "spc_t"}}, "containers": [{"name": "c"}]}),
            &[
                r#"seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type "spc_t"; user may not be set)"#,
                "forbidden sysctls (kernel.msgmax)",
            ],
        );
        baseline(
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}, "appArmorProfile": {"type": "Unconfined"}}, "containers": [{"name": "c"}]}),
            &[
                r#"forbidden AppArmor profile (pod must not set AppArmor profile type to "Unconfined")"#,
                r#"seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")"#,
            ],
        );
        baseline(
            json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "1.2.3.4"}}}]}),
            &[r#"probe or lifecycle host (container "c" uses probe or lifecycle host "1.2.3.4")"#],
        );
    }

    #[test]
    fn restricted() {
        let hardened = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
        check(Level::Restricted, u32::MAX, hardened, &[]);
        check(
            Level::Restricted,
            21,
            json!({"containers": [{"name": "c"}]}),
            &[
                r#"allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false)"#,
                r#"runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true)"#,
                r#"seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#,
            ],
        );
        let volume = json!({"containers": [], "volumes": [{"name": "h", "hostPath": {"path": "/"}}, {"name": "e", "emptyDir": {}}]});
        check(Level::Restricted, u32::MAX, volume, &[r#"restricted volume types (volume "h" uses restricted volume type "hostPath")"#]);
    }

    #[test]
    fn privileged_may_everything() {
        check(Level::Privileged, u32::MAX, json!({"hostNetwork": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}]}), &[]);
    }
}
