//! ResourceClaims of pods: one is made from each ResourceClaimTemplate that a pod names, and the pod's status says which; who is done with
//! a claim no longer has it reserved; what nobody has reserved is given back, and goes if it was made for a pod that is done.
//!
//! What must stay true: a pod has one claim per entry, however often this is tried; a claim that a pod may still use keeps its devices.

use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::events::{EventType, Recorder};
use client::{Change, Deletion, ErrorExt, Informer, Key};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use kube::api::{ObjectMeta, Patch};
use serde_json::json;

use crate::Context;
use crate::common::owner::{Owner, annotation, controller_of, is_controlled_by, name_of, uid_of};
use crate::common::patch;
use crate::common::pod_state::{is_deleting, is_finished};

/// For which entry of its pod a claim was made.
const ENTRY: &str = "resource.kubernetes.io/pod-claim-name";
/// On a claim whose devices were chosen by the scheduler.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
const MANAGER: &str = "ResourceClaimController";
/// Before the names of claims among the keys; pods have none that begin so.
const CLAIM: &str = "claim:";
/// Room in a name beside the five characters that the server adds.
const BASE_NAME_MAX: usize = 57;

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(ResourceClaims {
        pods: context.informers.all(),
        claims: context.informers.all(),
        templates: context.informers.all(),
        recorder: context.recorder_for("resource_claim"),
    })
}

struct ResourceClaims {
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    recorder: Recorder,
}

#[async_trait]
impl Controller for ResourceClaims {
    fn name(&self) -> &'static str {
        "resourceclaim-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.mapped(&self.pods, |change| {
            let pod = change.object();
            if entries(pod).next().is_none() {
                return Vec::new();
            }
            match change {
                Change::Applied { .. } if !is_done(pod) => vec![Key::of(&**pod)],
                _ => entries(pod).filter_map(|entry| claim_name(pod, entry)).map(|name| claim_key(namespace_of(pod), name)).collect(),
            }
        });
        let pods = self.pods.clone();
        inputs.mapped(&self.claims, move |change| {
            let claim = change.object();
            let namespace = claim.metadata.namespace.clone().unwrap_or_default();
            // Its pod makes it again, or reserves it.
            let users =
                pods.in_namespace(&namespace).into_iter().filter(|pod| entries(pod).any(|entry| claim_name(pod, entry) == Some(name_of(&**claim))));
            let mut keys: Vec<Key> = users.filter(|pod| !is_done(pod)).map(|pod| Key::of(&*pod)).collect();
            keys.push(claim_key(&namespace, name_of(&**claim)));
            keys
        });
        let pods = self.pods.clone();
        inputs.mapped(&self.templates, move |change| {
            let template = change.object();
            let pods = pods.in_namespace(template.metadata.namespace.as_deref().unwrap_or_default()).into_iter();
            let waits = |pod: &Arc<Pod>| {
                entries(pod).any(|entry| {
                    entry.resource_claim_template_name.as_deref() == template.metadata.name.as_deref() && claim_name(pod, entry).is_none()
                })
            };
            pods.filter(waits).map(|pod| Key::of(&*pod)).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        match key.name.strip_prefix(CLAIM) {
            Some(name) => self.look_at_claim(&Key::new(key.namespace.clone(), name)).await,
            None => self.look_at_pod(key).await,
        }
    }
}

