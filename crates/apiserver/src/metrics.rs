//! `/metrics`: what the server did, under Kubernetes' own names.

use crate::{Body, Server, body::full, encode::respond};
use api::request::RequestInfo;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use std::{collections::BTreeMap, fmt::Write, time::Duration};

/// Upper bounds of the duration histogram, in seconds.
const BUCKETS_S: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0];
/// Series kept of one metric; requests beyond it are counted under `other`.
const SERIES_MAX: usize = 4096;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Default)]
struct Durations {
    counts: [u64; BUCKETS_S.len()],
    count: u64,
    sum_s: f64,
}

/// Counters.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Series, u64>>,
    durations: Mutex<BTreeMap<String, Durations>>,
}

impl Metrics {
    /// Counts an answered request.
    pub fn request(&self, info: &RequestInfo, code: StatusCode, took: Duration) {
        let known = |text: &str| if info.is_resource { text.to_string() } else { String::new() };
        let verb = info.verb.to_ascii_uppercase();
        let series = Series {
            verb: verb.clone(),
            group: known(&info.group),
            version: known(&info.version),
            resource: known(&info.resource),
            subresource: known(&info.subresource),
            code: code.as_u16(),
        };
        let mut requests = self.requests.lock();
        if requests.len() < SERIES_MAX || requests.contains_key(&series) {
            *requests.entry(series).or_default() += 1;
        } else {
            let other = Series {
                verb: "other".into(),
                group: String::new(),
                version: String::new(),
                resource: String::new(),
                subresource: String::new(),
                code: code.as_u16(),
            };
            *requests.entry(other).or_default() += 1;
        }
        drop(requests);
        if info.verb == "watch" {
            return;
        }
        let mut durations = self.durations.lock();
        if durations.len() >= SERIES_MAX && !durations.contains_key(&verb) {
            return;
        }
        let histogram = durations.entry(verb).or_default();
        histogram.count += 1;
        histogram.sum_s += took.as_secs_f64();
        for (bound_s, count) in BUCKETS_S.iter().zip(&mut histogram.counts) {
            *count += u64::from(took.as_secs_f64() <= *bound_s);
        }
    }

    /// The exposition.
    pub fn answer(&self, server: &Server) -> Response<Body> {
        respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", full(self.text(server)))
    }

    fn text(&self, server: &Server) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = writeln!(out, "# HELP apiserver_request_total Counter of apiserver requests.\n# TYPE apiserver_request_total counter");
        for (s, count) in self.requests.lock().iter() {
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{}\",group={:?},resource={:?},subresource={:?},verb={:?},version={:?}}} {count}",
                s.code, s.group, s.resource, s.subresource, s.verb, s.version
            );
        }
        let _ = writeln!(
            out,
            "# HELP apiserver_request_duration_seconds Time until the answer began.\n# TYPE apiserver_request_duration_seconds histogram"
        );
        for (verb, histogram) in self.durations.lock().iter() {
            for (bound_s, count) in BUCKETS_S.iter().zip(histogram.counts) {
                let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{verb={verb:?},le=\"{bound_s}\"}} {count}");
            }
            let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{verb={verb:?},le=\"+Inf\"}} {}", histogram.count);
            let _ = writeln!(out, "apiserver_request_duration_seconds_sum{{verb={verb:?}}} {}", histogram.sum_s);
            let _ = writeln!(out, "apiserver_request_duration_seconds_count{{verb={verb:?}}} {}", histogram.count);
        }
        server.flow.metrics(&mut out);
        if let Some(audit) = &server.audit {
            audit.metrics(&mut out);
        }
        server.copies.expose(server.cache.reached(), &mut out);
        let _ = writeln!(out, "# HELP apiserver_storage_objects Stored objects.\n# TYPE apiserver_storage_objects gauge");
        let resources = server.cache.resources();
        for (name, cache) in &resources {
            let _ = writeln!(out, "apiserver_storage_objects{{resource={name:?}}} {}", cache.len());
        }
        let _ = writeln!(out, "# HELP apiserver_longrunning_requests Running watches.\n# TYPE apiserver_longrunning_requests gauge");
        for (name, cache) in resources.iter().filter(|(_, cache)| cache.watchers() > 0) {
            let _ = writeln!(out, "apiserver_longrunning_requests{{resource={name:?},verb=\"WATCH\"}} {}", cache.watchers());
        }
        out
    }
}
