//! The work queue of one controller: which keys are due, and when.
//!
//! A key is in it at most once; a key that is added while it is being worked on is given out again afterwards, so no
//! key is ever worked on twice at once and no change is missed. Keys can be added for later (the earliest time wins), and
//! a failing key comes back after a pause that doubles. Bounded by the number of keys.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::informer::Key;
use crate::limits;
use crate::metrics::QueueCounters;

#[derive(Default)]
struct State {
    /// Due, in order; each once.
    ready: VecDeque<Key>,
    /// Wanting work: in `ready`, or in progress and added again meanwhile.
    dirty: HashSet<Key>,
    in_progress: HashSet<Key>,
    /// Due later, by time; `due` finds a key's entry.
    later: BTreeSet<(Instant, Key)>,
    due: HashMap<Key, Instant>,
    failures: HashMap<Key, u32>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
    counters: Arc<QueueCounters>,
}

impl Queue {
    /// An empty queue; the name is for the metrics.
    pub fn new(name: &'static str) -> Self {
        Queue { state: Arc::default(), wake: Arc::default(), counters: QueueCounters::of(name) }
    }

    /// The counters of this queue.
    pub fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    /// The key is due now.
    pub fn add(&self, key: Key) {
        self.add_locked(&mut self.state.lock(), key);
    }

    fn add_locked(&self, state: &mut State, key: Key) {
        if !state.dirty.insert(key.clone()) {
            return;
        }
        self.counters.adds.fetch_add(1, Ordering::Relaxed);
        if !state.in_progress.contains(&key) {
            state.ready.push_back(key);
            self.counters.depth.fetch_add(1, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    /// The key is due after this long, unless it is due earlier anyway.
    pub fn add_after(&self, key: Key, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.state.lock();
        let at = Instant::now() + delay;
        if let Some(earlier) = state.due.get(&key).copied() {
            if earlier <= at {
                return;
            }
            state.later.remove(&(earlier, key.clone()));
        }
        state.due.insert(key.clone(), at);
        state.later.insert((at, key));
        self.wake.notify_one();
    }

    /// The key has failed: it is due again after its back-off. Gives the pause.
    pub fn add_rate_limited(&self, key: Key) -> Duration {
        let failures = {
            let mut state = self.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            *failures
        };
        self.counters.retries.fetch_add(1, Ordering::Relaxed);
        let pause = backoff(failures);
        self.add_after(key, pause);
        pause
    }

    /// The key has succeeded: its next failure starts with the shortest pause again.
    pub fn forget(&self, key: &Key) {
        self.state.lock().failures.remove(key);
    }

    /// How often the key has failed in a row.
    pub fn failures(&self, key: &Key) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// How many keys are due now and not yet given out.
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Whether nothing is due now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for a key that is due. It stays in progress until the item is dropped. Safe to drop while waiting.
    pub async fn next(&self) -> Item {
        loop {
            let wait = {
                let mut state = self.state.lock();
                let now = Instant::now();
                while let Some((at, _)) = state.later.first()
                    && *at <= now
                    && let Some((_, key)) = state.later.pop_first()
                {
                    state.due.remove(&key);
                    self.add_locked(&mut state, key);
                }
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.in_progress.insert(key.clone());
                    self.counters.depth.fetch_sub(1, Ordering::Relaxed);
                    if !state.ready.is_empty() {
                        self.wake.notify_one(); // One wake-up may stand for several keys.
                    }
                    return Item { queue: self.clone(), key };
                }
                state.later.first().map(|(at, _)| *at)
            };
            match wait {
                Some(at) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    fn done(&self, key: &Key) {
        let mut state = self.state.lock();
        state.in_progress.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            self.counters.depth.fetch_add(1, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }
}

/// A key being worked on; dropping it ends that.
pub struct Item {
    queue: Queue,
    key: Key,
}

impl Item {
    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        self.queue.done(&self.key);
    }
}

/// The pause after the n-th failure in a row.
pub fn backoff(failures: u32) -> Duration {
    limits::RECONCILE_RETRY_INITIAL.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(limits::RECONCILE_RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    async fn take(queue: &Queue) -> Option<Item> {
        timeout(Duration::from_millis(1), queue.next()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_given_out_once_and_again_if_added_meanwhile() {
        let queue = Queue::new("test-dedup");
        queue.add(key("a"));
        queue.add(key("a"));
        let item = take(&queue).await.unwrap();
        assert!(take(&queue).await.is_none());
        queue.add(key("a"));
        queue.add(key("a"));
        assert!(take(&queue).await.is_none(), "never twice at once");
        drop(item);
        let item = take(&queue).await.unwrap();
        assert_eq!(item.key(), &key("a"));
        drop(item);
        assert!(take(&queue).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_time_wins() {
        let queue = Queue::new("test-later");
        let start = Instant::now();
        queue.add_after(key("a"), Duration::from_secs(60));
        queue.add_after(key("a"), Duration::from_secs(10));
        queue.add_after(key("a"), Duration::from_secs(30));
        drop(queue.next().await);
        assert_eq!(start.elapsed().as_secs(), 10);
        assert!(timeout(Duration::from_secs(3600), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn two_waiters_get_two_keys() {
        let queue = Queue::new("test-waiters");
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await.key().name.clone() })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.add(key("a"));
        queue.add(key("b"));
        let mut names = Vec::new();
        for waiter in waiters {
            names.push(timeout(Duration::from_secs(1), waiter).await.unwrap().unwrap());
        }
        names.sort();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn back_off_doubles_to_a_limit() {
        let pauses: Vec<u128> = [1, 2, 3, 10, 14, 15, 100].into_iter().map(|n| backoff(n).as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 2560, 40960, 60000, 60000]);
    }
}
