//! Volumes of a pod, and where containers mount them.

use crate::{
    field::{Errors, Path},
    kinds::{
        certificates::certificatesigningrequests::signer_name,
        checks,
        values::{flag, has, int, list, map, member, strings, text},
    },
    names,
    quantity::Quantity,
};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

const MANAGED_DISK_FORM: &str = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
const DISK_FORM: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";

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
pub fn file_path(target: &str, path: &Path, errors: &mut Errors) {
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
                checks::one_of(
                    source,
                    "type",
                    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"],
                    path,
                    errors,
                );
            }
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
            checks::required(source, "path", path, errors);
            if !text(source, "path").starts_with('/') {
                errors.invalid(path.child("path"), text(source, "path"), "must be an absolute path");
            }
        }
        "iscsi" => iscsi(source, None, path, errors),
        "fc" => {
            let (wwns, wwids) = (list(source, "targetWWNs").len(), list(source, "wwids").len());
            if wwns == 0 && wwids == 0 {
                errors.required(path.child("targetWWNs"), "must specify either targetWWNs or wwids, but not both");
            } else if wwns > 0 && wwids > 0 {
                let detail = "targetWWNs and wwids can not be specified simultaneously";
                errors.invalid(path.child("targetWWNs"), Value::from(list(source, "targetWWNs").to_vec()), detail);
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
            checks::required(source, "path", path, errors);
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
            if let Some(secret) = member(source, "secretRef") {
                checks::required(secret, "name", &path.child("secretRef"), errors);
            }
        }
        "flexVolume" => {
            checks::required(source, "driver", path, errors);
            for (key, _) in map(source, "options").into_iter().flatten() {
                let domain = format!(".{}", key.split('/').next().filter(|_| key.contains('/')).unwrap_or(key).to_lowercase());
                if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
                    errors.invalid(path.child("options").key(key), key.as_str(), "kubernetes.io and k8s.io namespaces are reserved");
                }
            }
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
            let (managed, uri) = (text(source, "kind") == "Managed", text(source, "diskURI"));
            let wanted = if managed { "/subscriptions/" } else { "https://" };
            if has(source, "kind") && !uri.starts_with(wanted) {
                let form = if managed { MANAGED_DISK_FORM } else { DISK_FORM };
                errors.not_supported(path.child("diskURI"), uri, &[form]);
            }
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
            let registry = text(source, "registry");
            const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
            let is_pair =
                |pair: &str| pair.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || (host.starts_with('[') && host.ends_with(']')));
            if registry.is_empty() {
                errors.required(path.child("registry"), PAIRS);
            } else if text(source, "tenant").len() > 64 {
                errors.required(path.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
            } else {
                for _ in registry.split(',').filter(|pair| !is_pair(pair)) {
                    errors.invalid(path.child("registry"), registry, PAIRS);
                }
            }
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
            if name.contains('/') {
                errors.invalid(path.child("datasetName"), name, "must not contain '/'");
            }
        }
        "storageos" => {
            checks::required_checked(source, "volumeName", path, names::dns1123_label, errors);
            checks::checked(source, "volumeNamespace", path, names::dns1123_label, errors);
            if let Some(secret) = member(source, "secretRef") {
                checks::required(secret, "name", &path.child("secretRef"), errors);
            }
        }
        "cephfs" => {}
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
/// `volume` is the name of the PersistentVolume, if it is one's source.
pub fn iscsi(source: &Value, volume: Option<&str>, path: &Path, errors: &mut Errors) {
    let (persistent, portal) = (volume.is_some(), text(source, "targetPortal"));
    checks::required(source, "targetPortal", path, errors);
    if volume.is_some_and(|name| name.len() + 1 + portal.len() > PORTAL_CHARS_MAX) && has(source, "initiatorName") {
        errors.invalid(path.child("targetportal"), portal, PORTAL_TOO_LONG);
    }
    if checks::required(source, "iqn", path, errors) {
        iscsi_name(text(source, "iqn"), persistent, &path.child("iqn"), errors);
    }
    let lun = int(source, "lun").unwrap_or(0);
    if !(0..=255).contains(&lun) {
        errors.invalid(path.child("lun"), lun, "must be between 0 and 255, inclusive");
    }
    if (flag(source, "chapAuthDiscovery") || flag(source, "chapAuthSession")) && !has(source, "secretRef") {
        errors.required(path.child("secretRef"), "");
    }
    if let Some(secret) = member(source, "secretRef").filter(|_| persistent) {
        checks::required(secret, "name", &path.child("secretRef"), errors);
    }
    if let Some(Value::String(initiator)) = member(source, "initiatorName") {
        iscsi_name(initiator, persistent, &path.child("initiatorname"), errors);
    }
}
/// The name of one end of an iSCSI session, in one of three forms.
fn iscsi_name(name: &str, persistent: bool, path: &Path, errors: &mut Errors) {
    let alphanumeric = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    let good = match name.get(..3) {
        // A month, a domain turned round, and what its owner likes.
        Some("iqn") => name.strip_prefix("iqn.").and_then(|rest| rest.split_once('.')).is_some_and(|(month, rest)| {
            let (domain, own) = rest.split_once(':').unwrap_or((rest, ""));
            let host = !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
            let own = !own.is_empty() && !own.contains(|c: char| c.is_ascii_whitespace() || ",;*&$|".contains(c));
            month.split_once('-').is_some_and(|(year, month)| digits(year, 4) && digits(month, 2)) && host && own
        }),
        Some("eui") => name.len() == 20 && name.get(4..).is_some_and(alphanumeric),
        Some("naa") => name.len() == 36 && name.get(4..).is_some_and(alphanumeric),
        _ if persistent => false,
        _ => return errors.invalid(path.clone(), name, "must be valid format starting with iqn, eui, or naa"),
    };
    if !good {
        errors.invalid(path.clone(), name, "must be valid format");
    }
}

