//! Objects as Kubernetes' own messages show them: in the internal form of its types, with Go's names for the fields.
//!
//! A refusal that is about a whole structure (`spec.template: Invalid value: {...}: field is immutable`, or the difference of
//! two pod specs) prints it from the types that the server computes with, not from those of an API version: fields have no
//! JSON names, nothing is left out, and their order is that of Go's source. What is needed beyond the facts of the wire format
//! is three lists below: names that do not follow the rule, orders that are not those of the wire, and types of
//! apimachinery, which look the same everywhere.
//!
//! Must stay true: any JSON of the right schema type gives a text; nothing here panics.

use crate::{
    field::escaped,
    kinds::values::is_empty,
    protobuf::facts::{self, Count, Field, Form, Message, Type},
};
use serde_json::{Value, json};
use std::fmt;

/// Names of fields that are not the JSON name with a capital letter. By message where a name means different things.
const NAMES: &[(&str, &str)] = &[
    ("apiGroup", "APIGroup"),
    ("apiGroups", "APIGroups"),
    ("apiVersion", "APIVersion"),
    ("awsElasticBlockStore", "AWSElasticBlockStore"),
    ("cel", "CEL"),
    ("cephfs", "CephFS"),
    ("chapAuthDiscovery", "DiscoveryCHAPAuth"),
    ("chapAuthSession", "SessionCHAPAuth"),
    ("cidr", "CIDR"),
    ("cidrs", "CIDRs"),
    ("csi", "CSI"),
    ("diskURI", "DataDiskURI"),
    ("dnsConfig", "DNSConfig"),
    ("dnsPolicy", "DNSPolicy"),
    ("fc", "FC"),
    ("fsGroup", "FSGroup"),
    ("fsGroupChangePolicy", "FSGroupChangePolicy"),
    ("fsGroupPolicy", "FSGroupPolicy"),
    ("fsType", "FSType"),
    ("gcePersistentDisk", "GCEPersistentDisk"),
    ("gmsaCredentialSpec", "GMSACredentialSpec"),
    ("gmsaCredentialSpecName", "GMSACredentialSpecName"),
    ("grpc", "GRPC"),
    ("hostIPC", "HostIPC"),
    ("httpGet", "HTTPGet"),
    ("httpHeaders", "HTTPHeaders"),
    ("ip", "IP"),
    ("ips", "IPs"),
    ("iqn", "IQN"),
    ("iscsi", "ISCSI"),
    ("iscsiInterface", "ISCSIInterface"),
    ("nfs", "NFS"),
    ("os", "OS"),
    ("pdName", "PDName"),
    ("pdID", "PdID"),
    ("rbd", "RBD"),
    ("seLinuxChangePolicy", "SELinuxChangePolicy"),
    ("seLinuxMount", "SELinuxMount"),
    ("seLinuxOptions", "SELinuxOptions"),
    ("sslEnabled", "SSLEnabled"),
    ("storageos", "StorageOS"),
    ("tcpSocket", "TCPSocket"),
    ("tty", "TTY"),
    ("uid", "UID"),
    ("wwids", "WWIDs"),
];
/// The same for one message only.
const NAMES_IN: &[(&str, &str, &str)] = &[
    ("DeviceAttribute", "int", "IntValue"),
    ("DeviceAttribute", "bool", "BoolValue"),
    ("DeviceAttribute", "string", "StringValue"),
    ("DeviceAttribute", "version", "VersionValue"),
    ("DeviceAttribute", "ints", "IntValues"),
    ("DeviceAttribute", "bools", "BoolValues"),
    ("DeviceAttribute", "strings", "StringValues"),
    ("DeviceAttribute", "versions", "VersionValues"),
    ("AWSElasticBlockStoreVolumeSource", "fsType", "FSType"),
    ("RBDVolumeSource", "monitors", "CephMonitors"),
    ("RBDVolumeSource", "image", "RBDImage"),
    ("RBDVolumeSource", "pool", "RBDPool"),
    ("RBDVolumeSource", "user", "RadosUser"),
    ("RBDPersistentVolumeSource", "monitors", "CephMonitors"),
    ("RBDPersistentVolumeSource", "image", "RBDImage"),
    ("RBDPersistentVolumeSource", "pool", "RBDPool"),
    ("RBDPersistentVolumeSource", "user", "RadosUser"),
    ("GlusterfsVolumeSource", "endpoints", "EndpointsName"),
    ("GlusterfsPersistentVolumeSource", "endpoints", "EndpointsName"),
];

