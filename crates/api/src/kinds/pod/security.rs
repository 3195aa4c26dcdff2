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
const WINDOWS_DOMAIN_CHARS_MAX: usize = 256;
const WINDOWS_USER_CHARS_MAX: usize = 104;
const PROFILE_PATH_BYTES_MAX: usize = 4095;
const PROFILE_TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
const ID_RANGE: &str = "must be between 0 and 2147483647, inclusive";

/// The number of a user or group.
pub fn id(value: Option<i64>, path: Path, errors: &mut Errors) {
    if let Some(value) = value
        && !(0..=i64::from(i32::MAX)).contains(&value)
    {
        errors.invalid(path, value, ID_RANGE);
    }
}

fn seccomp_profile(parent: &Value, path: &Path, errors: &mut Errors) {
    let Some(profile) = member(parent, "seccompProfile") else { return };
    let path = path.child("seccompProfile");
    let kind = text(profile, "type");
    if kind.is_empty() {
        errors.required(path.child("type"), "type is required when seccompProfile is set");
    } else if !PROFILE_TYPES.contains(&kind) {
        errors.not_supported(path.child("type"), kind, PROFILE_TYPES);
    }
    let at = path.child("localhostProfile");
    match (kind, member(profile, "localhostProfile")) {
        ("Localhost", None) => errors.required(at, "must be set when seccomp type is Localhost"),
        ("Localhost", Some(local)) => super::volumes::relative_path(local.as_str().unwrap_or_default(), &at, errors),
        (_, Some(_)) => {
            let shown = internal::show("core.v1.SeccompProfile", profile);
            errors.invalid_structure(at, &shown, "can only be set when seccomp type is Localhost");
        }
        _ => {}
    }
}