/// The name of a CSI driver at `path`.
pub fn csi_driver(name: &str, path: &Path, errors: &mut Errors) {
    const CHARS_MAX: usize = 63;
    if name.is_empty() {
        return errors.required(path.clone(), "");
    }
    if name.len() > CHARS_MAX {
        errors.too_long(path.clone(), name, CHARS_MAX);
    }
    errors.invalid_all(path, name, names::dns1123_subdomain(&name.to_lowercase()));
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
            csi_driver(text(value, "driver"), &path.child("driver"), errors);
            if let Some(secret) = member(value, "nodePublishSecretRef")
                && checks::required(secret, "name", &path.child("nodePublishSecretRef"), errors)
            {
                checks::checked(secret, "name", path, names::dns1123_subdomain, errors);
            }
        }
        "ephemeral" => match member(value, "volumeClaimTemplate") {
            None => errors.required(path.child("volumeClaimTemplate"), ""),
            Some(template) => {
                let path = path.child("volumeClaimTemplate");
                let (metadata, at) = (template.get("metadata").unwrap_or(&Value::Null), path.child("metadata"));
                checks::annotations(map(metadata, "annotations"), &at.child("annotations"), errors);
                checks::labels(map(metadata, "labels"), &at.child("labels"), errors);
                for (key, shown) in TEMPLATE_METADATA {
                    if metadata.get(*key).is_some_and(|value| !crate::kinds::values::is_empty(value) && *value != 0) {
                        errors.forbidden(at.child(shown), "cannot be set");
                    }
                }
                claim_spec(template.get("spec").unwrap_or(&Value::Null), &path.child("spec"), errors);
            }
        },
        "image" => {
            checks::required(value, "reference", path, errors);
            checks::one_of(value, "pullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
        }
        other => {
            source(other, value, path, errors);
        }
    }
}

