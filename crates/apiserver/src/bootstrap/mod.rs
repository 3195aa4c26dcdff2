//! The objects that every cluster has from its first second.
//!
//! What Kubernetes makes for every cluster is data (`facts/bootstrap-objects.json`); what a cluster needs beside that, because
//! Kubernetes leaves it to its installers (how nodes join, what DNS and the controllers may), is in [`own`]. Everything is
//! made if it is missing, and roles are brought up to date ([`roles`]); what a user has changed stays, except where a role
//! or binding lacks something that the cluster's own parts need.
//!
//! The system namespaces and the Service `kubernetes` are checked again and again: they come back. Where that Service leads
//! is [`crate::presence`]'s. Several servers may do all this at the same time.

mod own;
mod roles;

pub(crate) use own::{kubernetes_endpoint_slice, kubernetes_endpoints};

use crate::{Error, Server};
use api::{Status, Value, object::ObjectExt};
use serde_json::json;
use std::{net::IpAddr, sync::Arc, sync::OnceLock, time::Duration};

/// How often what must never be missing is looked after.
const CHECK_EVERY: Duration = Duration::from_secs(10);
const NAMESPACES: &str = "api/v1/namespaces";

/// Which objects are made.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where clients reach the cluster, for the ConfigMap `kube-public/cluster-info`; by default the advertised address.
    pub server_url: Option<String>,
    /// The authority that signs the server's certificate, for the same.
    pub authority_pem: Option<String>,
    /// Leaves out the Service `kube-system/kube-dns`.
    pub without_dns: bool,
    /// Nodes that may have a copy of the store.
    pub store_copy_nodes: Vec<String>,
}

/// What Kubernetes makes in every cluster, under one API path: `api/v1/namespaces`.
pub fn first_objects(path: &str) -> Result<&'static [Value], Error> {
    static FACTS: OnceLock<Result<Value, String>> = OnceLock::new();
    let facts =
        FACTS.get_or_init(|| serde_json::from_str(include_str!("../../../api/facts/bootstrap-objects.json")).map_err(|error| error.to_string()));
    match facts {
        Ok(facts) => Ok(facts.get(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()),
        Err(error) => Err(Error::Bootstrap(format!("the facts about first objects cannot be read: {error}"))),
    }
}

/// Makes what is missing. Idempotent.
pub async fn run(server: &Arc<Server>) -> Result<(), Error> {
    let failed = |status: Status| Error::Bootstrap(status.to_string());
    keep(server).await.map_err(failed)?;
    roles::reconcile(server).await?;
    let plain = [
        ("scheduling.k8s.io", "priorityclasses", "apis/scheduling.k8s.io/v1/priorityclasses"),
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", "apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations"),
        ("flowcontrol.apiserver.k8s.io", "flowschemas", "apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"),
    ];
    for (group, resource, path) in plain {
        for object in first_objects(path)? {
            ensure(server, group, resource, object.clone()).await.map_err(failed)?;
        }
    }
    let config = &server.config;
    ensure(server, "", "secrets", own::membership_key()).await.map_err(failed)?;
    for (resource, object) in own::config_maps(config) {
        if object.namespace() == "kube-system" {
            // What aggregated API servers believe by is what this server says today.
            let own = object.clone();
            let object = typed(server, "", resource, object).map_err(failed)?;
            ensure_same(server, "", resource, object, &["data"], |stored| own::with_authorities_of(stored, &own)).await.map_err(failed)?;
        } else {
            ensure(server, "", resource, object).await.map_err(failed)?;
        }
    }
    if !config.bootstrap.without_dns
        && let Some(service) = own::dns_service(&config.service_cidr)
    {
        ensure(server, "", "services", service).await.map_err(failed)?;
    }
    tokio::spawn(look_after(server.clone()));
    Ok(())
}

/// Keeps what must never be missing until shutdown.
async fn look_after(server: Arc<Server>) {
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = server.config.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(status) = keep(&server).await {
            tracing::warn!(error = %status, "system namespaces or the Service kubernetes could not be checked; will try again");
        }
    }
}

/// System namespaces, and the Service that leads to the API servers.
async fn keep(server: &Arc<Server>) -> Result<(), Status> {
    for namespace in first_objects(NAMESPACES).map_err(Status::internal)? {
        ensure(server, "", "namespaces", namespace.clone()).await?;
    }
    let config = &server.config;
    // Before the first Service: its address is out of it.
    service_network(server, &config.service_cidr.trunc().to_string()).await?;
    match own::kubernetes_service(&config.service_cidr, config.secure_port) {
        Some(service) => ensure(server, "", "services", service).await,
        None => Ok(()),
    }
}

