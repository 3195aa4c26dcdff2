//! Every controller, one line each: its name as `--controllers` knows it, and how to make it.
//!
//! A new controller is one file and one line here.

use std::sync::Arc;

use client::controller::Controller;

use crate::Context;

/// A controller that can be run.
pub struct Entry {
    /// Kubernetes' own name of it.
    pub name: &'static str,
    /// Whether `*` means it too.
    pub on_by_default: bool,
    /// Makes it.
    pub new: fn(&Context) -> Arc<dyn Controller>,
}

const fn on(name: &'static str, new: fn(&Context) -> Arc<dyn Controller>) -> Entry {
    Entry { name, on_by_default: true, new }
}

/// Every controller, in alphabetical order.
pub const CONTROLLERS: &[Entry] = &[
    on("certificatesigningrequest-approving-controller", crate::certificates::approver::new),
    on("certificatesigningrequest-cleaner-controller", crate::certificates::cleaner::new),
    on("certificatesigningrequest-signing-controller", crate::certificates::signer::new),
    on("clusterrole-aggregation-controller", crate::clusterrole_aggregation::new),
    on("control-plane-label-controller", crate::control_plane::new),
    on("cronjob-controller", crate::cron_job::new),
    on("daemonset-controller", crate::daemon_set::new),
    on("deployment-controller", crate::deployment::new),
    on("disruption-controller", crate::pod_disruption_budget::new),
    on("endpoints-controller", crate::endpoints::new),
    on("endpointslice-controller", crate::endpointslice::new),
    on("endpointslice-mirroring-controller", crate::endpointslice_mirroring::new),
    on("ephemeral-volume-controller", crate::ephemeral_volume::new),
    on("garbage-collector-controller", crate::garbage_collector::new),
    on("horizontal-pod-autoscaler-controller", crate::horizontal_pod_autoscaler::new),
    on("job-controller", crate::job::new),
    on("namespace-controller", crate::namespace::new),
    on("node-ipam-controller", crate::node_ipam::new),
    on("node-lifecycle-controller", crate::node_lifecycle::new),
    on("persistentvolume-binder-controller", crate::volume_binder::new),
    on("persistentvolume-protection-controller", crate::volume_protection::new_of_volumes),
    on("persistentvolumeclaim-protection-controller", crate::volume_protection::new_of_claims),
    on("pod-garbage-collector-controller", crate::pod_gc::new),
    on("replicaset-controller", crate::replica_set::new),
    on("replicationcontroller-controller", crate::replication_controller::new),
    on("resourceclaim-controller", crate::resource_claim::new),
    on("resourcequota-controller", crate::resource_quota::new),
    on("root-ca-certificate-publisher-controller", crate::root_ca::new),
    on("service-cidr-controller", crate::service_cidr::new),
    on("serviceaccount-controller", crate::serviceaccount::new),
    on("statefulset-controller", crate::stateful_set::new),
    on("taint-eviction-controller", crate::taint_eviction::new),
    on("token-cleaner-controller", crate::token_cleaner::new),
    on("ttl-after-finished-controller", crate::ttl_after_finished::new),
    on("validatingadmissionpolicy-status-controller", crate::validatingadmissionpolicy_status::new),
    on("volumeattributesclass-protection-controller", crate::volume_protection::new_of_classes),
];

/// Why a list of names is wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not in the list of known controllers")]
pub struct UnknownController(pub String);

/// The controllers that a list in Kubernetes' form names: `*` is all that are on by default, `foo` adds one, `-foo` takes
/// one out. An empty list is `*`. What is named wins over `*`.
pub fn select(names: &[String]) -> Result<Vec<&'static Entry>, UnknownController> {
    for name in names {
        let bare = name.strip_prefix('-').unwrap_or(name);
        if bare != "*" && !CONTROLLERS.iter().any(|entry| entry.name == bare) {
            return Err(UnknownController(bare.to_owned()));
        }
    }
    let star = names.is_empty() || names.iter().any(|name| name == "*");
    let wanted = |entry: &&Entry| {
        if names.iter().any(|name| name == entry.name) {
            return true;
        }
        if names.iter().any(|name| name.strip_prefix('-') == Some(entry.name)) {
            return false;
        }
        star && entry.on_by_default
    };
    Ok(CONTROLLERS.iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &str, name: &str, expected: bool) {
        let names: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let selected = select(&names).expect("all are known");
        assert_eq!(selected.iter().any(|entry| entry.name == name), expected, "{names:?}");
    }

    #[test]
    fn names_win_over_the_star() {
        check("", "job-controller", true);
        check("*", "job-controller", true);
        check("*,-job-controller", "job-controller", false);
        check("-job-controller", "deployment-controller", false);
        check("-*", "job-controller", false);
        check("-*,job-controller", "job-controller", true);
        check("job-controller", "job-controller", true);
        check("job-controller", "deployment-controller", false);
        assert_eq!(select(&["-nonsense".into()]).err(), Some(UnknownController("nonsense".into())));
    }

    #[test]
    fn the_list_is_in_order_and_says_nothing_twice() {
        let names: Vec<&str> = CONTROLLERS.iter().map(|entry| entry.name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
    }
}
