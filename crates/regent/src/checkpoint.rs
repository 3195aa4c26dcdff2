//! The informers of a node's components, over the checkpoint on the node's disk: `ROOT-DIR/checkpoint/COMPONENT.db`.

use client::{Checkpoint, Informers};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
    node::v1::RuntimeClass,
};
use std::path::Path;

/// Where a node keeps its state if nothing else is said.
pub const ROOT_DIR: &str = "/var/lib/regent/node";

/// The informers of this component. What it lives on is kept; the Secrets, ConfigMaps, tokens, statuses and events of the
/// node's pods are kept by the kubelet's own parts.
pub fn informers(client: kube::Client, root_dir: &Path, component: &str) -> Informers {
    let checkpoint = Checkpoint::open_or_without(&root_dir.join("checkpoint"), component);
    let kept = |checkpoint: Checkpoint| {
        checkpoint.keeping::<Pod>().keeping::<Node>().keeping::<Service>().keeping::<EndpointSlice>().keeping::<RuntimeClass>()
    };
    Informers::with(client, checkpoint.map(kept))
}
