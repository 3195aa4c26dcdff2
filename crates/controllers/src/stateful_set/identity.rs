//! What a pod of an ordinal is like: its name, its labels, its host name, its claims.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSetSpec;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::common::history::HASH_LABEL;
use crate::common::owner::{Owner, name_of, uid_of};
use crate::common::pods::from_template;

const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The name of the pod of this ordinal.
pub(super) fn pod_name(set: &str, ordinal: i32) -> String {
    format!("{set}-{ordinal}")
}

/// The ordinal in a pod's name, if it is one of the set's names.
pub(super) fn ordinal_of(set: &str, pod: &str) -> Option<i32> {
    let ordinal: i32 = pod.strip_prefix(set)?.strip_prefix('-')?.parse().ok()?;
    (ordinal >= 0 && pod_name(set, ordinal) == pod).then_some(ordinal)
}

/// The labels that say which pod of the set this is.
pub(super) fn labels(pod: &str, ordinal: i32) -> BTreeMap<String, String> {
    BTreeMap::from([(POD_NAME_LABEL.to_owned(), pod.to_owned()), (POD_INDEX_LABEL.to_owned(), ordinal.to_string())])
}

/// Whether the pod carries them.
pub(super) fn is_labelled(pod: &Pod, ordinal: i32) -> bool {
    let has = crate::common::owner::labels_of(pod);
    labels(name_of(pod), ordinal).iter().all(|(name, value)| has.get(name) == Some(value))
}

/// The pod of this ordinal, from the template of this revision.
pub(super) fn pod(spec: &StatefulSetSpec, template: &PodTemplateSpec, owner: &Owner, ordinal: i32, revision: &str) -> Pod {
    let mut pod = from_template(template, owner);
    let name = pod_name(owner.name(), ordinal);
    pod.metadata.generate_name = None;
    let own = pod.metadata.labels.get_or_insert_default();
    own.extend(labels(&name, ordinal));
    own.insert(HASH_LABEL.into(), revision.to_owned());
    let body = pod.spec.get_or_insert_default();
    body.hostname = Some(name.clone());
    body.subdomain = spec.service_name.clone().filter(|service| !service.is_empty());
    let claimed: Vec<Volume> = spec
        .volume_claim_templates
        .iter()
        .flatten()
        .map(|claim| Volume {
            name: name_of(claim).to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(claim, owner.name(), ordinal),
                read_only: None,
            }),
            ..Default::default()
        })
        .collect();
    if !claimed.is_empty() {
        // A claim's volume wins over the template's of the same name.
        let volumes = body.volumes.get_or_insert_default();
        volumes.retain(|volume| claimed.iter().all(|claim| claim.name != volume.name));
        volumes.extend(claimed);
    }
    pod.metadata.name = Some(name);
    pod
}

fn claim_name(template: &PersistentVolumeClaim, set: &str, ordinal: i32) -> String {
    format!("{}-{}", name_of(template), pod_name(set, ordinal))
}

/// The claims of this ordinal.
pub(super) fn claims(spec: &StatefulSetSpec, owner: &Owner, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let one = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(template, owner.name(), ordinal));
        claim.metadata.namespace = Some(owner.namespace.clone());
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim.metadata.owner_references = policy(spec).0.then(|| vec![set_reference(owner)]);
        claim.status = None;
        claim
    };
    spec.volume_claim_templates.iter().flatten().map(one).collect()
}

/// Whether claims go with the set, and whether they go when the set is scaled down.
fn policy(spec: &StatefulSetSpec) -> (bool, bool) {
    let policy = spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    (policy.when_deleted.as_deref() == Some("Delete"), policy.when_scaled.as_deref() == Some("Delete"))
}

fn set_reference(owner: &Owner) -> OwnerReference {
    OwnerReference { block_owner_deletion: None, controller: None, ..owner.reference.clone() }
}

/// The owner that the retention policy asks for a pod's claims; `condemned` says that the pod is being scaled away.
pub(super) fn claim_owner(spec: &StatefulSetSpec, owner: &Owner, pod: &Pod, condemned: bool) -> Option<OwnerReference> {
    match policy(spec) {
        (_, true) if condemned => Some(OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: name_of(pod).to_owned(),
            uid: uid_of(pod).to_owned(),
            controller: None,
            block_owner_deletion: None,
        }),
        (true, _) => Some(set_reference(owner)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ObjectMeta;

    #[test]
    fn names_and_ordinals() {
        assert_eq!(ordinal_of("web", "web-0"), Some(0));
        assert_eq!(ordinal_of("web", "web-12"), Some(12));
        assert_eq!(ordinal_of("web", "web-01"), None);
        assert_eq!(ordinal_of("web", "web-a-1"), None);
        assert_eq!(ordinal_of("web-a", "web-1"), None);
    }

    #[test]
    fn a_pod_has_its_name_its_host_name_and_its_claim() {
        let mut owner = Owner::default();
        owner.reference.name = "web".into();
        let claim = PersistentVolumeClaim { metadata: ObjectMeta { name: Some("data".into()), ..Default::default() }, ..Default::default() };
        let spec = StatefulSetSpec { service_name: Some("svc".into()), volume_claim_templates: Some(vec![claim]), ..Default::default() };
        let pod = pod(&spec, &PodTemplateSpec::default(), &owner, 2, "web-abc");
        assert_eq!(pod.metadata.name.as_deref(), Some("web-2"));
        assert!(is_labelled(&pod, 2));
        let body = pod.spec.unwrap();
        assert_eq!((body.hostname.as_deref(), body.subdomain.as_deref()), (Some("web-2"), Some("svc")));
        let claim_name = body.volumes.unwrap()[0].persistent_volume_claim.clone().unwrap().claim_name;
        assert_eq!(claim_name, "data-web-2");
        assert_eq!(claims(&spec, &owner, 2)[0].metadata.name.as_deref(), Some("data-web-2"));
    }
}
