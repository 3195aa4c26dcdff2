//! First objects that Kubernetes leaves to its installers, and those that depend on the configuration.

use super::{first_objects, service_address};
use crate::{Config, Error};
use api::{Value, object::ObjectExt};
use pki::join::{NODE_BOOTSTRAPPERS_GROUP, SERVER_BOOTSTRAPPERS_GROUP};
use serde_json::json;
use std::net::IpAddr;

const RBAC: &str = "rbac.authorization.k8s.io";
/// The Secret with the membership's keys; every node may read it.
const MEMBERSHIP_SECRET: &str = "regent-membership";

/// As whom the routing of a node reads.
const NODE_PROXY: &str = "system:kube-proxy";

/// Authorities of other servers that are kept beside this one's own.
const AUTHORITIES_OF_OTHERS_MAX: usize = 7;

/// The Service through which pods reach the API servers.
pub(super) fn kubernetes_service(cidr: &ipnet::IpNet, secure_port: u16) -> Option<Value> {
    let address = service_address(cidr, 1)?.to_string();
    Some(json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": secure_port}],
            "sessionAffinity": "None",
        },
    }))
}

/// Where that Service leads. It has no selector; the servers themselves say where they are.
pub(crate) fn kubernetes_endpoints(addresses: &[IpAddr], secure_port: u16) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": addresses, "ports": [{"name": "https", "port": secure_port, "protocol": "TCP"}]}],
    })
}

/// The same as a slice.
pub(crate) fn kubernetes_endpoint_slice(addresses: &[IpAddr], secure_port: u16) -> Value {
    let ready = |address: &IpAddr| json!({"addresses": [address.to_string()], "conditions": {"ready": true}});
    json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if addresses.first().is_none_or(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" },
        "endpoints": addresses.iter().map(ready).collect::<Vec<_>>(),
        "ports": [{"name": "https", "port": secure_port, "protocol": "TCP"}],
    })
}

