//! What a pod's spec says when it says nothing.

use super::resources;
use crate::{
    kinds::values::{each, fill, fill_absent, fill_zero, has, int, list, made, put, take, text, within},
    quantity::Quantity,
};
use serde_json::{Value, json};

/// Defaults of any pod spec, in a template or in a Pod.
pub fn spec(spec: &mut Value) {
    fill(spec, "restartPolicy", "Always");
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", json!({}));
    service_account(spec);
    each(spec, "volumes", volume);
    for containers in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, containers, container);
    }
}

/// Takes out what is not yet on by default, after the client's part of the object is known.
pub fn drop_disabled(spec: &mut Value) {
    for containers in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, containers, |container| {
            let Some(lifecycle) = container.get_mut("lifecycle") else { return };
            if take(lifecycle, "stopSignal").is_some() && !has(lifecycle, "postStart") && !has(lifecycle, "preStop") {
                take(container, "lifecycle");
            }
        });
    }
}

/// Defaults that only a Pod itself has, not a template. Called after [`spec`].
pub fn pod_spec(spec: &mut Value) {
    fill(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or_default();
    for containers in ["initContainers", "containers"] {
        each(spec, containers, |container| {
            within(container, "resources", requests_from_limits);
            if host_network {
                each(container, "ports", |port| {
                    if let Some(number) = int(port, "containerPort") {
                        fill_zero(port, "hostPort", number);
                    }
                });
            }
        });
    }
    pod_level_resources(spec);
}

/// A limit is a request too, unless the request is said.
fn requests_from_limits(resources: &mut Value) {
    let limits = resources.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
    if limits.is_empty() {
        return;
    }
    let requests = made(resources, "requests");
    for (name, quantity) in limits {
        fill(requests, &name, quantity);
    }
}

/// Where a pod has resources as a whole, the huge pages of its containers are limited for all of them, and where it has limits,
/// its requests are those of the containers, or else the limits.
fn pod_level_resources(spec: &mut Value) {
    let said = |spec: &Value, key: &str| spec["resources"].get(key).and_then(Value::as_object).cloned().unwrap_or_default();
    if !has(spec, "resources") || ["limits", "requests"].iter().all(|key| said(spec, key).is_empty()) {
        return;
    }
    let (mut limits, mut requests) = (said(spec, "limits"), said(spec, "requests"));
    for (name, sum) in resources::aggregate_limits(spec).into_iter().filter(|(name, _)| resources::is_huge_pages(name)) {
        if !requests.contains_key(&name) {
            limits.entry(name).or_insert_with(|| json!(sum.to_string()));
        }
    }
    if limits.is_empty() {
        return;
    }
    for (name, sum) in resources::aggregate_requests(spec).into_iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")) {
        requests.entry(name).or_insert_with(|| json!(sum.to_string()));
    }
    for (name, limit) in limits.iter().filter(|(name, _)| resources::is_pod_level(name)) {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
    put(&mut spec["resources"], "limits", limits);
    if !requests.is_empty() {
        put(&mut spec["resources"], "requests", requests);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always shown.
pub fn service_account(spec: &mut Value) {
    let name = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount"),
        name => name,
    };
    if !name.is_empty() {
        let name = name.to_string();
        put(spec, "serviceAccountName", name.as_str());
        put(spec, "serviceAccount", name);
    }
}

/// `Always` for the tag `latest`, said or not; `IfNotPresent` for any other, for a digest, and for what names no image.
pub fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or_default();
    let (name, tag) = match last.split_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], tag),
        None => (name, if digest { "" } else { "latest" }),
    };
    if tag == "latest" && is_image_name(name) { "Always" } else { "IfNotPresent" }
}
/// Whether a name without tag and digest can be an image's: words in lower case, maybe behind the name of a registry.
fn is_image_name(name: &str) -> bool {
    let is_registry = |first: &str| first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase());
    let path = name.split_once('/').filter(|(first, _)| is_registry(first)).map_or(name, |(_, rest)| rest);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_word = |word: &str| {
        let ends_well = |b: Option<&u8>| b.is_some_and(|b| plain(*b));
        let good = word.bytes().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'));
        good && ends_well(word.as_bytes().first())
            && ends_well(word.as_bytes().last())
            && !["..", "___", "._", "_.", ".-", "-."].iter().any(|odd| word.contains(odd))
    };
    let is_identifier = name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    path.split('/').all(is_word) && !is_identifier
}

