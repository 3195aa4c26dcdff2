//! Containers of a pod: init containers, sidecars, containers, ephemeral containers.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        values::{has, int, list, member, text},
    },
    names,
};
use serde_json::{Value, json};

fn ports(container: &Value, host_network: bool, path: &Path, errors: &mut Errors) {
    let ports = list(container, "ports");
    for (i, port) in ports.iter().enumerate() {
        let path = path.child("ports").index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let problems = checks::port_name(name);
            if problems.is_empty() && ports[..i].iter().any(|other| text(other, "name") == name) {
                errors.duplicate(path.child("name"), name);
            }
            errors.invalid_all(&path.child("name"), name, problems);
        }
        match int(port, "containerPort").unwrap_or(0) {
            0 => errors.required(path.child("containerPort"), ""),
            number => checks::port_number(number, &path.child("containerPort"), errors),
        }
        if let Some(host) = int(port, "hostPort").filter(|host| *host != 0) {
            checks::port_number(host, &path.child("hostPort"), errors);
            if host_network && int(port, "containerPort") != Some(host) {
                errors.invalid(path.child("hostPort"), host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
        checks::protocol(port, &path, errors);
    }
}

/// No two containers of a list may take the same port of the host.
fn host_port_conflicts(containers: &[Value], path: &Path, errors: &mut Errors) {
    let mut taken: Vec<String> = vec![];
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in list(container, "ports").iter().enumerate() {
            let Some(host) = int(port, "hostPort").filter(|host| *host != 0) else { continue };
            let key = format!("{}/{}/{host}", text(port, "protocol"), text(port, "hostIP"));
            if taken.contains(&key) {
                errors.duplicate(path.index(i).child("ports").index(j).child("hostPort"), key);
            } else {
                taken.push(key);
            }
        }
    }
}

fn restart_rules(container: &Value, path: &Path, errors: &mut Errors) {
    let rules = list(container, "restartPolicyRules");
    if !rules.is_empty() && text(container, "restartPolicy").is_empty() {
        errors.required(path.child("restartPolicy"), "must specify restartPolicy when restart rules are used");
    }
    if rules.len() > 20 {
        errors.too_many(path.child("restartPolicyRules"), rules.len(), 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.child("restartPolicyRules").index(i);
        checks::required_one_of(rule, "action", &["Restart", "RestartAllContainers"], &path, errors);
        match member(rule, "exitCodes") {
            None => errors.required(path.child("exitCodes"), "must be specified"),
            Some(codes) => {
                let path = path.child("exitCodes");
                checks::required_one_of(codes, "operator", &["In", "NotIn"], &path, errors);
                if list(codes, "values").len() > 255 {
                    errors.too_many(path.child("values"), list(codes, "values").len(), 255);
                }
            }
        }
    }
}

/// What all containers have in common.
fn common(container: &Value, spec: &Value, volumes: &[&str], path: &Path, errors: &mut Errors) {
    let name = text(container, "name");
    if name.is_empty() {
        errors.required(path.child("name"), "");
    } else {
        errors.invalid_all(&path.child("name"), name, names::dns1123_label(name));
    }
    let image = text(container, "image");
    if image.is_empty() {
        errors.required(path.child("image"), "");
    } else if image.trim() != image {
        errors.invalid(path.child("image"), image, "must not have leading or trailing whitespace");
    }
    match text(container, "terminationMessagePolicy") {
        "" => errors.required(path.child("terminationMessagePolicy"), ""),
        _ => checks::one_of(container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], path, errors),
    }
    ports(container, crate::kinds::values::flag(spec, "hostNetwork"), path, errors);
    super::environment::validate(container, volumes, path, errors);
    super::volumes::validate_mounts(container, spec, volumes, path, errors);
    checks::required_one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    let resources = container.get("resources").unwrap_or(&Value::Null);
    super::resources::validate(resources, &path.child("resources"), &super::resources::claim_names(spec), errors);
    let policy = [text(container, "restartPolicy"), text(spec, "restartPolicy")].into_iter().find(|policy| !policy.is_empty()).unwrap_or_default();
    super::resources::validate_resize_policy(container, policy, path, errors);
    super::security::validate_container(container, spec, path, errors);
}

fn names_of<'a>(spec: &'a Value, keys: &[&str]) -> Vec<&'a str> {
    keys.iter().flat_map(|key| list(spec, key)).map(|c| text(c, "name")).collect()
}

/// All containers of a pod spec. `volumes` are the names of its good volumes.
pub fn validate(spec: &Value, volumes: &[&str], path: &Path, errors: &mut Errors) {
    let grace_s = int(spec, "terminationGracePeriodSeconds").unwrap_or(30);
    let containers = list(spec, "containers");
    let at = path.child("containers");
    if containers.is_empty() {
        errors.required(at.clone(), "");
    }
    for (i, container) in containers.iter().enumerate() {
        let path = at.index(i);
        common(container, spec, volumes, &path, errors);
        let name = text(container, "name");
        if !name.is_empty() && containers[..i].iter().any(|other| text(other, "name") == name) {
            errors.duplicate(path.child("name"), name);
        }
        super::probes::validate(container, grace_s, &path, errors);
        checks::one_of(container, "restartPolicy", &["Always", "Never", "OnFailure"], &path, errors);
        restart_rules(container, &path, errors);
    }
    host_port_conflicts(containers, &at, errors);

    let inits = list(spec, "initContainers");
    let at = path.child("initContainers");
    for (i, container) in inits.iter().enumerate() {
        let path = at.index(i);
        common(container, spec, volumes, &path, errors);
        let name = text(container, "name");
        if !name.is_empty() && (inits[..i].iter().any(|other| text(other, "name") == name) || names_of(spec, &["containers"]).contains(&name)) {
            errors.duplicate(path.child("name"), name);
        }
        if text(container, "restartPolicy") == "Always" {
            super::probes::validate(container, grace_s, &path, errors);
        } else {
            super::probes::forbid(container, &path, errors);
            if has(container, "resizePolicy") {
                errors.invalid(path.child("resizePolicy"), container["resizePolicy"].clone(), "must not be set for init containers");
            }
        }
        checks::one_of(container, "restartPolicy", &["Always", "Never", "OnFailure"], &path, errors);
        restart_rules(container, &path, errors);
        host_port_conflicts(std::slice::from_ref(container), &at, errors);
    }
    ephemeral(spec, volumes, path, errors);
}

fn ephemeral(spec: &Value, volumes: &[&str], path: &Path, errors: &mut Errors) {
    let containers = list(spec, "ephemeralContainers");
    for (i, container) in containers.iter().enumerate() {
        let path = path.child("ephemeralContainers").index(i);
        common(container, spec, volumes, &path, errors);
        let name = text(container, "name");
        if !name.is_empty()
            && (containers[..i].iter().any(|other| text(other, "name") == name) || names_of(spec, &["initContainers", "containers"]).contains(&name))
        {
            errors.duplicate(path.child("name"), name);
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !names_of(spec, &["initContainers", "containers"]).contains(&target) {
            errors.not_found(path.child("targetContainerName"), target);
        }
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe", "ports", "resizePolicy", "restartPolicy"] {
            if has(container, key) {
                errors.forbidden(path.child(key), "cannot be set for an Ephemeral Container");
            }
        }
        if container.get("resources").is_some_and(|r| *r != json!({}) && !r.is_null()) {
            errors.forbidden(path.child("resources"), "cannot be set for an Ephemeral Container");
        }
        for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !text(mount, key).is_empty() {
                    errors.forbidden(path.child("volumeMounts").index(i).child(key), "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}
