//! Making and removing pods in the name of their owner, with the events that users know.

use std::future::Future;
use std::sync::Arc;

use client::events::{Normal, Recorder, Warning};
use client::{Deletion, ErrorExt, Informer, Key};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::api::ObjectMeta;
use tracing::debug;

use super::owner::{Owner, name_of};
use crate::Context;

/// Creates and deletes pods for one controller.
#[derive(Clone)]
pub struct PodControl {
    pods: Informer<Pod>,
    recorder: Recorder,
}

/// A pod as the template says, for this owner; its name is up to the caller (or generated from the owner's).
pub fn from_template(template: &PodTemplateSpec, owner: &Owner) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(owner.namespace.clone()),
            generate_name: Some(format!("{}-", owner.name())),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.reference.clone()]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

impl PodControl {
    /// With events in the name of the component.
    pub fn new(context: &Context, component: &str) -> Self {
        PodControl { pods: context.informers.all(), recorder: context.recorder_for(component) }
    }

    /// The pods.
    pub fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    /// The recorder that it uses.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Creates the pod, and tells so (or why not) on its owner.
    pub async fn create(&self, owner: &Owner, pod: &Pod) -> Result<Arc<Pod>, kube::Error> {
        let created = self.pods.create(pod).await;
        match &created {
            Ok(pod) => self.recorder.event(&owner.about, Normal, "SuccessfulCreate", "", format!("Created pod: {}", name_of(&**pod))),
            // Where the whole namespace goes, a pod that cannot be made is no news.
            Err(error) if error.is_namespace_terminating() => {}
            Err(error) => self.recorder.event(&owner.about, Warning, "FailedCreate", "", format!("Error creating: {}", error.short())),
        }
        created
    }

    /// Deletes exactly this pod, and tells so (or why not) on its owner. A pod that is gone already is no failure.
    pub async fn delete(&self, owner: &Owner, pod: &Pod) -> Result<(), kube::Error> {
        match self.pods.delete(&Key::of(pod), &Deletion::of(pod)).await {
            Ok(()) => {
                self.recorder.event(&owner.about, Normal, "SuccessfulDelete", "", format!("Deleted pod: {}", name_of(pod)));
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {
                debug!(pod = %Key::of(pod), "was gone already");
                Ok(())
            }
            Err(error) => {
                self.recorder.event(&owner.about, Warning, "FailedDelete", "", format!("Error deleting: {}", error.short()));
                Err(error)
            }
        }
    }
}

/// Runs `count` times, in batches of 1, 2, 4, ... at once, and stops after the first batch with a failure: where nothing
/// can be created (a quota, an admission), the API is not flooded with what it must refuse. Gives the number of successes.
pub async fn slow_start<F, R>(count: usize, mut run: F) -> (usize, Result<(), kube::Error>)
where
    F: FnMut(usize) -> R,
    R: Future<Output = Result<(), kube::Error>>,
{
    let mut successes = 0;
    let mut next = 0;
    let mut batch = 1;
    while next < count {
        let end = count.min(next + batch);
        let outcomes = futures::future::join_all((next..end).map(&mut run)).await;
        next = end;
        let mut failure = None;
        for outcome in outcomes {
            match outcome {
                Ok(()) => successes += 1,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            return (successes, Err(error));
        }
        batch *= 2;
    }
    (successes, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[tokio::test]
    async fn slow_start_stops_after_the_first_failing_batch() {
        let seen = RefCell::new(Vec::new());
        let (successes, outcome) = slow_start(20, |n| {
            seen.borrow_mut().push(n);
            async move { if n == 4 { Err(kube::Error::LinesCodecMaxLineLengthExceeded) } else { Ok(()) } }
        })
        .await;
        assert!(outcome.is_err());
        assert_eq!(seen.borrow().len(), 7);
        assert_eq!(successes, 6);
    }

    #[tokio::test]
    async fn slow_start_runs_all() {
        let (successes, outcome) = slow_start(10, |_| async { Ok(()) }).await;
        assert!(outcome.is_ok());
        assert_eq!(successes, 10);
    }
}
