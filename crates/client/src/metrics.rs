//! Counters of the runtime, under the names that Kubernetes gives them, in Prometheus' text form.
//!
//! One registry per process: a queue registers itself by name and counts; other parts count under a metric's name and labels
//! ([`add`], [`set`], [`observe`]). Whoever serves `/metrics` calls [`render`]. Labels are of the program, never of users: the
//! number of series is bounded by the code.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

static REGISTRY: Mutex<BTreeMap<&'static str, Arc<QueueCounters>>> = Mutex::new(BTreeMap::new());
static OTHERS: Mutex<BTreeMap<(&'static str, String), Metric>> = Mutex::new(BTreeMap::new());
/// Upper bounds of histograms, in seconds.
const BUCKETS_S: [f64; 12] = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 10.0];
/// Upper bounds of how long a reconcile took, in seconds, as Kubernetes has them.
const WORK_BUCKETS_S: [f64; 10] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// What one named work queue and its workers count.
#[derive(Debug, Default)]
pub struct QueueCounters {
    pub(crate) depth: AtomicI64,
    pub(crate) adds: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) reconciles: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) work_micros: AtomicU64,
    work: [AtomicU64; WORK_BUCKETS_S.len()],
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
        if let Some(bucket) = WORK_BUCKETS_S.iter().position(|bound_s| took.as_secs_f64() <= *bound_s).and_then(|i| self.work.get(i)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A metric of one name with one set of labels.
enum Metric {
    Counter(u64),
    Gauge(i64),
    Histogram { buckets: [u64; BUCKETS_S.len()], count: u64, sum_s: f64 },
}

impl Metric {
    fn kind(&self) -> &'static str {
        match self {
            Metric::Counter(_) => "counter",
            Metric::Gauge(_) => "gauge",
            Metric::Histogram { .. } => "histogram",
        }
    }
}

fn with(name: &'static str, labels: &[(&str, &str)], empty: Metric, change: impl FnOnce(&mut Metric)) {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    change(OTHERS.lock().entry((name, labels.join(","))).or_insert(empty));
}

/// Adds to a counter.
pub fn add(name: &'static str, labels: &[(&str, &str)], more: u64) {
    with(name, labels, Metric::Counter(0), |metric| {
        if let Metric::Counter(count) = metric {
            *count += more;
        }
    });
}

/// Sets a gauge.
pub fn set(name: &'static str, labels: &[(&str, &str)], value: i64) {
    with(name, labels, Metric::Gauge(0), |metric| {
        if let Metric::Gauge(known) = metric {
            *known = value;
        }
    });
}

/// Notes how long something took.
pub fn observe(name: &'static str, labels: &[(&str, &str)], took: Duration) {
    with(name, labels, Metric::Histogram { buckets: [0; BUCKETS_S.len()], count: 0, sum_s: 0.0 }, |metric| {
        if let Metric::Histogram { buckets, count, sum_s } = metric {
            (*count, *sum_s) = (*count + 1, *sum_s + took.as_secs_f64());
            if let Some(bucket) = BUCKETS_S.iter().position(|bound_s| took.as_secs_f64() <= *bound_s).and_then(|i| buckets.get_mut(i)) {
                *bucket += 1;
            }
        }
    });
}

/// Every counter of this process, as Prometheus text.
pub fn render() -> String {
    let mut text = String::new();
    queues(&mut text);
    others(&mut text);
    process(&mut text);
    text
}

// Writing into a String cannot fail.

fn queues(text: &mut String) {
    let registry = REGISTRY.lock().clone();
    let mut series = |metric: &str, kind: &str, read: &dyn Fn(&QueueCounters) -> String| {
        let _ = writeln!(text, "# TYPE {metric} {kind}");
        for (name, counters) in &registry {
            let _ = writeln!(text, "{metric}{{name=\"{name}\"}} {}", read(counters));
        }
    };
    series("workqueue_depth", "gauge", &|c| c.depth.load(Ordering::Relaxed).max(0).to_string());
    series("workqueue_adds_total", "counter", &|c| c.adds.load(Ordering::Relaxed).to_string());
    series("workqueue_retries_total", "counter", &|c| c.retries.load(Ordering::Relaxed).to_string());
    series("controller_panics_total", "counter", &|c| c.panics.load(Ordering::Relaxed).to_string());
    const WORK: &str = "workqueue_work_duration_seconds";
    let _ = writeln!(text, "# TYPE {WORK} histogram");
    for (name, counters) in &registry {
        let mut below = 0;
        for (bound_s, bucket) in WORK_BUCKETS_S.iter().zip(&counters.work) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(text, "{WORK}_bucket{{name=\"{name}\",le=\"{bound_s:e}\"}} {below}");
        }
        let count = counters.reconciles().max(below);
        let sum_s = Duration::from_micros(counters.work_micros.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(text, "{WORK}_bucket{{name=\"{name}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{WORK}_sum{{name=\"{name}\"}} {sum_s:.6}\n{WORK}_count{{name=\"{name}\"}} {count}");
    }
}

