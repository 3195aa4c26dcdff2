//! What a node may: its own objects, and what the pods bound to it refer to.
//!
//! A user is a node if it is called `system:node:NAME` and is in the group `system:nodes`. Which Secret, ConfigMap or claim
//! a node may read follows from the pods in that namespace that are bound to it; the relation is read off the cached pods
//! when it is asked for (a node asks when it begins to watch an object, not on every change), so there is no second copy
//! of it that could be wrong. Everything else is in the fixed rules of the role `system:node`.

use super::{Attributes, Decision, rbac::Rule};
use crate::{Error, Server, User, bootstrap};
use api::{Value, object::ObjectExt};

pub const NODES_GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";
const NO_NAME: &str = "No Object name found";

/// The node that a user is. An empty name is a node that does not say which.
pub fn node_name(user: &User) -> Option<&str> {
    user.name.strip_prefix(USER_PREFIX).filter(|_| user.in_group(NODES_GROUP))
}

/// The rules that every node has.
pub(super) fn rules() -> Result<Vec<Rule>, Error> {
    let roles = bootstrap::first_objects("apis/rbac.authorization.k8s.io/v1/clusterroles")?;
    let role = roles.iter().find(|role| role.name() == "system:node");
    let role = role.ok_or_else(|| Error::Configuration("the first objects lack the role system:node".into()))?;
    Ok(Rule::of_role(role))
}

/// What is known of a request before the relation to pods has to be looked up.
enum Verdict {
    Allow,
    No(String),
    /// Allowed if the node has to do with the object in this way.
    IfRelated(Relation),
    /// The fixed rules decide.
    Rules,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ResourceClaim,
    Attachment,
    ServiceAccount,
    Pod,
    ResourceSlice,
}

pub(super) fn authorize(server: &Server, user: &User, attributes: &Attributes<'_>) -> Decision {
    let Some(node) = node_name(user) else { return Decision::NoOpinion(String::new()) };
    if node.is_empty() {
        return Decision::NoOpinion(format!("unknown node for user {:?}", user.name));
    }
    let allow = || Decision::Allow(String::new());
    match verdict(node, attributes) {
        Verdict::Allow => allow(),
        Verdict::No(reason) => Decision::NoOpinion(reason),
        Verdict::IfRelated(relation) if related(server, node, relation, attributes) => allow(),
        Verdict::IfRelated(_) => Decision::NoOpinion(format!("no relationship found between node '{node}' and this object")),
        Verdict::Rules if server.authorizer.node_rules.iter().any(|rule| rule.allows(attributes)) => allow(),
        Verdict::Rules => Decision::NoOpinion(String::new()),
    }
}