impl ResourceClaims {
    async fn look_at_pod(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key).filter(|pod| !is_done(pod) && !is_deleting(pod)) else { return Ok(Next::Done) };
        let mut made = Vec::new();
        for entry in entries(&pod) {
            match wanted(&pod, entry, &self.claims.in_namespace(&key.namespace)) {
                Wanted::Nothing => {}
                Wanted::Name(claim) => made.push((entry.name.clone(), claim)),
                Wanted::Make { template } => match self.make(&pod, entry, template).await {
                    Ok(Some(claim)) => made.push((entry.name.clone(), claim)),
                    Ok(None) => return Ok(Next::Done),
                    Err(message) => {
                        let message = format!("PodResourceClaim {}: {message}", entry.name);
                        self.recorder.about(&*pod, EventType::Warning, "FailedResourceClaimCreation", message.clone());
                        return Err(Error::NotYet(message));
                    }
                },
            }
        }
        if !made.is_empty() {
            let before = pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
            let kept = before.filter(|each| !made.iter().any(|(name, _)| *name == each.name));
            let kept = kept.map(|each| json!({"name": each.name, "resourceClaimName": each.resource_claim_name}));
            let statuses: Vec<_> = kept.chain(made.iter().map(|(name, claim)| json!({"name": name, "resourceClaimName": claim}))).collect();
            let object = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.metadata.uid},
                "status": {"resourceClaimStatuses": statuses},
            });
            match self.pods.apply_status(key, MANAGER, &object).await {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                outcome => drop(outcome?),
            }
        }
        // Where the scheduler has no part in it, the claims are reserved here.
        if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
            for entry in entries(&pod) {
                let name = claim_name(&pod, entry);
                let Some(claim) = name.and_then(|name| self.claims.get(&Key::new(key.namespace.clone(), name))) else { continue };
                if let Some(reserved) = reservation(&claim, &pod) {
                    self.write_status(&claim, json!({"reservedFor": reserved})).await?;
                }
            }
        }
        Ok(Next::Done)
    }

    /// Makes the claim of an entry; `None` if that has become useless.
    async fn make(&self, pod: &Pod, entry: &PodResourceClaim, template: &str) -> Result<Option<String>, String> {
        let key = Key::new(namespace_of(pod), template);
        let template = self
            .templates
            .get(&key)
            .ok_or_else(|| format!("resource claim template \"{template}\": resourceclaimtemplate.resource.k8s.io \"{template}\" not found"))?;
        match self.claims.create(&claim(pod, entry, &template)).await {
            Ok(claim) => Ok(Some(name_of(&*claim).to_owned())),
            Err(error) if error.is_namespace_terminating() => Ok(None),
            Err(error) => Err(format!("create ResourceClaim: {}", error.short())),
        }
    }

    async fn look_at_claim(&self, key: &Key) -> Result<Next, Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(Next::Done) };
        let mut kept = Vec::new();
        for consumer in reserved_for(&claim) {
            if self.is_used_by(&key.namespace, consumer).await? {
                kept.push(consumer.clone());
            }
        }
        let owner = controller_of(&*claim).filter(|owner| owner.kind == "Pod");
        let owner = owner.and_then(|owner| Some((owner, self.pods.get(&Key::new(key.namespace.clone(), owner.name.clone()))?)));
        let is_over = owner.is_some_and(|(owner, pod)| uid_of(&*pod) != owner.uid || is_done(&pod));
        match decide(&claim, kept, is_over) {
            Step::Nothing => {}
            Step::Status(change) => drop(self.write_status(&claim, change).await?),
            Step::Unprotect(finalizers) => match patch::write(&self.claims, &*claim, json!({"metadata": {"finalizers": finalizers}})).await {
                Err(Error::Api(error)) if error.is_not_found() => {}
                outcome => drop(outcome?),
            },
            Step::Delete => match self.claims.delete(key, &Deletion::of(&*claim)).await {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                outcome => outcome?,
            },
        }
        Ok(Next::Done)
    }

    async fn write_status(&self, claim: &ResourceClaim, change: serde_json::Value) -> Result<(), Error> {
        let meta = &claim.metadata;
        let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}, "status": change});
        match self.claims.patch_status(&Key::of(claim), &Patch::Merge(patch)).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    /// Whether who has the claim reserved may still use it. Who is not known here is asked for at the API itself.
    async fn is_used_by(&self, namespace: &str, consumer: &ResourceClaimConsumerReference) -> Result<bool, Error> {
        if consumer.api_group.as_deref().is_some_and(|group| !group.is_empty()) || consumer.resource != "pods" {
            return Ok(true);
        }
        let key = Key::new(namespace, consumer.name.clone());
        let still = |pod: &Pod| uid_of(pod) == consumer.uid && !is_done(pod);
        match self.pods.get(&key) {
            Some(pod) => Ok(still(&pod)),
            None => Ok(self.pods.live(&key).await?.is_some_and(|pod| still(&pod))),
        }
    }
}

fn namespace_of(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

fn claim_key(namespace: &str, name: &str) -> Key {
    Key::new(namespace, format!("{CLAIM}{name}"))
}

/// What a pod says of the claims that it uses.
fn entries(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten())
}

/// The claim of an entry, as far as it is known.
fn claim_name<'a>(pod: &'a Pod, entry: &'a PodResourceClaim) -> Option<&'a str> {
    entry.resource_claim_name.as_deref().or_else(|| said(pod, entry)?.as_deref())
}

/// What the pod's status says of an entry: its claim, or that it needs none.
fn said<'a>(pod: &'a Pod, entry: &PodResourceClaim) -> Option<&'a Option<String>> {
    let mut statuses = pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
    statuses.find(|status| status.name == entry.name).map(|status| &status.resource_claim_name)
}

