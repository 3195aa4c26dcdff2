//! Aggregation: groups and versions that another API server in the cluster serves, and the APIServices that say who serves what.
//!
//! An APIService without a Service is local: this server's own groups ([`local`] makes those) and the groups of definitions.
//! One with a Service is asked over TLS in the user's name ([`proxy`]); whether it can be asked is looked at all the time
//! ([`availability`]), and what it serves becomes part of discovery and of OpenAPI.
//!
//! What must stay true: a request has been authenticated and authorized here before it goes on, and the identity that goes
//! with it is the one that was found here; what this server is built with is never given to another; nothing that another
//! server answers is trusted beyond being the answer to that request; answers that are kept are bounded.

mod availability;
mod local;
mod proxy;

pub use local::{group_priority, is_kept, own_service};
pub use proxy::{forward, refused};

use crate::{
    Error, Server,
    cache::{From, Selection},
    definitions, resource_metrics,
};
use api::{Value, object::ObjectExt};
use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use pki::reload::CertificateFiles;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub(crate) const GROUP: &str = "apiregistration.k8s.io";
pub(crate) const RESOURCE: &str = "apiservices";
/// The pause before another attempt at what could not be done.
const RETRY: Duration = Duration::from_secs(1);

/// How this server proves itself to the servers behind it.
#[derive(Clone, Default)]
pub struct Config {
    /// The certificate that the front-proxy authority has signed; without, nobody behind can believe what this server says.
    pub client_files: Option<Arc<CertificateFiles>>,
    /// That authority (PEM), which the servers behind read from `kube-system/extension-apiserver-authentication`.
    pub authority_pem: Option<String>,
}

/// Another server that serves one version of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    /// The APIService's name.
    pub name: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// The authorities (PEM) that the server's certificate is checked by; empty for those that the machine trusts.
    authorities_pem: String,
    insecure: bool,
    pub group_priority: i64,
    pub version_priority: i64,
    /// Whether its APIService says that it can be asked.
    pub available: bool,
}

/// What a server behind was last heard to serve.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its resources, as aggregated discovery lists them.
    pub resources: Vec<Value>,
    /// The same, as the older document lists them.
    pub list: Vec<Value>,
    /// Its OpenAPI documents: name to relative URL.
    pub open_api: BTreeMap<String, String>,
    /// What its OpenAPI v2 document says of what it serves here.
    pub open_api_v2: Option<Arc<Value>>,
}

type GroupVersion = (String, String);

/// What is known of the servers behind this one.
#[derive(Default)]
pub struct Services {
    remotes: ArcSwap<BTreeMap<GroupVersion, Arc<Remote>>>,
    known: Mutex<BTreeMap<GroupVersion, Arc<Known>>>,
}

impl Services {
    /// Who serves a group and version, if it is another server.
    pub fn remote(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes.load();
        if remotes.is_empty() {
            return None;
        }
        remotes.get(&(group.to_string(), version.to_string())).cloned()
    }
    /// All other servers, by group and version.
    pub fn remotes(&self) -> Vec<Arc<Remote>> {
        self.remotes.load().values().cloned().collect()
    }
    /// What one was last heard to serve.
    pub fn known(&self, remote: &Remote) -> Option<Arc<Known>> {
        self.known.lock().get(&(remote.group.clone(), remote.version.clone())).cloned()
    }
    /// Whose OpenAPI document this is (`apis/GROUP/VERSION`), and where it has it.
    pub fn open_api(&self, name: &str) -> Option<(Arc<Remote>, String)> {
        self.remotes().into_iter().find_map(|remote| {
            let place = self.known(&remote)?.open_api.get(name)?.clone();
            Some((remote, place))
        })
    }
    fn learn(&self, remote: &Remote, known: Known) {
        self.known.lock().insert((remote.group.clone(), remote.version.clone()), Arc::new(known));
    }
}

/// Who else serves a request's path, if anybody: `/apis/GROUP/VERSION` and what is below.
pub fn target(server: &Server, path: &str) -> Option<Arc<Remote>> {
    if server.aggregation.remotes.load().is_empty() {
        return None;
    }
    let mut parts = path.strip_prefix("/apis/")?.splitn(3, '/');
    let (group, version) = (parts.next()?, parts.next().filter(|version| !version.is_empty())?);
    server.aggregation.remote(group, version)
}