fn container(container: &mut Value) {
    let policy = pull_policy(text(container, "image"));
    fill(container, "imagePullPolicy", policy);
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    each(container, "ports", |port| fill(port, "protocol", "TCP"));
    each(container, "env", |variable| {
        within(variable, "valueFrom", |source| {
            field_and_resource(source);
            within(source, "fileKeyRef", |file| fill(file, "optional", false));
        })
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        within(container, name, probe);
    }
    within(container, "lifecycle", |lifecycle| {
        for hook in ["postStart", "preStop"] {
            within(lifecycle, hook, http_get);
        }
    });
}

fn probe(probe: &mut Value) {
    fill_zero(probe, "timeoutSeconds", 1);
    fill_zero(probe, "periodSeconds", 10);
    fill_zero(probe, "successThreshold", 1);
    fill_zero(probe, "failureThreshold", 3);
    http_get(probe);
    within(probe, "grpc", |grpc| fill(grpc, "service", ""));
}

fn http_get(handler: &mut Value) {
    within(handler, "httpGet", |get| {
        fill(get, "path", "/");
        fill(get, "scheme", "HTTP");
    });
}

fn field_and_resource(source: &mut Value) {
    within(source, "fieldRef", |field| fill(field, "apiVersion", "v1"));
    within(source, "resourceFieldRef", |resource| {
        if resource.get("divisor").is_none_or(|d| d.is_null() || d == "") {
            put(resource, "divisor", "0");
        }
    });
}

const FILE_MODE: i64 = 0o644;

fn volume(volume: &mut Value) {
    let named = volume.as_object().is_some_and(|volume| volume.iter().any(|(field, source)| field != "name" && !source.is_null()));
    if !named {
        put(volume, "emptyDir", json!({}));
    }
    source(volume);
    within(volume, "projected", |projected| {
        fill(projected, "defaultMode", FILE_MODE);
        each(projected, "sources", |source| {
            within(source, "serviceAccountToken", |token| fill(token, "expirationSeconds", 3600));
            within(source, "downwardAPI", |downward| each(downward, "items", field_and_resource));
        });
    });
    within(volume, "ephemeral", |ephemeral| within(ephemeral, "volumeClaimTemplate", |template| claim_spec(made(template, "spec"))));
    within(volume, "image", |image| {
        let policy = pull_policy(text(image, "reference"));
        fill(image, "pullPolicy", policy);
    });
}

/// Defaults of a source that a pod's volume and a PersistentVolume have in common.
pub fn source(volume: &mut Value) {
    for name in ["secret", "configMap", "downwardAPI"] {
        within(volume, name, |source| fill(source, "defaultMode", FILE_MODE));
    }
    within(volume, "downwardAPI", |downward| each(downward, "items", field_and_resource));
    within(volume, "hostPath", |path| {
        if !has(path, "type") {
            put(path, "type", "");
        }
    });
    within(volume, "iscsi", |iscsi| fill(iscsi, "iscsiInterface", "default"));
    within(volume, "rbd", |rbd| {
        fill(rbd, "pool", "rbd");
        fill(rbd, "user", "admin");
        fill(rbd, "keyring", "/etc/ceph/keyring");
    });
    within(volume, "azureDisk", |disk| {
        fill_absent(disk, "cachingMode", "ReadWrite");
        fill_absent(disk, "kind", "Shared");
        fill_absent(disk, "fsType", "ext4");
        fill(disk, "readOnly", false);
    });
    within(volume, "scaleIO", |io| {
        fill(io, "storageMode", "ThinProvisioned");
        fill(io, "fsType", "xfs");
    });
}

/// Defaults of the spec of a PersistentVolumeClaim.
pub fn claim_spec(spec: &mut Value) {
    fill_absent(spec, "volumeMode", "Filesystem");
    fill(spec, "resources", json!({}));
}

/// Whether quantities are all that differs between two resource lists (`1` and `1000m`).
pub fn same_quantities(a: Option<&Value>, b: Option<&Value>) -> bool {
    let read = |v: Option<&Value>| -> Vec<(String, Quantity)> {
        v.and_then(Value::as_object).into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?))).collect()
    };
    read(a) == read(b)
}

/// The containers of all three lists, in Kubernetes' order.
pub fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|key| list(spec, key))
}
