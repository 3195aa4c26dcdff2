//! Warnings about what a pod spec may say but surely does not mean, or should not say any more.

use crate::{
    field::Path,
    kinds::values::{entries, has, int, list, member, text},
    names,
    quantity::Quantity,
};
use serde_json::Value;

/// Labels of nodes that have newer names.
const OLD_LABELS: &[(&str, &str, &str)] = &[
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
];
/// Volume sources that are gone or going.
const OLD_VOLUMES: &[(&str, &str)] = &[
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Warnings about the pod spec at `path`.
pub fn spec(spec: &Value, path: &Path) -> Vec<String> {
    let mut warnings = vec![];
    for (key, _) in entries(spec, "nodeSelector") {
        if let Some((_, since, new)) = OLD_LABELS.iter().find(|(old, ..)| old == key) {
            warnings.push(format!("{}: deprecated since {since}; use {new:?} instead", path.child("nodeSelector").key(key)));
        }
    }
    let aliases = list(spec, "hostAliases");
    for (i, alias) in aliases.iter().enumerate() {
        let ip = text(alias, "ip");
        if aliases[..i].iter().any(|other| text(other, "ip") == ip) {
            warnings.push(format!("{}: duplicate ip {ip:?}", path.child("hostAliases").index(i).child("ip")));
        }
    }
    let secrets = list(spec, "imagePullSecrets");
    for (i, secret) in secrets.iter().enumerate() {
        let (name, path) = (text(secret, "name"), path.child("imagePullSecrets").index(i).child("name"));
        if name.is_empty() {
            warnings.push(format!("{path}: invalid empty name {name:?}"));
        } else if secrets[..i].iter().any(|other| text(other, "name") == name) {
            warnings.push(format!("{path}: duplicate name {name:?}"));
        }
    }
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        for (source, why) in OLD_VOLUMES.iter().filter(|(source, _)| has(volume, source)) {
            warnings.push(format!("{}: {why}", path.child("volumes").index(i).child(source)));
        }
    }
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, one) in list(spec, key).iter().enumerate() {
            container(one, &path.child(key).index(i), &mut warnings);
        }
    }
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        warnings.push(format!("{}: must be >= 0; negative values are invalid and will be treated as 1", path.child("terminationGracePeriodSeconds")));
    }
    warnings
}

fn container(container: &Value, path: &Path, warnings: &mut Vec<String>) {
    for part in ["limits", "requests"] {
        for (name, value) in member(container, "resources").into_iter().flat_map(|r| entries(r, part)) {
            let fraction = Quantity::from_value(value).is_ok_and(|q| q.milli() % 1000 != 0);
            if fraction && (matches!(name.as_str(), "memory" | "ephemeral-storage") || name.starts_with("hugepages-")) {
                let shown = value.as_str().map_or_else(|| value.to_string(), |v| v.to_string());
                warnings.push(format!(
                    "{}: fractional byte value {shown:?} is invalid, must be an integer",
                    path.child("resources").child(part).key(name)
                ));
            }
        }
    }
    let variables = list(container, "env");
    for (i, variable) in variables.iter().enumerate() {
        let name = text(variable, "name");
        if variables[..i].iter().any(|other| text(other, "name") == name) {
            warnings.push(format!("{}: hides previous definition of {name:?}, which may be dropped when using apply", path.child("env").index(i)));
        }
    }
    let ports = list(container, "ports");
    let same = |a: &Value, b: &Value| {
        int(a, "containerPort") == int(b, "containerPort")
            && text(a, "protocol") == text(b, "protocol")
            && int(a, "hostPort") == int(b, "hostPort")
            && text(a, "hostIP") == text(b, "hostIP")
    };
    for (i, port) in ports.iter().enumerate() {
        if let Some(first) = ports[..i].iter().position(|other| same(other, port)) {
            warnings.push(format!("{}: duplicate port definition with {}", path.child("ports").index(i), path.child("ports").index(first)));
        }
    }
}

/// A name that ends up in hostnames should be a DNS label. `place` says where it ends up.
pub fn host_name(name: &str, place: &str) -> Option<String> {
    let problems = names::dns1123_label(name);
    (!problems.is_empty() && !name.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in {place}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        )
    })
}

/// Warnings about a workload with a template at `spec.template`.
pub fn workload(object: &Value, named: bool) -> Vec<String> {
    use crate::object::ObjectExt;
    let mut warnings: Vec<String> = named.then(|| host_name(object.name(), "Pod names and hostnames")).flatten().into_iter().collect();
    if let Some(pod) = object.at("spec.template.spec") {
        warnings.extend(spec(pod, &Path::new("spec.template.spec")));
    }
    warnings
}