fn app_armor_profile(parent: &Value, path: &Path, errors: &mut Errors) {
    const NEEDED: &str = "must be set when AppArmor type is Localhost";
    let Some(profile) = member(parent, "appArmorProfile") else { return };
    let path = path.child("appArmorProfile");
    let at = path.child("localhostProfile");
    let local = member(profile, "localhostProfile").and_then(Value::as_str);
    match (text(profile, "type"), local) {
        ("Localhost", None) => errors.required(at, NEEDED),
        ("Localhost", Some(local)) => {
            if local.trim() != local {
                errors.invalid(at.clone(), local, "must not be padded with whitespace");
            } else if local.is_empty() {
                errors.required(at.clone(), NEEDED);
            }
            if local.len() > PROFILE_PATH_BYTES_MAX {
                errors.too_long(at, local, PROFILE_PATH_BYTES_MAX);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(local)) => errors.invalid(at, local, "can only be set when AppArmor type is Localhost"),
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => errors.required(path.child("type"), "type is required when appArmorProfile is set"),
        (other, _) => errors.not_supported(path.child("type"), other, PROFILE_TYPES),
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
        for problem in windows_user(user) {
            errors.invalid(path.child("runAsUserName"), user.as_str(), &format!("runAsUserName{problem}"));
        }
    }
}

/// What is wrong with the name of a user of Windows, with or without a domain before a backslash.
fn windows_user(name: &str) -> Vec<String> {
    let (domain, user) = match name.split('\\').collect::<Vec<_>>()[..] {
        _ if name.is_empty() => return vec![" cannot be an empty string".into()],
        _ if name.contains(|c: char| c.is_ascii_control()) => return vec![" cannot contain control characters".into()],
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return vec![" cannot contain more than one backslash".into()],
    };
    let mut problems: Vec<String> = vec![];
    if let Some(domain) = domain {
        let label = |label: &str| {
            let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            !label.is_empty() && label.len() <= 63 && inner && !label.starts_with('-') && !label.ends_with('-')
        };
        let old = |domain: &str| {
            (1..=15).contains(&domain.chars().count()) && !domain.starts_with('.') && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|'])
        };
        if domain.len() >= WINDOWS_DOMAIN_CHARS_MAX {
            problems.push(format!("'s Domain length must be under {WINDOWS_DOMAIN_CHARS_MAX} characters"));
        }
        if !old(domain) && !domain.split('.').all(label) {
            problems.push("'s Domain doesn't match the NetBios nor the DNS format".into());
        }
    }
    if user.is_empty() {
        problems.push("'s User cannot be empty".into());
    } else if user.len() > WINDOWS_USER_CHARS_MAX {
        problems.push(format!("'s User length must not be longer than {WINDOWS_USER_CHARS_MAX} characters"));
    }
    if !user.is_empty() && user.bytes().all(|b| b == b'.' || b == b' ') {
        problems.push("'s User cannot contain only periods or spaces".into());
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        problems.push("'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".into());
    }
    problems
}

/// `securityContext` of a container.
pub fn validate_container(container: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(context) = member(container, "securityContext") else { return };
    let path = path.child("securityContext");
    id(int(context, "runAsUser"), path.child("runAsUser"), errors);
    id(int(context, "runAsGroup"), path.child("runAsGroup"), errors);
    if has(context, "procMount") {
        checks::supported(context, "procMount", &["Default", "Unmasked"], &path, errors);
        if text(context, "procMount") == "Unmasked" && spec.get("hostUsers").and_then(Value::as_bool) != Some(false) {
            errors.invalid(path.child("procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp_profile(context, &path, errors);
    if context.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false) {
        if flag(context, "privileged") {
            let shown = internal::show("core.v1.SecurityContext", context);
            errors.invalid_structure(path.clone(), &shown, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let added = context.get("capabilities").map(|c| list(c, "add")).unwrap_or_default();
        for _ in added.iter().filter(|capability| *capability == "CAP_SYS_ADMIN") {
            let shown = internal::show("core.v1.SecurityContext", context);
            errors.invalid_structure(path.clone(), &shown, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    windows_options(context, &path, errors);
    app_armor_profile(context, &path, errors);
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

/// A sysctl as `net.ipv4.ip_forward`, if it is written with slashes.
fn with_dots(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_string(),
    }
}

/// `securityContext` of a pod.
pub fn validate_pod(spec: &Value, path: &Path, errors: &mut Errors) {
    if let Some(context) = member(spec, "securityContext") {
        pod_context(context, spec, &path.child("securityContext"), errors);
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        errors.invalid(path.child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
}

/// A pod with users of its own shares nothing else with its host.
pub fn host_users(spec: &Value, path: &Path, errors: &mut Errors) {
    const WHY: &str = "when `hostUsers` is false";
    if spec.get("hostUsers").and_then(Value::as_bool) != Some(false) {
        return;
    }
    for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if flag(spec, key) {
            errors.forbidden(path.child(shown), WHY);
        }
    }
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, _) in list(spec, key).iter().enumerate().filter(|(_, container)| !list(container, "volumeDevices").is_empty()) {
            errors.forbidden(path.child(key).index(i).child("volumeDevices"), WHY);
        }
    }
}

fn pod_context(context: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(int(context, key), path.child(key), errors);
    }
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        id(group.as_i64(), path.child("supplementalGroups").index(i), errors);
    }
    for (i, sysctl, again) in checks::distinct(list(context, "sysctls"), |sysctl| text(sysctl, "name")) {
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
        } else if again {
            errors.duplicate(path.child("name"), name);
        }
        let dotted = with_dots(name);
        let of_messages = dotted == "kernel.sem" || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix));
        if flag(spec, "hostNetwork") && dotted.starts_with("net.") {
            errors.invalid(path.child("name"), name, "may not be specified when 'hostNetwork' is true");
        } else if flag(spec, "hostIPC") && of_messages {
            errors.invalid(path.child("name"), name, "may not be specified when 'hostIPC' is true");
        }
    }
    checks::one_of(context, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], path, errors);
    seccomp_profile(context, path, errors);
    windows_options(context, path, errors);
    app_armor_profile(context, path, errors);
    checks::one_of(context, "supplementalGroupsPolicy", &["Merge", "Strict"], path, errors);
    checks::one_of(context, "seLinuxChangePolicy", &["Recursive"], path, errors);
}

/// Containers that are processes of a Windows host: all of a pod or none, in the host's network.
pub fn host_processes(spec: &Value, path: &Path, errors: &mut Errors) {
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
        "" => errors.required(path.child("os").child("name"), ""),
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
        other => errors.not_supported(path.child("os"), other, &["linux", "windows"]),
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
