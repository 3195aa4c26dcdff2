//! ServiceCIDRs: each gets a finalizer and says that it is ready; one that is deleted stays until no address of it is in use any more,
//! or another covers what is.
//!
//! What must stay true: a network that still has addresses of Services is never gone; the allocators have heard of its end before it goes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Clock, ErrorExt, Informer, Key};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use serde_json::json;

use crate::Context;
use crate::common::owner::name_of;
use crate::common::patch;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
/// How long a deleted network stays at least: until every server's allocator knows.
const DELETION_GRACE: Duration = Duration::from_secs(10);

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(ServiceCidrs { ranges: context.informers.all(), addresses: context.informers.all(), clock: context.clock.clone() })
}

struct ServiceCidrs {
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    clock: Clock,
}

#[async_trait]
impl Controller for ServiceCidrs {
    fn name(&self) -> &'static str {
        "service-cidr-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        let ranges = self.ranges.clone();
        // One that comes, or loses its way, may cover what another waits for.
        inputs.mapped(&self.ranges, move |change| {
            let networks = networks(change.object());
            let others =
                ranges.list().into_iter().filter(|other| self::networks(other).iter().any(|other| networks.iter().any(|own| overlap(own, other))));
            [Key::of(&**change.object())].into_iter().chain(others.map(|other| Key::of(&*other))).collect::<BTreeSet<_>>().into_iter().collect()
        });
        let ranges = self.ranges.clone();
        inputs.mapped(&self.addresses, move |change| {
            let Ok(address) = name_of(&**change.object()).parse::<IpAddr>() else { return Vec::new() };
            let with = ranges.list().into_iter().filter(|range| range.metadata.deletion_timestamp.is_some() && holds(range, &address));
            with.map(|range| Key::of(&*range)).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(range) = self.ranges.get(key) else { return Ok(Next::Done) };
        let step = decide(&range, &self.ranges.list(), &self.addresses.list(), self.clock.now());
        let outcome = match step {
            Step::Nothing => return Ok(Next::Done),
            Step::Wait(time) => return Ok(Next::After(time)),
            Step::Finalizers(wanted) => patch::write(&self.ranges, &*range, json!({"metadata": {"finalizers": wanted}})).await.map(drop),
            Step::Ready(status, reason, message) => {
                let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": self.clock.now().to_string()});
                let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": key.name}, "status": {"conditions": [condition]}});
                self.ranges.apply_status(key, self.name(), &object).await.map(drop).map_err(Error::from)
            }
        };
        match outcome {
            // Its own change makes the key dirty again: the next step comes then.
            Ok(()) => Ok(Next::Done),
            Err(Error::Api(error)) if error.is_not_found() => Ok(Next::Done),
            Err(error) => Err(error),
        }
    }
}

fn networks(range: &ServiceCIDR) -> Vec<IpNet> {
    range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()).filter_map(|cidr| cidr.parse().ok()).collect()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn holds(range: &ServiceCIDR, address: &IpAddr) -> bool {
    networks(range).iter().any(|network| network.contains(address))
}

fn is_ready(range: &ServiceCIDR) -> bool {
    let conditions = range.status.iter().flat_map(|status| status.conditions.iter().flatten());
    range.metadata.deletion_timestamp.is_none() && conditions.filter(|each| each.type_ == "Ready").all(|each| each.status == "True")
}

/// What is done next for one ServiceCIDR.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Wait(Duration),
    /// What its finalizers shall be.
    Finalizers(Vec<String>),
    /// Status, reason and message of the condition Ready.
    Ready(&'static str, &'static str, &'static str),
}

fn decide(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>], now: Timestamp) -> Step {
    let finalizers = range.metadata.finalizers.as_deref().unwrap_or_default();
    let ours = finalizers.iter().any(|each| each == FINALIZER);
    let condition = range.status.iter().flat_map(|status| status.conditions.iter().flatten()).find(|each| each.type_ == "Ready");
    let Some(deleted) = &range.metadata.deletion_timestamp else {
        if !ours {
            return Step::Finalizers(finalizers.iter().cloned().chain([FINALIZER.to_owned()]).collect());
        }
        return match condition {
            Some(condition) if condition.status == "True" => Step::Nothing,
            _ => Step::Ready("True", "", "Kubernetes Service CIDR is ready"),
        };
    };
    if !ours {
        return Step::Nothing;
    }
    if is_needed(range, all, addresses) {
        let said = condition.is_some_and(|condition| condition.status == "False" && condition.reason == "Terminating");
        const WHY: &str = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
        return if said { Step::Nothing } else { Step::Ready("False", "Terminating", WHY) };
    }
    let passed = Duration::try_from(now.duration_since(deleted.0)).unwrap_or_default();
    match DELETION_GRACE.checked_sub(passed).filter(|left| !left.is_zero()) {
        Some(left) => Step::Wait(left),
        None => Step::Finalizers(finalizers.iter().filter(|each| *each != FINALIZER).cloned().collect()),
    }
}