fn others(text: &mut String) {
    let mut last = "";
    for ((name, labels), metric) in OTHERS.lock().iter() {
        if *name != last {
            let _ = writeln!(text, "# TYPE {name} {}", metric.kind());
            last = name;
        }
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        match metric {
            Metric::Counter(count) => {
                let _ = writeln!(text, "{name}{braced} {count}");
            }
            Metric::Gauge(value) => {
                let _ = writeln!(text, "{name}{braced} {value}");
            }
            Metric::Histogram { buckets, count, sum_s } => {
                let before = if labels.is_empty() { String::new() } else { format!("{labels},") };
                let mut below = 0;
                for (bound_s, bucket) in BUCKETS_S.iter().zip(buckets) {
                    below += bucket;
                    let _ = writeln!(text, "{name}_bucket{{{before}le=\"{bound_s}\"}} {below}");
                }
                let _ = writeln!(text, "{name}_bucket{{{before}le=\"+Inf\"}} {count}\n{name}_sum{braced} {sum_s}\n{name}_count{braced} {count}");
            }
        }
    }
}

/// What the kernel says of this process. Left out where it does not say it.
fn process(text: &mut String) {
    let gauge = |text: &mut String, name: &str, kind: &str, value: f64| {
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
    };
    if let Some(stat) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text)) {
        gauge(text, "process_cpu_seconds_total", "counter", stat.cpu_s);
        gauge(text, "process_resident_memory_bytes", "gauge", stat.resident_bytes);
        gauge(text, "process_virtual_memory_bytes", "gauge", stat.virtual_bytes);
        let booted = std::fs::read_to_string("/proc/stat")
            .ok()
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok()));
        if let Some(booted_s) = booted {
            gauge(text, "process_start_time_seconds", "gauge", booted_s + stat.started_s);
        }
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        gauge(text, "process_open_fds", "gauge", files.count() as f64);
    }
}

/// The parts of `/proc/self/stat` that are shown.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_s: f64,
    /// Since the machine started.
    started_s: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The kernel counts in these on every machine that this runs on.
        const TICKS_PER_S: f64 = 100.0;
        const PAGE_BYTES: f64 = 4096.0;
        // The second field is a name in parentheses, which may hold anything.
        let fields: Vec<f64> = text.rsplit_once(')')?.1.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0.0)).collect();
        let field = |number: usize| fields.get(number - 4).copied();
        Some(Stat {
            cpu_s: (field(14)? + field(15)?) / TICKS_PER_S,
            started_s: field(22)? / TICKS_PER_S,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * PAGE_BYTES,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_shown() {
        add("test_attempts_total", &[("result", "ok")], 2);
        add("test_attempts_total", &[("result", "ok")], 1);
        set("test_leading", &[("name", "x")], 1);
        observe("test_took_seconds", &[], Duration::from_millis(3));
        QueueCounters::of("test-queue").worked(Duration::from_micros(50));
        let text = render();
        for line in [
            "# TYPE test_attempts_total counter\ntest_attempts_total{result=\"ok\"} 3",
            "test_leading{name=\"x\"} 1",
            "test_took_seconds_bucket{le=\"0.002\"} 0\ntest_took_seconds_bucket{le=\"0.004\"} 1",
            "test_took_seconds_count 1",
            "workqueue_work_duration_seconds_bucket{name=\"test-queue\",le=\"1e-5\"} 0",
            "workqueue_work_duration_seconds_bucket{name=\"test-queue\",le=\"1e-4\"} 1",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn the_kernels_line_is_read() {
        let line = "42 (a (b) c) S 1 1 1 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 5000 1000000 256 18446744073709551615";
        let expected = Stat { cpu_s: 4.0, started_s: 50.0, virtual_bytes: 1_000_000.0, resident_bytes: 1_048_576.0 };
        assert_eq!(Stat::parse(line), Some(expected));
        assert_eq!(Stat::parse("odd"), None);
    }
}