fn verdict(node: &str, attributes: &Attributes<'_>) -> Verdict {
    let no = |reason: &str| Verdict::No(reason.into());
    let Attributes { verb, subresource, name, namespace, .. } = *attributes;
    let read_by_name = |relation| match verb {
        "get" | "list" | "watch" if !subresource.is_empty() => no("cannot read subresource"),
        "get" | "list" | "watch" if name.is_empty() => no(NO_NAME),
        "get" | "list" | "watch" if namespace.is_empty() => no("can only read namespaced object of this type"),
        "get" | "list" | "watch" => Verdict::IfRelated(relation),
        _ => no("can only read resources of this type"),
    };
    let get = |relation| match verb {
        "get" if !subresource.is_empty() => no("cannot get subresource"),
        "get" if name.is_empty() => no(NO_NAME),
        "get" => Verdict::IfRelated(relation),
        _ => no("can only get individual resources of this type"),
    };
    let update_status = |relation| match verb {
        "update" | "patch" if name.is_empty() => no(NO_NAME),
        "update" | "patch" => Verdict::IfRelated(relation),
        _ => no("can only get/update/patch this type"),
    };
    let own_node_only = || attributes.fields.and_then(|fields| fields.exact("spec.nodeName")) == Some(node);
    match (attributes.group, attributes.resource) {
        _ if !attributes.is_resource() => Verdict::Rules,
        ("", "secrets") => read_by_name(Relation::Secret),
        ("", "configmaps") => read_by_name(Relation::ConfigMap),
        ("", "persistentvolumeclaims") if subresource == "status" => update_status(Relation::Claim),
        ("", "persistentvolumeclaims") => get(Relation::Claim),
        ("", "persistentvolumes") => get(Relation::Volume),
        ("resource.k8s.io", "resourceclaims") => get(Relation::ResourceClaim),
        ("storage.k8s.io", "volumeattachments") => get(Relation::Attachment),
        ("", "serviceaccounts") => match verb {
            "create" if subresource == "token" && name.is_empty() => no(NO_NAME),
            "create" if subresource == "token" => Verdict::IfRelated(Relation::ServiceAccount),
            "get" if subresource.is_empty() && !name.is_empty() => Verdict::IfRelated(Relation::ServiceAccount),
            _ => no("can only create tokens for individual service accounts"),
        },
        ("coordination.k8s.io", "leases") => match verb {
            "get" | "create" | "update" | "patch" | "delete" if namespace != "kube-node-lease" => {
                no("can only access leases in the \"kube-node-lease\" system namespace")
            }
            "get" | "update" | "patch" | "delete" if name != node => no("can only access node lease with the same name as the requesting node"),
            "get" | "create" | "update" | "patch" | "delete" => Verdict::Allow,
            _ => no("can only get, create, update, patch, or delete a node lease"),
        },
        ("storage.k8s.io", "csinodes") => match verb {
            _ if !subresource.is_empty() => no("cannot authorize CSINode subresources"),
            "get" | "update" | "patch" | "delete" if name != node => no("can only access CSINode with the same name as the requesting node"),
            "get" | "create" | "update" | "patch" | "delete" => Verdict::Allow,
            _ => no("can only get, create, update, patch, or delete a CSINode"),
        },
        ("resource.k8s.io", "resourceslices") => match verb {
            _ if !subresource.is_empty() => no("cannot authorize ResourceSlice subresources"),
            "create" => Verdict::Allow,
            "get" | "update" | "patch" | "delete" if name.is_empty() => no(NO_NAME),
            "get" | "update" | "patch" | "delete" => Verdict::IfRelated(Relation::ResourceSlice),
            "list" | "watch" | "deletecollection" if own_node_only() => Verdict::Allow,
            "list" | "watch" | "deletecollection" => no("can only list/watch/deletecollection resourceslices with nodeName field selector"),
            _ => no("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection"),
        },
        ("", "nodes") => match (verb, subresource) {
            ("create", "") => Verdict::Allow,
            ("get" | "list" | "watch", "") if name == node => Verdict::Allow,
            ("get", "") => no(&format!("node '{node}' cannot read '{name}', only its own Node object")),
            ("list" | "watch", "") => no(&format!("node '{node}' cannot read all nodes, only its own Node object")),
            _ => Verdict::Rules,
        },
        ("", "pods") => match (verb, subresource) {
            ("get", "") if name.is_empty() => no(NO_NAME),
            ("get", "") => Verdict::IfRelated(Relation::Pod),
            ("list" | "watch", "") if own_node_only() => Verdict::Allow,
            ("list" | "watch", "") => no("can only list/watch pods with spec.nodeName field selector"),
            _ => Verdict::Rules,
        },
        _ => Verdict::Rules,
    }
}

/// Whether a node has to do with the object that attributes name.
fn related(server: &Server, node: &str, relation: Relation, attributes: &Attributes<'_>) -> bool {
    let Attributes { namespace, name, .. } = *attributes;
    let object = |group, resource, namespace, name| server.lookup(group, resource, namespace, name).ok().flatten().map(|entry| entry.value());
    let on_node = |object: Option<Value>| object.is_some_and(|object| object.str_at("spec.nodeName") == Some(node));
    let any_pod = |namespace: &str, refers: &dyn Fn(&Value) -> bool| any_pod_on(server, node, namespace, refers);
    match relation {
        Relation::Pod => on_node(object("", "pods", namespace, name)),
        Relation::Attachment => on_node(object("storage.k8s.io", "volumeattachments", "", name)),
        Relation::ResourceSlice => on_node(object("resource.k8s.io", "resourceslices", "", name)),
        Relation::ServiceAccount => any_pod(namespace, &|pod| pod.str_at("spec.serviceAccountName") == Some(name)),
        Relation::Secret => {
            any_pod(namespace, &|pod| refers_to_secret(pod, name))
                || secret_of_a_volume(server, namespace, name, &|claim_namespace, claim| any_pod(claim_namespace, &|pod| refers_to_claim(pod, claim)))
        }
        Relation::ConfigMap => any_pod(namespace, &|pod| refers_to_configmap(pod, name)) || on_node_config(server, node, namespace, name),
        Relation::Claim => any_pod(namespace, &|pod| refers_to_claim(pod, name)),
        Relation::ResourceClaim => any_pod(namespace, &|pod| refers_to_resource_claim(pod, name)),
        Relation::Volume => object("", "persistentvolumes", "", name).is_some_and(|volume| {
            let (namespace, claim) = (volume.str_at("spec.claimRef.namespace"), volume.str_at("spec.claimRef.name"));
            namespace.zip(claim).is_some_and(|(namespace, claim)| any_pod(namespace, &|pod| refers_to_claim(pod, claim)))
        }),
    }
}