/// The Service whose address every pod has as its name server. Each node answers on it by itself, so it selects no pods.
pub(super) fn dns_service(cidr: &ipnet::IpNet) -> Option<Value> {
    let address = service_address(cidr, 10)?.to_string();
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"});
    Some(json!({
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilyPolicy": "SingleStack",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    }))
}

/// What machines and extension servers read to find and to trust the cluster.
pub(super) fn config_maps(config: &Config) -> Vec<(&'static str, Value)> {
    let mut maps = Vec::new();
    if let Some(authority) = &config.bootstrap.authority_pem {
        let host = match config.advertise_address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let url = config.bootstrap.server_url.clone().unwrap_or_else(|| format!("https://{host}:{}", config.secure_port));
        let kubeconfig = pki::Kubeconfig::cluster_info(&url, authority);
        maps.push(("configmaps", json!({"metadata": {"name": "cluster-info", "namespace": "kube-public"}, "data": {"kubeconfig": kubeconfig}})));
    }
    if let Some(authorities) = &config.authentication.client_authorities_pem {
        let metadata = json!({"name": "extension-apiserver-authentication", "namespace": "kube-system"});
        maps.push(("configmaps", json!({"metadata": metadata, "data": authentication(config, authorities)})));
    }
    maps
}

/// What aggregated API servers are told of how callers prove themselves: to this server, and this server to them.
pub(super) fn authentication(config: &Config, authorities: &str) -> Value {
    let mut data = json!({"client-ca-file": authorities});
    if let Some(authority) = &config.aggregation.authority_pem {
        let list = |texts: &[&str]| json!(texts).to_string();
        data["requestheader-client-ca-file"] = json!(authority);
        data["requestheader-allowed-names"] = json!(list(&["front-proxy-client"]));
        data["requestheader-username-headers"] = json!(list(&["X-Remote-User"]));
        data["requestheader-uid-headers"] = json!(list(&["X-Remote-Uid"]));
        data["requestheader-group-headers"] = json!(list(&["X-Remote-Group"]));
        data["requestheader-extra-headers-prefix"] = json!(list(&["X-Remote-Extra-"]));
    }
    data
}

/// The same with the authorities that other servers have put there: each believes its own, and whoever reads it all of them.
pub(super) fn with_authorities_of(stored: &Value, own: &Value) -> Value {
    let mut merged = own.clone();
    let mut data = stored.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
    for (key, value) in own.get("data").and_then(Value::as_object).into_iter().flatten() {
        let said = data.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let value = match value.as_str() {
            Some(own) if key.ends_with("-ca-file") => json!(all_certificates(&said, own)),
            _ => value.clone(),
        };
        data.insert(key.clone(), value);
    }
    merged["data"] = Value::Object(data);
    merged
}

/// The certificates of two PEM texts, each once, in the order of the first; those of the second are always among them.
fn all_certificates(before: &str, own: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let blocks = |text: &str| {
        text.split(END).map(str::trim).filter(|block| block.contains("-----BEGIN CERTIFICATE-----")).map(String::from).collect::<Vec<_>>()
    };
    let own = blocks(own);
    let mut all: Vec<String> = blocks(before).into_iter().filter(|block| !own.contains(block)).collect();
    // Those of servers that are long gone go, the oldest first.
    all.drain(..all.len().saturating_sub(AUTHORITIES_OF_OTHERS_MAX));
    all.extend(own);
    all.sort();
    all.dedup();
    all.iter().map(|block| format!("{block}\n{END}\n")).collect()
}

/// The key that the nodes' membership is sealed with. Made once; whoever changes it puts the new line second, then first.
pub(super) fn membership_key() -> Value {
    use rand::RngCore;
    let mut key = [0; 32];
    rand::rng().fill_bytes(&mut key);
    let line: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({"metadata": {"name": MEMBERSHIP_SECRET, "namespace": "kube-system"}, "type": "Opaque", "stringData": {"keys": line}})
}

/// Roles and bindings beside Kubernetes' own, by resource.
pub(super) fn roles() -> Result<Vec<(&'static str, Value)>, Error> {
    let role = |name: &str, rules: Value| ("clusterroles", json!({"metadata": metadata(name, ""), "rules": rules}));
    let bind = |name: &str, role: &str, subject: Value| {
        let reference = json!({"apiGroup": RBAC, "kind": "ClusterRole", "name": role});
        ("clusterrolebindings", json!({"metadata": metadata(name, ""), "roleRef": reference, "subjects": [subject]}))
    };
    let user = |name: &str| json!({"apiGroup": RBAC, "kind": "User", "name": name});
    let group = |name: &str| json!({"apiGroup": RBAC, "kind": "Group", "name": name});
    let read = |api_group: &str, resources: &[&str]| json!({"apiGroups": [api_group], "resources": resources, "verbs": ["get", "list", "watch"]});
    const REQUESTS: &str = "system:certificates.k8s.io:certificatesigningrequests";
    Ok(vec![
        // A machine with a join token may ask for a node's certificate, and gets it; a node may renew its own.
        bind("regent:node-bootstrapper", "system:node-bootstrapper", group(NODE_BOOTSTRAPPERS_GROUP)),
        bind("regent:approve-node-client", &format!("{REQUESTS}:nodeclient"), group(NODE_BOOTSTRAPPERS_GROUP)),
        bind("regent:approve-node-renewal", &format!("{REQUESTS}:selfnodeclient"), group("system:nodes")),
        // And it may serve under its own names and addresses, which the controllers check.
        bind("regent:approve-node-serving", "system:certificates.k8s.io:kubelet-serving-approver", user("system:kube-controller-manager")),
        // A server that joins is given the cluster's keys.
        role("regent:server-bootstrapper", json!([{"nonResourceURLs": [crate::SERVER_BUNDLE_PATH], "verbs": ["get"]}])),
        bind("regent:server-bootstrapper", "regent:server-bootstrapper", group(SERVER_BOOTSTRAPPERS_GROUP)),
        // A candidate sees at once that the leader has left.
        role("regent:leader-election", json!([{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "list", "watch"]}])),
        bind("regent:scheduler-election", "regent:leader-election", user("system:kube-scheduler")),
        bind("regent:controller-manager-election", "regent:leader-election", user("system:kube-controller-manager")),
        // The node's agent lays the pod network, for which it must know the other nodes.
        role(
            "regent:node-network",
            json!([
                read("", &["nodes"]),
                read("networking.k8s.io", &["networkpolicies", "servicecidrs"]),
                read("discovery.k8s.io", &["endpointslices"]),
                read("", &["services"]),
                // Network policies speak of all pods, which a node may not read: where one process under a node's name is
                // the proxy too, it asks for them as the proxy.
                json!({"apiGroups": [""], "resources": ["users"], "resourceNames": [NODE_PROXY], "verbs": ["impersonate"]}),
            ]),
        ),
        bind("regent:node-network", "regent:node-network", group("system:nodes")),
        bind("regent:proxy-network", "regent:node-network", user(NODE_PROXY)),
        role("regent:network-policies", json!([read("", &["pods", "namespaces"])])),
        bind("regent:network-policies", "regent:network-policies", user(NODE_PROXY)),
        bind("regent:dns", "system:kube-dns", user("system:dns")),
        role(
            "regent:dns",
            json!([read("discovery.k8s.io", &["endpointslices"]), read("", &["services", "endpoints", "nodes", "namespaces", "pods"])]),
        ),
        bind("regent:dns-slices", "regent:dns", user("system:dns")),
        // All controllers run under one name.
        role("regent:controller-manager", controller_rules()?),
        bind("regent:controller-manager", "regent:controller-manager", user("system:kube-controller-manager")),
        // Every node is a member.
        (
            "roles",
            json!({"metadata": metadata("regent:membership", "kube-system"), "rules": [
                {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [MEMBERSHIP_SECRET], "verbs": ["get"]},
            ]}),
        ),
        (
            "rolebindings",
            json!({
                "metadata": metadata("regent:membership", "kube-system"),
                "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "regent:membership"},
                "subjects": [group("system:nodes")],
            }),
        ),
        // Whoever joins reads where the cluster is before it has a name.
        (
            "roles",
            json!({"metadata": metadata("regent:cluster-info", "kube-public"), "rules": [
                {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"], "verbs": ["get"]},
            ]}),
        ),
        (
            "rolebindings",
            json!({
                "metadata": metadata("regent:cluster-info", "kube-public"),
                "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "regent:cluster-info"},
                "subjects": [user("system:anonymous"), group(NODE_BOOTSTRAPPERS_GROUP), group(SERVER_BOOTSTRAPPERS_GROUP)],
            }),
        ),
    ])
}

/// Who may have a copy of the store, and with it every Secret and the cluster's keys: nobody but the nodes that were named, and
/// whom an administrator binds to the role.
pub(super) fn store_copies(nodes: &[String]) -> Vec<(&'static str, Value)> {
    let urls = json!([crate::copies::PATH, crate::copies::CHANGES_PATH]);
    let role = json!({"metadata": metadata("regent:store-copy", ""), "rules": [{"nonResourceURLs": urls, "verbs": ["get"]}]});
    let mut all = vec![("clusterroles", role)];
    if !nodes.is_empty() {
        let subjects: Vec<Value> =
            nodes.iter().map(|node| json!({"apiGroup": RBAC, "kind": "User", "name": format!("system:node:{node}")})).collect();
        let reference = json!({"apiGroup": RBAC, "kind": "ClusterRole", "name": "regent:store-copy"});
        all.push(("clusterrolebindings", json!({"metadata": metadata("regent:store-copy", ""), "roleRef": reference, "subjects": subjects})));
    }
    all
}

fn metadata(name: &str, namespace: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

/// What all of Kubernetes' controllers may together.
fn controller_rules() -> Result<Value, Error> {
    let mut rules: Vec<Value> = Vec::new();
    for role in first_objects("apis/rbac.authorization.k8s.io/v1/clusterroles")? {
        if role.name().starts_with("system:controller:") {
            rules.extend(role.list_at("rules").iter().filter(|rule| !rules.contains(rule)).cloned().collect::<Vec<_>>());
        }
    }
    Ok(Value::Array(rules))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_servers_authority_is_kept() {
        let pem = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let own = json!({"metadata": {"name": "a"}, "data": {"requestheader-client-ca-file": pem("2"), "requestheader-allowed-names": "[]"}});
        assert_eq!(with_authorities_of(&Value::Null, &own), own);
        let stored = json!({"data": {"requestheader-client-ca-file": pem("1"), "other": "x"}});
        let both = with_authorities_of(&stored, &own);
        assert_eq!(
            (both["data"]["requestheader-client-ca-file"].as_str(), &both["data"]["other"]),
            (Some((pem("1") + &pem("2")).as_str()), &json!("x"))
        );
        assert_eq!(with_authorities_of(&both, &own)["data"], both["data"], "once is enough");
        let many: String = (10..30).map(|i| pem(&i.to_string())).collect();
        let kept = all_certificates(&many, &pem("2"));
        assert_eq!(kept.matches("BEGIN").count(), AUTHORITIES_OF_OTHERS_MAX + 1);
        assert!(kept.contains(&pem("2")));
    }

    #[test]
    fn controllers_together_have_each_ones_rules() {
        let rules = controller_rules().unwrap();
        let may = |group: &str, resource: &str, verb: &str| {
            rules.as_array().unwrap().iter().any(|rule| {
                let has = |key: &str, wanted: &str| rule.list_at(key).iter().any(|item| item == wanted || item == "*");
                has("apiGroups", group) && has("resources", resource) && has("verbs", verb)
            })
        };
        assert!(may("apps", "deployments/status", "update") && may("", "pods", "create") && may("", "serviceaccounts", "create"));
    }
}