fn projected(value: &Value, path: &Path, errors: &mut Errors) {
    mode(int(value, "defaultMode"), &path.child("defaultMode"), errors);
    let mut paths = HashSet::new();
    for (i, projection) in list(value, "sources").iter().enumerate() {
        let at = path.child("sources").index(i);
        let mut count = 0;
        for name in ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"] {
            let Some(source) = member(projection, name) else { continue };
            count += 1;
            let here = at.child(name);
            match name {
                "secret" | "configMap" => {
                    checks::required(source, "name", &here, errors);
                    for (j, item) in list(source, "items").iter().enumerate() {
                        key_to_path(item, &here.child("items").index(j), errors);
                        if !text(item, "path").is_empty() {
                            conflict(&mut paths, text(item, "path"), text(source, "name"), path, errors);
                        }
                    }
                }
                "downwardAPI" => {
                    for item in list(source, "items") {
                        super::environment::validate_files(std::slice::from_ref(item), &here, errors);
                        if !text(item, "path").is_empty() {
                            conflict(&mut paths, text(item, "path"), text(item, "path"), path, errors);
                        }
                    }
                }
                "serviceAccountToken" => {
                    let seconds = int(source, "expirationSeconds").unwrap_or(0);
                    if seconds < 600 {
                        errors.invalid(here.child("expirationSeconds"), seconds, "may not specify a duration less than 10 minutes");
                    } else if seconds > 1 << 32 {
                        errors.invalid(here.child("expirationSeconds"), seconds, "may not specify a duration larger than 2^32 seconds");
                    }
                    if checks::required(source, "path", path, errors) {
                        file_path(text(source, "path"), &path.child("path"), errors);
                    }
                }
                "clusterTrustBundle" => {
                    // Kubernetes' own name for the place.
                    let here = at.child("clusterTrustBundlePEM");
                    trust_bundle(source, &here, errors);
                    checks::required(source, "path", &here, errors);
                    file_path(text(source, "path"), &here.child("path"), errors);
                    conflict(&mut paths, text(source, "path"), text(source, "path"), path, errors);
                }
                _ => {
                    pod_certificate(source, &here, errors);
                    let mut files = 0;
                    for key in ["credentialBundlePath", "keyPath", "certificateChainPath"].iter().filter(|key| !text(source, key).is_empty()) {
                        files += 1;
                        file_path(text(source, key), &here.child(key), errors);
                        conflict(&mut paths, text(source, key), text(source, key), path, errors);
                    }
                    if files == 0 {
                        errors.required(here, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath");
                    }
                }
            }
        }
        if count > 1 {
            errors.forbidden(at, "may not specify more than 1 volume type per source");
        }
    }
}
/// Which authorities a file holds: those of one bundle, or of all that a signer has.
fn trust_bundle(source: &Value, path: &Path, errors: &mut Errors) {
    match (member(source, "name").and_then(Value::as_str), member(source, "signerName").and_then(Value::as_str)) {
        (Some(_), Some(_)) => {
            let shown = crate::internal::show("core.v1.ClusterTrustBundleProjection", source);
            errors.invalid_structure(path.clone(), &shown, "only one of name and signerName may be used");
        }
        (Some(name), None) => {
            if name.is_empty() {
                errors.required(path.child("name"), "must be a valid object name");
            }
            let own = name.rsplit(':').next().unwrap_or_default();
            for problem in names::dns1123_subdomain(own) {
                errors.invalid(path.child("name"), name, &format!("not a valid clustertrustbundlename: {problem}"));
            }
            if let Some(selector) = member(source, "labelSelector") {
                let shown = crate::internal::selector(Some(selector));
                errors.invalid_structure(path.child("labelSelector"), &shown, "labelSelector must be unset if name is specified");
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                errors.required(path.child("signerName"), "must be a valid signer name");
            }
            signer_name(signer, &path.child("signerName"), errors);
            if let Some(selector) = member(source, "labelSelector") {
                crate::selector::validate(selector, &path.child("labelSelector"), errors);
            }
        }
        (None, None) => errors.required(path.clone(), "either name or signerName must be specified"),
    }
}
/// A certificate that is asked for in the pod's name.
fn pod_certificate(source: &Value, path: &Path, errors: &mut Errors) {
    const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    const AGE_MIN_S: i64 = 3600;
    const AGE_MAX_S: i64 = 91 * 86_400;
    signer_name(text(source, "signerName"), &path.child("signerName"), errors);
    let kind = text(source, "keyType");
    if !KEY_TYPES.contains(&kind) {
        errors.not_supported(path.child("keyType"), kind, KEY_TYPES);
    }
    if let Some(seconds) = int(source, "maxExpirationSeconds") {
        let at = path.child("maxExpirationSeconds");
        if seconds < AGE_MIN_S {
            errors.invalid(at, seconds, &format!("if provided, maxExpirationSeconds must be >= {AGE_MIN_S}"));
        } else if seconds > AGE_MAX_S {
            errors.invalid(at, seconds, &format!("if provided, maxExpirationSeconds must be <= {AGE_MAX_S}"));
        }
    }
}
fn conflict<'a>(paths: &mut HashSet<&'a str>, target: &'a str, shown: &str, path: &Path, errors: &mut Errors) {
    if !paths.insert(target) {
        errors.invalid(path.clone(), shown, "conflicting duplicate paths");
    }
}