/// Whether addresses of Services are in it that no other ServiceCIDR has.
fn is_needed(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let others: Vec<_> = all.iter().filter(|other| name_of(&***other) != name_of(range) && is_ready(other)).collect();
    let managed = |address: &&Arc<IPAddress>| {
        address.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY.0)).is_some_and(|manager| manager == MANAGED_BY.1)
    };
    let mut own = addresses.iter().filter(managed).filter_map(|address| name_of(&**address).parse::<IpAddr>().ok());
    own.any(|address| holds(range, &address) && !others.iter().any(|other| holds(other, &address)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::at;
    use serde_json::Value;

    fn range(name: &str, cidr: &str, more: Value) -> ServiceCIDR {
        let mut object = json!({"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": {"cidrs": [cidr]}});
        api::merge::merge_patch(&mut object, &more);
        serde_json::from_value(object).expect("a ServiceCIDR")
    }

    fn address(name: &str) -> Arc<IPAddress> {
        let parent = json!({"resource": "services", "namespace": "ns", "name": "s"});
        let object = json!({"metadata": {"name": name, "labels": {MANAGED_BY.0: MANAGED_BY.1}}, "spec": {"parentRef": parent}});
        Arc::new(serde_json::from_value(object).expect("an IPAddress"))
    }

    fn ready(status: &str, reason: &str) -> Value {
        let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        json!({"status": {"conditions": [condition]}})
    }

    #[test]
    fn a_new_one_is_held_and_then_ready() {
        let new = range("a", "10.1.0.0/24", json!({"metadata": {"finalizers": ["x"]}}));
        assert_eq!(decide(&new, &[], &[], at(0)), Step::Finalizers(vec!["x".into(), FINALIZER.into()]));
        assert!(matches!(decide(&range("a", "10.1.0.0/24", json!({})), &[], &[], at(0)), Step::Ready("True", "", _)));
        assert_eq!(decide(&range("a", "10.1.0.0/24", ready("True", "")), &[], &[], at(0)), Step::Nothing);
    }

    #[test]
    fn it_stays_while_addresses_need_it() {
        let mut going = range("a", "10.1.0.0/24", ready("True", ""));
        going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100)));
        let check = |all: &[ServiceCIDR], addresses: &[&str], second: i64| {
            let all: Vec<_> = all.iter().cloned().map(Arc::new).collect();
            decide(&going, &all, &addresses.iter().map(|each| address(each)).collect::<Vec<_>>(), at(second))
        };
        assert!(matches!(check(&[], &["10.1.0.5"], 200), Step::Ready("False", "Terminating", _)));
        assert_eq!(check(&[], &["10.2.0.5"], 104), Step::Wait(Duration::from_secs(6)));
        assert_eq!(check(&[], &["10.2.0.5"], 110), Step::Finalizers(vec![]));
        let wider = range("b", "10.0.0.0/8", ready("True", ""));
        assert_eq!(check(&[wider], &["10.1.0.5"], 110), Step::Finalizers(vec![]));
        assert!(matches!(check(&[range("b", "10.0.0.0/8", ready("False", "Testing"))], &["10.1.0.5"], 110), Step::Ready("False", ..)));
    }
}
