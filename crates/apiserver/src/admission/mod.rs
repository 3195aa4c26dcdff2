//! What every write passes after defaulting and before validation: plugins that change it or refuse it.
//! One file per plugin, one list ([`all`]), in Kubernetes' order.
//!
//! First every plugin may change the object, then, after allocation and validation, every plugin may refuse it. What a
//! plugin looks up it reads from the cache.

pub(crate) mod admin_access;
mod certificates;
pub(crate) mod connections;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod expressions;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod persistent_volume_claim_resize;
mod pod_security;
mod policies;
mod policy_parameters;
mod priority;
mod resource_quota;
mod review;
mod role_escalation;
mod rounds;
mod runtime_class;
mod service_account;
mod storage_protection;
mod taint_nodes;
pub mod webhooks;

use crate::connect::Warnings;
use crate::{Error, Server, User};
use api::{
    Kind, Status, Value,
    object::ObjectExt,
    request::{DeleteOptions, Query, RequestInfo},
};
pub use rounds::Rounds;
use std::sync::Arc;

/// Which plugins run, and their settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of plugins that do not run (`--disable-admission-plugins`).
    pub disabled: Vec<String>,
    /// How long a pod that does not say otherwise stays on a node that is not ready (`--default-not-ready-toleration-seconds`),
    pub not_ready_toleration_s: i64,
    /// or that cannot be reached (`--default-unreachable-toleration-seconds`).
    pub unreachable_toleration_s: i64,
}

impl Default for Config {
    fn default() -> Config {
        Config { disabled: Vec::new(), not_ready_toleration_s: 300, unreachable_toleration_s: 300 }
    }
}

/// What is done to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// What the client has said beside the object.
#[derive(Clone, Copy)]
pub enum Options<'a> {
    /// Nothing: the server writes of its own accord.
    None,
    /// The options of a create, update or patch are in the query.
    Query(&'a Query),
    Delete(&'a DeleteOptions),
}

/// What a plugin is told of the write.
pub struct AdmissionContext<'a> {
    pub server: &'a Arc<Server>,
    pub request: &'a RequestInfo,
    pub user: &'a User,
    pub operation: Operation,
    pub kind: &'a Kind,
    pub namespace: &'a str,
    /// Empty until the name is known.
    pub name: &'a str,
    pub subresource: &'a str,
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    pub options: Options<'a>,
    pub rounds: Rounds,
    /// What the client is told beside the answer.
    pub warnings: &'a Warnings,
}

impl AdmissionContext<'_> {
    /// Whether this is an operation on a resource itself (and not on a part of it).
    pub fn is(&self, operation: Operation, group: &str, resource: &str) -> bool {
        self.operation == operation && self.concerns(group, resource) && self.subresource.is_empty()
    }
    /// Whether it is about a resource or a part of it.
    pub fn concerns(&self, group: &str, resource: &str) -> bool {
        self.kind.group == group && self.kind.resource == resource
    }
    /// The 403 with which a plugin refuses.
    pub fn forbidden(&self, object: &Value, message: impl std::fmt::Display) -> Status {
        let given = [self.name, object.name(), object.str_at("metadata.generateName").unwrap_or_default()];
        let name = given.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
        Status::forbidden(self.kind.resource_pair(), name, message)
    }
    /// An object by name, parsed.
    pub fn find(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        Ok(self.server.lookup(group, resource, namespace, name)?.map(|entry| entry.value()))
    }
    /// All objects of a resource (in a namespace), parsed.
    pub fn objects(&self, group: &str, resource: &str, namespace: Option<&str>) -> Result<Vec<Value>, Status> {
        Ok(self.server.entries(group, resource, namespace)?.iter().map(|entry| entry.value()).collect())
    }
}

/// One rule that cuts across kinds.
#[async_trait::async_trait]
pub trait Plugin: Send + Sync {
    /// Kubernetes' own name of it.
    fn name(&self) -> &'static str;
    /// Whether it changes objects as somebody outside says: then the others look once more.
    fn asks_outside(&self) -> bool {
        false
    }
    /// Whether it may show the whole object to somebody, `managedFields` and all: a webhook, an expression of a policy.
    fn shows(&self, _cx: &AdmissionContext<'_>) -> bool {
        false
    }
    /// May change the object.
    async fn admit(&self, _cx: &AdmissionContext<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }
    /// May only refuse it. On delete and connect the object is null or the options.
    async fn validate(&self, _cx: &AdmissionContext<'_>, _object: &Value) -> Result<(), Status> {
        Ok(())
    }
}

/// The list.
fn all(config: &Config) -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction),
        Box::new(taint_nodes::TaintNodesByCondition),
        Box::new(pod_security::PodSecurity),
        Box::new(priority::Priority),
        Box::new(default_toleration_seconds::DefaultTolerationSeconds::new(config)),
        Box::new(default_storage_class::DefaultStorageClass),
        Box::new(storage_protection::StorageObjectInUseProtection),
        Box::new(persistent_volume_claim_resize::PersistentVolumeClaimResize),
        Box::new(runtime_class::RuntimeClass),
        Box::new(certificates::Requester),
        Box::new(certificates::CertificateApproval),
        Box::new(certificates::CertificateSigning),
        Box::new(certificates::CertificateSubjectRestriction),
        Box::new(default_ingress_class::DefaultIngressClass),
        Box::new(role_escalation::RoleEscalation),
        Box::new(policy_parameters::PolicyParameters),
        Box::new(policies::MutatingPolicies::default()),
        Box::new(webhooks::Webhooks::mutating()),
        Box::new(policies::ValidatingPolicies::default()),
        Box::new(webhooks::Webhooks::validating()),
        Box::new(resource_quota::ResourceQuota::default()),
    ]
}

/// The plugins in order.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    pub fn new(config: &crate::Config) -> Result<Chain, Error> {
        let disabled = &config.admission.disabled;
        let plugins = all(&config.admission);
        if let Some(unknown) = disabled.iter().find(|name| !plugins.iter().any(|plugin| plugin.name() == name.as_str())) {
            return Err(Error::Configuration(format!("there is no admission plugin {unknown:?}")));
        }
        Ok(Chain { plugins: plugins.into_iter().filter(|plugin| !disabled.iter().any(|name| name == plugin.name())).collect() })
    }
    /// Whether there is a plugin that may show the whole object to somebody.
    pub fn shows(&self, cx: &AdmissionContext<'_>) -> bool {
        self.plugins.iter().any(|plugin| plugin.shows(cx))
    }
    pub async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        for plugin in &self.plugins {
            plugin.admit(cx, object).await?;
        }
        if !cx.rounds.begin_second() {
            return Ok(());
        }
        let left = object.clone();
        for plugin in &self.plugins {
            if plugin.asks_outside() && *object != left {
                cx.rounds.changed();
            }
            plugin.admit(cx, object).await?;
        }
        Ok(())
    }
    pub async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        for plugin in &self.plugins {
            plugin.validate(cx, object).await?;
        }
        Ok(())
    }
}

/// The list at a path, to change; made if it is not there.
pub(crate) fn list_mut<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Vec<Value>> {
    object.set_default(path, Value::Array(vec![]));
    object.at_mut(path).and_then(Value::as_array_mut)
}
