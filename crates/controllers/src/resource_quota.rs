//! ResourceQuota status: what holds (`status.hard`), and what is used of it (`status.used`), counted anew from what is there.
//!
//! Admission charges a quota before an object is stored; this controller gives back what was charged in vain and what has
//! gone since. Both count by [`api::quota`].
//!
//! What must stay true: a charge whose object is not seen yet is not taken back, or the quota would be exceeded by it. So
//! nothing is lowered until [`SETTLE`] after the last charge ([`Charges`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::Value;
use api::quantity::Quantity;
use api::quota::{self, Amounts};
use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::queue::Queue;
use client::{Change, Informer, Informers, Json, Key};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::Resource;
use kube::core::ApiResource;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::Context;
use crate::common::discovery::{self, Metadata};
use crate::common::patch;
use crate::common::pod_state::is_finished;

/// How often all is counted again.
const FULL_PERIOD: Duration = Duration::from_secs(300);
/// How often those kinds are counted whose deletions are not followed: what is not served, or cannot be watched.
const COUNTED_PERIOD: Duration = Duration::from_secs(10);

/// How long the object of a charge may take to be seen here.
const SETTLE: Duration = Duration::from_secs(2);
/// How long what is free is kept back at most, while others go on charging.
const SETTLE_MAX: Duration = Duration::from_secs(15);

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Quotas {
        client: context.client.clone(),
        quotas: context.informers.all(),
        pods: context.informers.all(),
        services: context.informers.all(),
        claims: context.informers.all(),
        charges: Arc::default(),
        informers: context.informers.clone(),
        followed: Arc::default(),
        news: Mutex::default(),
    })
}

struct Quotas {
    client: kube::Client,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    charges: Arc<Charges>,
    informers: Informers,
    followed: Arc<Followed>,
    /// Where it is told whose deletions are to be followed.
    news: Mutex<Option<mpsc::UnboundedSender<ApiResource>>>,
}

/// Group and resource of a kind.
type Counted = (String, String);
/// The kinds that quotas count by number and whose deletions are followed, in the version in which they are.
type Followed = Mutex<BTreeMap<Counted, ApiResource>>;

/// When each quota was last charged.
#[derive(Default)]
struct Charges(Mutex<HashMap<Key, Charge>>);

struct Charge {
    last: Instant,
    /// Since when something is kept back that could be given back.
    kept_since: Option<Instant>,
}

impl Charges {
    /// A quota has changed. Answers whether that is a reason to count.
    fn see(&self, change: &Change<ResourceQuota>, now: Instant) -> bool {
        let Change::Applied { old: Some(old), new } = change else {
            self.0.lock().remove(&Key::of(&**change.object()));
            return true;
        };
        if raised(old, new) {
            let mut charges = self.0.lock();
            let charge = charges.entry(Key::of(&**new)).or_insert(Charge { last: now, kept_since: None });
            charge.last = now;
        }
        let hard = |quota: &ResourceQuota| quota.status.as_ref().and_then(|status| status.hard.clone());
        old.spec != new.spec || hard(old) != hard(new) || new.spec.as_ref().and_then(|spec| spec.hard.clone()) != hard(new)
    }

    /// For how long nothing may be given back yet; `None` if it may.
    fn keeps(&self, key: &Key, now: Instant) -> Option<Duration> {
        let mut charges = self.0.lock();
        let charge = charges.get_mut(key)?;
        let since = *charge.kept_since.get_or_insert(now);
        let until = (charge.last + SETTLE).min(since + SETTLE_MAX);
        if until > now {
            return Some(until - now);
        }
        charges.remove(key);
        None
    }
}

/// Whether more of anything is used than before.
fn raised(old: &ResourceQuota, new: &ResourceQuota) -> bool {
    let used = |quota: &ResourceQuota| amounts(quota.status.as_ref().and_then(|status| status.used.as_ref()));
    let before = used(old);
    used(new).iter().any(|(name, amount)| before.get(name).is_none_or(|before| amount > before))
}

fn amounts(texts: Option<&BTreeMap<String, Text>>) -> Amounts {
    texts.into_iter().flatten().filter_map(|(name, text)| Some((name.clone(), Quantity::parse(&text.0).ok()?))).collect()
}