/// The node's own configuration is no longer kept in ConfigMaps; only a Node that still names one is served.
fn on_node_config(server: &Server, node: &str, namespace: &str, name: &str) -> bool {
    let Ok(Some(entry)) = server.lookup("", "nodes", "", node) else { return false };
    let node = entry.value();
    node.str_at("spec.configSource.configMap.namespace") == Some(namespace) && node.str_at("spec.configSource.configMap.name") == Some(name)
}

/// Whether one of the pods of a namespace that are bound to the node passes. A mirror pod refers to nothing: a node could
/// otherwise give itself whatever it likes by making one.
fn any_pod_on(server: &Server, node: &str, namespace: &str, refers: &dyn Fn(&Value) -> bool) -> bool {
    let cache = server.cache.resource("", "pods");
    let place = cache.kind().and_then(|kind| kind.selectable_fields.iter().position(|field| field == "spec.nodeName"));
    let snapshot = cache.snapshot();
    let mut pods = snapshot.entries(Some(namespace)).filter(|entry| match place.and_then(|i| entry.fields.get(i)) {
        Some(bound) => **bound == *node,
        None => true,
    });
    pods.any(|entry| {
        let pod = entry.value();
        pod.str_at("spec.nodeName") == Some(node) && pod.annotation("kubernetes.io/config.mirror").is_none() && refers(&pod)
    })
}

/// Whether a persistent volume that names the secret is claimed by something that passes.
fn secret_of_a_volume(server: &Server, namespace: &str, name: &str, claimed: &dyn Fn(&str, &str) -> bool) -> bool {
    let references = [
        "csi.controllerPublishSecretRef",
        "csi.nodeStageSecretRef",
        "csi.nodePublishSecretRef",
        "csi.nodeExpandSecretRef",
        "csi.controllerExpandSecretRef",
        "azureFile",
        "cephfs.secretRef",
        "flexVolume.secretRef",
        "iscsi.secretRef",
        "rbd.secretRef",
        "scaleIO.secretRef",
        "storageos.secretRef",
    ];
    let Ok(volumes) = server.entries("", "persistentvolumes", None) else { return false };
    volumes.iter().any(|entry| {
        let volume = entry.value();
        let (Some(claim_namespace), Some(claim)) = (volume.str_at("spec.claimRef.namespace"), volume.str_at("spec.claimRef.name")) else {
            return false;
        };
        let named = references.iter().filter_map(|path| volume.at(&format!("spec.{path}"))).any(|reference| {
            let of = reference.str_at("namespace").or(reference.str_at("secretNamespace")).unwrap_or(claim_namespace);
            of == namespace && reference.str_at("name").or(reference.str_at("secretName")) == Some(name)
        });
        named && claimed(claim_namespace, claim)
    })
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| pod.list_at(&format!("spec.{list}")))
}

/// Whether the containers' environments name it: as a whole (`envFrom`) or one key (`env`).
fn in_environment(pod: &Value, whole: &str, key: &str, name: &str) -> bool {
    containers(pod).any(|container| {
        container.list_at("envFrom").iter().any(|source| source.str_at(&format!("{whole}.name")) == Some(name))
            || container.list_at("env").iter().any(|variable| variable.str_at(&format!("valueFrom.{key}.name")) == Some(name))
    })
}

fn projected<'a>(volume: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    volume.list_at("projected.sources").iter().filter_map(move |source| source.get(kind))
}

fn refers_to_secret(pod: &Value, name: &str) -> bool {
    let direct = [
        "secret.secretName",
        "azureFile.secretName",
        "cephfs.secretRef.name",
        "csi.nodePublishSecretRef.name",
        "flexVolume.secretRef.name",
        "iscsi.secretRef.name",
        "rbd.secretRef.name",
        "scaleIO.secretRef.name",
        "storageos.secretRef.name",
    ];
    pod.list_at("spec.imagePullSecrets").iter().any(|secret| secret.str_at("name") == Some(name))
        || in_environment(pod, "secretRef", "secretKeyRef", name)
        || pod.list_at("spec.volumes").iter().any(|volume| {
            direct.iter().any(|path| volume.str_at(path) == Some(name))
                || projected(volume, "secret").any(|source| source.str_at("name") == Some(name))
        })
}

