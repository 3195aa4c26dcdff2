//! `/metrics`: what the server did, under Kubernetes' own names and labels.
//!
//! Counting a request that is like one before costs a hash, a read lock and two additions: its labels are written down once, when the
//! first of its sort comes. A client that makes up resources cannot fill the list: what the catalogue does not know is
//! counted without a name, and beyond [`SERIES_MAX`] sorts all others are counted as one.

use crate::{Body, Server, body::full, connect, encode::respond, health::GIT_VERSION};
use api::request::RequestInfo;
use http::{Response, StatusCode};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Upper bounds of the duration histogram, in seconds.
const BUCKETS_S: [f64; 22] =
    [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0];
/// Sorts of requests that are told apart; others are counted as one.
const SERIES_MAX: usize = 4096;
/// Different status codes of one sort.
const CODES_MAX: usize = 32;

/// What a process is told to show beside the server's own: metrics of what else runs in it.
pub type More = Arc<dyn Fn() -> String + Send + Sync>;

/// One sort of request.
struct Series {
    labels: String,
    /// Whether how long it takes says anything: not of streams.
    timed: bool,
    codes: Mutex<Vec<(u16, u64)>>,
    buckets: [AtomicU64; BUCKETS_S.len()],
    sum_us: AtomicU64,
}

/// Counters.
#[derive(Default)]
pub struct Metrics {
    series: RwLock<HashMap<u64, Arc<Series>>>,
    /// Requests that were cut because they took too long.
    terminated: AtomicU64,
}

/// The verb as metrics have it.
fn verb(info: &RequestInfo) -> &'static str {
    if connect::is_long(info) && info.verb != "watch" && info.subresource != "log" {
        return "CONNECT";
    }
    match info.verb.as_str() {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "head" => "HEAD",
        "options" => "OPTIONS",
        _ => "other",
    }
}

/// What a request is about: one object, a namespace's, or all.
fn scope(info: &RequestInfo) -> &'static str {
    match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
        (false, ..) => "",
        (true, false, _) => "resource",
        (true, true, false) => "namespace",
        (true, true, true) => "cluster",
    }
}

fn key(info: &RequestInfo, dry_run: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    (verb(info), scope(info), dry_run).hash(&mut hasher);
    if info.is_resource {
        (&info.group, &info.version, &info.resource, &info.subresource).hash(&mut hasher);
    }
    hasher.finish()
}

impl Metrics {
    /// Counts an answered request. `known` is asked whether its resource exists, once for each sort.
    pub fn request(&self, info: &RequestInfo, dry_run: bool, code: StatusCode, took: Duration, known: impl FnOnce() -> bool) {
        let key = key(info, dry_run);
        let found = self.series.read().get(&key).cloned();
        let series = found.unwrap_or_else(|| self.add(key, info, dry_run, known));
        let mut codes = series.codes.lock();
        match codes.iter().position(|(known, _)| *known == code.as_u16()) {
            Some(i) => codes[i].1 += 1,
            None if codes.len() < CODES_MAX => codes.push((code.as_u16(), 1)),
            None => {}
        }
        drop(codes);
        if series.timed {
            let took_s = took.as_secs_f64();
            let bucket = BUCKETS_S.iter().position(|bound_s| took_s <= *bound_s);
            if let Some(bucket) = bucket.and_then(|bucket| series.buckets.get(bucket)) {
                bucket.fetch_add(1, Relaxed);
            }
            series.sum_us.fetch_add(took.as_micros() as u64, Relaxed);
        }
        if code == StatusCode::GATEWAY_TIMEOUT {
            self.terminated.fetch_add(1, Relaxed);
        }
    }

    fn add(&self, key: u64, info: &RequestInfo, dry_run: bool, known: impl FnOnce() -> bool) -> Arc<Series> {
        let named = info.is_resource && known();
        let mut all = self.series.write();
        let full = all.len() >= SERIES_MAX;
        // All that is not known is one sort, by its verb.
        let key = match (named || !info.is_resource, full) {
            (_, true) => 0,
            (true, false) => key,
            (false, false) => {
                let mut hasher = DefaultHasher::new();
                verb(info).hash(&mut hasher);
                hasher.finish()
            }
        };
        if let Some(series) = all.get(&key) {
            return series.clone();
        }
        let text = |text: &str| if named && !full { text.to_string() } else { String::new() };
        let (group, version, resource, subresource) = (text(&info.group), text(&info.version), text(&info.resource), text(&info.subresource));
        let (verb, scope) = if full { ("other", "") } else { (verb(info), if named { scope(info) } else { "" }) };
        let dry_run = if dry_run { "All" } else { "" };
        let labels = format!(
            "component=\"apiserver\",dry_run={dry_run:?},group={group:?},resource={resource:?},scope={scope:?},subresource={subresource:?},verb={verb:?},version={version:?}"
        );
        let series = Arc::new(Series {
            labels,
            timed: !matches!(verb, "WATCH" | "CONNECT"),
            codes: Mutex::default(),
            buckets: Default::default(),
            sum_us: AtomicU64::new(0),
        });
        all.insert(key, series.clone());
        series
    }

    /// The exposition.
    pub fn answer(&self, server: &Server) -> Response<Body> {
        respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", full(self.text(server)))
    }

