//! The scheduling queue: which pod is next.
//!
//! ```text
//!            +--------- error, or moved while backing off --------> backoff --(time)--+
//! add --> active --pop--> in flight --refused--> unschedulable --(something that can help)--> active
//!   \--> gated --(gate removed)--> active               \--(5 minutes)--> active
//! ```
//!
//! Active pods come by priority, then by age. A refused pod waits until something happens that one of the plugins that
//! refused it says can help; then at least until its back-off (1 s, doubling to 10 s) is over, unless nothing else is
//! waiting: an idle scheduler lets nobody wait for the clock. A pod that failed by an error always waits it out.
//!
//! What must stay true: every pod is in exactly one place; no pod is forgotten. The clock comes in as a parameter.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cycle::Profile;
use crate::framework::{Causes, Happening};
use crate::pod::PodInfo;

/// The first back-off.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest back-off.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// After this long an unschedulable pod is tried again whatever happened.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Active(u64),
    Backoff { until: Instant, after_error: bool },
    Unschedulable { since: Instant },
    Gated,
    InFlight,
}

#[derive(Clone, Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    attempts: u32,
    /// Not before this may it be tried again.
    patience: Instant,
    /// The plugins that refused it.
    rejected_by: BTreeSet<usize>,
    place: Place,
}

/// See the module.
#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeSet<(Reverse<i32>, u64, String)>,
    backoff: BTreeSet<(Instant, String)>,
    count: u64,
}

impl Queue {
    /// Takes a new pod or a new version of one it has.
    pub fn set(&mut self, pod: Arc<PodInfo>, profile: &Profile, now: Instant) {
        let gated = profile.gate(&pod).is_some();
        let uid = pod.uid.clone();
        let Some(mut entry) = self.take(&uid) else {
            let entry = Entry { pod, attempts: 0, patience: now, rejected_by: BTreeSet::new(), place: Place::Gated };
            let place = if gated { Place::Gated } else { self.last_in_line() };
            self.put(entry, place);
            return;
        };
        let changed = entry.pod.pod.spec != pod.pod.spec || entry.pod.labels() != pod.labels();
        let happening = Happening { causes: Causes::POD_ITSELF, node: None, pod: Some(Arc::clone(&pod)) };
        entry.pod = pod;
        let place = match entry.place.clone() {
            Place::Gated if !gated => self.last_in_line(),
            Place::Unschedulable { .. } if changed && can_help(&entry, profile, &happening) => self.after_patience(&entry, now),
            place => place,
        };
        self.put(entry, place);
    }

    /// Forgets a pod: it is bound, finished or gone.
    pub fn remove(&mut self, uid: &str) {
        self.take(uid);
    }

    /// The pod to try now.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.flush(now);
        let uid = match self.active.first() {
            Some((_, _, uid)) => uid.clone(),
            None => {
                let may_hurry = |uid: &String| {
                    let place = self.entries.get(uid).map(|entry| &entry.place);
                    matches!(place, Some(Place::Backoff { after_error: false, .. }))
                };
                self.backoff.iter().map(|(_, uid)| uid).find(|uid| may_hurry(uid))?.clone()
            }
        };
        let mut entry = self.take(&uid)?;
        entry.attempts += 1;
        entry.rejected_by.clear();
        let pod = Arc::clone(&entry.pod);
        self.put(entry, Place::InFlight);
        Some(pod)
    }

    /// The pod fits nowhere: these plugins say so.
    pub fn refused(&mut self, uid: &str, rejected_by: BTreeSet<usize>, now: Instant) {
        self.put_back(uid, now, |entry| {
            entry.rejected_by = rejected_by;
            Place::Unschedulable { since: now }
        });
    }

    /// Something went wrong with the pod (or is under way for it): it is tried again after its back-off.
    pub fn failed(&mut self, uid: &str, now: Instant) {
        self.put_back(uid, now, |entry| Place::Backoff { until: entry.patience, after_error: true });
    }

    fn put_back(&mut self, uid: &str, now: Instant, place: impl FnOnce(&mut Entry) -> Place) {
        let in_flight = self.entries.get(uid).is_some_and(|entry| entry.place == Place::InFlight);
        if in_flight && let Some(mut entry) = self.take(uid) {
            entry.patience = now + backoff(entry.attempts);
            let place = place(&mut entry);
            self.put(entry, place);
        }
    }

    /// Something happened: moves the pods that it could help.
    pub fn happened(&mut self, profile: &Profile, happening: &Happening, now: Instant) {
        let waiting = self.entries.iter().filter(|(_, entry)| matches!(entry.place, Place::Unschedulable { .. }));
        let helped = waiting.filter(|(_, entry)| can_help(entry, profile, happening));
        let helped: Vec<String> = helped.map(|(uid, _)| uid.clone()).collect();
        for uid in helped {
            self.activate(&uid, now);
        }
    }

    /// When something is due that no change in the cluster announces.
    pub fn next_due(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let leftover = self.entries.values().filter_map(|entry| match entry.place {
            Place::Unschedulable { since } => Some(since + UNSCHEDULABLE_MAX),
            _ => None,
        });
        backoff.into_iter().chain(leftover).min()
    }

    /// How many pods wait in each place: active, backing off, unschedulable, gated.
    pub fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for entry in self.entries.values() {
            match entry.place {
                Place::Active(_) => counts[0] += 1,
                Place::Backoff { .. } => counts[1] += 1,
                Place::Unschedulable { .. } => counts[2] += 1,
                Place::Gated => counts[3] += 1,
                Place::InFlight => {}
            }
        }
        counts
    }

    fn flush(&mut self, now: Instant) {
        while let Some((until, uid)) = self.backoff.first().cloned() {
            if until > now {
                break;
            }
            if let Some(entry) = self.take(&uid) {
                let place = self.last_in_line();
                self.put(entry, place);
            }
        }
        let is_left_over = |entry: &Entry| matches!(entry.place, Place::Unschedulable { since } if since + UNSCHEDULABLE_MAX <= now);
        let left_over = self.entries.iter().filter(|(_, entry)| is_left_over(entry)).map(|(uid, _)| uid.clone());
        for uid in left_over.collect::<Vec<_>>() {
            self.activate(&uid, now);
        }
    }

    fn activate(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.take(uid) {
            let place = self.after_patience(&entry, now);
            self.put(entry, place);
        }
    }

    fn after_patience(&mut self, entry: &Entry, now: Instant) -> Place {
        if entry.patience > now {
            return Place::Backoff { until: entry.patience, after_error: false };
        }
        self.last_in_line()
    }

    fn last_in_line(&mut self) -> Place {
        self.count += 1;
        Place::Active(self.count)
    }

    fn take(&mut self, uid: &str) -> Option<Entry> {
        let entry = self.entries.remove(uid)?;
        match &entry.place {
            Place::Active(number) => {
                self.active.remove(&(Reverse(entry.pod.priority), *number, uid.to_owned()));
            }
            Place::Backoff { until, .. } => {
                self.backoff.remove(&(*until, uid.to_owned()));
            }
            _ => {}
        }
        Some(entry)
    }

    fn put(&mut self, mut entry: Entry, place: Place) {
        let uid = entry.pod.uid.clone();
        match &place {
            Place::Active(number) => {
                self.active.insert((Reverse(entry.pod.priority), *number, uid.clone()));
            }
            Place::Backoff { until, .. } => {
                self.backoff.insert((*until, uid.clone()));
            }
            _ => {}
        }
        entry.place = place;
        self.entries.insert(uid, entry);
    }
}

