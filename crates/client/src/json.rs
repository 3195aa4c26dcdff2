//! How objects are read from JSON and written to it: compiled once for each kind.
//!
//! To read a Pod takes hundreds of kilobytes of machine code, and a generic function that reads one is compiled anew in
//! each crate that calls it, and again for each form that the JSON may come in (a slice, a tree, a buffer). So every kind
//! that this program reads has its line here: functions that are not generic, from one form, into one.

use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingWebhookConfiguration},
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, NodeStatus, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus,
        PodTemplateSpec, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    networking::v1::{IPAddress, NetworkPolicy, ServiceCIDR},
    node::v1::RuntimeClass,
    policy::v1::PodDisruptionBudget,
    rbac::v1::ClusterRole,
    resource::v1::{ResourceClaim, ResourceClaimTemplate},
    scheduling::v1::PriorityClass,
    storage::v1::{StorageClass, VolumeAttributesClass},
};
use kube::core::{DynamicObject, PartialObjectMeta};
use serde_json::Value;

/// What can be read from JSON and written to it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not among the kinds that this program reads",
    note = "add its line to `json!` in crates/client/src/json.rs"
)]
pub trait Json: Sized + Send + 'static {
    /// Reads an object.
    fn from_json(text: &str) -> Result<Self, serde_json::Error>;
    /// Writes an object.
    fn to_json(&self) -> Result<Vec<u8>, serde_json::Error>;

    /// Reads a tree.
    fn from_tree(tree: &Value) -> Result<Self, serde_json::Error> {
        Self::from_json(&tree.to_string())
    }

    /// Makes a tree.
    fn to_tree(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_slice(&self.to_json()?)
    }
}

macro_rules! json {
    ($($kind:ty),* $(,)?) => {
        $(impl Json for $kind {
            fn from_json(text: &str) -> Result<Self, serde_json::Error> {
                serde_json::from_str(text)
            }

            fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
                serde_json::to_vec(self)
            }
        })*
    };
}

json!(
    CertificateSigningRequest,
    ClusterRole,
    ConfigMap,
    ControllerRevision,
    CronJob,
    DaemonSet,
    Deployment,
    DynamicObject,
    EndpointSlice,
    Endpoints,
    Event,
    HorizontalPodAutoscaler,
    IPAddress,
    Job,
    Lease,
    LimitRange,
    Namespace,
    NetworkPolicy,
    Node,
    NodeStatus,
    PartialObjectMeta<DynamicObject>,
    PersistentVolume,
    PersistentVolumeClaim,
    Pod,
    PodDisruptionBudget,
    PodStatus,
    PodTemplateSpec,
    PriorityClass,
    ReplicaSet,
    ReplicationController,
    ResourceClaim,
    ResourceClaimTemplate,
    ResourceQuota,
    RuntimeClass,
    Secret,
    Service,
    ServiceAccount,
    ServiceCIDR,
    StatefulSet,
    StorageClass,
    ValidatingAdmissionPolicy,
    ValidatingWebhookConfiguration,
    VolumeAttributesClass,
);