/// Fields in an order that is not that of their numbers. Fields that are not listed do not exist in the internal form.
const ORDERS: &[(&str, &[&str])] = &[
    (
        "PodSpec",
        &[
            "volumes",
            "initContainers",
            "containers",
            "ephemeralContainers",
            "restartPolicy",
            "terminationGracePeriodSeconds",
            "activeDeadlineSeconds",
            "dnsPolicy",
            "nodeSelector",
            "serviceAccountName",
            "automountServiceAccountToken",
            "nodeName",
            "securityContext",
            "imagePullSecrets",
            "hostname",
            "subdomain",
            "setHostnameAsFQDN",
            "affinity",
            "schedulerName",
            "tolerations",
            "hostAliases",
            "priorityClassName",
            "priority",
            "preemptionPolicy",
            "dnsConfig",
            "readinessGates",
            "runtimeClassName",
            "overhead",
            "enableServiceLinks",
            "topologySpreadConstraints",
            "os",
            "schedulingGates",
            "resourceClaims",
            "resources",
            "hostnameOverride",
            "schedulingGroup",
        ],
    ),
    ("Container", CONTAINER),
    ("EphemeralContainerCommon", CONTAINER),
    (
        "VolumeSource",
        &[
            "hostPath",
            "emptyDir",
            "gcePersistentDisk",
            "awsElasticBlockStore",
            "gitRepo",
            "secret",
            "nfs",
            "iscsi",
            "glusterfs",
            "persistentVolumeClaim",
            "rbd",
            "quobyte",
            "flexVolume",
            "cinder",
            "cephfs",
            "flocker",
            "downwardAPI",
            "fc",
            "azureFile",
            "configMap",
            "vsphereVolume",
            "azureDisk",
            "photonPersistentDisk",
            "projected",
            "portworxVolume",
            "scaleIO",
            "storageos",
            "csi",
            "ephemeral",
            "image",
        ],
    ),
    (
        "PersistentVolumeSource",
        &[
            "gcePersistentDisk",
            "awsElasticBlockStore",
            "hostPath",
            "glusterfs",
            "nfs",
            "rbd",
            "quobyte",
            "iscsi",
            "flexVolume",
            "cinder",
            "cephfs",
            "fc",
            "flocker",
            "azureFile",
            "vsphereVolume",
            "azureDisk",
            "photonPersistentDisk",
            "portworxVolume",
            "scaleIO",
            "local",
            "storageos",
            "csi",
        ],
    ),
    ("VolumeMount", &["name", "readOnly", "recursiveReadOnly", "mountPath", "subPath", "mountPropagation", "subPathExpr"]),
    (
        "SecurityContext",
        &[
            "capabilities",
            "privileged",
            "seLinuxOptions",
            "windowsOptions",
            "runAsUser",
            "runAsGroup",
            "runAsNonRoot",
            "readOnlyRootFilesystem",
            "allowPrivilegeEscalation",
            "procMount",
            "seccompProfile",
            "appArmorProfile",
        ],
    ),
    (
        "PodSecurityContext",
        &[
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "shareProcessNamespace",
            "hostUsers",
            "seLinuxOptions",
            "windowsOptions",
            "runAsUser",
            "runAsGroup",
            "runAsNonRoot",
            "supplementalGroups",
            "supplementalGroupsPolicy",
            "fsGroup",
            "fsGroupChangePolicy",
            "sysctls",
            "seccompProfile",
            "appArmorProfile",
            "seLinuxChangePolicy",
        ],
    ),
    (
        "PersistentVolumeClaimSpec",
        &[
            "accessModes",
            "selector",
            "resources",
            "volumeName",
            "storageClassName",
            "volumeMode",
            "dataSource",
            "dataSourceRef",
            "volumeAttributesClassName",
        ],
    ),
    ("PodDisruptionBudgetSpec", &["minAvailable", "selector", "maxUnavailable", "unhealthyPodEvictionPolicy"]),
    ("HPAScalingRules", &["stabilizationWindowSeconds", "selectPolicy", "policies", "tolerance"]),
    ("PriorityLevelConfigurationSpec", &["type", "limited", "exempt"]),
    ("OwnerReference", &["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"]),
];
const CONTAINER: &[&str] = &[
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "ports",
    "envFrom",
    "env",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "volumeMounts",
    "volumeDevices",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
];
/// Fields that are pointers in Go, though their zero value is left out of JSON.
const POINTERS: &[(&str, &str)] = &[("AllocatedDeviceStatus", "shareID"), ("DeviceRequestAllocationResult", "shareID")];
/// What a pod's security context holds in the internal form and the spec in JSON; whether it is always shown.
const MOVED: &[(&str, bool)] = &[("hostNetwork", true), ("hostPID", true), ("hostIPC", true), ("shareProcessNamespace", false), ("hostUsers", false)];

