//! Volumes of a pod, and where containers mount them.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        values::{flag, has, int, list, map, member, strings, text},
    },
    names,
    quantity::Quantity,
};
use serde_json::Value;

/// A path inside a volume: relative, and never upwards.
pub fn relative_path(target: &str, path: &Path, errors: &mut Errors) {
    if target.starts_with('/') {
        errors.invalid(path.clone(), target, "must be a relative path");
    }
    no_backsteps(target, path, errors);
}
/// No `..` among the parts of a path.
pub fn no_backsteps(target: &str, path: &Path, errors: &mut Errors) {
    if target.split('/').any(|part| part == "..") {
        errors.invalid(path.clone(), target, "must not contain '..'");
    }
}
/// A relative path that does not even start with dots (files of ConfigMaps and Secrets).
fn file_path(target: &str, path: &Path, errors: &mut Errors) {
    relative_path(target, path, errors);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.invalid(path.clone(), target, "must not start with '..'");
    }
}
/// File permissions.
pub fn mode(mode: Option<i64>, path: &Path, errors: &mut Errors) {
    if let Some(mode) = mode
        && !(0..=0o777).contains(&mode)
    {
        errors.invalid(path.clone(), mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}
fn key_to_path(item: &Value, path: &Path, errors: &mut Errors) {
    checks::required(item, "key", path, errors);
    if checks::required(item, "path", path, errors) {
        file_path(text(item, "path"), &path.child("path"), errors);
    }
    mode(int(item, "mode"), &path.child("mode"), errors);
}
fn items(source: &Value, path: &Path, errors: &mut Errors) {
    for (i, item) in list(source, "items").iter().enumerate() {
        key_to_path(item, &path.child("items").index(i), errors);
    }
}

/// Checks a source that pods and PersistentVolumes have in common; `false` if the name is none of them.
pub fn source(name: &str, source: &Value, path: &Path, errors: &mut Errors) -> bool {
    match name {
        "hostPath" => {
            if checks::required(source, "path", path, errors) {
                no_backsteps(text(source, "path"), &path.child("path"), errors);
            }
            checks::one_of(
                source,
                "type",
                &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"],
                path,
                errors,
            );
        }
        "gcePersistentDisk" => {
            checks::required(source, "pdName", path, errors);
            partition(source, path, errors);
        }
        "awsElasticBlockStore" => {
            checks::required(source, "volumeID", path, errors);
            partition(source, path, errors);
        }
        "nfs" => {
            checks::required(source, "server", path, errors);
            if checks::required(source, "path", path, errors) && !text(source, "path").starts_with('/') {
                errors.invalid(path.child("path"), text(source, "path"), "must be an absolute path");
            }
        }
        "iscsi" => iscsi(source, path, errors),
        "fc" => {
            let (wwns, wwids) = (list(source, "targetWWNs").len(), list(source, "wwids").len());
            if (wwns > 0) == (wwids > 0) {
                errors.required(path.child("targetWWNs"), "must specify either targetWWNs or wwids, but not both");
            }
            if wwns > 0 {
                match int(source, "lun") {
                    None => errors.required(path.child("lun"), "lun is required if targetWWNs is specified"),
                    Some(lun) if !(0..=255).contains(&lun) => errors.invalid(path.child("lun"), lun, "must be between 0 and 255, inclusive"),
                    _ => {}
                }
            }
        }
        "glusterfs" => {
            checks::required(source, "endpoints", path, errors);
            if checks::required(source, "path", path, errors) {
                relative_path(text(source, "path"), &path.child("path"), errors);
            }
        }
        "rbd" => {
            if list(source, "monitors").is_empty() {
                errors.required(path.child("monitors"), "");
            }
            checks::required(source, "image", path, errors);
        }
        "cephfs" if list(source, "monitors").is_empty() => errors.required(path.child("monitors"), ""),
        "cinder" => {
            checks::required(source, "volumeID", path, errors);
        }
        "flexVolume" => {
            checks::required(source, "driver", path, errors);
        }
        "azureFile" => {
            checks::required(source, "secretName", path, errors);
            checks::required(source, "shareName", path, errors);
        }
        "azureDisk" => {
            checks::required(source, "diskName", path, errors);
            checks::required(source, "diskURI", path, errors);
            checks::one_of(source, "cachingMode", &["None", "ReadOnly", "ReadWrite"], path, errors);
            checks::one_of(source, "kind", &["Dedicated", "Managed", "Shared"], path, errors);
        }
        "vsphereVolume" => {
            checks::required(source, "volumePath", path, errors);
        }
        "photonPersistentDisk" => {
            checks::required(source, "pdID", path, errors);
        }
        "portworxVolume" => {
            checks::required(source, "volumeID", path, errors);
        }
        "quobyte" => {
            checks::required(source, "registry", path, errors);
            checks::required(source, "volume", path, errors);
        }
        "scaleIO" => {
            checks::required(source, "gateway", path, errors);
            checks::required(source, "system", path, errors);
            checks::required(source, "volumeName", path, errors);
        }
        "flocker" => {
            let (name, uuid) = (text(source, "datasetName"), text(source, "datasetUUID"));
            if name.is_empty() && uuid.is_empty() {
                errors.required(path.clone(), "one of datasetName and datasetUUID is required");
            } else if !name.is_empty() && !uuid.is_empty() {
                errors.invalid(path.clone(), "resource", "datasetName and datasetUUID can not be specified simultaneously");
            }
        }
        "cephfs" | "storageos" => {}
        _ => return false,
    }
    true
}
fn partition(source: &Value, path: &Path, errors: &mut Errors) {
    if let Some(number) = int(source, "partition")
        && !(0..=255).contains(&number)
    {
        errors.invalid(path.child("partition"), number, "must be between 1 and 255, inclusive");
    }
}
fn iscsi(source: &Value, path: &Path, errors: &mut Errors) {
    checks::required(source, "targetPortal", path, errors);
    if checks::required(source, "iqn", path, errors) {
        let iqn = text(source, "iqn");
        if !["iqn", "eui", "naa"].iter().any(|prefix| iqn.starts_with(prefix)) {
            errors.invalid(path.child("iqn"), iqn, "must be valid format starting with iqn, eui, or naa");
        }
    }
    let lun = int(source, "lun").unwrap_or(0);
    if !(0..=255).contains(&lun) {
        errors.invalid(path.child("lun"), lun, "must be between 0 and 255, inclusive");
    }
    if (flag(source, "chapAuthDiscovery") || flag(source, "chapAuthSession")) && !has(source, "secretRef") {
        errors.required(path.child("secretRef"), "");
    }
}

/// What is wrong with the name of a CSI driver.
pub fn csi_driver(name: &str) -> Vec<String> {
    if name.len() > 63 {
        return vec!["must be no more than 63 characters".into()];
    }
    names::dns1123_subdomain(&name.to_lowercase())
}

fn pod_source(name: &str, value: &Value, path: &Path, errors: &mut Errors) {
    match name {
        "emptyDir" => {
            if let Some(Ok(limit)) = member(value, "sizeLimit").map(Quantity::from_value)
                && limit.sign() < 0
            {
                errors.forbidden(path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
            }
        }
        "secret" => {
            checks::required(value, "secretName", path, errors);
            mode(int(value, "defaultMode"), &path.child("defaultMode"), errors);
            items(value, path, errors);
        }
        "configMap" => {
            checks::required(value, "name", path, errors);
            mode(int(value, "defaultMode"), &path.child("defaultMode"), errors);
            items(value, path, errors);
        }
        "persistentVolumeClaim" => {
            checks::required(value, "claimName", path, errors);
        }
        "gitRepo" => {
            checks::required(value, "repository", path, errors);
            relative_path(text(value, "directory"), &path.child("directory"), errors);
        }
        "downwardAPI" => {
            mode(int(value, "defaultMode"), &path.child("defaultMode"), errors);
            super::environment::validate_files(list(value, "items"), path, errors);
        }
        "projected" => projected(value, path, errors),
        "csi" => {
            if checks::required(value, "driver", path, errors) {
                errors.invalid_all(&path.child("driver"), text(value, "driver"), csi_driver(text(value, "driver")));
            }
            if let Some(secret) = member(value, "nodePublishSecretRef") {
                checks::required(secret, "name", &path.child("nodePublishSecretRef"), errors);
            }
        }
        "ephemeral" => match member(value, "volumeClaimTemplate") {
            None => errors.required(path.child("volumeClaimTemplate"), ""),
            Some(template) => {
                let path = path.child("volumeClaimTemplate");
                for (key, value) in map(template, "metadata").into_iter().flatten() {
                    if !matches!(key.as_str(), "annotations" | "labels") && !crate::kinds::values::is_empty(value) {
                        errors.forbidden(path.child("metadata").child(key), "cannot be set");
                    }
                }
                let metadata = template.get("metadata").unwrap_or(&Value::Null);
                checks::labels(map(metadata, "labels"), &path.child("metadata").child("labels"), errors);
                checks::annotations(map(metadata, "annotations"), &path.child("metadata").child("annotations"), errors);
                claim_spec(template.get("spec").unwrap_or(&Value::Null), &path.child("spec"), errors);
            }
        },
        "image" => {
            if checks::required(value, "reference", path, errors) && text(value, "reference").trim() != text(value, "reference") {
                errors.invalid(path.child("reference"), text(value, "reference"), "must not have leading or trailing whitespace");
            }
            checks::one_of(value, "pullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
        }
        other => {
            source(other, value, path, errors);
        }
    }
}

fn projected(value: &Value, path: &Path, errors: &mut Errors) {
    mode(int(value, "defaultMode"), &path.child("defaultMode"), errors);
    let mut paths: Vec<&str> = vec![];
    for (i, projection) in list(value, "sources").iter().enumerate() {
        let at = path.child("sources").index(i);
        let mut count = 0;
        for name in ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"] {
            let Some(source) = member(projection, name) else { continue };
            count += 1;
            if count > 1 {
                errors.forbidden(at.clone(), "may not specify more than 1 volume type per source");
                continue;
            }
            let here = at.child(name);
            match name {
                "secret" | "configMap" => {
                    checks::required(source, "name", &here, errors);
                    items(source, &here, errors);
                    for item in list(source, "items") {
                        let target = text(item, "path");
                        if !target.is_empty() {
                            conflict(&mut paths, target, text(source, "name"), path, errors);
                        }
                    }
                }
                "downwardAPI" => {
                    super::environment::validate_files(list(source, "items"), &here, errors);
                    for item in list(source, "items") {
                        conflict(&mut paths, text(item, "path"), text(item, "path"), path, errors);
                    }
                }
                "serviceAccountToken" => {
                    let seconds = int(source, "expirationSeconds").unwrap_or(0);
                    if seconds < 600 {
                        errors.invalid(here.child("expirationSeconds"), seconds, "may not specify a duration less than 10 minutes");
                    } else if seconds > 1 << 32 {
                        errors.invalid(here.child("expirationSeconds"), seconds, "may not specify a duration larger than 2^32 seconds");
                    }
                    if text(source, "path").is_empty() {
                        errors.required(path.child("path"), "");
                    } else {
                        file_path(text(source, "path"), &path.child("path"), errors);
                        conflict(&mut paths, text(source, "path"), text(source, "path"), path, errors);
                    }
                }
                _ => {
                    for key in ["path", "keyPath", "certificateChainPath", "credentialBundlePath"] {
                        if !text(source, key).is_empty() {
                            file_path(text(source, key), &here.child(key), errors);
                            conflict(&mut paths, text(source, key), text(source, key), path, errors);
                        }
                    }
                }
            }
        }
    }
}
fn conflict<'a>(paths: &mut Vec<&'a str>, target: &'a str, shown: &str, path: &Path, errors: &mut Errors) {
    if paths.contains(&target) {
        errors.invalid(path.clone(), shown, "conflicting duplicate paths");
    } else {
        paths.push(target);
    }
}

/// The spec of a PersistentVolumeClaim, alone or as a template.
pub fn claim_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    if list(spec, "accessModes").is_empty() {
        errors.required(path.child("accessModes"), "at least 1 access mode is required");
    }
    if let Some(selector) = member(spec, "selector") {
        crate::selector::validate(selector, &path.child("selector"), errors);
    }
    let mut has_once_pod = false;
    for mode in strings(spec, "accessModes") {
        has_once_pod |= mode == "ReadWriteOncePod";
        if !MODES.contains(&mode) {
            errors.not_supported(path.child("accessModes"), mode, MODES);
        }
    }
    if has_once_pod && list(spec, "accessModes").len() > 1 {
        errors.forbidden(path.child("accessModes"), "may not use ReadWriteOncePod with other access modes");
    }
    let resources = path.child("resources");
    match spec.get("resources").and_then(|r| map(r, "requests")).and_then(|r| r.get("storage")) {
        None => errors.required(resources.key("storage"), ""),
        Some(storage) => {
            if let Ok(quantity) = Quantity::from_value(storage)
                && quantity.sign() <= 0
            {
                errors.invalid(resources.key("storage"), quantity.to_string(), "must be greater than zero");
            }
        }
    }
    checks::checked(spec, "storageClassName", path, names::dns1123_subdomain, errors);
    checks::one_of(spec, "volumeMode", &["Block", "Filesystem"], path, errors);
    if let Some(source) = member(spec, "dataSource") {
        typed_reference(source, &path.child("dataSource"), errors);
    }
    if let Some(source) = member(spec, "dataSourceRef") {
        typed_reference(source, &path.child("dataSourceRef"), errors);
    }
    checks::checked(spec, "volumeAttributesClassName", path, names::dns1123_subdomain, errors);
}
fn typed_reference(reference: &Value, path: &Path, errors: &mut Errors) {
    checks::required(reference, "name", path, errors);
    checks::required(reference, "kind", path, errors);
    let (group, kind) = (text(reference, "apiGroup"), text(reference, "kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        errors.invalid(path.clone(), kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
    }
    if !group.is_empty() {
        errors.invalid_all(&path.child("apiGroup"), group, names::dns1123_subdomain(group));
    }
}

/// In which order the sources of a volume are looked at; others come after.
const ORDER: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
];

/// `volumes` of a pod spec. Gives the names of those that are good.
pub fn validate<'a>(spec: &'a Value, path: &Path, errors: &mut Errors) -> Vec<&'a str> {
    let volumes = list(spec, "volumes");
    let mut good = vec![];
    for (i, volume) in volumes.iter().enumerate() {
        let path = path.child("volumes").index(i);
        let (mut count, before) = (0, errors.0.len());
        let mut sources: Vec<_> = volume.as_object().into_iter().flatten().filter(|(name, value)| *name != "name" && value.is_object()).collect();
        sources.sort_by_key(|(name, _)| ORDER.iter().position(|known| known == name).unwrap_or(ORDER.len()));
        for (name, value) in sources {
            count += 1;
            if count > 1 {
                errors.forbidden(path.child(name), "may not specify more than 1 volume type");
            } else {
                pod_source(name, value, &path.child(name), errors);
            }
        }
        if count == 0 {
            errors.required(path.clone(), "must specify a volume type");
        }
        let name = text(volume, "name");
        if name.is_empty() {
            errors.required(path.child("name"), "");
        } else {
            errors.invalid_all(&path.child("name"), name, names::dns1123_label(name));
            if volumes[..i].iter().any(|other| text(other, "name") == name) {
                errors.duplicate(path.child("name"), name);
            }
        }
        if errors.0.len() == before {
            good.push(name);
        }
    }
    good
}
/// `volumeMounts` and `volumeDevices` of a container. `good` are the names of the volumes that may be mounted.
pub fn validate_mounts(container: &Value, spec: &Value, good: &[&str], path: &Path, errors: &mut Errors) {
    let volumes: Vec<&Value> = list(spec, "volumes").iter().filter(|v| good.contains(&text(v, "name"))).collect();
    let (mounts, devices) = (list(container, "volumeMounts"), list(container, "volumeDevices"));
    let at = path.child("volumeMounts");
    for (i, mount) in mounts.iter().enumerate() {
        let path = at.index(i);
        let name = text(mount, "name");
        if name.is_empty() {
            errors.required(path.child("name"), "");
        }
        let volume = volumes.iter().find(|v| text(v, "name") == name);
        if volume.is_none() {
            errors.not_found(path.child("name"), name);
        }
        let target = text(mount, "mountPath");
        if target.is_empty() {
            errors.required(path.child("mountPath"), "");
        }
        if mounts[..i].iter().any(|other| text(other, "mountPath") == target) {
            errors.invalid(path.child("mountPath"), target, "must be unique");
        }
        if devices.iter().any(|device| text(device, "name") == name) {
            errors.invalid(path.child("name"), name, "must not already exist in volumeDevices");
        }
        if !text(mount, "subPath").is_empty() {
            relative_path(text(mount, "subPath"), &at.child("subPath"), errors);
        }
        if !text(mount, "subPathExpr").is_empty() {
            if !text(mount, "subPath").is_empty() {
                errors.invalid(path.child("subPathExpr"), text(mount, "subPathExpr"), "subPathExpr and subPath are mutually exclusive");
            }
            relative_path(text(mount, "subPathExpr"), &at.child("subPathExpr"), errors);
        }
        if has(mount, "mountPropagation") {
            checks::one_of(mount, "mountPropagation", &["Bidirectional", "HostToContainer", "None"], &at, errors);
            let privileged = container.get("securityContext").is_some_and(|s| flag(s, "privileged"));
            if text(mount, "mountPropagation") == "Bidirectional" && !privileged {
                errors.forbidden(at.child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers");
            }
        }
        if has(mount, "recursiveReadOnly") {
            let said = text(mount, "recursiveReadOnly");
            if !matches!(said, "Disabled" | "IfPossible" | "Enabled") {
                errors.not_supported(at.child("recursiveReadOnly"), said, &["Disabled", "IfPossible", "Enabled"]);
            } else if said != "Disabled" {
                if !flag(mount, "readOnly") {
                    errors.forbidden(at.child("recursiveReadOnly"), "may only be specified when readOnly is true");
                }
                if !matches!(text(mount, "mountPropagation"), "" | "None") {
                    errors.forbidden(at.child("recursiveReadOnly"), "may only be specified when mountPropagation is None or not specified");
                }
            }
        }
    }
    for (i, device) in devices.iter().enumerate() {
        let path = path.child("volumeDevices").index(i);
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            errors.required(path.child("name"), "");
        }
        if devices[..i].iter().any(|other| text(other, "name") == name) {
            errors.invalid(path.child("name"), name, "must be unique");
        }
        match volumes.iter().find(|v| text(v, "name") == name) {
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                errors.invalid(path.child("name"), name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
            }
            None => errors.not_found(path.child("name"), name),
            _ => {}
        }
        if target.is_empty() {
            errors.required(path.child("devicePath"), "");
        }
        if !target.is_empty() && devices[..i].iter().any(|other| text(other, "devicePath") == target) {
            errors.invalid(path.child("devicePath"), target, "must be unique");
        }
        let backsteps = !target.is_empty() && target.split('/').any(|part| part == "..");
        if backsteps {
            errors.invalid(path.child("devicePath"), target, "can not contain backsteps ('..')");
        }
        if mounts.iter().any(|mount| text(mount, "name") == name) {
            errors.invalid(path.child("name"), name, "must not already exist in volumeMounts");
        }
        if !backsteps && mounts.iter().any(|mount| text(mount, "mountPath") == target) {
            errors.invalid(path.child("devicePath"), target, "must not already exist as a path in volumeMounts");
        }
    }
}
