//! Counters of the runtime, under the names that Kubernetes gives them, in Prometheus' text form.
//!
//! One registry per process: a queue registers itself by name and counts; whoever serves `/metrics` calls [`render`].

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

static REGISTRY: Mutex<BTreeMap<&'static str, Arc<QueueCounters>>> = Mutex::new(BTreeMap::new());

/// What one named work queue and its workers count.
#[derive(Debug, Default)]
pub struct QueueCounters {
    pub(crate) depth: AtomicI64,
    pub(crate) adds: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) reconciles: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) work_micros: AtomicU64,
}

impl QueueCounters {
    /// The counters registered under this name; the same name gives the same counters.
    pub fn of(name: &'static str) -> Arc<Self> {
        REGISTRY.lock().entry(name).or_default().clone()
    }

    /// How many reconciles have run.
    pub fn reconciles(&self) -> u64 {
        self.reconciles.load(Ordering::Relaxed)
    }

    /// How many keys were added again after a failure.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// How many reconciles have panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    pub(crate) fn worked(&self, took: Duration) {
        self.reconciles.fetch_add(1, Ordering::Relaxed);
        self.work_micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Every counter of this process, as Prometheus text.
pub fn render() -> String {
    let registry = REGISTRY.lock().clone();
    let mut text = String::new();
    let mut series = |metric: &str, kind: &str, read: &dyn Fn(&QueueCounters) -> String| {
        let _ = writeln!(text, "# TYPE {metric} {kind}");
        for (name, counters) in &registry {
            let _ = writeln!(text, "{metric}{{name=\"{name}\"}} {}", read(counters));
        }
    };
    series("workqueue_depth", "gauge", &|c| c.depth.load(Ordering::Relaxed).max(0).to_string());
    series("workqueue_adds_total", "counter", &|c| c.adds.load(Ordering::Relaxed).to_string());
    series("workqueue_retries_total", "counter", &|c| c.retries.load(Ordering::Relaxed).to_string());
    series("workqueue_work_duration_seconds_count", "counter", &|c| c.reconciles.load(Ordering::Relaxed).to_string());
    series("workqueue_work_duration_seconds_sum", "counter", &|c| {
        format!("{:.6}", Duration::from_micros(c.work_micros.load(Ordering::Relaxed)).as_secs_f64())
    });
    series("controller_panics_total", "counter", &|c| c.panics.load(Ordering::Relaxed).to_string());
    text
}
