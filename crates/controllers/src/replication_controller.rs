//! ReplicationControllers: ReplicaSets' elders, kept by the same code ([`crate::replica_set`]).

use std::sync::Arc;

use client::controller::Controller;
use k8s_openapi::api::core::v1::ReplicationController;
use kube::core::Selector;

use crate::Context;
use crate::replica_set::{Replicas, Replicated, Wanted};

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replicationcontroller-controller";
    const COMPONENT: &'static str = "replication-controller";
    const KIND: &'static str = "ReplicationController";

    fn wanted(&self) -> Wanted {
        let spec = self.spec.clone().unwrap_or_default();
        // Both statuses have the same fields, but for one that this kind does not have.
        let status = self.status.as_ref().and_then(|status| serde_json::to_value(status).ok()).and_then(|value| serde_json::from_value(value).ok());
        Wanted {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: spec.selector.filter(|labels| !labels.is_empty()).map(|labels| labels.into_iter().collect::<Selector>()),
            template: spec.template.unwrap_or_default(),
            status,
            counts_terminating: false,
        }
    }
}

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Replicas::<ReplicationController>::new(context))
}
