//! Environment of containers, and where its values may come from.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        values::{has, int, list, member, text},
    },
    names,
    quantity::Quantity,
};
use serde_json::Value;

const VARIABLE_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const FILE_FIELDS: &[&str] = &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// What Kubernetes knows as fields of a pod beside those that variables show.
const KNOWN_FIELDS: &[&str] = &["spec.restartPolicy", "spec.schedulerName", "status.phase", "metadata.labels", "metadata.annotations"];
const CONTAINER_RESOURCES: &[&str] =
    &["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];

/// A field of the pod that a variable (or with `file`, a file of a volume) shows.
pub fn field_ref(field: &Value, file: bool, path: &Path, errors: &mut Errors) {
    let supported = if file { FILE_FIELDS } else { VARIABLE_FIELDS };
    if !checks::required(field, "apiVersion", path, errors) || !checks::required(field, "fieldPath", path, errors) {
        return;
    }
    // The old name of the node's, which clients of long ago send.
    let name = if text(field, "fieldPath") == "spec.host" { "spec.nodeName" } else { text(field, "fieldPath") };
    let version = text(field, "apiVersion");
    let at = path.child("fieldPath");
    if version != "v1" {
        return errors.invalid(at, name, &format!("error converting fieldPath: unsupported pod version: {version}"));
    }
    if let Some((map, key)) = name.strip_suffix("']").and_then(|n| n.split_once("['")).filter(|(map, _)| !map.is_empty()) {
        return match map {
            "metadata.annotations" => errors.invalid_all(path, key, names::qualified_name(&key.to_lowercase())),
            "metadata.labels" => errors.invalid_all(path, key, names::qualified_name(key)),
            _ => errors.invalid(at, name, &format!("error converting fieldPath: field label does not support subscript: {name}")),
        };
    }
    if !supported.contains(&name) && !KNOWN_FIELDS.contains(&name) && !VARIABLE_FIELDS.contains(&name) {
        errors.invalid(at, name, &format!("error converting fieldPath: field label not supported: {name}"));
    } else if !supported.contains(&name) {
        errors.not_supported(at, name, supported);
    }
}

/// A request or limit that a variable or file shows. In a file it must name the container.
pub fn resource_field_ref(reference: &Value, file: bool, path: &Path, errors: &mut Errors) {
    if file && text(reference, "containerName").is_empty() {
        errors.required(path.child("containerName"), "");
    } else if checks::required(reference, "resource", path, errors) {
        let resource = text(reference, "resource");
        if !CONTAINER_RESOURCES.contains(&resource) && !resource.starts_with("requests.hugepages-") && !resource.starts_with("limits.hugepages-") {
            errors.not_supported(path.child("resource"), resource, CONTAINER_RESOURCES);
        }
    }
    divisor(reference, path, errors);
}

const BYTES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

fn divisor(reference: &Value, path: &Path, errors: &mut Errors) {
    let Some(Ok(divisor)) = member(reference, "divisor").map(Quantity::from_value) else { return };
    if divisor.is_zero() {
        return;
    }
    let resource = text(reference, "resource");
    let (allowed, name): (&[&str], _) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "cpu"),
        "limits.memory" | "requests.memory" => (BYTES, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (BYTES, "local ephemeral storage"),
        name if name.starts_with("requests.hugepages-") || name.starts_with("limits.hugepages-") => (BYTES, "hugepages"),
        _ => return,
    };
    if !allowed.contains(&divisor.to_string().as_str()) {
        let values = if name == "cpu" { "1m and 1".to_string() } else { BYTES.join(", ") };
        errors.invalid(path.child("divisor"), resource, &format!("only divisor's values {values} are supported with the {name} resource"));
    }
}

/// A key of a ConfigMap or Secret.
fn key_ref(reference: &Value, path: &Path, errors: &mut Errors) {
    let name = text(reference, "name");
    errors.invalid_all(&path.child("name"), name, names::dns1123_subdomain(name));
    checks::required_checked(reference, "key", path, checks::config_key, errors);
}

