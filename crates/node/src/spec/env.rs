//! A container's environment: Service links, `envFrom`, `env`, field and resource references, `$(VAR)` expansion.
//!
//! The order is Kubernetes': Service links, then `envFrom`, then `env`, later ones winning. Everything fetched comes
//! in as values, so that the result is a pure function.

use super::resources::{milli, value};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Container, Pod, ResourceFieldSelector, Secret, Service},
    apimachinery::pkg::api::resource::Quantity,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Why a container's configuration cannot be made; shown as `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in ConfigMap {namespace}/{name}")]
    NoConfigMapKey { namespace: String, name: String, key: String },
    #[error("couldn't find key {key} in Secret {namespace}/{name}")]
    NoSecretKey { namespace: String, name: String, key: String },
    #[error("unsupported fieldPath: {0}")]
    UnknownField(String),
    #[error("unsupported container resource : {0}")]
    UnknownResource(String),
    #[error("container {0} not found")]
    NoContainer(String),
}

/// What the node knows about itself and the pod that a field reference may ask for.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub node_name: String,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The ConfigMaps, Secrets and Services that a pod's environment reads. What is not there was looked for and is missing.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// Services of the pod's namespace, and `default/kubernetes`.
    pub services: Vec<Arc<Service>>,
}

/// Names of the ConfigMaps and Secrets that the container's environment reads.
pub fn references(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|reference| reference.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|reference| reference.name.clone()));
    }
    (config_maps, secrets)
}