fn can_help(entry: &Entry, profile: &Profile, happening: &Happening) -> bool {
    // Nobody in particular refused it (there was no node at all): anything may help.
    if entry.rejected_by.is_empty() {
        return true;
    }
    entry.rejected_by.iter().any(|position| {
        let plugin = &profile.plugins()[*position];
        plugin.unblocked_by().meets(happening.causes) && plugin.could_unblock(&entry.pod, happening)
    })
}

fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::pod;
    use crate::snapshot::NodeInfo;

    fn position(profile: &Profile, name: &str) -> usize {
        profile.plugins().iter().position(|plugin| plugin.name() == name).expect("a plugin")
    }

    fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(now)).map(|pod| pod.name.clone()).collect()
    }

    #[test]
    fn priority_then_age() {
        let (mut queue, profile, now) = (Queue::default(), Profile::default(), Instant::now());
        for (name, spec) in [("old", ""), ("high", "priority=5"), ("young", ""), ("gated", "gate=wait")] {
            queue.set(pod(name, spec), &profile, now);
        }
        assert_eq!(names(&mut queue, now), ["high", "old", "young"]);
        queue.set(pod("gated", ""), &profile, now);
        assert_eq!(names(&mut queue, now), ["gated"]);
    }

    #[test]
    fn a_refused_pod_waits_for_what_can_help() {
        let (mut queue, profile, now) = (Queue::default(), Profile::default(), Instant::now());
        let fit = position(&profile, "NodeResourcesFit");
        queue.set(pod("p", "cpu=2"), &profile, now);
        let refused = queue.pop(now).expect("the pod");
        queue.refused(&refused.uid, [fit].into(), now);
        assert_eq!(queue.pop(now).map(|pod| pod.name.clone()), None);

        let happening =
            |causes, node: Option<&str>| Happening { causes, node: node.map(|spec| NodeInfo::of(crate::scenario::node("n", spec))), pod: None };
        queue.happened(&profile, &happening(Causes::NODE_LABELS, None), now);
        assert_eq!(queue.counts(), [0, 0, 1, 0]);
        queue.happened(&profile, &happening(Causes::NODE_ADDED, Some("cpu=1 memory=1Gi pods=9")), now);
        assert_eq!(queue.counts(), [0, 0, 1, 0]);
        queue.happened(&profile, &happening(Causes::NODE_ADDED, Some("cpu=4 memory=1Gi pods=9")), now);
        assert_eq!(queue.counts(), [0, 1, 0, 0]);
        // Nothing else waits, so it does not wait either.
        assert_eq!(names(&mut queue, now), ["p"]);
    }

    #[test]
    fn errors_back_off_and_leftovers_come_back() {
        let (mut queue, profile, start) = (Queue::default(), Profile::default(), Instant::now());
        queue.set(pod("p", ""), &profile, start);
        let mut now = start;
        for seconds in [1, 2, 4, 8, 10, 10] {
            let popped = queue.pop(now).expect("the pod");
            queue.failed(&popped.uid, now);
            assert!(queue.pop(now).is_none());
            assert_eq!(queue.next_due(), Some(now + Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds);
        }
        let popped = queue.pop(now).expect("the pod");
        queue.refused(&popped.uid, [0].into(), now);
        now += UNSCHEDULABLE_MAX;
        assert!(queue.pop(now).is_some());
    }

    #[test]
    fn a_pod_removed_in_flight_does_not_come_back() {
        let (mut queue, profile, now) = (Queue::default(), Profile::default(), Instant::now());
        queue.set(pod("p", ""), &profile, now);
        let popped = queue.pop(now).expect("the pod");
        queue.remove(&popped.uid);
        queue.failed(&popped.uid, now);
        assert_eq!(queue.counts(), [0, 0, 0, 0]);
    }
}
