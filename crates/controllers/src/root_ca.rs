//! The ConfigMap `kube-root-ca.crt` in every namespace: by it pods know the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{ErrorExt, Informer, Key, Selection};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ObjectMeta, Patch};
use serde_json::json;

use crate::Context;
use crate::common::namespaces;

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "The certificates by which pods verify the API server at its addresses inside the cluster.";

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    let selection = Selection { fields: Some(format!("metadata.name={NAME}")), ..Selection::default() };
    Arc::new(RootCa {
        certificate_pem: context.options.ca.certificate_pem.clone(),
        namespaces: context.informers.all(),
        maps: context.informers.selected(selection),
    })
}

struct RootCa {
    certificate_pem: String,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
}

#[async_trait]
impl Controller for RootCa {
    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.namespaces);
        inputs.mapped(&self.maps, |change| namespaces::of(&**change.object()));
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        // A controller manager without the CA has nothing to publish.
        if self.certificate_pem.is_empty() || !self.namespaces.get(key).is_some_and(|namespace| namespaces::is_active(&namespace)) {
            return Ok(Next::Done);
        }
        let map_key = Key::new(key.name.clone(), NAME);
        let data: BTreeMap<_, _> = [(FILE.to_owned(), self.certificate_pem.clone())].into();
        let outcome = match self.maps.get(&map_key) {
            Some(map) if map.data.as_ref() == Some(&data) => return Ok(Next::Done),
            Some(map) => {
                // Whatever else somebody put in goes.
                let mut patch = json!({"metadata": {"uid": map.metadata.uid}, "data": {}});
                for name in map.data.iter().flatten().map(|(name, _)| name) {
                    patch["data"][name] = serde_json::Value::Null;
                }
                patch["data"][FILE] = self.certificate_pem.clone().into();
                self.maps.patch(&map_key, &Patch::Merge(patch)).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(NAME.to_owned()),
                    namespace: Some(key.name.clone()),
                    annotations: Some([(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned())].into()),
                    ..ObjectMeta::default()
                };
                self.maps.create(&ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await
            }
        };
        match outcome {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() || error.is_not_found() => Ok(Next::Done),
            outcome => outcome.map(|_| Next::Done).map_err(Error::from),
        }
    }
}