/// What is said to be used: what was counted, and, as long as nothing may be given back, what is charged where that is more.
/// Answers also whether something was kept back.
fn said(counted: Amounts, charged: &Amounts, gives_back: bool) -> (Amounts, bool) {
    let is_less = |(name, amount): (&String, &Quantity)| charged.get(name).is_some_and(|charged| amount < charged);
    if gives_back || !counted.iter().any(is_less) {
        return (counted, false);
    }
    let most = |(name, amount): (String, Quantity)| {
        let charged = charged.get(&name).copied().unwrap_or(amount);
        (name, amount.max(charged))
    };
    (counted.into_iter().map(most).collect(), true)
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
        let charges = self.charges.clone();
        inputs.mapped(&self.quotas, move |change| if charges.see(change, Instant::now()) { vec![Key::of(&**change.object())] } else { Vec::new() });
        self.recount_on(inputs, &self.pods, |change| match change {
            Change::Applied { old, new } => old.as_ref().is_some_and(|old| is_finished(old) != is_finished(new)),
            Change::Deleted(_) => true,
        });
        self.recount_on(inputs, &self.services, |_| true);
        self.recount_on(inputs, &self.claims, |_| true);
        // A kind is told of once, so there are as many as kinds, and it needs no other bound.
        let (sender, wanted) = mpsc::unbounded_channel();
        *self.news.lock() = Some(sender);
        let (informers, quotas, followed) = (self.informers.clone(), self.quotas.clone(), self.followed.clone());
        inputs.fed(move |queue| feed(informers, quotas, followed, wanted, queue).boxed());
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
        let mut all_followed = true;
        for (name, counted) in &others {
            let number = self.number_of(counted, &key.namespace).await?;
            all_followed &= self.followed.lock().contains_key(counted);
            used.insert(name.clone(), Quantity::from_units(number, api::quantity::Format::DecimalSi));
        }
        used.retain(|name, _| hard.contains_key(name));
        for name in hard.keys() {
            used.entry(name.clone()).or_insert(Quantity::ZERO);
        }
        let charged = amounts(quota.status.as_ref().and_then(|status| status.used.as_ref()));
        let (_, frees) = said(used.clone(), &charged, false);
        let pause = if frees { self.charges.keeps(key, Instant::now()) } else { None };
        let (used, _) = said(used, &charged, pause.is_none());
        let used = used.into_iter().map(|(name, amount)| (name, Text(amount.to_string()))).collect();
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        patch::write_status(&self.quotas, &quota, quota.status.as_ref(), &status).await?;
        Ok(Next::After(pause.unwrap_or(if all_followed { FULL_PERIOD } else { COUNTED_PERIOD })))
    }
}

impl Quotas {
    /// How many objects of a kind there are; a kind that is not served has none.
    async fn number_of(&self, counted: &Counted, namespace: &str) -> Result<i64, Error> {
        let (group, resource) = counted;
        let discovered = discovery::discover(&self.client).await?;
        let found = discovered.resources.iter().find(|each| each.api.group == *group && each.api.plural == *resource && each.namespaced);
        if let Some(found) = found.filter(|found| found.can(&["list", "watch"]))
            && self.followed.lock().insert(counted.clone(), found.api.clone()).as_ref() != Some(&found.api)
            && let Some(news) = &*self.news.lock()
        {
            let _ = news.send(found.api.clone());
        }
        match found {
            Some(found) => Ok(i64::try_from(discovery::list(&self.client, found, namespace).await?.len()).unwrap_or(i64::MAX)),
            None if discovered.failed.is_empty() => Ok(0),
            None => Err(Error::NotYet(format!("{resource} could not be found out about: {}", discovered.failed.join(", ")))),
        }
    }
}

