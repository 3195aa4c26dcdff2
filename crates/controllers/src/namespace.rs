//! Namespace deletion: everything in a namespace that is being deleted goes, kind by kind as the API serves them, pods
//! first; what remains and why stands in the namespace's conditions; at the end the finalizer `kubernetes` is taken off.
//!
//! What must stay true: the finalizer stays as long as anything is left, or any kind could not be asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Change, Clock, ErrorExt, Informer, Key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource as _;
use kube::api::{DeleteParams, Patch};
use kube::core::Request;
use serde_json::json;
use tracing::info;

use crate::Context;
use crate::common::discovery::{self, Discovered, Resource};
use crate::common::namespaces;

const FINALIZER: &str = "kubernetes";
/// How long a namespace is left alone once its deletion has begun: until then every API server has heard of it, and none lets
/// anything more in.
const GRACE: SignedDuration = SignedDuration::from_secs(5);
/// How soon it is looked again at what has not gone yet.
const PAUSE: Duration = Duration::from_secs(1);

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(NamespaceController {
        client: context.client.clone(),
        namespaces: context.informers.all(),
        pods: context.informers.all(),
        clock: context.clock.clone(),
    })
}

struct NamespaceController {
    client: kube::Client,
    namespaces: Informer<Namespace>,
    pods: Informer<Pod>,
    clock: Clock,
}

#[async_trait]
impl Controller for NamespaceController {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.namespaces);
        // Pods take the longest to go: the last one's going is what a namespace waits for.
        inputs.mapped(&self.pods, |change| match change {
            Change::Deleted(pod) => namespaces::of(&**pod),
            Change::Applied { .. } => Vec::new(),
        });
    }

    fn workers(&self) -> usize {
        10
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Next::Done) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        let Some(deleted) = namespace.metadata.deletion_timestamp.as_ref().filter(|_| finalizers.iter().any(|each| each == FINALIZER)) else {
            return Ok(Next::Done);
        };
        let grace = left_of_grace(deleted.0, self.clock.now());
        if !grace.is_zero() {
            return Ok(Next::After(grace));
        }
        let found = self.empty(&key.name).await;
        self.report(&namespace, &found).await?;
        if !found.is_empty() {
            return Ok(Next::After(PAUSE));
        }
        info!(namespace = key.name, "empty; letting it go");
        self.finalize(&namespace, &finalizers).await
    }
}

/// How much longer a namespace whose deletion began at `deleted` is left alone. A clock that goes wrong costs no more than that.
fn left_of_grace(deleted: Timestamp, now: Timestamp) -> Duration {
    let left = GRACE.saturating_sub(now.duration_since(deleted));
    left.clamp(SignedDuration::ZERO, GRACE).unsigned_abs()
}

/// What a pass over a namespace has found.
#[derive(Debug, Default)]
struct Found {
    undiscovered: Vec<String>,
    failures: Vec<String>,
    /// Objects left, by `resource.group`.
    remaining: BTreeMap<String, usize>,
    /// Objects held, by finalizer.
    held: BTreeMap<String, usize>,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.undiscovered.is_empty() && self.failures.is_empty() && self.remaining.is_empty()
    }
}

impl NamespaceController {
    /// Deletes whatever is in the namespace; gives what is still there.
    async fn empty(&self, namespace: &str) -> Found {
        let mut found = Found::default();
        let discovered = match discovery::discover(&self.client).await {
            Ok(discovered) => discovered,
            Err(error) => Discovered { failed: vec![error.short()], ..Discovered::default() },
        };
        found.undiscovered = discovered.failed.clone();
        let deletable = |resource: &&Arc<Resource>| resource.namespaced && resource.can(&["list", "delete"]);
        let (pods, others): (Vec<_>, Vec<_>) =
            discovered.resources.iter().filter(deletable).partition(|resource| resource.api.group.is_empty() && resource.api.plural == "pods");
        for step in [pods, others] {
            let passes = futures::future::join_all(step.iter().map(|resource| self.empty_of(resource, namespace))).await;
            for (resource, pass) in step.iter().zip(passes) {
                match pass {
                    Ok(left) => {
                        for object in &left {
                            for finalizer in object.metadata.finalizers.iter().flatten() {
                                *found.held.entry(finalizer.clone()).or_default() += 1;
                            }
                        }
                        if !left.is_empty() {
                            found.remaining.insert(resource.group_resource(), left.len());
                        }
                    }
                    Err(error) => found.failures.push(format!("{}: {}", resource.group_resource(), error.short())),
                }
            }
            // Pods may need the rest (their Secrets, their roles) until they have ended.
            if !found.remaining.is_empty() || !found.failures.is_empty() {
                break;
            }
        }
        found
    }