/// Files that variables are read from are in volumes that live and die with the pod.
pub fn file_volumes(spec: &Value, path: &Path, errors: &mut Errors) {
    // Of several with a name, the last counts.
    let volumes = checks::by_name(list(spec, "volumes").iter().rev());
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in list(spec, key).iter().enumerate() {
            for (j, variable) in list(container, "env").iter().enumerate() {
                let Some(file) = variable.get("valueFrom").and_then(|source| member(source, "fileKeyRef")) else { continue };
                let at = path.child(key).index(i).child("env").index(j).child("valueFrom").child("fileKeyRef").child("volumeName");
                let name = text(file, "volumeName");
                match volumes.get(name) {
                    None => errors.not_found(at, name),
                    Some(volume) if !has(volume, "emptyDir") => errors.invalid(at, name, "referenced volume must be of type emptyDir"),
                    Some(_) => {}
                }
            }
        }
    }
}

/// `env` and `envFrom` of a container.
pub fn validate(container: &Value, path: &Path, errors: &mut Errors) {
    for (i, variable) in list(container, "env").iter().enumerate() {
        let path = path.child("env").index(i);
        let name = text(variable, "name");
        if name.is_empty() {
            errors.required(path.child("name"), "");
        } else {
            errors.invalid_all(&path.child("name"), name, checks::environment_name(name));
        }
        let Some(source) = member(variable, "valueFrom") else { continue };
        let path = path.child("valueFrom");
        let said =
            ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"].into_iter().filter(|key| has(source, key)).count();
        if let Some(field) = member(source, "fieldRef") {
            field_ref(field, false, &path.child("fieldRef"), errors);
        }
        if let Some(resource) = member(source, "resourceFieldRef") {
            resource_field_ref(resource, false, &path.child("resourceFieldRef"), errors);
        }
        for key in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = member(source, key) {
                key_ref(reference, &path.child(key), errors);
            }
        }
        if let Some(file) = member(source, "fileKeyRef") {
            let path = path.child("fileKeyRef");
            checks::required_checked(file, "key", &path, checks::environment_name, errors);
            checks::required_checked(file, "volumeName", &path, names::dns1123_label, errors);
            if checks::required(file, "path", &path, errors) {
                super::volumes::no_backsteps(text(file, "path"), &path.child("path"), errors);
            }
        }
        if said == 0 {
            errors.invalid(
                path.clone(),
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            );
        } else if !text(variable, "value").is_empty() {
            errors.invalid(path.clone(), "", "may not be specified when `value` is not empty");
        } else if said > 1 {
            errors.invalid(path.clone(), "", "may not have more than one field specified at a time");
        }
    }
    for (i, source) in list(container, "envFrom").iter().enumerate() {
        let whole = path.child("envFrom");
        let path = whole.index(i);
        checks::checked(source, "prefix", &path, checks::environment_name, errors);
        let mut said = 0;
        for key in ["configMapRef", "secretRef"] {
            if let Some(reference) = member(source, key) {
                said += 1;
                checks::required_checked(reference, "name", &path.child(key), names::dns1123_subdomain, errors);
            }
        }

        match said {
            0 => errors.invalid(whole.clone(), "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(whole.clone(), "", "may not have more than one field specified at a time"),
        }
    }
}

/// Items of a volume that show fields of the pod as files.
pub fn validate_files(items: &[Value], path: &Path, errors: &mut Errors) {
    for item in items {
        if text(item, "path").is_empty() {
            errors.required(path.child("path"), "");
        } else {
            super::volumes::file_path(text(item, "path"), &path.child("path"), errors);
        }
        match (member(item, "fieldRef"), member(item, "resourceFieldRef")) {
            (Some(field), other) => {
                field_ref(field, true, &path.child("fieldRef"), errors);
                if other.is_some() {
                    errors.invalid(path.clone(), "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
                }
            }
            (None, Some(resource)) => resource_field_ref(resource, true, &path.child("resourceFieldRef"), errors),
            (None, None) => errors.required(path.clone(), "one of fieldRef and resourceFieldRef is required"),
        }
        super::volumes::mode(int(item, "mode"), &path.child("mode"), errors);
    }
}