/// The ServiceCIDR of the flags. Nobody but the server may be there to say that it is ready.
async fn service_network(server: &Arc<Server>, cidr: &str) -> Result<(), Status> {
    const PLACE: (&str, &str, &str) = ("networking.k8s.io", "servicecidrs", "kubernetes");
    let (group, resource, name) = PLACE;
    ensure(server, group, resource, json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}})).await?;
    let Some(range) = server.lookup(group, resource, "", name)?.map(|entry| entry.value()) else { return Ok(()) };
    let is_new =
        |range: &Value| range.deletion_timestamp().is_none() && !range.list_at("status.conditions").iter().any(|c| c.str_at("type") == Some("Ready"));
    if range.list_at("spec.cidrs").first().and_then(Value::as_str) != Some(cidr) {
        tracing::warn!(flag = cidr, object = %range["spec"]["cidrs"], "the ServiceCIDR kubernetes is not what --service-cluster-ip-range says; the object counts");
    } else if is_new(&range) {
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": crate::write::now(),
        });
        let change = |range: &mut Value| {
            let missing = is_new(range);
            if missing {
                range.set("status.conditions", json!([ready]));
            }
            Ok(missing)
        };
        server.update_internal(group, resource, "", name, "status", change).await?;
    }
    Ok(())
}

/// Creates an object if none of its name is there.
async fn ensure(server: &Arc<Server>, group: &str, resource: &str, object: Value) -> Result<(), Status> {
    let (namespace, name) = (object.namespace().to_string(), object.name().to_string());
    if server.lookup(group, resource, &namespace, &name)?.is_some() {
        return Ok(());
    }
    match server.create_internal(group, resource, &namespace, typed(server, group, resource, object)?).await {
        Err(status) if status.is_already_exists() => Ok(()),
        other => other.map(|_| ()),
    }
}

/// The same, and brings the named fields of one that is there to what `shall` says of it.
pub(crate) async fn ensure_same(
    server: &Arc<Server>,
    group: &str,
    resource: &str,
    object: Value,
    fields: &[&str],
    shall: impl Fn(&Value) -> Value + Send + Sync,
) -> Result<(), Status> {
    let (namespace, name) = (object.namespace().to_string(), object.name().to_string());
    let Some(entry) = server.lookup(group, resource, &namespace, &name)? else {
        return ensure(server, group, resource, object).await;
    };
    let differs = |stored: &Value, wanted: &Value| fields.iter().any(|field| !says(stored.get(field).unwrap_or(&Value::Null), &wanted[*field]));
    let stored = entry.value();
    if !differs(&stored, &shall(&stored)) {
        return Ok(());
    }
    let change = |stored: &mut Value| {
        let wanted = shall(stored);
        let changes = differs(stored, &wanted);
        for field in fields {
            stored.set(field, wanted[*field].clone());
        }
        Ok(changes)
    };
    server.update_internal(group, resource, &namespace, &name, "", change).await.map(|_| ())
}

/// Whether a stored value says at least what is wanted; what defaults have added does not count.
fn says(stored: &Value, wanted: &Value) -> bool {
    match (stored, wanted) {
        (Value::Object(stored), Value::Object(wanted)) => wanted.iter().all(|(key, value)| stored.get(key).is_some_and(|stored| says(stored, value))),
        (Value::Array(stored), Value::Array(wanted)) => {
            stored.len() == wanted.len() && stored.iter().zip(wanted).all(|(stored, wanted)| says(stored, wanted))
        }
        (stored, wanted) => stored == wanted,
    }
}

/// Puts `apiVersion` and `kind` into an object of the facts, which leave them out.
fn typed(server: &Server, group: &str, resource: &str, mut object: Value) -> Result<Value, Status> {
    let kind = server.kind(group, resource)?;
    object.set("apiVersion", kind.api_version());
    object.set("kind", kind.kind.as_str());
    Ok(object)
}

/// The address at a place in the Service network: 1 is the API server's, 10 DNS's.
pub(crate) fn service_address(cidr: &ipnet::IpNet, place: u8) -> Option<IpAddr> {
    let address = match cidr.network() {
        IpAddr::V4(network) => IpAddr::from((u32::from(network).checked_add(u32::from(place))?).to_be_bytes()),
        IpAddr::V6(network) => IpAddr::from((u128::from(network).checked_add(u128::from(place))?).to_be_bytes()),
    };
    cidr.contains(&address).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_can_be_read() {
        assert_eq!(first_objects(NAMESPACES).unwrap().len(), 4);
        assert!(first_objects("apis/rbac.authorization.k8s.io/v1/clusterroles").unwrap().iter().any(|role| role.name() == "cluster-admin"));
        assert!(first_objects("nothing").unwrap().is_empty());
    }

    #[test]
    fn addresses_are_counted_from_the_network() {
        assert_eq!(service_address(&"10.96.0.0/16".parse().unwrap(), 10), Some("10.96.0.10".parse().unwrap()));
        assert_eq!(service_address(&"fd00::/112".parse().unwrap(), 1), Some("fd00::1".parse().unwrap()));
        assert_eq!(service_address(&"10.96.0.0/31".parse().unwrap(), 10), None);
    }

    #[test]
    fn defaults_that_were_added_are_no_difference() {
        assert!(says(&json!({"a": 1, "b": 2, "c": [{"x": 1, "y": 2}]}), &json!({"a": 1, "c": [{"x": 1}]})));
        assert!(!says(&json!({"a": 1}), &json!({"a": 2})));
        assert!(!says(&json!([1, 2]), &json!([1])));
    }
}
