//! What stands in a request's line: paths, queries, selectors, and the plain values of objects.

use crate::run;
use api::{
    cron::Schedule,
    quantity::Quantity,
    request::{CreateOptions, DeleteOptions, GetOptions, ListOptions, PatchOptions, Query, RequestInfo, UpdateOptions},
    selector::{FieldSelector, LabelSelector},
    structure::{Precision, canonical_time},
    table::IncludeObject,
};

#[test]
fn labels() {
    let right: &[&[u8]] = &[b"a=b,c!=d", b"x in (a, b),!y,z notin(c)", b"example.com/tier==web", b"n>1,m<2", b"a"];
    run(|choices| {
        let text = &choices.near_text(right);
        if let Ok(selector) = LabelSelector::parse(text) {
            let _ = (selector.matches(|_| None), selector.matches(|_| Some("b")));
        }
    });
}

#[test]
fn fields() {
    let right: &[&[u8]] = &[b"metadata.name=a", b"spec.nodeName!=n,status.phase==Running", b"a=b\\,c,d=\\=", b"involvedObject.uid=1"];
    run(|choices| {
        let text = &choices.near_text(right);
        if let Ok(selector) = FieldSelector::parse(text) {
            let _ = (selector.matches(|_| Some("a")), selector.fields().count());
        }
    });
}

#[test]
fn quantities() {
    let right: &[&[u8]] = &[b"100m", b"1.5Gi", b"-0.000000001", b"12e6", b"1E", b"9223372036854775807Ki", b"+.5n", b"3."];
    run(|choices| {
        let text = &choices.near_text(right);
        let Ok(quantity) = Quantity::parse(text) else { return };
        let canonical = quantity.to_string();
        let again = Quantity::parse(&canonical).unwrap_or_else(|why| panic!("{text:?} became {canonical:?}: {why}"));
        assert_eq!(again.to_string(), canonical, "of {text:?}");
        let _ = (quantity.value(), quantity.milli(), quantity.add(&again), quantity.sub(&again));
    });
}

#[test]
fn times() {
    let right: &[&[u8]] = &[b"2024-01-01T00:00:00Z", b"2024-02-29T23:59:60.123456789+14:00", b"0001-01-01T00:00:00Z"];
    run(|choices| {
        let text = &choices.near_text(right);
        for precision in [Precision::Seconds, Precision::Micros] {
            if let Ok(canonical) = canonical_time(text, precision) {
                assert_eq!(canonical_time(&canonical, precision).as_ref(), Ok(&canonical), "of {text:?}");
            }
        }
    });
}

#[test]
fn schedules() {
    let right: &[&[u8]] = &[b"*/5 1-3 * jan,feb mon", b"@every 1h30m", b"@daily", b"0 0 29 2 *", b"TZ=Europe/Berlin 1 2 3 4 5"];
    run(|choices| {
        let text = &choices.near_text(right);
        if let Ok(schedule) = Schedule::parse(text, None) {
            let now = jiff::Timestamp::UNIX_EPOCH;
            if let Some(next) = schedule.next(now) {
                assert!(next > now, "{text:?} comes at {next} after {now}");
            }
        }
    });
}

#[test]
fn requests() {
    let right: &[&[u8]] = &[
        b"GET /api/v1/namespaces/a/pods/b?watch=true&resourceVersion=1&limit=5&continue=abc",
        b"PATCH /apis/apps/v1/namespaces/a/deployments/b/scale?fieldManager=m&force=true&dryRun=All&fieldValidation=Strict",
        b"DELETE /apis/example.com/v1/widgets?propagationPolicy=Foreground&gracePeriodSeconds=0&labelSelector=a%3Db&orphanDependents=x",
        b"POST /api/v1/namespaces/a/pods/b/exec?command=sh&command=-c&stdin=true&pretty=1",
        b"GET /api/v1/watch/namespaces/a/pods?timeoutSeconds=-1&allowWatchBookmarks=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
        b"GET /api/v1/nodes/https:n:10250/proxy/a/../b//c?includeObject=Object",
    ];
    run(|choices| {
        let line = &choices.near_text(right);
        let (method, rest) = line.split_once(' ').unwrap_or(("GET", line));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let _ = RequestInfo::parse(method, path, query);
        let parsed = Query::parse(query);
        let _ = (GetOptions::parse(&parsed).is_ok(), ListOptions::parse(&parsed).is_ok(), ListOptions::parse_for(&parsed, true).is_ok());
        let _ = (CreateOptions::parse(&parsed, "kubectl/v1").is_ok(), UpdateOptions::parse(&parsed, rest).is_ok());
        let _ = (PatchOptions::parse(&parsed, rest, true).is_ok(), IncludeObject::parse(query).is_ok());
        let _ = DeleteOptions::parse(&parsed, query.as_bytes(), "application/json").is_ok();
    });
}