/// A value with its fields in Go's order. As text it is JSON as Go writes it.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    Leaf(Value),
    List(Vec<Tree>),
    Fields(Vec<(String, Tree)>),
}

const NULL: Tree = Tree::Leaf(Value::Null);

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tree::Leaf(value) => f.write_str(&escaped(&value.to_string())),
            Tree::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { "," } else { "" })?;
                }
                f.write_str("]")
            }
            Tree::Fields(fields) => {
                f.write_str("{")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{}:{value}", if i > 0 { "," } else { "" }, Value::from(name.as_str()))?;
                }
                f.write_str("}")
            }
        }
    }
}

impl Tree {
    /// JSON in lines, with one space of indentation per level.
    fn lines(&self, before: &str, depth: usize, last: bool, lines: &mut Vec<String>) {
        let indent = " ".repeat(depth);
        let comma = if last { "" } else { "," };
        let (open, close, empty) = match self {
            Tree::Leaf(_) => return lines.push(format!("{indent}{before}{self}{comma}")),
            Tree::List(items) => ("[", "]", items.is_empty()),
            Tree::Fields(fields) => ("{", "}", fields.is_empty()),
        };
        if empty {
            return lines.push(format!("{indent}{before}{open}{close}{comma}"));
        }
        lines.push(format!("{indent}{before}{open}"));
        match self {
            Tree::Leaf(_) => {}
            Tree::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    item.lines("", depth + 1, i + 1 == items.len(), lines);
                }
            }
            Tree::Fields(fields) => {
                for (i, (name, value)) in fields.iter().enumerate() {
                    let name = format!("{}: ", Value::from(name.as_str()));
                    value.lines(&name, depth + 1, i + 1 == fields.len(), lines);
                }
            }
        }
        lines.push(format!("{indent}{close}{comma}"));
    }
}

/// A value of a type, `core.v1.PodSpec`, in the internal form. A type that nobody knows is shown as it is.
pub fn show(type_: &str, value: &Value) -> Tree {
    match facts::index(&format!("k8s.io.api.{type_}")).or_else(|| facts::index(&format!("k8s.io.apimachinery.pkg.apis.{type_}"))) {
        Some(index) => message(index, Some(value)),
        None => Tree::Leaf(value.clone()),
    }
}
/// A list of such values.
pub fn show_all(type_: &str, values: &[Value]) -> Tree {
    if values.is_empty() { NULL } else { Tree::List(values.iter().map(|value| show(type_, value)).collect()) }
}
/// A list of values of a type as Go's JSON of that version has them: JSON's names in Go's order.
pub fn json_list(type_: &str, values: &[Value]) -> Tree {
    let index = facts::index(&format!("k8s.io.api.{type_}"));
    Tree::List(values.iter().map(|value| index.map_or_else(|| Tree::Leaf(value.clone()), |index| json(index, value))).collect())
}
fn json(index: usize, value: &Value) -> Tree {
    let message = facts::message(index);
    let Value::Object(map) = value else { return Tree::Leaf(value.clone()) };
    if message.form != Form::Fields {
        return Tree::Leaf(value.clone());
    }
    let inner = |field: &Field, value: &Value| match (field.type_, field.count, value) {
        (Type::Message(index), Count::One, value) => json(index, value),
        (Type::Message(index), Count::Many, Value::Array(items)) => Tree::List(items.iter().map(|item| json(index, item)).collect()),
        (Type::Message(index), Count::Map, Value::Object(map)) => {
            Tree::Fields(map.iter().map(|(key, value)| (key.clone(), json(index, value))).collect())
        }
        _ => Tree::Leaf(value.clone()),
    };
    Tree::Fields(message.fields.iter().filter_map(|field| Some((field.key.clone(), inner(field, map.get(&field.key)?)))).collect())
}
/// A label selector, which looks the same in all forms.
pub fn selector(selector: Option<&Value>) -> Tree {
    match selector.filter(|s| !s.is_null()) {
        Some(said) => show("meta.v1.LabelSelector", said),
        None => NULL,
    }
}
/// The difference of two values of a type, as text: a newline, and what Kubernetes prints.
pub fn difference(type_: &str, old: &Value, new: &Value) -> String {
    let lines = |value: &Value| {
        let mut lines = vec![];
        show(type_, value).lines("", 0, true, &mut lines);
        lines
    };
    format!("\n{}", crate::unified::diff(&lines(old), &lines(new)))
}

