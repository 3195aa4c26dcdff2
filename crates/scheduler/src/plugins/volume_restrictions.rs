//! VolumeRestrictions: a claim with the access mode `ReadWriteOncePod` is used by one pod at a time, in the whole cluster.

use std::collections::HashSet;

use crate::framework::{Causes, Filter, Filtering, Plugin, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct VolumeRestrictions;

#[derive(Clone)]
struct Alone<'a> {
    namespace: &'a str,
    /// The claims that nobody else may use.
    claims: HashSet<&'a str>,
    /// How often others use them.
    uses: i64,
}

impl Alone<'_> {
    fn uses_of(&self, pod: &PodInfo) -> i64 {
        if pod.namespace != self.namespace {
            return 0;
        }
        pod.claims.iter().filter(|used| self.claims.contains(used.name.as_str())).count() as i64
    }
}

impl<'a> Filter<'a> for Alone<'a> {
    fn check(&self, _node: &NodeInfo) -> Verdict {
        if self.uses > 0 {
            return Verdict::refused("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode");
        }
        Verdict::Pass
    }

    fn add(&mut self, pod: &PodInfo, _node: &NodeInfo) {
        self.uses += self.uses_of(pod);
    }

    fn remove(&mut self, pod: &PodInfo, _node: &NodeInfo) {
        self.uses -= self.uses_of(pod);
    }

    fn what_if(&self) -> Option<Box<dyn Filter<'a> + 'a>> {
        Some(Box::new(self.clone()))
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn filter<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Filtering<'a> {
        let alone = pod.claims.iter().filter(|used| {
            let spec = snapshot.volumes.claim(pod, used).and_then(|claim| claim.spec.as_ref());
            spec.is_some_and(|spec| spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteOncePod"))
        });
        let claims: HashSet<&str> = alone.map(|used| used.name.as_str()).collect();
        if claims.is_empty() {
            return Filtering::Skip;
        }
        let mut rule = Alone { namespace: &pod.namespace, claims, uses: 0 };
        let others = snapshot.nodes().iter().flat_map(|node| &node.pods).filter(|other| other.uid != pod.uid);
        rule.uses = others.map(|other| rule.uses_of(other)).sum();
        Filtering::Each(Box::new(rule))
    }

    fn unblocked_by(&self) -> Causes {
        Causes::VOLUMES.and(Causes::POD_FREED)
    }
}