    async fn empty_of(&self, resource: &Resource, namespace: &str) -> Result<Vec<discovery::Metadata>, kube::Error> {
        let objects = discovery::list(&self.client, resource, namespace).await?;
        if objects.is_empty() {
            return Ok(objects);
        }
        // Asking again for what is on its way out would change nothing.
        let fresh: Vec<_> = objects.iter().filter(|object| object.metadata.deletion_timestamp.is_none()).collect();
        if fresh.is_empty() {
            return Ok(objects);
        }
        if resource.can(&["deletecollection"]) {
            discovery::delete_all(&self.client, resource, namespace).await?;
        } else {
            for object in fresh {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                match discovery::delete(&self.client, resource, namespace, name, &DeleteParams::background()).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        discovery::list(&self.client, resource, namespace).await
    }

    async fn report(&self, namespace: &Namespace, found: &Found) -> Result<(), Error> {
        let before = namespace.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let conditions = conditions(&before, found, self.clock.now());
        if conditions == before {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": namespace.metadata.uid}, "status": {"conditions": conditions}});
        match self.namespaces.patch_status(&Key::of(namespace), &Patch::Merge(patch)).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn finalize(&self, namespace: &Namespace, finalizers: &[String]) -> Result<Next, Error> {
        let key = Key::of(namespace);
        let left: Vec<_> = finalizers.iter().filter(|each| *each != FINALIZER).cloned().collect();
        let mut body = self.namespaces.live(&key).await?.filter(|live| live.metadata.uid == namespace.metadata.uid);
        let Some(body) = body.as_mut() else { return Ok(Next::Done) };
        body.spec.get_or_insert_default().finalizers = Some(left);
        let data = serde_json::to_vec(&body).map_err(kube::Error::SerdeError)?;
        let request = Request::new(Namespace::url_path(&(), None)).replace_subresource("finalize", &key.name, &Default::default(), data);
        match self.client.request::<serde_json::Value>(request.map_err(kube::Error::BuildRequest)?).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Next::Done),
        }
    }
}

/// The five conditions that say how far the deletion is. A condition that holds on keeps its time.
fn conditions(before: &[NamespaceCondition], found: &Found, now: Timestamp) -> Vec<NamespaceCondition> {
    let count = |counts: &BTreeMap<String, usize>, verb: &str| -> String {
        let parts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances")).collect();
        parts.join(", ")
    };
    let problem = |type_: &str, holds: bool, reasons: (&str, &str), messages: (String, &str)| {
        let (status, reason, message) = if holds { ("True", reasons.0, messages.0) } else { ("False", reasons.1, messages.1.to_owned()) };
        let old = before.iter().find(|condition| condition.type_ == type_);
        let since = old.filter(|old| old.status == status).and_then(|old| old.last_transition_time.clone());
        NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: since.or_else(|| Some(Time(client::clock::whole_seconds(now)))),
        }
    };
    let mut all: Vec<_> = before.iter().filter(|condition| !condition.type_.starts_with("Namespace")).cloned().collect();
    all.extend([
        problem(
            "NamespaceDeletionDiscoveryFailure",
            !found.undiscovered.is_empty(),
            ("DiscoveryFailed", "ResourcesDiscovered"),
            (
                format!("Discovery failed for some groups, {} failing: {}", found.undiscovered.len(), found.undiscovered.join(", ")),
                "All resources successfully discovered",
            ),
        ),
        problem(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ("GroupVersionParsingFailed", "ParsedGroupVersions"),
            (String::new(), "All legacy kube types successfully parsed"),
        ),
        problem(
            "NamespaceDeletionContentFailure",
            !found.failures.is_empty(),
            ("ContentDeletionFailed", "ContentDeleted"),
            (
                format!("Failed to delete all resource types, {} remaining: {}", found.failures.len(), found.failures.join(", ")),
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        problem(
            "NamespaceContentRemaining",
            !found.remaining.is_empty(),
            ("SomeResourcesRemain", "ContentRemoved"),
            (format!("Some resources are remaining: {}", count(&found.remaining, "has")), "All content successfully removed"),
        ),
        problem(
            "NamespaceFinalizersRemaining",
            !found.held.is_empty(),
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            (
                format!("Some content in the namespace has finalizers remaining: {}", count(&found.held, "in")),
                "All content-preserving finalizers finished",
            ),
        ),
    ]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::at;

    #[test]
    fn conditions_say_what_is_left_and_keep_their_time() {
        let mut found = Found::default();
        found.remaining.insert("pods.".to_owned(), 2);
        found.held.insert("example.com/mine".to_owned(), 1);
        let first = conditions(&[], &found, at(10));
        let message = |list: &[NamespaceCondition], type_: &str| {
            list.iter().find(|condition| condition.type_ == type_).and_then(|condition| condition.message.clone())
        };
        let remaining = "Some resources are remaining: pods. has 2 resource instances".to_owned();
        assert_eq!(message(&first, "NamespaceContentRemaining"), Some(remaining));
        let held = "Some content in the namespace has finalizers remaining: example.com/mine in 1 resource instances".to_owned();
        assert_eq!(message(&first, "NamespaceFinalizersRemaining"), Some(held));
        assert_eq!(conditions(&first, &found, at(20)), first);
        let done = conditions(&first, &Found::default(), at(20));
        assert!(done.iter().all(|condition| condition.status == "False"));
    }

    #[test]
    fn a_namespace_is_left_alone_for_a_moment() {
        let left = |deleted, now| left_of_grace(at(deleted), at(now)).as_secs();
        assert_eq!((left(10, 12), left(10, 15), left(10, 60), left(60, 10)), (3, 0, 0, 5));
    }
}
