//! Every kind that the API serves, asked of the API itself, and requests about objects of kinds known only at run time.
//!
//! What must stay true: a group that could not be asked is named in the answer, never silently missing: who deletes
//! "everything" must know that it has not seen everything.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::{ErrorExt, limits};
use kube::api::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, ObjectList, PartialObjectMeta, Request};
use kube::{Client, Resource as _};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// Only the metadata of an object.
pub type Metadata = PartialObjectMeta<DynamicObject>;

/// One resource, in the version that its group prefers among those that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its names.
    pub api: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Vec<String>,
}

impl Resource {
    /// Whether all of these can be done with it.
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|each| each == verb))
    }

    /// `deployments.apps`, `pods.` for the core group.
    pub fn group_resource(&self) -> String {
        format!("{}.{}", self.api.plural, self.api.group)
    }

    fn request(&self, namespace: &str) -> Request {
        let namespace = Some(namespace).filter(|namespace| self.namespaced && !namespace.is_empty());
        Request::new(DynamicObject::url_path(&self.api, namespace))
    }
}

/// What the API serves.
#[derive(Clone, Debug, Default)]
pub struct Discovered {
    /// Every resource (not subresource), each once.
    pub resources: Vec<Arc<Resource>>,
    /// The group versions that could not be asked, each with the reason.
    pub failed: Vec<String>,
}

impl Discovered {
    /// The resource of a kind, whatever version of its group an object names.
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.resources.iter().find(|resource| resource.api.group == group && resource.api.kind == kind)
    }
}

/// Asks the API what it serves.
pub async fn discover(client: &Client) -> Result<Discovered, kube::Error> {
    let groups = client.list_api_groups().await?;
    let mut versions = vec!["v1".to_owned()];
    for group in groups.groups {
        let preferred = group.preferred_version.map(|version| version.group_version);
        let others = group.versions.into_iter().map(|version| version.group_version).filter(|each| Some(each) != preferred.as_ref());
        let others: Vec<_> = others.collect();
        versions.extend(preferred.into_iter().chain(others));
    }
    let ask = |version: String| async move {
        let answer = if version == "v1" { client.list_core_api_resources("v1").await } else { client.list_api_group_resources(&version).await };
        (version, answer)
    };
    let mut discovered = Discovered::default();
    let mut seen = BTreeSet::new();
    for (version, answer) in futures::future::join_all(versions.into_iter().map(ask)).await {
        let list = match answer {
            Ok(list) => list,
            Err(error) => {
                discovered.failed.push(format!("{version}: {}", error.short()));
                continue;
            }
        };
        let (group, version_name) = version.split_once('/').unwrap_or(("", &version));
        for resource in list.resources.into_iter().filter(|resource| !resource.name.contains('/')) {
            if seen.insert((group.to_owned(), resource.name.clone())) {
                let api = ApiResource {
                    group: group.to_owned(),
                    version: version_name.to_owned(),
                    api_version: version.clone(),
                    kind: resource.kind,
                    plural: resource.name,
                };
                discovered.resources.push(Arc::new(Resource { api, namespaced: resource.namespaced, verbs: resource.verbs }));
            }
        }
    }
    Ok(discovered)
}

async fn send<T: DeserializeOwned>(client: &Client, request: Result<http::Request<Vec<u8>>, kube::core::request::Error>) -> Result<T, kube::Error> {
    let request = request.map_err(kube::Error::BuildRequest)?;
    let late = |_| kube::Error::Service("no answer in time".into());
    timeout(limits::REQUEST_TIMEOUT, client.request(request)).await.map_err(late)?
}

/// The metadata of one object, from the API itself; `None` if there is no such object.
pub async fn get(client: &Client, resource: &Resource, namespace: &str, name: &str) -> Result<Option<Metadata>, kube::Error> {
    match send(client, resource.request(namespace).get_metadata(name, &GetParams::default())).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The metadata of all objects in a namespace.
pub async fn list(client: &Client, resource: &Resource, namespace: &str) -> Result<Vec<Metadata>, kube::Error> {
    let list: ObjectList<Metadata> = send(client, resource.request(namespace).list_metadata(&ListParams::default())).await?;
    Ok(list.items)
}

/// Patches one object's metadata.
pub async fn patch(client: &Client, resource: &Resource, namespace: &str, name: &str, patch: serde_json::Value) -> Result<(), kube::Error> {
    let request = resource.request(namespace).patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch));
    send::<serde_json::Value>(client, request).await.map(drop)
}

/// The scale of one object; `None` if there is no such object.
pub async fn scale(client: &Client, resource: &Resource, namespace: &str, name: &str) -> Result<Option<serde_json::Value>, kube::Error> {
    match send(client, resource.request(namespace).get_subresource("scale", name)).await {
        Ok(scale) => Ok(Some(scale)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the scale of one object; its resourceVersion must still be the current one.
pub async fn set_scale(client: &Client, resource: &Resource, namespace: &str, name: &str, scale: &serde_json::Value) -> Result<(), kube::Error> {
    let body = serde_json::to_vec(scale).map_err(kube::Error::SerdeError)?;
    let request = resource.request(namespace).replace_subresource("scale", name, &PostParams::default(), body);
    send::<serde_json::Value>(client, request).await.map(drop)
}

/// Deletes one object.
pub async fn delete(client: &Client, resource: &Resource, namespace: &str, name: &str, params: &DeleteParams) -> Result<(), kube::Error> {
    send::<serde_json::Value>(client, resource.request(namespace).delete(name, params)).await.map(drop)
}

/// Deletes all objects in a namespace, in one request.
pub async fn delete_all(client: &Client, resource: &Resource, namespace: &str) -> Result<(), kube::Error> {
    let request = resource.request(namespace).delete_collection(&DeleteParams::background(), &ListParams::default());
    send::<serde_json::Value>(client, request).await.map(drop)
}
