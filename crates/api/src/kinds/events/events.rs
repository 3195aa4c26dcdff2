//! Event of events.k8s.io: the core group's Events under newer field names.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, NameRule},
    kinds::{
        checks,
        core::events as core,
        values::{has, int, is_empty, member, put, take, text},
    },
    names,
    object::ObjectExt,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("events.k8s.io", "v1", "Event", "events")
        .short(&["ev"])
        .names(NameRule::PathSegment)
        .selectable(&[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ])
        .create_on_update()
        .stored_as("", "events")
        .hooks(Events)
}

/// Field names: here, and as stored.
const NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

struct Events;

impl Hooks for Events {
    fn to_stored(&self, _version: &str, event: &mut Value) {
        for (here, stored) in NAMES {
            if let Some(value) = take(event, here) {
                put(event, stored, value);
            }
        }
        put(event, "apiVersion", "v1");
    }
    fn from_stored(&self, _version: &str, event: &mut Value) {
        for (here, stored) in NAMES {
            if let Some(value) = take(event, stored) {
                put(event, here, value);
            }
        }
        // Shown only where they say something.
        for key in ["reportingController", "reportingInstance", "regarding"] {
            if event.get(key).is_some_and(is_empty) {
                take(event, key);
            }
        }
        put(event, "apiVersion", "events.k8s.io/v1");
    }
    fn default(&self, event: &mut Value) {
        core::default(event);
    }
    fn validate(&self, event: &Value, old: Option<&Value>, errors: &mut Errors) {
        core::validate(event, "reportingController", errors);
        if let Some(old) = old {
            if event.get("series") != old.get("series") {
                series(event, errors);
            }
            immutable(event, old, errors);
            return;
        }
        errors.invalid_all(&Path::new("metadata").child("name"), event.name(), names::dns1123_subdomain(event.name()));
        series(event, errors);
        if !has(event, "eventTime") {
            errors.required(Path::new("eventTime"), "");
        }
        if !matches!(text(event, "type"), "Normal" | "Warning") {
            errors.invalid(Path::new("type"), "", &format!("has invalid value: {}", text(event, "type")));
        }
        for key in ["firstTimestamp", "lastTimestamp", "count", "source"] {
            if event.get(key).is_some_and(|value| !is_empty(value) && *value != json!(0)) {
                errors.invalid(Path::new(key), "", "needs to be unset");
            }
        }
    }
    fn selectable_value(&self, event: &Value, field: &str) -> String {
        match field.strip_prefix("regarding.") {
            Some(rest) => core::selectable_value(event, &format!("involvedObject.{rest}")),
            None if field == "reportingController" => core::selectable_value(event, "reportingComponent"),
            None => core::selectable_value(event, field),
        }
    }
    fn cells(&self, event: &Value, now_unix_s: i64) -> Vec<Value> {
        core::cells(event, now_unix_s)
    }
}

/// A series is of more than one.
fn series(event: &Value, errors: &mut Errors) {
    let Some(series) = member(event, "series") else { return };
    if int(series, "count").unwrap_or(0) < 2 {
        errors.invalid(Path::new("series").child("count"), "", "should be at least 2");
    }
    if !has(series, "lastObservedTime") {
        errors.required(Path::new("series").child("lastObservedTime"), "");
    }
}

/// All but the series stays as it was.
fn immutable(event: &Value, old: &Value, errors: &mut Errors) {
    for (key, shown, type_) in [
        ("involvedObject", "involvedObject", "core.v1.ObjectReference"),
        ("reason", "reason", ""),
        ("message", "message", ""),
        ("source", "source", "core.v1.EventSource"),
        ("firstTimestamp", "firstTimestamp", ""),
        ("lastTimestamp", "lastTimestamp", ""),
        ("count", "count", ""),
        ("reason", "reason", ""),
        ("type", "type", ""),
        ("eventTime", "eventTime", ""),
        ("action", "action", ""),
        ("related", "related", "core.v1.ObjectReference"),
        ("reportingComponent", "reportingController", ""),
        ("reportingInstance", "reportingInstance", ""),
    ] {
        let (new, old, path) = (event.get(key), old.get(key), Path::new(shown));
        if type_.is_empty() {
            checks::immutable(new, old, &path, errors);
        } else {
            checks::immutable_structure(type_, new, old, &path, errors);
        }
    }
}