fn refers_to_configmap(pod: &Value, name: &str) -> bool {
    in_environment(pod, "configMapRef", "configMapKeyRef", name)
        || pod.list_at("spec.volumes").iter().any(|volume| {
            volume.str_at("configMap.name") == Some(name) || projected(volume, "configMap").any(|source| source.str_at("name") == Some(name))
        })
}

fn refers_to_claim(pod: &Value, name: &str) -> bool {
    pod.list_at("spec.volumes").iter().any(|volume| {
        let ephemeral = volume.at("ephemeral").is_some() && format!("{}-{}", pod.name(), volume.str_at("name").unwrap_or_default()) == name;
        volume.str_at("persistentVolumeClaim.claimName") == Some(name) || ephemeral
    })
}

fn refers_to_resource_claim(pod: &Value, name: &str) -> bool {
    let direct = pod.list_at("spec.resourceClaims").iter().any(|claim| claim.str_at("resourceClaimName") == Some(name));
    direct || pod.list_at("status.resourceClaimStatuses").iter().any(|claim| claim.str_at("resourceClaimName") == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_pod_refers_to() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
        "imagePullSecrets": [{"name": "pull"}],
        "initContainers": [{"envFrom": [{"configMapRef": {"name": "whole"}}]}],
        "containers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}}]}],
        "volumes": [
            {"name": "v", "secret": {"secretName": "mounted"}},
            {"name": "w", "projected": {"sources": [{"configMap": {"name": "root"}}, {"secret": {"name": "part"}}]}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "claim"}},
            {"name": "scratch", "ephemeral": {}}
        ]}});
        for secret in ["pull", "one", "mounted", "part"] {
            assert!(refers_to_secret(&pod, secret), "{secret}");
        }
        for configmap in ["whole", "root"] {
            assert!(refers_to_configmap(&pod, configmap), "{configmap}");
        }
        assert!(refers_to_claim(&pod, "claim") && refers_to_claim(&pod, "p-scratch"));
        assert!(!refers_to_secret(&pod, "root") && !refers_to_configmap(&pod, "part") && !refers_to_claim(&pod, "p-v"));
    }

    #[test]
    fn only_a_user_of_that_name_and_group_is_a_node() {
        assert_eq!(node_name(&User::new("system:node:n1", &[NODES_GROUP])), Some("n1"));
        assert_eq!(node_name(&User::new("system:node:n1", &[])), None);
        assert_eq!(node_name(&User::new("bob", &[NODES_GROUP])), None);
    }

    #[test]
    fn refusals_say_what_would_be_allowed() {
        let reason = |attributes: Attributes<'_>| match verdict("n1", &attributes) {
            Verdict::Allow => "allowed".to_string(),
            Verdict::No(reason) => reason,
            Verdict::IfRelated(relation) => format!("{relation:?}"),
            Verdict::Rules => "rules".into(),
        };
        let secret = Attributes { verb: "get", resource: "secrets", namespace: "n", name: "s", ..Attributes::default() };
        assert_eq!(reason(secret), "Secret");
        assert_eq!(reason(Attributes { verb: "list", name: "", ..secret }), "No Object name found");
        assert_eq!(reason(Attributes { verb: "patch", ..secret }), "can only read resources of this type");
        let pods = Attributes { verb: "list", resource: "pods", ..Attributes::default() };
        assert_eq!(reason(pods), "can only list/watch pods with spec.nodeName field selector");
        let fields = api::selector::FieldSelector { terms: vec![("spec.nodeName".into(), true, "n1".into())] };
        assert_eq!(reason(Attributes { fields: Some(&fields), ..pods }), "allowed");
        let lease = Attributes {
            verb: "update",
            group: "coordination.k8s.io",
            resource: "leases",
            namespace: "kube-node-lease",
            name: "n1",
            ..Attributes::default()
        };
        assert_eq!(reason(lease), "allowed");
        assert_eq!(reason(Attributes { name: "n2", ..lease }), "can only access node lease with the same name as the requesting node");
    }
}