/// Reads an APIService; `None` for a local one.
fn remote_of(service: &Value) -> Option<Remote> {
    let spec = service.get("spec")?;
    let target = spec.get("service").filter(|target| target.is_object())?;
    let text = |value: &Value, key: &str| value.str_at(key).unwrap_or_default().to_string();
    let bundle = spec.str_at("caBundle").and_then(|bundle| STANDARD.decode(bundle).ok()).unwrap_or_default();
    Some(Remote {
        name: service.name().into(),
        group: text(spec, "group"),
        version: text(spec, "version"),
        namespace: text(target, "namespace"),
        service: text(target, "name"),
        port: target.i64_at("port").and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
        authorities_pem: String::from_utf8_lossy(&bundle).into_owned(),
        insecure: spec.bool_at("insecureSkipTLSVerify") == Some(true),
        group_priority: spec.i64_at("groupPriorityMinimum").unwrap_or_default(),
        version_priority: spec.i64_at("versionPriority").unwrap_or_default(),
        available: availability::condition(service).is_some_and(|condition| condition.str_at("status") == Some("True")),
    })
}

/// All APIServices.
pub fn all(server: &Server) -> Vec<Value> {
    server.cache.resource(GROUP, RESOURCE).snapshot().entries(None).map(|entry| entry.value()).collect()
}

/// Takes in the APIServices as they are now.
fn look(server: &Arc<Server>, services: &[Value]) {
    let built_in = |remote: &Remote| server.built_in.iter().any(|kind| kind.group == remote.group && kind.versions.contains(&remote.version));
    let remotes: BTreeMap<GroupVersion, Arc<Remote>> = services
        .iter()
        .filter_map(remote_of)
        .filter(|remote| !built_in(remote))
        .map(|remote| ((remote.group.clone(), remote.version.clone()), Arc::new(remote)))
        .collect();
    server.aggregation.known.lock().retain(|name, _| remotes.contains_key(name));
    let changed = server.aggregation.remotes.swap(Arc::new(remotes)).keys().ne(server.aggregation.remotes.load().keys());
    if changed {
        server.openapi.forget_all_groups();
    }
    resource_metrics::look(server, services);
    definitions::join(server);
}

/// Follows the APIServices, keeps the local ones, and looks after the others.
pub fn start(server: &Arc<Server>) -> Result<(), Error> {
    let cache = server.cache.resource(GROUP, RESOURCE);
    let watch = cache.watch(Selection::default(), From::Now, server.cache.reached());
    let mut watch = watch.map_err(|_| Error::Configuration("the APIServices cannot be watched".into()))?;
    look(server, &all(server));
    tokio::spawn(availability::run(server.clone()));
    let server = Arc::downgrade(server);
    tokio::spawn(async move {
        let mut registered = local::Registered::default();
        loop {
            let Some(strong) = server.upgrade() else { return };
            let shutdown = strong.config.shutdown.clone();
            let services = all(&strong);
            look(&strong, &services);
            let kept = local::keep(&strong, &services, &mut registered).await.and(resource_metrics::keep(&strong).await);
            if let Err(status) = kept {
                tracing::debug!(error = %status, "the local APIServices could not be brought up to date; will try again");
            }
            let cache = strong.cache.resource(GROUP, RESOURCE);
            let catalogue = strong.catalogue.load_full();
            drop(strong);
            let mut ended = false;
            // A changed catalogue is seen within a moment; nothing of the cluster waits for it.
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    event = watch.live.recv() => {
                        ended = event.is_none();
                        break;
                    }
                    () = tokio::time::sleep(RETRY) => {}
                }
                let Some(strong) = server.upgrade() else { return };
                if !Arc::ptr_eq(&strong.catalogue.load_full(), &catalogue) || registered.is_due(&strong) || resource_metrics::is_due(&strong) {
                    break;
                }
            }
            if ended {
                let Some(strong) = server.upgrade() else { return };
                match cache.watch(Selection::default(), From::Now, strong.cache.reached()) {
                    Ok(anew) => watch = anew,
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
            while watch.live.take().is_some() {}
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_api_service_is_read() {
        let mut service = json!({"metadata": {"name": "v1beta1.metrics.k8s.io"}, "spec": {"group": "metrics.k8s.io", "version": "v1beta1",
            "groupPriorityMinimum": 100, "versionPriority": 10, "insecureSkipTLSVerify": true, "service": {"namespace": "kube-system", "name": "metrics", "port": 4443}}});
        let remote = remote_of(&service).unwrap();
        assert_eq!((remote.service.as_str(), remote.port, remote.insecure, remote.available), ("metrics", 4443, true, false));
        service["status"] = json!({"conditions": [{"type": "Available", "status": "True"}]});
        assert!(remote_of(&service).unwrap().available);
        service["spec"].remove("service");
        assert_eq!(remote_of(&service), None);
    }
}