/// Replaces `$(NAME)` by its value where it has one; `$$` stands for `$`.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(inner) = after.strip_prefix('(') {
            match inner.find(')') {
                Some(end) => {
                    let name = &inner[..end];
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = &inner[end + 1..];
                }
                None => {
                    out.push('$');
                    rest = after;
                }
            }
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The same for a path in a volume, which must be known as a whole: what has no value is named.
pub fn expand_path(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let missing = RefCell::new(BTreeSet::new());
    let path = expand(text, |name| {
        let value = lookup(name).filter(|value| !value.is_empty());
        if value.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() { Ok(path) } else { Err(format!("missing value for {}", missing.join(", "))) }
}

/// The value of a field reference.
pub fn field(pod: &Pod, facts: &Facts, path: &str) -> Result<String, Error> {
    let meta = &pod.metadata;
    let spec = super::spec_of(pod);
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let values = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(Error::UnknownField(path.into())),
        };
        return Ok(values.and_then(|values| values.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => key_value_lines(meta.labels.as_ref()),
        "metadata.annotations" => key_value_lines(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(Error::UnknownField(path.into())),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

fn key_value_lines(values: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = values.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// A value in double quotes, with what a line cannot hold escaped.
fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a resource reference: the container's figure, or what the node has to give where it says none.
pub fn resource(pod: &Pod, own: &Container, facts: &Facts, reference: &ResourceFieldSelector) -> Result<String, Error> {
    let container = match reference.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => super::find_container(pod, name).ok_or_else(|| Error::NoContainer(name.into()))?.1,
        None => own.clone(),
    };
    let (side, name) = reference.resource.split_once('.').ok_or_else(|| Error::UnknownResource(reference.resource.clone()))?;
    let resources = container.resources.unwrap_or_default();
    let amounts = match side {
        "limits" => resources.limits.clone(),
        "requests" => resources.requests.clone(),
        _ => return Err(Error::UnknownResource(reference.resource.clone())),
    };
    let given = amounts.and_then(|amounts| amounts.get(name).cloned());
    let given = given.or_else(|| (side == "limits").then(|| facts.allocatable.get(name).cloned()).flatten());
    let quantity = given.unwrap_or_else(|| Quantity("0".into()));
    let divisor = reference.divisor.as_ref().filter(|divisor| milli(divisor) > 0);
    let ceil = |a: i64, b: i64| a / b + i64::from(a % b != 0);
    Ok(match (name, divisor) {
        ("cpu", divisor) => ceil(milli(&quantity), divisor.map(milli).unwrap_or(1000)).to_string(),
        (_, divisor) => ceil(value(&quantity), divisor.map(value).unwrap_or(1).max(1)).to_string(),
    })
}

/// The variables that tell a container of the Services there are: `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT` and so on.
pub fn service_links(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let own = service.metadata.namespace.as_deref() == Some(namespace);
        let master = service.metadata.namespace.as_deref() == Some("default") && name == "kubernetes";
        if !(master || (own && links)) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let Some(ports) = spec.ports.as_ref().filter(|ports| !ports.is_empty()) else { continue };
        // A Service of the pod's own namespace shadows the cluster's `kubernetes`.
        if master
            && !own
            && services.iter().any(|s| s.metadata.namespace.as_deref() == Some(namespace) && s.metadata.name.as_deref() == Some(name))
            && links
        {
            continue;
        }
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let prefix = name.to_uppercase().replace(['-', '.'], "_");
        out.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        out.insert(format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string());
        for (index, port) in ports.iter().enumerate() {
            if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                out.insert(format!("{prefix}_SERVICE_PORT_{}", port_name.to_uppercase().replace('-', "_")), port.port.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let address = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                out.insert(format!("{prefix}_PORT"), address.clone());
            }
            let port_prefix = format!("{prefix}_PORT_{}_{protocol}", port.port);
            out.insert(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
            out.insert(format!("{port_prefix}_PORT"), port.port.to_string());
            out.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
            out.insert(port_prefix, address);
        }
    }
    out
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('=') && name.chars().all(|c| c.is_ascii_graphic() || c == ' ')
}

/// The whole environment of a container, in order.
pub fn environment(pod: &Pod, container: &Container, facts: &Facts, sources: &Sources) -> Result<Vec<(String, String)>, Error> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let links = super::spec_of(pod).enable_service_links.unwrap_or(true);
    let mut from: BTreeMap<String, String> = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        from.insert(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional.unwrap_or(false) => {}
                None => return Err(Error::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        from.insert(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional.unwrap_or(false) => {}
                None => return Err(Error::NoSecret(reference.name.clone())),
            }
        }
    }
    from.retain(|name, _| is_variable_name(name));

    let mut own: Vec<(String, String)> = Vec::new();
    let mut known = service_links(&sources.services, &namespace, links);
    let service_variables = known.clone();
    known.extend(from.clone());
    for env in container.env.iter().flatten() {
        let value = match &env.value_from {
            None => Some(expand(env.value.as_deref().unwrap_or_default(), |name| known.get(name).cloned())),
            Some(source) => {
                if let Some(reference) = &source.field_ref {
                    Some(field(pod, facts, &reference.field_path)?)
                } else if let Some(reference) = &source.resource_field_ref {
                    Some(resource(pod, container, facts, reference)?)
                } else if let Some(reference) = &source.config_map_key_ref {
                    let optional = reference.optional.unwrap_or(false);
                    match sources.config_maps.get(&reference.name) {
                        None if optional => None,
                        None => return Err(Error::NoConfigMap(reference.name.clone())),
                        Some(map) => match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
                            Some(value) => Some(value.clone()),
                            None if optional => None,
                            None => {
                                let (name, key) = (reference.name.clone(), reference.key.clone());
                                return Err(Error::NoConfigMapKey { namespace, name, key });
                            }
                        },
                    }
                } else if let Some(reference) = &source.secret_key_ref {
                    let optional = reference.optional.unwrap_or(false);
                    match sources.secrets.get(&reference.name) {
                        None if optional => None,
                        None => return Err(Error::NoSecret(reference.name.clone())),
                        Some(secret) => match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
                            Some(value) => Some(String::from_utf8_lossy(&value.0).into_owned()),
                            None if optional => None,
                            None => {
                                let (name, key) = (reference.name.clone(), reference.key.clone());
                                return Err(Error::NoSecretKey { namespace, name, key });
                            }
                        },
                    }
                } else {
                    None
                }
            }
        };
        if let Some(value) = value {
            known.insert(env.name.clone(), value.clone());
            own.retain(|(name, _)| *name != env.name);
            own.push((env.name.clone(), value));
        }
    }
    let said = |name: &str, own: &[(String, String)]| own.iter().any(|(known, _)| known == name);
    let mut out = Vec::new();
    out.extend(from.iter().filter(|(name, _)| !said(name, &own)).map(|(name, value)| (name.clone(), value.clone())));
    out.extend(service_variables.into_iter().filter(|(name, _)| !said(name, &own) && !from.contains_key(name)));
    let mut all = own;
    all.extend(out);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::pod;
    use serde_json::json;

    #[test]
    fn a_path_is_known_as_a_whole() {
        let lookup = |name: &str| [("A", "1"), ("EMPTY", "")].iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(expand_path("x/$(A)", lookup).as_deref(), Ok("x/1"));
        assert_eq!(expand_path("$(B)/$(A)/$(EMPTY)/$(B)", lookup), Err("missing value for B, EMPTY".into()));
    }

    #[test]
    fn variables_are_expanded_where_known() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (input, expected) in [("$(A)", "1"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("x$", "x$"), ("$(A", "$(A"), ("$$$(A)", "$1")] {
            assert_eq!(expand(input, lookup), expected, "{input}");
        }
    }

    #[test]
    fn later_sources_win_and_references_resolve() {
        let pod = pod(json!({
            "nodeName": "n", "containers": [{
                "name": "a", "resources": { "limits": { "cpu": "1500m", "memory": "64Mi" } },
                "envFrom": [{ "prefix": "P_", "configMapRef": { "name": "cm" } }],
                "env": [
                    { "name": "P_x", "value": "own" },
                    { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                    { "name": "HELLO", "value": "$(NAME)-$(P_y)" },
                    { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } },
                    { "name": "MEM", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
                    { "name": "NONE", "valueFrom": { "configMapKeyRef": { "name": "no", "key": "k", "optional": true } } },
                ],
            }],
        }));
        let cm: ConfigMap = serde_json::from_value(json!({ "data": { "x": "cm", "y": "2" } })).unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": { "name": "my-svc", "namespace": "default" },
            "spec": { "clusterIP": "10.96.0.7", "ports": [{ "port": 80, "name": "http" }] },
        }))
        .unwrap();
        let sources = Sources { config_maps: [("cm".to_owned(), Arc::new(cm))].into(), services: vec![Arc::new(service)], ..Default::default() };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let env: BTreeMap<_, _> = environment(&pod, container, &Facts::default(), &sources).unwrap().into_iter().collect();
        let get = |name: &str| env.get(name).map(String::as_str);
        assert_eq!(get("P_x"), Some("own"));
        assert_eq!(get("HELLO"), Some("web-2"));
        assert_eq!((get("CPU"), get("MEM")), (Some("2"), Some("64")));
        assert_eq!(get("NONE"), None);
        assert_eq!(get("MY_SVC_SERVICE_PORT_HTTP"), Some("80"));
        assert_eq!(get("MY_SVC_PORT_80_TCP"), Some("tcp://10.96.0.7:80"));
    }

    #[test]
    fn a_missing_source_says_so() {
        let pod = pod(json!({ "containers": [{ "name": "a", "envFrom": [{ "secretRef": { "name": "s" } }] }] }));
        let error = environment(&pod, &pod.spec.as_ref().unwrap().containers[0], &Facts::default(), &Sources::default()).unwrap_err();
        assert_eq!(error.to_string(), "secret \"s\" not found");
    }
}
