//! What every write passes after defaulting and before validation: plugins that change it or refuse it.
//! One file per plugin, one list ([`Chain::new`]).

use crate::{Error, Server, User};
use api::{Kind, Status, Value, request::RequestInfo};
use std::sync::Arc;

/// Which plugins run, and their settings.
#[derive(Clone, Debug, Default)]
pub struct Config {}

/// What is done to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
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
}

/// One rule that cuts across kinds.
#[async_trait::async_trait]
pub trait Plugin: Send + Sync {
    /// Kubernetes' own name of it.
    fn name(&self) -> &'static str;
    /// May change the object.
    async fn admit(&self, _cx: &AdmissionContext<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }
    /// May only refuse it. On delete and connect the object is null or the options.
    async fn validate(&self, _cx: &AdmissionContext<'_>, _object: &Value) -> Result<(), Status> {
        Ok(())
    }
}

/// The plugins in order.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    pub fn new(_config: &crate::Config) -> Result<Chain, Error> {
        Ok(Chain { plugins: vec![] })
    }
    pub async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        for plugin in &self.plugins {
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
