//! ResourceQuota status: what holds (`status.hard`), and what is used of it (`status.used`), counted anew from what is there.
//!
//! Admission charges a quota before an object is stored; this controller gives back what was charged in vain and what has
//! gone since. Both count by [`api::quota`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::Value;
use api::quantity::Quantity;
use api::quota::{self, Amounts};
use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Change, Informer, Json, Key};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::Resource;

use crate::Context;
use crate::common::discovery;
use crate::common::patch;
use crate::common::pod_state::is_finished;

/// How often all is counted again.
const FULL_PERIOD: Duration = Duration::from_secs(300);
/// How often those kinds are counted whose changes are not watched for this.
const COUNTED_PERIOD: Duration = Duration::from_secs(10);

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Quotas {
        client: context.client.clone(),
        quotas: context.informers.all(),
        pods: context.informers.all(),
        services: context.informers.all(),
        claims: context.informers.all(),
    })
}

struct Quotas {
    client: kube::Client,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
}

impl Quotas {
    fn recount_on<K: Resource + Send + Sync + 'static>(&self, inputs: &mut Inputs, informer: &Informer<K>, frees: fn(&Change<K>) -> bool) {
        let quotas = self.quotas.clone();
        inputs.mapped(informer, move |change| {
            if !frees(change) {
                return Vec::new();
            }
            let namespace = change.object().meta().namespace.as_deref().unwrap_or_default();
            quotas.in_namespace(namespace).iter().map(|quota| Key::of(&**quota)).collect()
        });
    }
}

#[async_trait]
impl Controller for Quotas {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.quotas);
        self.recount_on(inputs, &self.pods, |change| match change {
            Change::Applied { old, new } => old.as_ref().is_none_or(|old| is_finished(old) != is_finished(new)),
            Change::Deleted(_) => true,
        });
        self.recount_on(inputs, &self.services, |_| true);
        self.recount_on(inputs, &self.claims, |_| true);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(quota) = self.quotas.get(key) else { return Ok(Next::Done) };
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
        let value = to_value(&*quota)?;
        let mut used = Amounts::new();
        for pod in self.pods.in_namespace(&key.namespace) {
            count(&mut used, &value, "pods", &to_value(&*pod)?);
        }
        for service in self.services.in_namespace(&key.namespace) {
            count(&mut used, &value, "services", &to_value(&*service)?);
        }
        for claim in self.claims.in_namespace(&key.namespace) {
            count(&mut used, &value, "persistentvolumeclaims", &to_value(&*claim)?);
        }
        let others = counted_only(hard.keys());
        for (name, (group, resource)) in &others {
            let number = self.number_of(group, resource, &key.namespace).await?;
            used.insert(name.clone(), Quantity::from_units(number, api::quantity::Format::DecimalSi));
        }
        let shown = |name: &String| Text(used.get(name).map_or_else(|| "0".to_owned(), ToString::to_string));
        let used = hard.keys().map(|name| (name.clone(), shown(name))).collect();
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        patch::write_status(&self.quotas, &quota, quota.status.as_ref(), &status).await?;
        Ok(Next::After(if others.is_empty() { FULL_PERIOD } else { COUNTED_PERIOD }))
    }
}

impl Quotas {
    /// How many objects of a kind there are; a kind that is not served has none.
    async fn number_of(&self, group: &str, resource: &str, namespace: &str) -> Result<i64, Error> {
        let discovered = discovery::discover(&self.client).await?;
        let found = discovered.resources.iter().find(|each| each.api.group == group && each.api.plural == resource && each.namespaced);
        match found {
            Some(found) => Ok(i64::try_from(discovery::list(&self.client, found, namespace).await?.len()).unwrap_or(i64::MAX)),
            None if discovered.failed.is_empty() => Ok(0),
            None => Err(Error::NotYet(format!("{resource} could not be found out about: {}", discovered.failed.join(", ")))),
        }
    }
}

fn to_value<K: Json>(object: &K) -> Result<Value, Error> {
    object.to_tree().map_err(|error| Error::Other(error.into()))
}

/// Adds what an object of the core group counts for, if the quota takes it in.
fn count(used: &mut Amounts, quota: &Value, resource: &str, object: &Value) {
    if !quota::matches(quota, "", resource, object) {
        return;
    }
    for (name, amount) in quota::usage("", resource, object) {
        used.entry(name).and_modify(|sum| *sum = sum.add(&amount)).or_insert(amount);
    }
}

/// The bounds on mere numbers of objects, with the group and resource that each is about, other than of the kinds that are
/// looked at anyway.
fn counted_only<'a>(bounds: impl Iterator<Item = &'a String>) -> BTreeMap<String, (String, String)> {
    let looked_at: BTreeSet<&str> = ["pods", "services", "persistentvolumeclaims"].into();
    let meant = |name: &str| {
        let counted = name.strip_prefix("count/");
        let (resource, group) = counted.unwrap_or(name).split_once('.').unwrap_or((counted.unwrap_or(name), ""));
        let is_number = counted.is_some() || quota::PLAIN.contains(&name);
        (is_number && !(group.is_empty() && looked_at.contains(resource))).then(|| (group.to_owned(), resource.to_owned()))
    };
    bounds.filter_map(|name| Some((name.clone(), meant(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_add_up_within_their_scope() {
        let pod = |cpu: &str, phase: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}, "status": {"phase": phase}});
        let check = |quota: Value, expected: &[(&str, &str)]| {
            let mut used = Amounts::new();
            for pod in [pod("600m", "Running"), pod("600m", "Pending"), pod("5", "Succeeded"), json!({"spec": {"containers": [{}]}})] {
                count(&mut used, &quota, "pods", &pod);
            }
            let shown: Vec<_> = ["pods", "requests.cpu"].iter().filter_map(|name| Some((*name, used.get(*name)?.to_string()))).collect();
            assert_eq!(shown, expected.iter().map(|(name, amount)| (*name, (*amount).to_owned())).collect::<Vec<_>>());
        };
        check(json!({}), &[("pods", "3"), ("requests.cpu", "1200m")]);
        check(json!({"spec": {"scopes": ["BestEffort"]}}), &[("pods", "1")]);
    }

    #[test]
    fn numbers_of_other_kinds_are_asked_for() {
        let bounds = ["pods", "cpu", "configmaps", "count/pods", "count/jobs.batch", "requests.storage", "services.nodeports"].map(str::to_owned);
        let found: Vec<_> = counted_only(bounds.iter()).into_values().collect();
        assert_eq!(found, [(String::new(), "configmaps".to_owned()), ("batch".to_owned(), "jobs".to_owned())]);
    }
}