fn name_of(message: &str, key: &str) -> String {
    if let Some((.., name)) = NAMES_IN.iter().find(|(within, from, _)| *within == message && *from == key) {
        return name.to_string();
    }
    if let Some((_, name)) = NAMES.iter().find(|(from, _)| *from == key) {
        return name.to_string();
    }
    let mut characters = key.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

/// Types of apimachinery have JSON names in Go and leave out what is empty: they are shown as they are.
fn is_plain(full: &str) -> bool {
    full.starts_with("k8s.io.apimachinery.")
}

fn message(index: usize, value: Option<&Value>) -> Tree {
    let full = facts::name(index);
    let message = facts::message(index);
    let short = full.rsplit('.').next().unwrap_or_default();
    if message.form != Form::Fields || is_plain(full) {
        return plain(message, short, value);
    }
    let moved;
    let mut value = value;
    if short == "PodSpec" {
        moved = with_moved(value);
        value = Some(&moved);
    }
    let mut shown = vec![];
    let order = ORDERS.iter().find(|(name, _)| *name == short).map(|(_, order)| *order);
    add_fields(message, short, order, value, &mut shown);
    Tree::Fields(shown)
}
/// The host's namespaces belong to the security context, which is always there.
fn with_moved(spec: Option<&Value>) -> Value {
    let mut spec = spec.cloned().unwrap_or_else(|| json!({}));
    let mut context = spec.get("securityContext").filter(|c| c.is_object()).cloned().unwrap_or_else(|| json!({}));
    for (key, _) in MOVED {
        if let Some(said) = spec.get(*key) {
            context[*key] = said.clone();
        }
    }
    if spec.is_object() {
        spec["securityContext"] = context;
    }
    spec
}

fn add_fields(message: &Message, short: &str, order: Option<&[&str]>, value: Option<&Value>, shown: &mut Vec<(String, Tree)>) {
    let Some(order) = order else {
        for field in &message.fields {
            add(field, short, value, shown);
        }
        return;
    };
    for key in order {
        match message.fields.iter().find(|field| field.key == *key) {
            Some(field) => add(field, short, value, shown),
            None => {
                if let Some((_, always)) = MOVED.iter().find(|(moved, _)| moved == key) {
                    let said = value.and_then(|v| v.get(*key)).filter(|v| !v.is_null()).cloned();
                    let absent = if *always { Value::Bool(false) } else { Value::Null };
                    shown.push((name_of(short, key), Tree::Leaf(said.unwrap_or(absent))));
                }
            }
        }
    }
}

fn add(field: &Field, short: &str, value: Option<&Value>, shown: &mut Vec<(String, Tree)>) {
    if let Some(inner) = &field.embedded {
        let name = match field.type_ {
            Type::Message(index) => facts::name(index).rsplit('.').next().unwrap_or_default(),
            _ => "",
        };
        let order = ORDERS.iter().find(|(message, _)| *message == name).map(|(_, order)| *order);
        return add_fields(inner, name, order, value, shown);
    }
    let said = value.and_then(|value| value.get(&field.key)).filter(|said| !said.is_null());
    // Metadata is embedded in Go: its fields are those of the structure around it.
    if field.key == "metadata" {
        if let (Some(_), Tree::Fields(metadata)) = (said, one(field, short, said)) {
            shown.extend(metadata);
        }
        return;
    }
    shown.push((name_of(short, &field.key), counted(field, short, said)));
}

/// All that a field holds.
fn counted(field: &Field, short: &str, said: Option<&Value>) -> Tree {
    match (field.count, said) {
        (Count::One, said) => one(field, short, said),
        (Count::Many, Some(Value::Array(list))) if !list.is_empty() => Tree::List(list.iter().map(|item| one(field, short, Some(item))).collect()),
        (Count::Map, Some(Value::Object(map))) if !map.is_empty() => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            Tree::Fields(entries.into_iter().map(|(key, item)| (key.clone(), one(field, short, Some(item)))).collect())
        }
        _ => NULL,
    }
}

