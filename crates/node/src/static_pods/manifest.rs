//! From a file to a static pod, and from a static pod to its mirror. Pure.
//!
//! What must stay true: the same file on the same node always gives the same pod with the same UID, so that a restarted agent
//! finds its containers again; any other content is another pod.

use api::{
    Kind, Value,
    field::Errors,
    object::ObjectExt,
    request::FieldValidation,
    structure::{self, Encoding},
};
use client::Json;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{fmt::Write, sync::LazyLock};

/// On a mirror pod: which static pod it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// On a static pod: which one it is.
pub const HASH: &str = "kubernetes.io/config.hash";
/// On a static pod: where it comes from.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// What [`SOURCE`] says of a file, and of a page.
pub const FILE: &str = "file";
pub const PAGE: &str = "http";
/// The bytes of a hash that a UID is made of.
const UID_BYTES: usize = 16;

static POD: LazyLock<Kind> = LazyLock::new(api::kinds::core::pods::kind);

/// Why a file gives no pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("it is no Pod: {0}")]
    Unreadable(String),
    #[error("the pod is invalid: {0}")]
    Invalid(String),
    #[error("a static pod may not refer to {0}: it must be able to run with no server")]
    Refers(&'static str),
}

/// The pod that a file of this name and content is on this node.
pub fn pod(name: &str, content: &[u8], node: &str) -> Result<Pod, Error> {
    pod_of(FILE, name, content, node)
}

/// The same of whatever source.
pub fn pod_of(source: &str, name: &str, content: &[u8], node: &str) -> Result<Pod, Error> {
    let is_json = content.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let encoding = if is_json { Encoding::Json } else { Encoding::Yaml };
    let decoded = structure::decode_object(content, encoding, &POD, "v1", FieldValidation::Warn);
    let (mut object, warnings) = decoded.map_err(|status| Error::Unreadable(status.message))?;
    for warning in warnings {
        tracing::warn!(file = name, warning, "a manifest says what is not known");
    }
    let uid = uid(name, &object, node);
    let own = object.name().to_owned();
    if !own.is_empty() {
        object.set("metadata.name", format!("{own}-{}", node.to_lowercase()));
    }
    object.set_default("metadata.namespace", json!("default"));
    object.set("metadata.uid", uid.as_str());
    object.set("metadata.generation", 1);
    object.set_annotation(HASH, &uid);
    object.set_annotation(SOURCE, source);
    object.set("spec.nodeName", node);
    // No taint of its node drives it away.
    let mut tolerations = object.list_at("spec.tolerations").to_vec();
    tolerations.push(json!({"operator": "Exists", "effect": "NoExecute"}));
    object.set("spec.tolerations", tolerations);
    POD.hooks.default(&mut object);
    POD.hooks.prepare_create(&mut object);
    let mut errors = Errors::default();
    api::metadata::validate_create(&object, &POD, &mut errors);
    POD.hooks.validate(&object, None, &mut errors);
    if !errors.is_empty() {
        return Err(Error::Invalid(errors.to_string()));
    }
    let pod = Pod::from_tree(&object).map_err(|error| Error::Unreadable(error.to_string()))?;
    match refers_to(&pod) {
        Some(what) => Err(Error::Refers(what)),
        None => Ok(pod),
    }
}

fn uid(name: &str, object: &Value, node: &str) -> String {
    let mut hash = Sha256::new();
    for part in [node, name, &object.to_string()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().take(UID_BYTES).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn refers_to(pod: &Pod) -> Option<&'static str> {
    let spec = crate::spec::spec_of(pod);
    let referred = crate::spec::referred::objects(pod);
    let volumes = || spec.volumes.iter().flatten();
    let tokens = || volumes().flat_map(|volume| volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()));
    [
        (spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty()), "a ServiceAccount"),
        (!referred.secrets.is_empty(), "Secrets"),
        (!referred.config_maps.is_empty(), "ConfigMaps"),
        (!referred.claims.is_empty(), "PersistentVolumeClaims"),
        (tokens().any(|source| source.service_account_token.is_some()), "tokens of a ServiceAccount"),
        (spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()), "ResourceClaims"),
    ]
    .into_iter()
    .find_map(|(refers, what)| refers.then_some(what))
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Whether the API's pod only shows a static one.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR).is_some()
}