/// How volumes and claims may be mounted.
pub fn access_modes(spec: &Value, path: &Path, errors: &mut Errors) {
    const ONCE_POD: &str = "ReadWriteOncePod";
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", ONCE_POD];
    let path = path.child("accessModes");
    for mode in strings(spec, "accessModes").filter(|mode| !MODES.contains(mode)) {
        errors.not_supported(path.clone(), mode, MODES);
    }
    let has = |once: bool| strings(spec, "accessModes").any(|mode| MODES.contains(&mode) && (mode == ONCE_POD) == once);
    if has(true) && has(false) {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

/// The spec of a PersistentVolumeClaim, alone or as a template.
pub fn claim_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    if list(spec, "accessModes").is_empty() {
        errors.required(path.child("accessModes"), "at least 1 access mode is required");
    }
    if let Some(selector) = member(spec, "selector") {
        crate::selector::validate(selector, &path.child("selector"), errors);
    }
    access_modes(spec, path, errors);
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
    let sources = ["dataSource", "dataSourceRef"].map(|key| member(spec, key).map(|source| (source, path.child(key))));
    for (source, at) in sources.iter().flatten() {
        typed_reference(source, at, errors);
    }
    if let [Some((old, _)), Some((new, _))] = &sources
        && ["apiGroup", "kind", "name"].iter().any(|key| member(old, key) != member(new, key))
    {
        errors.invalid(path.clone(), serde_json::json!({}), "must match dataSourceRef");
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

/// The longest `<volume>:<portal>` that an initiator of iSCSI may be called by.
pub const PORTAL_CHARS_MAX: usize = 64;
pub const PORTAL_TOO_LONG: &str =
    "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
/// What metadata of a template of a claim must not say, and what errors call it.
const TEMPLATE_METADATA: &[(&str, &str)] = &[
    ("name", "name"),
    ("generateName", "generateName"),
    ("namespace", "namespace"),
    ("selfLink", "selfLink"),
    ("uid", "uID"),
    ("resourceVersion", "resourceVersion"),
    ("generation", "generation"),
    ("creationTimestamp", "creationTimestamp"),
    ("deletionTimestamp", "deletionTimestamp"),
    ("deletionGracePeriodSeconds", "deletionGracePeriodSeconds"),
    ("ownerReferences", "ownerReferences"),
    ("finalizers", "finalizers"),
    ("managedFields", "managedFields"),
];

/// In which order the sources of a volume are looked at.
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
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// What errors call a source: here and there something else than its field is called.
fn shown_source(name: &str, second: bool) -> &str {
    match (name, second) {
        ("gcePersistentDisk", false) => "persistentDisk",
        ("cephfs", true) => "cephFS",
        ("downwardAPI", true) => "downwarAPI",
        _ => name,
    }
}

/// The sources of `volume`, of which there may be one, in the order of Kubernetes. `one` checks the first.
pub fn one_source(volume: &Value, names: &[&str], path: &Path, errors: &mut Errors, mut one: impl FnMut(&str, &Value, &Path, &mut Errors)) {
    let mut sources: Vec<_> =
        volume.as_object().into_iter().flatten().filter(|(name, value)| names.contains(&name.as_str()) && value.is_object()).collect();
    sources.sort_by_key(|(name, _)| names.iter().position(|known| known == name));
    for (i, (name, value)) in sources.iter().enumerate() {
        if i > 0 {
            errors.forbidden(path.child(shown_source(name, true)), "may not specify more than 1 volume type");
        } else {
            one(name, value, &path.child(shown_source(name, false)), errors);
        }
    }
    if sources.is_empty() {
        errors.required(path.clone(), "must specify a volume type");
    }
}

/// Volumes by name, the first of those that have it.
pub type Volumes<'a> = HashMap<&'a str, &'a Value>;

/// `volumes` of a pod spec. Gives those that containers may mount.
pub fn validate<'a>(spec: &'a Value, pod: Option<&Value>, path: &Path, errors: &mut Errors) -> Volumes<'a> {
    let volumes = list(spec, "volumes");
    let pod_name = pod.and_then(|pod| pod.get("metadata")).map(|metadata| text(metadata, "name")).unwrap_or_default();
    let claim = |volume: &Value| format!("{pod_name}-{}", text(volume, "name"));
    let ephemeral: HashSet<String> = volumes.iter().filter(|volume| has(volume, "ephemeral")).map(claim).collect();
    let mut good = HashSet::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = path.child("volumes").index(i);
        let before = errors.0.len();
        let name = text(volume, "name");
        one_source(volume, ORDER, &path, errors, |source, value, at, errors| {
            pod_source(source, value, at, errors);
            match source {
                "iscsi" if has(value, "initiatorName") && name.len() + 1 + text(value, "targetPortal").len() > PORTAL_CHARS_MAX => {
                    errors.invalid(path.child("name"), name, PORTAL_TOO_LONG);
                }
                "ephemeral" if !pod_name.is_empty() && !name.is_empty() => {
                    for problem in names::dns1123_subdomain(&claim(volume)) {
                        errors.invalid(path.child("name"), name, &format!("PVC name {:?}: {problem}", claim(volume)));
                    }
                }
                _ => {}
            }
        });
        if name.is_empty() {
            errors.required(path.child("name"), "");
        } else {
            errors.invalid_all(&path.child("name"), name, names::dns1123_label(name));
        }
        if good.contains(name) {
            errors.duplicate(path.child("name"), name);
        }
        if errors.0.len() == before {
            good.insert(name);
        }
        if let Some(wanted) = member(volume, "persistentVolumeClaim").map(|source| text(source, "claimName"))
            && !pod_name.is_empty()
            && ephemeral.contains(wanted)
        {
            let at = path.child("persistentVolumeClaim").child("claimName");
            errors.invalid(at, wanted, "must not reference a PVC that gets created for an ephemeral volume");
        }
    }
    checks::by_name(volumes.iter().filter(|volume| good.contains(text(volume, "name"))))
}
/// Where the volumes of a list are, by name. Of several with a name, the last counts.
fn places<'a>(list: &'a [Value], key: &str) -> HashMap<&'a str, &'a str> {
    list.iter().map(|one| (text(one, "name"), text(one, key))).collect()
}

