//! Security contexts of pods and containers, and what an operating system rules out.

use crate::{
    field::{Errors, Path},
    internal,
    kinds::{
        checks,
        values::{flag, has, int, list, member, text},
    },
    names,
};
use serde_json::Value;

const GMSA_BYTES_MAX: usize = 64 * 1024;
const ID_RANGE: &str = "must be between 0 and 2147483647, inclusive";

fn id(value: Option<i64>, path: Path, errors: &mut Errors) {
    if let Some(value) = value
        && !(0..=i64::from(i32::MAX)).contains(&value)
    {
        errors.invalid(path, value, ID_RANGE);
    }
}

fn profile(parent: &Value, key: &str, path: &Path, errors: &mut Errors) {
    let Some(profile) = member(parent, key) else { return };
    let path = path.child(key);
    let (kind, local) = (text(profile, "type"), text(profile, "localhostProfile"));
    match kind {
        "" => errors.required(
            path.child("type"),
            if key == "seccompProfile" { "type is required when seccompProfile is set" } else { "type is required when appArmorProfile is set" },
        ),
        "Localhost" if local.is_empty() => errors.required(
            path.child("localhostProfile"),
            if key == "seccompProfile" { "must be set when seccomp type is Localhost" } else { "must be set when AppArmor type is Localhost" },
        ),
        "Localhost" if key == "seccompProfile" => super::volumes::relative_path(local, &path.child("localhostProfile"), errors),
        "Localhost" => {}
        "RuntimeDefault" | "Unconfined" => {
            if has(profile, "localhostProfile") {
                let detail = if key == "seccompProfile" {
                    "can only be set when seccomp type is Localhost"
                } else {
                    "can only be set when AppArmor type is Localhost"
                };
                errors.invalid(path.child("localhostProfile"), local, detail);
            }
        }
        other => errors.not_supported(path.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

fn windows_options(parent: &Value, path: &Path, errors: &mut Errors) {
    let Some(options) = member(parent, "windowsOptions") else { return };
    let path = path.child("windowsOptions");
    if let Some(Value::String(name)) = member(options, "gmsaCredentialSpecName") {
        errors.invalid_all(&path.child("gmsaCredentialSpecName"), name.as_str(), names::dns1123_subdomain(name));
    }
    if let Some(Value::String(spec)) = member(options, "gmsaCredentialSpec") {
        let at = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(at, "", "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > GMSA_BYTES_MAX {
            errors.invalid(at, spec.as_str(), &format!("gmsaCredentialSpec size must be under {} KiB", GMSA_BYTES_MAX / 1024));
        }
    }
    if let Some(Value::String(user)) = member(options, "runAsUserName") {
        let at = path.child("runAsUserName");
        let parts: Vec<&str> = user.split('\\').collect();
        let name = parts.last().copied().unwrap_or_default();
        if user.is_empty() {
            errors.invalid(at, "", "runAsUserName cannot be an empty string");
        } else if parts.len() > 2 {
            errors.invalid(at, user.as_str(), "runAsUserName cannot contain more than one backslash");
        } else if name.is_empty() {
            errors.invalid(at, user.as_str(), "runAsUserName's User cannot be empty");
        } else if name.len() > 104 {
            errors.invalid(at, user.as_str(), "runAsUserName's User length must not be longer than 104 characters");
        } else if name.bytes().all(|b| b == b'.' || b == b' ') {
            errors.invalid(at, user.as_str(), "runAsUserName's User cannot contain only periods or spaces");
        } else if name.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
            errors.invalid(at, user.as_str(), "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
        }
    }
}

/// `securityContext` of a container.
pub fn validate_container(container: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(context) = member(container, "securityContext") else { return };
    let path = path.child("securityContext");
    id(int(context, "runAsUser"), path.child("runAsUser"), errors);
    id(int(context, "runAsGroup"), path.child("runAsGroup"), errors);
    if has(context, "procMount") {
        checks::required_one_of(context, "procMount", &["Default", "Unmasked"], &path, errors);
        if text(context, "procMount") == "Unmasked" && spec.get("hostUsers").and_then(Value::as_bool) != Some(false) {
            errors.invalid(path.child("procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
        }
    }
    profile(context, "seccompProfile", &path, errors);
    profile(context, "appArmorProfile", &path, errors);
    if context.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false) {
        if flag(context, "privileged") {
            let shown = internal::show("core.v1.SecurityContext", context);
            errors.invalid_structure(path.clone(), &shown, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let added = context.get("capabilities").map(|c| list(c, "add")).unwrap_or_default();
        if added.iter().any(|c| c == "CAP_SYS_ADMIN") {
            let shown = internal::show("core.v1.SecurityContext", context);
            errors.invalid_structure(path.clone(), &shown, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    windows_options(context, &path, errors);
}

fn sysctl_name(name: &str) -> bool {
    let segment = |s: &str| {
        !s.is_empty()
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
            && s.as_bytes()[0].is_ascii_alphanumeric()
            && s.as_bytes()[s.len() - 1].is_ascii_alphanumeric()
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

/// `securityContext` of a pod, and what the pod shares with its host.
pub fn validate_pod(spec: &Value, path: &Path, errors: &mut Errors) {
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        errors.invalid(path.child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
    if spec.get("hostUsers").and_then(Value::as_bool) == Some(false) {
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            if flag(spec, key) {
                errors.forbidden(path.child(key), &format!("when `hostUsers` is false, `{key}` must be false"));
            }
        }
    }
    if let Some(context) = member(spec, "securityContext") {
        pod_context(context, spec, &path.child("securityContext"), errors);
    }
    host_processes(spec, path, errors);
}

fn pod_context(context: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(int(context, key), path.child(key), errors);
    }
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        id(group.as_i64(), path.child("supplementalGroups").index(i), errors);
    }
    let mut names = vec![];
    for (i, sysctl) in list(context, "sysctls").iter().enumerate() {
        let path = path.child("sysctls").index(i);
        let name = text(sysctl, "name");
        if name.is_empty() {
            errors.required(path.child("name"), "");
        } else if !sysctl_name(name) {
            errors.invalid(
                path.child("name"),
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if names.contains(&name) {
            errors.duplicate(path.child("name"), name);
        }
        if flag(spec, "hostNetwork") && name.starts_with("net.") {
            errors.invalid(path.child("name"), name, "may not be specified when 'hostNetwork' is true");
        }
        if flag(spec, "hostIPC")
            && (name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name == "kernel.sem" || name.starts_with("fs.mqueue."))
        {
            errors.invalid(path.child("name"), name, "may not be specified when 'hostIPC' is true");
        }
        names.push(name);
    }
    checks::one_of(context, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], path, errors);
    checks::one_of(context, "supplementalGroupsPolicy", &["Merge", "Strict"], path, errors);
    checks::one_of(context, "seLinuxChangePolicy", &["Recursive"], path, errors);
    profile(context, "seccompProfile", path, errors);
    profile(context, "appArmorProfile", path, errors);
    windows_options(context, path, errors);
}

/// Containers that are processes of a Windows host: all of a pod or none, in the host's network.
fn host_processes(spec: &Value, path: &Path, errors: &mut Errors) {
    let said =
        |context: Option<&Value>| context.and_then(|c| member(c, "windowsOptions")).and_then(|w| w.get("hostProcess")).and_then(Value::as_bool);
    let pod = said(member(spec, "securityContext"));
    let (mut count, mut total) = (0, 0);
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in list(spec, key).iter().enumerate() {
            total += 1;
            let own = said(member(container, "securityContext"));
            if let (Some(pod), Some(own)) = (pod, own)
                && pod != own
            {
                let at = path.child(key).index(i).child("securityContext").child("windowsOptions").child("hostProcess");
                errors.invalid(at, own, &format!("pod hostProcess value must be identical if both are specified, was {pod}"));
            }
            count += usize::from(own.or(pod) == Some(true));
        }
    }
    if count == 0 {
        return;
    }
    if count != total {
        errors.invalid(path.clone(), "", "If pod contains any hostProcess containers then all containers must be HostProcess containers");
    }
    if !flag(spec, "hostNetwork") {
        errors.invalid(path.child("hostNetwork"), false, "hostNetwork must be true if pod contains any hostProcess containers");
    }
}

/// What `spec.os` rules out.
pub fn validate_os(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(os) = member(spec, "os") else { return };
    let name = text(os, "name");
    match name {
        "" => errors.required(path.child("os").child("name"), "cannot be empty"),
        "linux" => {
            for (at, context) in contexts(spec, path) {
                if has(context, "windowsOptions") {
                    errors.forbidden(at.child("windowsOptions"), "windows options cannot be set for a linux pod");
                }
            }
        }
        "windows" => {
            const POD: &[&str] = &[
                "appArmorProfile",
                "seLinuxOptions",
                "hostUsers",
                "hostPID",
                "hostIPC",
                "seccompProfile",
                "fsGroup",
                "fsGroupChangePolicy",
                "sysctls",
                "shareProcessNamespace",
                "runAsUser",
                "runAsGroup",
                "supplementalGroups",
                "supplementalGroupsPolicy",
                "seLinuxChangePolicy",
            ];
            // What stands in the spec, and counts as said if it is there or only if it is true.
            const IN_SPEC: &[(&str, bool)] = &[("hostUsers", false), ("hostPID", true), ("hostIPC", true), ("shareProcessNamespace", false)];
            const CONTAINER: &[&str] = &[
                "appArmorProfile",
                "seLinuxOptions",
                "seccompProfile",
                "capabilities",
                "readOnlyRootFilesystem",
                "privileged",
                "allowPrivilegeEscalation",
                "procMount",
                "runAsUser",
                "runAsGroup",
            ];
            let own = spec.get("securityContext").unwrap_or(&Value::Null);
            for key in POD {
                let (said, at) = match IN_SPEC.iter().find(|(name, _)| name == key) {
                    Some((_, only_true)) => (if *only_true { flag(spec, key) } else { has(spec, key) }, path.child(key)),
                    None => (has(own, key), path.child("securityContext").child(key)),
                };
                if said {
                    errors.forbidden(at, "cannot be set for a windows pod");
                }
            }
            for (at, context) in contexts(spec, path).into_iter().skip(usize::from(has(spec, "securityContext"))) {
                for key in CONTAINER.iter().filter(|key| has(context, key)) {
                    errors.forbidden(at.child(key), "cannot be set for a windows pod");
                }
            }
        }
        other => errors.not_supported(path.child("os").child("name"), other, &["linux", "windows"]),
    }
}
/// Every security context of a pod spec with its path, the pod's own first.
fn contexts<'a>(spec: &'a Value, path: &Path) -> Vec<(Path, &'a Value)> {
    let mut found: Vec<_> = member(spec, "securityContext").map(|c| (path.child("securityContext"), c)).into_iter().collect();
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in list(spec, key).iter().enumerate() {
            if let Some(context) = member(container, "securityContext") {
                found.push((path.child(key).index(i).child("securityContext"), context));
            }
        }
    }
    found
}