fn one(field: &Field, short: &str, said: Option<&Value>) -> Tree {
    let always = field.always && !POINTERS.contains(&(short, field.key.as_str()));
    let leaf = match (field.type_, said) {
        (Type::Message(index), Some(said)) => return message(index, Some(said)),
        (Type::Message(index), None) if always => return message(index, None),
        (Type::Message(index), None) if facts::message(index).form == Form::Quantity && field.key == "divisor" => json!("0"),
        (_, Some(said)) => said.clone(),
        (Type::Text, None) if always => json!(""),
        (Type::Bool, None) if always => json!(false),
        (Type::Signed | Type::Unsigned | Type::Double | Type::Float, None) if always => json!(0),
        _ => Value::Null,
    };
    Tree::Leaf(leaf)
}

/// What looks the same in all forms: JSON's names, only what is said.
fn plain(message: &Message, short: &str, value: Option<&Value>) -> Tree {
    match (message.form, value) {
        (Form::Quantity, Some(value)) => {
            Tree::Leaf(crate::quantity::Quantity::from_value(value).map_or_else(|_| value.clone(), |q| json!(q.to_string())))
        }
        (Form::Fields, Some(value)) => {
            let said = |field: &&Field| value.get(&field.key).is_some_and(|said| !is_empty(said));
            let mut fields: Vec<&Field> = message.fields.iter().filter(said).collect();
            if let Some((_, order)) = ORDERS.iter().find(|(name, _)| *name == short) {
                fields.sort_by_key(|field| order.iter().position(|key| *key == field.key));
            }
            Tree::Fields(fields.into_iter().map(|field| (field.key.clone(), counted(field, short, value.get(&field.key)))).collect())
        }
        (_, Some(value)) => Tree::Leaf(value.clone()),
        (Form::Quantity, None) => Tree::Leaf(json!("0")),
        (Form::IntOrString, None) => Tree::Leaf(json!(0)),
        (Form::Fields, None) => Tree::Fields(vec![]),
        _ => NULL,
    }
}

/// A structure of names that the caller gives in Go's order.
pub fn fields<const N: usize>(fields: [(&str, Value); N]) -> Tree {
    Tree::Fields(fields.into_iter().map(|(name, value)| (name.to_string(), Tree::Leaf(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_out_and_names_are_those_of_go() {
        let request = json!({"name": "r", "exactly": {"deviceClassName": "gpu", "selectors": [{"cel": {"expression": "true"}}], "count": 2}});
        let want = r#"{"Name":"r","Exactly":{"DeviceClassName":"gpu","Selectors":[{"CEL":{"Expression":"true"}}],"AllocationMode":"","Count":2,"AdminAccess":null,"Tolerations":null,"Capacity":null},"FirstAvailable":null}"#;
        assert_eq!(show("resource.v1.DeviceRequest", &request).to_string(), want);
    }

    #[test]
    fn a_pod_template_holds_its_metadata_and_the_hosts_namespaces_move() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"hostNetwork": true, "containers": [{"name": "c"}]}});
        let text = show("core.v1.PodTemplateSpec", &template).to_string();
        assert!(
            text.starts_with(r#"{"labels":{"a":"b"},"Spec":{"Volumes":null,"InitContainers":null,"Containers":[{"Name":"c","Image":"","#),
            "{text}"
        );
        assert!(text.contains(r#""SecurityContext":{"HostNetwork":true,"HostPID":false,"HostIPC":false,"ShareProcessNamespace":null,"#), "{text}");
    }

    #[test]
    fn a_difference_has_three_lines_around_what_changed() {
        let spec = |mode: &str| json!({"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}});
        let text = difference("core.v1.PersistentVolumeClaimSpec", &spec("ReadWriteOnce"), &spec("ReadWriteMany"));
        assert_eq!(
            text,
            "\n@@ -1,6 +1,6 @@\n {\n  \"AccessModes\": [\n-  \"ReadWriteOnce\"\n+  \"ReadWriteMany\"\n  ],\n  \"Selector\": null,\n  \"Resources\": {\n"
        );
    }
}