/// Whether a source is this node's own, and needs no server's word.
pub fn is_own(source: &str) -> bool {
    source != "api"
}

/// Whether the pod comes from this node itself.
pub fn is_static(pod: &Pod) -> bool {
    !is_mirror(pod) && annotation(pod, SOURCE).is_some_and(is_own)
}

/// Whether the API's pod shows this static one.
pub fn shows(mirror: &Pod, pod: &Pod) -> bool {
    annotation(mirror, MIRROR).is_some() && annotation(mirror, MIRROR) == annotation(pod, HASH)
}

/// What the API is given to show a static pod: an object that belongs to the node.
pub fn mirror(pod: &Pod, node_uid: &str) -> Pod {
    let mut out = pod.clone();
    (out.status, out.metadata.uid, out.metadata.resource_version) = (None, None, None);
    let hash = annotation(pod, HASH).unwrap_or_default().to_owned();
    out.metadata.annotations.get_or_insert_default().insert(MIRROR.into(), hash);
    out.metadata.owner_references = Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        uid: node_uid.into(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: nginx}]}\n";

    #[test]
    fn a_file_becomes_a_pod_of_this_node_as_the_api_would_have_it() {
        let pod = pod("web.yaml", PLAIN.as_bytes(), "worker-1").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-worker-1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.restart_policy.as_deref()), (Some("worker-1"), Some("Always")));
        assert_eq!(spec.containers[0].image_pull_policy.as_deref(), Some("Always"));
        assert_eq!(annotation(&pod, HASH), pod.metadata.uid.as_deref());
        assert!(is_static(&pod) && !is_mirror(&pod));
        let same = super::pod("web.yaml", PLAIN.as_bytes(), "worker-1").unwrap();
        assert_eq!(same, pod, "a restarted agent finds it again");
        let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"containers":[{"name":"a","image":"nginx:1"}]}}"#;
        let changed = super::pod("web.yaml", json.as_bytes(), "worker-1").unwrap();
        assert_ne!(changed.metadata.uid, pod.metadata.uid);
    }

    #[test]
    fn a_mirror_shows_one_static_pod_and_no_other() {
        let pod = pod("web.yaml", PLAIN.as_bytes(), "n").unwrap();
        let mirror = mirror(&pod, "node-uid");
        assert!(is_mirror(&mirror) && !is_static(&mirror) && shows(&mirror, &pod));
        assert_eq!((mirror.metadata.uid.as_ref(), mirror.status.as_ref()), (None, None));
        let owner = &mirror.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()), ("Node", "n", "node-uid"));
        let other = super::pod("other.yaml", PLAIN.as_bytes(), "n").unwrap();
        assert!(!shows(&mirror, &other));
    }

    #[test]
    fn what_needs_a_server_is_refused() {
        let with = |more: &str| pod("p", PLAIN.replace("spec: {", &format!("spec: {{{more}, ")).as_bytes(), "n");
        assert_eq!(with("serviceAccountName: x"), Err(Error::Refers("a ServiceAccount")));
        assert_eq!(with("volumes: [{name: v, secret: {secretName: s}}]"), Err(Error::Refers("Secrets")));
        assert_eq!(with("volumes: [{name: v, persistentVolumeClaim: {claimName: s}}]"), Err(Error::Refers("PersistentVolumeClaims")));
        assert!(matches!(with("restartPolicy: Sometimes"), Err(Error::Invalid(_))));
        assert!(matches!(pod("p", b"kind: Secret\napiVersion: v1\n", "n"), Err(Error::Unreadable(_))));
    }
}