/// Follows every kind that it is told of until its definition goes, which is a reason to count again as well. Never ends.
async fn feed(
    informers: Informers,
    quotas: Informer<ResourceQuota>,
    followed: Arc<Followed>,
    mut wanted: mpsc::UnboundedReceiver<ApiResource>,
    queue: Queue,
) {
    let mut tasks = JoinSet::new();
    let mut followers: HashMap<Counted, (ApiResource, AbortHandle)> = HashMap::new();
    // Definitions bring kinds and take them away.
    let mut changes = informers.metadata(&ApiResource::erase::<CustomResourceDefinition>(&())).subscribe();
    let end = |follower: Option<(ApiResource, AbortHandle)>| {
        if let Some((resource, follower)) = follower {
            follower.abort();
            informers.forget_metadata(&resource);
        }
    };
    loop {
        tokio::select! {
            Some(resource) = wanted.recv() => {
                let task = tasks.spawn(follow(informers.metadata(&resource), quotas.clone(), queue.clone()));
                end(followers.insert((resource.group.clone(), resource.plural.clone()), (resource, task)));
            }
            Some(change) = changes.next() => {
                let name = change.object().metadata.name.clone().unwrap_or_default();
                let Some((resource, group)) = name.split_once('.') else { continue };
                let counted = (group.to_owned(), resource.to_owned());
                if matches!(change, Change::Deleted(_)) {
                    followed.lock().remove(&counted);
                    end(followers.remove(&counted));
                }
                let bounds = |quota: &ResourceQuota| {
                    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
                    hard.is_some_and(|hard| counted_only(hard.keys()).values().any(|each| *each == counted))
                };
                quotas.list().iter().filter(|quota| bounds(quota)).for_each(|quota| queue.add(Key::of(&**quota)));
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            else => std::future::pending().await,
        }
    }
}

/// What has gone is a reason to count again.
async fn follow(informer: Informer<Metadata>, quotas: Informer<ResourceQuota>, queue: Queue) {
    let mut changes = informer.subscribe();
    while let Some(change) = changes.next().await {
        if let Change::Deleted(object) = &change {
            let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
            quotas.in_namespace(namespace).iter().for_each(|quota| queue.add(Key::of(&**quota)));
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

    fn quota(used: Value) -> Arc<ResourceQuota> {
        let hard = json!({"pods": "3"});
        let quota = json!({"metadata": {"namespace": "n", "name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}});
        Arc::new(serde_json::from_value(quota).expect("a quota"))
    }

    #[test]
    fn what_was_just_charged_is_not_given_back() {
        let (charges, key, start) = (Charges::default(), Key::new("n", "q"), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let seen = |before: &str, now: &str, seconds: u64| {
            let change = Change::Applied { old: Some(quota(json!({"pods": before}))), new: quota(json!({"pods": now})) };
            charges.see(&change, at(seconds))
        };
        assert_eq!(charges.keeps(&key, at(0)), None, "nobody has charged it");
        assert!(!seen("0", "1", 0), "a charge is no reason to count");
        assert_eq!(charges.keeps(&key, at(1)), Some(Duration::from_secs(1)));
        for second in 1..20 {
            assert!(!seen("1", "2", second));
        }
        assert_eq!(charges.keeps(&key, at(20)), None, "charges that never end keep nothing back for ever");
        assert!(!seen("2", "1", 21) && charges.keeps(&key, at(21)).is_none(), "what is given back is no charge");
    }

    #[test]
    fn more_is_said_at_once_and_less_later() {
        let of = |pods: i64, cpu: &str| -> Amounts {
            [("pods".to_owned(), Quantity::from_units(pods, api::quantity::Format::DecimalSi)), ("cpu".to_owned(), Quantity::parse(cpu).unwrap())]
                .into()
        };
        assert_eq!(said(of(1, "2"), &of(2, "1"), false), (of(2, "2"), true));
        assert_eq!(said(of(1, "2"), &of(2, "1"), true), (of(1, "2"), false));
        assert_eq!(said(of(2, "2"), &of(2, "1"), false), (of(2, "2"), false));
        assert_eq!(said(of(2, "2"), &Amounts::new(), false), (of(2, "2"), false));
    }

    #[test]
    fn numbers_of_other_kinds_are_asked_for() {
        let bounds = ["pods", "cpu", "configmaps", "count/pods", "count/jobs.batch", "requests.storage", "services.nodeports"].map(str::to_owned);
        let found: Vec<_> = counted_only(bounds.iter()).into_values().collect();
        assert_eq!(found, [(String::new(), "configmaps".to_owned()), ("batch".to_owned(), "jobs".to_owned())]);
    }
}