/// Whether the pod runs no more, or never will.
fn is_done(pod: &Pod) -> bool {
    is_finished(pod) || (is_deleting(pod) && pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()))
}

fn reserved_for(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default()
}

/// What an entry of a pod needs.
#[derive(Debug, PartialEq)]
enum Wanted<'a> {
    Nothing,
    /// This claim is the entry's, which the status must say.
    Name(String),
    Make {
        template: &'a str,
    },
}

fn wanted<'a>(pod: &Pod, entry: &'a PodResourceClaim, claims: &[Arc<ResourceClaim>]) -> Wanted<'a> {
    let Some(template) = entry.resource_claim_template_name.as_deref() else { return Wanted::Nothing };
    match said(pod, entry) {
        Some(None) => return Wanted::Nothing,
        Some(Some(name)) if claims.iter().any(|claim| name_of(&**claim) == name) => return Wanted::Nothing,
        _ => {}
    }
    // One that was made, but the status could not be written.
    let own = |claim: &&Arc<ResourceClaim>| is_controlled_by(&***claim, uid_of(pod)) && annotation(&***claim, ENTRY) == Some(&entry.name);
    match claims.iter().find(|claim| own(claim) && claim.metadata.deletion_timestamp.is_none()) {
        Some(claim) => Wanted::Name(name_of(&**claim).to_owned()),
        None => Wanted::Make { template },
    }
}

/// The claim for an entry, as the template says.
fn claim(pod: &Pod, entry: &PodResourceClaim, template: &ResourceClaimTemplate) -> ResourceClaim {
    let meta = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(ENTRY.to_owned(), entry.name.clone());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(base_name(name_of(pod), &entry.name)),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![Owner::of(pod).reference]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// Where both names are too long together, each gives its share.
fn base_name(pod: &str, entry: &str) -> String {
    let length = pod.len() + 1 + entry.len();
    let cut = |name: &str| if length > BASE_NAME_MAX { name.chars().take(name.len() * BASE_NAME_MAX / length).collect() } else { name.to_owned() };
    format!("{}-{}-", cut(pod), cut(entry))
}

/// Who shall have the claim reserved so that the pod, which is on its node already, has it; `None` if it has, or cannot.
fn reservation(claim: &ResourceClaim, pod: &Pod) -> Option<Vec<ResourceClaimConsumerReference>> {
    let status = claim.status.as_ref()?;
    let consumers = status.reserved_for.clone().unwrap_or_default();
    if status.allocation.is_none() || claim.metadata.deletion_timestamp.is_some() || consumers.iter().any(|each| each.uid == uid_of(pod)) {
        return None;
    }
    let own = ResourceClaimConsumerReference { resource: "pods".into(), name: name_of(pod).into(), uid: uid_of(pod).into(), api_group: None };
    Some(consumers.into_iter().chain([own]).collect())
}

/// What is done next for a claim.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// The merge patch of its status.
    Status(serde_json::Value),
    /// What finalizers are left.
    Unprotect(Vec<String>),
    Delete,
}

