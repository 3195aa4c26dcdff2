//! The ServiceAccount `default` in every namespace: what a pod runs as that names no other.

use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Change, ErrorExt, Informer, Key};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::ObjectMeta;

use crate::Context;
use crate::common::namespaces;

const NAME: &str = "default";

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(DefaultServiceAccount { namespaces: context.informers.all(), accounts: context.informers.all() })
}

struct DefaultServiceAccount {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
}

#[async_trait]
impl Controller for DefaultServiceAccount {
    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.namespaces);
        inputs.mapped(&self.accounts, |change| match change {
            Change::Deleted(account) if account.metadata.name.as_deref() == Some(NAME) => namespaces::of(&**account),
            _ => Vec::new(),
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let is_there = self.accounts.get(&Key::new(key.name.clone(), NAME)).is_some();
        if is_there || !self.namespaces.get(key).is_some_and(|namespace| namespaces::is_active(&namespace)) {
            return Ok(Next::Done);
        }
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), namespace: Some(key.name.clone()), ..ObjectMeta::default() };
        match self.accounts.create(&ServiceAccount { metadata, ..ServiceAccount::default() }).await {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() || error.is_not_found() => Ok(Next::Done),
            outcome => outcome.map(|_| Next::Done).map_err(Error::from),
        }
    }
}
