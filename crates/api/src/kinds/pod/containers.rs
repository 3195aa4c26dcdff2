//! Containers of a pod: init containers, sidecars, containers, ephemeral containers.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        pod::{resources::Claims, volumes::Volumes},
        values::{has, int, list, member, text},
    },
    names,
};
use serde_json::{Value, json};
use std::collections::HashSet;

const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

fn ports(container: &Value, path: &Path, errors: &mut Errors) {
    let mut known = HashSet::new();
    for (i, port) in list(container, "ports").iter().enumerate() {
        let path = path.child("ports").index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let problems = checks::port_name(name);
            if !problems.is_empty() {
                errors.invalid_all(&path.child("name"), name, problems);
            } else if !known.insert(name) {
                errors.duplicate(path.child("name"), name);
            }
        }
        match int(port, "containerPort").unwrap_or(0) {
            0 => errors.required(path.child("containerPort"), ""),
            number => checks::port_number(number, &path.child("containerPort"), errors),
        }
        if let Some(host) = int(port, "hostPort").filter(|host| *host != 0) {
            checks::port_number(host, &path.child("hostPort"), errors);
        }
        checks::protocol(port, &path, errors);
    }
}

/// In the host's network a port of a container is that port of the host. A template may leave it open.
pub fn host_network_ports(spec: &Value, is_pod: bool, path: &Path, errors: &mut Errors) {
    if !crate::kinds::values::flag(spec, "hostNetwork") {
        return;
    }
    for (i, container) in list(spec, "containers").iter().enumerate() {
        for (j, port) in list(container, "ports").iter().enumerate() {
            let [host, own] = ["hostPort", "containerPort"].map(|key| int(port, key).unwrap_or(0));
            if (is_pod || host != 0) && host != own {
                let at = path.child("containers").index(i).child("ports").index(j).child("hostPort");
                errors.invalid(at, host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

/// No spaces around the name of an image: templates may have them, pods may not.
pub fn trimmed_image(container: &Value, path: &Path, errors: &mut Errors) {
    let image = text(container, "image");
    if image.trim() != image {
        errors.invalid(path.child("image"), image, "must not have leading or trailing whitespace");
    }
}

/// No two containers of a list may take the same port of the host.
fn host_port_conflicts(containers: &[Value], path: &Path, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in list(container, "ports").iter().enumerate() {
            let Some(host) = int(port, "hostPort").filter(|host| *host != 0) else { continue };
            let (protocol, ip) = (text(port, "protocol"), text(port, "hostIP"));
            if !taken.insert((protocol, ip, host)) {
                errors.duplicate(path.index(i).child("ports").index(j).child("hostPort"), format!("{protocol}/{ip}/{host}"));
            }
        }
    }
}

fn restart_rules(container: &Value, path: &Path, errors: &mut Errors) {
    let rules = list(container, "restartPolicyRules");
    match member(container, "restartPolicy") {
        None if !rules.is_empty() => errors.required(path.child("restartPolicy"), "must specify restartPolicy when restart rules are used"),
        None => {}
        Some(_) => checks::one_of(container, "restartPolicy", &["Always", "Never", "OnFailure"], path, errors),
    }
    if rules.len() > RESTART_RULES_MAX {
        errors.too_many(path.child("restartPolicyRules"), rules.len(), RESTART_RULES_MAX);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.child("restartPolicyRules").index(i);
        checks::supported(rule, "action", &["Restart", "RestartAllContainers"], &path, errors);
        match member(rule, "exitCodes") {
            None => errors.required(path.child("exitCodes"), "must be specified"),
            Some(codes) => {
                let path = path.child("exitCodes");
                checks::supported(codes, "operator", &["In", "NotIn"], &path, errors);
                if list(codes, "values").len() > EXIT_CODES_MAX {
                    errors.too_many(path.child("values"), list(codes, "values").len(), EXIT_CODES_MAX);
                }
            }
        }
    }
}

/// The name of a container is none of those in `known`, and is one of them from now on.
fn unique_name<'a>(container: &'a Value, known: &mut HashSet<&'a str>, path: &Path, errors: &mut Errors) {
    let name = text(container, "name");
    if !known.insert(name) {
        errors.duplicate(path.child("name"), name);
    }
}

/// What of a pod its containers speak of by name.
struct Pod<'a> {
    spec: &'a Value,
    volumes: &'a Volumes<'a>,
    claims: Claims<'a>,
}

/// What all containers have in common.
fn common(container: &Value, pod: &Pod, path: &Path, errors: &mut Errors) {
    let name = text(container, "name");
    if name.is_empty() {
        errors.required(path.child("name"), "");
    } else {
        errors.invalid_all(&path.child("name"), name, names::dns1123_label(name));
    }
    checks::required(container, "image", path, errors);
    match text(container, "terminationMessagePolicy") {
        "" => errors.required(path.child("terminationMessagePolicy"), ""),
        _ => checks::one_of(container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], path, errors),
    }
    ports(container, path, errors);
    super::environment::validate(container, path, errors);
    super::volumes::validate_mounts(container, pod.volumes, path, errors);
    checks::required_one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    let resources = container.get("resources").unwrap_or(&Value::Null);
    super::resources::validate(resources, &path.child("resources"), &pod.claims, errors);
    super::resources::validate_resize_policy(container, text(pod.spec, "restartPolicy"), path, errors);
    super::security::validate_container(container, pod.spec, path, errors);
}

/// All containers of a pod spec. `volumes` are those that they may mount.
pub fn validate(spec: &Value, volumes: &Volumes, path: &Path, errors: &mut Errors) {
    let pod = &Pod { spec, volumes, claims: Claims::of(spec) };
    let grace_s = int(spec, "terminationGracePeriodSeconds");
    let containers = list(spec, "containers");
    let at = path.child("containers");
    if containers.is_empty() {
        errors.required(at.clone(), "");
    }
    let mut known = HashSet::new();
    for (i, container) in containers.iter().enumerate() {
        let path = at.index(i);
        common(container, pod, &path, errors);
        unique_name(container, &mut known, &path, errors);
        super::probes::validate(container, grace_s, &path, errors);
        restart_rules(container, &path, errors);
    }
    host_port_conflicts(containers, &at, errors);

    let inits = list(spec, "initContainers");
    let at = path.child("initContainers");
    for (i, container) in inits.iter().enumerate() {
        let path = at.index(i);
        common(container, pod, &path, errors);
        restart_rules(container, &path, errors);
        if !text(container, "name").is_empty() || known.contains("") {
            unique_name(container, &mut known, &path, errors);
        }
        host_port_conflicts(std::slice::from_ref(container), &at, errors);
        if text(container, "restartPolicy") == "Always" {
            super::probes::validate(container, grace_s, &path, errors);
            continue;
        }
        super::probes::forbid(container, &path, errors);
        for (j, policy) in
            list(container, "resizePolicy").iter().enumerate().filter(|(_, policy)| text(policy, "restartPolicy") == "RestartContainer")
        {
            let at = path.child("resizePolicy").index(j).child("restartPolicy");
            errors.invalid(at, text(policy, "restartPolicy"), "must not be set to 'RestartContainer' for non-sidecar initContainers");
        }
    }
    ephemeral(pod, path, errors);
}

/// Containers for debugging, which nobody relies on.
fn ephemeral(pod: &Pod, path: &Path, errors: &mut Errors) {
    const NOT_FOR_THEM: &str = "cannot be set for an Ephemeral Container";
    let others: HashSet<&str> = ["containers", "initContainers"].iter().flat_map(|key| list(pod.spec, key)).map(|c| text(c, "name")).collect();
    let mut known = others.clone();
    for (i, container) in list(pod.spec, "ephemeralContainers").iter().enumerate() {
        let path = path.child("ephemeralContainers").index(i);
        common(container, pod, &path, errors);
        trimmed_image(container, &path, errors);
        unique_name(container, &mut known, &path, errors);
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(path.child("targetContainerName"), target);
        }
        let said = |key: &str| match key {
            "resources" => container.get(key).is_some_and(|resources| !resources.is_null() && *resources != json!({})),
            "ports" | "resizePolicy" | "restartPolicyRules" => !list(container, key).is_empty(),
            _ => has(container, key),
        };
        for key in [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            if said(key) {
                errors.forbidden(path.child(key), NOT_FOR_THEM);
            }
        }
        for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !text(mount, key).is_empty() {
                    errors.forbidden(path.child("volumeMounts").index(i).child(key), NOT_FOR_THEM);
                }
            }
        }
    }
}
