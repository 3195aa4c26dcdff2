//! Event of events.k8s.io: the core group's Events under newer field names.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, NameRule},
    kinds::{
        checks,
        core::events as core,
        values::{has, int, is_empty, member, put, take, text},
    },
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
            for key in [
                "involvedObject",
                "reason",
                "message",
                "source",
                "firstTimestamp",
                "lastTimestamp",
                "count",
                "reportingComponent",
                "reportingInstance",
                "action",
                "related",
                "type",
                "eventTime",
            ] {
                checks::immutable(event.get(key), old.get(key), &Path::new(key), errors);
            }
            return;
        }
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
        if let Some(series) = member(event, "series") {
            if int(series, "count").unwrap_or(0) < 2 {
                errors.invalid(Path::new("series").child("count"), "", "should be at least 2");
            }
            if !has(series, "lastObservedTime") {
                errors.required(Path::new("series").child("lastObservedTime"), "");
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