/// `kept` are those who have it reserved rightly; `is_over` says that the pod that it was made for is done.
fn decide(claim: &ResourceClaim, kept: Vec<ResourceClaimConsumerReference>, is_over: bool) -> Step {
    let deleting = claim.metadata.deletion_timestamp.is_some();
    let finalizers = claim.metadata.finalizers.as_deref().unwrap_or_default();
    let protected = finalizers.iter().any(|each| each == FINALIZER);
    let allocated = claim.status.as_ref().is_some_and(|status| status.allocation.is_some());
    if !kept.is_empty() {
        return if kept.len() < reserved_for(claim).len() { Step::Status(json!({"reservedFor": kept})) } else { Step::Nothing };
    }
    // Nobody has it: what the scheduler chose is given back. One that waits for its first consumer keeps what it was given.
    let gives_back = allocated && protected && (!reserved_for(claim).is_empty() || deleting);
    if gives_back {
        return Step::Status(json!({"reservedFor": null, "allocation": null, "devices": null}));
    }
    if !reserved_for(claim).is_empty() {
        return Step::Status(json!({"reservedFor": null}));
    }
    if protected && !allocated {
        return Step::Unprotect(finalizers.iter().filter(|each| *each != FINALIZER).cloned().collect());
    }
    if is_over && !deleting { Step::Delete } else { Step::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn pod(more: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": {"containers": [],
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}, {"name": "shared", "resourceClaimName": "s"}]}});
        api::merge::merge_patch(&mut pod, &more);
        serde_json::from_value(pod).expect("a pod")
    }

    fn made(name: &str, more: Value) -> Arc<ResourceClaim> {
        let mut claim = json!({"metadata": {"name": name, "namespace": "ns", "annotations": {ENTRY: "gpu"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "u", "controller": true}]}, "spec": {}});
        api::merge::merge_patch(&mut claim, &more);
        Arc::new(serde_json::from_value(claim).expect("a claim"))
    }

    fn consumer(uid: &str) -> ResourceClaimConsumerReference {
        ResourceClaimConsumerReference { resource: "pods".into(), name: "web".into(), uid: uid.into(), api_group: None }
    }

    #[test]
    fn a_claim_is_made_once() {
        let check = |more: Value, claims: &[Arc<ResourceClaim>]| {
            let pod = pod(more);
            let all: Vec<String> = entries(&pod).map(|entry| format!("{:?}", wanted(&pod, entry, claims))).collect();
            all.join(" ")
        };
        assert_eq!(check(json!({}), &[]), "Make { template: \"t\" } Nothing");
        assert_eq!(check(json!({}), &[made("web-gpu-x", json!({}))]), "Name(\"web-gpu-x\") Nothing");
        assert_eq!(check(json!({}), &[made("other", json!({"metadata": {"annotations": null}}))]), "Make { template: \"t\" } Nothing");
        let named = json!({"status": {"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "web-gpu-x"}]}});
        assert_eq!(check(named.clone(), &[made("web-gpu-x", json!({}))]), "Nothing Nothing");
        assert_eq!(check(named, &[]), "Make { template: \"t\" } Nothing");
        assert_eq!(check(json!({"status": {"resourceClaimStatuses": [{"name": "gpu"}]}}), &[]), "Nothing Nothing");
    }

    #[test]
    fn a_claim_follows_the_template_and_belongs_to_the_pod() {
        let template = json!({"metadata": {"name": "t"}, "spec": {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu.example.com"}}]}}}});
        let pod = pod(json!({}));
        let claim = claim(&pod, entries(&pod).next().expect("an entry"), &serde_json::from_value(template).expect("a template"));
        let claim = serde_json::to_value(claim).expect("JSON");
        assert_eq!(claim["metadata"]["generateName"], "web-gpu-");
        assert_eq!(claim["metadata"]["annotations"], json!({"c": "d", ENTRY: "gpu"}));
        assert_eq!((&claim["metadata"]["labels"]["a"], &claim["metadata"]["ownerReferences"][0]["controller"]), (&json!("b"), &json!(true)));
        assert_eq!(claim["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"], "gpu.example.com");
        assert_eq!(base_name(&"p".repeat(60), &"c".repeat(60)).len(), 58);
    }

    #[test]
    fn what_nobody_uses_is_given_back_and_goes() {
        let status = |reserved: &[&str], allocated: bool| {
            let reserved: Vec<_> = reserved.iter().map(|uid| consumer(uid)).collect();
            json!({"metadata": {"finalizers": [FINALIZER]}, "status": {"reservedFor": reserved, "allocation": if allocated { json!({}) } else { Value::Null }}})
        };
        let check = |claim: &ResourceClaim, kept: &[&str], over: bool| decide(claim, kept.iter().map(|uid| consumer(uid)).collect(), over);
        let used = made("c", status(&["u", "v"], true));
        assert_eq!(check(&used, &["u", "v"], false), Step::Nothing);
        assert_eq!(check(&used, &["v"], true), Step::Status(json!({"reservedFor": [consumer("v")]})));
        assert_eq!(check(&used, &[], true), Step::Status(json!({"reservedFor": null, "allocation": null, "devices": null})));
        // What was allocated and is reserved in a moment is left alone.
        assert_eq!(check(&made("c", status(&[], true)), &[], false), Step::Nothing);
        assert_eq!(check(&made("c", status(&[], false)), &[], true), Step::Unprotect(vec![]));
        assert_eq!(check(&made("c", json!({})), &[], true), Step::Delete);
        assert_eq!(check(&made("c", json!({})), &[], false), Step::Nothing);
    }

    #[test]
    fn a_pod_that_was_bound_by_others_has_its_claims_reserved() {
        let pod = pod(json!({"spec": {"nodeName": "n"}}));
        assert_eq!(reservation(&made("c", json!({"status": {"allocation": {}}})), &pod).map(|all| all.len()), Some(1));
        assert_eq!(reservation(&made("c", json!({"status": {}})), &pod), None);
    }
}