/// `volumeMounts` and `volumeDevices` of a container. `volumes` are those that it may mount.
pub fn validate_mounts(container: &Value, volumes: &Volumes, path: &Path, errors: &mut Errors) {
    let (mounts, devices) = (list(container, "volumeMounts"), list(container, "volumeDevices"));
    let (mounted, mapped) = (places(mounts, "mountPath"), places(devices, "devicePath"));
    let [taken_by_mounts, taken_by_devices] = [&mounted, &mapped].map(|places| places.values().copied().collect::<HashSet<&str>>());
    let at = path.child("volumeMounts");
    for (i, mount, again) in checks::distinct(mounts, |mount| text(mount, "mountPath")) {
        let path = at.index(i);
        let name = text(mount, "name");
        if name.is_empty() {
            errors.required(path.child("name"), "");
        }
        if !volumes.contains_key(name) {
            errors.not_found(path.child("name"), name);
        }
        let target = text(mount, "mountPath");
        if target.is_empty() {
            errors.required(path.child("mountPath"), "");
        }
        if again {
            errors.invalid(path.child("mountPath"), target, "must be unique");
        }
        if mapped.contains_key(name) {
            errors.invalid(path.child("name"), name, "must not already exist in volumeDevices");
        }
        if taken_by_devices.contains(target) {
            errors.invalid(path.child("mountPath"), target, "must not already exist as a path in volumeDevices");
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
                errors.not_supported(at.child("recursiveReadOnly"), said, &["Disabled", "Enabled", "IfPossible"]);
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
    let mut targets = HashSet::new();
    for (i, device, again) in checks::distinct(devices, |device| text(device, "name")) {
        let path = path.child("volumeDevices").index(i);
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            errors.required(path.child("name"), "");
        }
        if !name.is_empty() && again {
            errors.invalid(path.child("name"), name, "must be unique");
        }
        match volumes.get(name) {
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                errors.invalid(path.child("name"), name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
            }
            None => errors.not_found(path.child("name"), name),
            _ => {}
        }
        if target.is_empty() {
            errors.required(path.child("devicePath"), "");
        }
        let backsteps = target.split('/').any(|part| part == "..");
        if !targets.insert(target) && !backsteps {
            errors.invalid(path.child("devicePath"), target, "must be unique");
        }
        if backsteps {
            errors.invalid(path.child("devicePath"), target, "can not contain backsteps ('..')");
        }
        if mounted.contains_key(name) {
            errors.invalid(path.child("name"), name, "must not already exist in volumeMounts");
        }
        if taken_by_mounts.contains(target) {
            errors.invalid(path.child("devicePath"), target, "must not already exist as a path in volumeMounts");
        }
    }
}