    fn text(&self, server: &Server) -> String {
        let mut out = String::new();
        self.requests(&mut out);
        server.flow.metrics(&mut out);
        if let Some(audit) = &server.audit {
            audit.metrics(&mut out);
        }
        // Writing into a String cannot fail.
        let _ = writeln!(out, "# HELP apiserver_storage_objects Stored objects.\n# TYPE apiserver_storage_objects gauge");
        let resources = server.cache.resources();
        // `core/pods` is `pods`, `apps/deployments` is `deployments.apps`.
        let parts = |name: &str| {
            let (group, resource) = name.split_once('/').unwrap_or(("", name));
            (if group == "core" { String::new() } else { group.to_string() }, resource.to_string())
        };
        for (name, cache) in &resources {
            let (group, resource) = parts(name);
            let qualified = if group.is_empty() { resource } else { format!("{resource}.{group}") };
            let _ = writeln!(out, "apiserver_storage_objects{{resource={qualified:?}}} {}", cache.len());
        }
        let _ = writeln!(out, "# HELP apiserver_longrunning_requests Running watches.\n# TYPE apiserver_longrunning_requests gauge");
        for (name, cache) in resources.iter().filter(|(_, cache)| cache.watchers() > 0) {
            let (group, resource) = parts(name);
            let _ = writeln!(
                out,
                "apiserver_longrunning_requests{{component=\"apiserver\",group={group:?},resource={resource:?},verb=\"WATCH\"}} {}",
                cache.watchers()
            );
        }
        server.copies.expose(server.cache.reached(), &mut out);
        let _ = writeln!(
            out,
            "# HELP kubernetes_build_info What runs here.\n# TYPE kubernetes_build_info gauge\n\
             kubernetes_build_info{{git_version={GIT_VERSION:?},major=\"1\",minor=\"36\",platform=\"{}/{}\"}} 1",
            std::env::consts::OS,
            std::env::consts::ARCH
        );
        if let Some(more) = &server.config.more_metrics {
            out += &more();
        }
        out
    }

    fn requests(&self, out: &mut String) {
        let mut all: Vec<Arc<Series>> = self.series.read().values().cloned().collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        let _ = writeln!(out, "# HELP apiserver_request_total Counter of apiserver requests.\n# TYPE apiserver_request_total counter");
        for series in &all {
            for (code, count) in series.codes.lock().iter() {
                let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", series.labels);
            }
        }
        for (name, help) in [
            ("apiserver_request_duration_seconds", "Time until the answer began."),
            ("apiserver_request_sli_duration_seconds", "The same; nothing that is not the server's own is in it."),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
            for series in all.iter().filter(|series| series.timed) {
                let count: u64 = series.codes.lock().iter().map(|(_, count)| count).sum();
                let mut below = 0;
                for (bound_s, bucket) in BUCKETS_S.iter().zip(&series.buckets) {
                    below += bucket.load(Relaxed);
                    let _ = writeln!(out, "{name}_bucket{{{},le=\"{bound_s}\"}} {below}", series.labels);
                }
                let _ = writeln!(out, "{name}_bucket{{{},le=\"+Inf\"}} {}", series.labels, count.max(below));
                let _ = writeln!(out, "{name}_sum{{{}}} {}", series.labels, series.sum_us.load(Relaxed) as f64 / 1e6);
                let _ = writeln!(out, "{name}_count{{{}}} {}", series.labels, count.max(below));
            }
        }
        let _ = writeln!(
            out,
            "# HELP apiserver_request_terminations_total Requests that were cut because they took too long.\n# TYPE apiserver_request_terminations_total counter\n\
             apiserver_request_terminations_total{{component=\"apiserver\"}} {}",
            self.terminated.load(Relaxed)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_are() {
        let metrics = Metrics::default();
        let count = |method: &str, path: &str, query: &str, code: u16, known: bool| {
            let info = RequestInfo::parse(method, path, query);
            metrics.request(&info, false, StatusCode::from_u16(code).unwrap(), Duration::from_millis(30), || known);
        };
        count("GET", "/api/v1/namespaces/a/pods", "", 200, true);
        count("GET", "/api/v1/namespaces/b/pods", "", 200, true);
        count("GET", "/api/v1/pods", "watch=1", 200, true);
        count("POST", "/apis/apps/v1/namespaces/a/deployments", "", 409, true);
        count("GET", "/version", "", 200, false);
        for i in 0..100 {
            count("GET", &format!("/api/v1/made-up-{i}"), "", 404, false);
        }
        let mut text = String::new();
        metrics.requests(&mut text);
        for line in [
            r#"apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1"} 2"#,
            r#"apiserver_request_total{code="409",component="apiserver",dry_run="",group="apps",resource="deployments",scope="namespace",subresource="",verb="POST",version="v1"} 1"#,
            r#"apiserver_request_duration_seconds_bucket{component="apiserver",dry_run="",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1",le="0.025"} 0"#,
            r#"apiserver_request_duration_seconds_bucket{component="apiserver",dry_run="",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1",le="0.05"} 2"#,
            r#"apiserver_request_total{code="404",component="apiserver",dry_run="",group="",resource="",scope="",subresource="",verb="LIST",version=""} 100"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(
            !text.contains("made-up")
                && !text.contains("duration_seconds_count{component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"pods\",scope=\"cluster\"")
        );
        assert!(metrics.series.read().len() < 8);
    }
}
