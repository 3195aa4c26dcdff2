//! Event. Events of the core group and of `events.k8s.io` are the same objects; these are stored.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, MetadataAgain, NameRule},
    kinds::values::{has, int, made, member, put, text},
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Event", "events")
        .short(&["ev"])
        .names(NameRule::PathSegment)
        .selectable(&[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ])
        .create_on_update()
        .metadata_again(MetadataAgain::Never)
        .hooks(Events)
}

const TEXT_CHARS_MAX: usize = 128;
const MESSAGE_CHARS_MAX: usize = 1024;

struct Events;

/// What every stored Event shows, said or not.
pub fn default(event: &mut Value) {
    made(event, "involvedObject");
    made(event, "source");
    for key in ["firstTimestamp", "lastTimestamp", "eventTime"] {
        if !has(event, key) {
            put(event, key, Value::Null);
        }
    }
    for key in ["reportingComponent", "reportingInstance"] {
        if !has(event, key) {
            put(event, key, "");
        }
    }
}

/// Rules for events of both APIs. `controller_field` is what the client's API calls the reporting component.
pub fn validate(event: &Value, controller_field: &str, errors: &mut Errors) {
    let namespace = event.namespace();
    let about = event.str_at("involvedObject.namespace").unwrap_or_default();
    let mismatch = |errors: &mut Errors| errors.invalid(Path::new("involvedObject").child("namespace"), about, "does not match event.namespace");
    if !has(event, "eventTime") {
        if about.is_empty() {
            if !matches!(namespace, "" | "default") {
                mismatch(errors);
            }
        } else if namespace != about {
            mismatch(errors);
        }
        return;
    }
    if about.is_empty() && !matches!(namespace, "default" | "kube-system") {
        mismatch(errors);
    }
    let controller = text(event, "reportingComponent");
    let path = Path::new(controller_field);
    if controller.is_empty() {
        errors.required(path.clone(), "");
    }
    errors.invalid_all(&path, controller, names::qualified_name(controller));
    for key in ["reportingInstance", "action", "reason"] {
        if text(event, key).is_empty() {
            errors.required(Path::new(key), "");
        } else if text(event, key).len() > TEXT_CHARS_MAX {
            errors.invalid(Path::new(key), "", &format!("can have at most {TEXT_CHARS_MAX} characters"));
        }
    }
    if text(event, "message").len() > MESSAGE_CHARS_MAX {
        errors.invalid(Path::new("message"), "", &format!("can have at most {MESSAGE_CHARS_MAX} characters"));
    }
}

/// The value of a selectable field, by the name that it has in the core group.
pub fn selectable_value(event: &Value, field: &str) -> String {
    match field {
        "source" => match event.str_at("source.component").unwrap_or_default() {
            "" => text(event, "reportingComponent").to_string(),
            component => component.to_string(),
        },
        _ => event.str_at(field).unwrap_or_default().to_string(),
    }
}

/// The cells of an Event's row.
pub fn cells(event: &Value, now_unix_s: i64) -> Vec<Value> {
    let since = |time: Option<&str>| table::since(time.filter(|t| !t.is_empty()), now_unix_s);
    let time = |key: &str| event.str_at(key).filter(|t| !t.is_empty());
    let first = since(time("firstTimestamp").or(time("eventTime")));
    let mut last = time("lastTimestamp").map_or_else(|| first.clone(), |t| since(Some(t)));
    let mut count = int(event, "count").unwrap_or(0);
    if let Some(series) = member(event, "series") {
        last = since(series.str_at("lastObservedTime"));
        count = int(series, "count").unwrap_or(0);
    } else if count == 0 {
        count = 1;
    }
    let about = event.get("involvedObject").unwrap_or(&Value::Null);
    let kind = text(about, "kind").to_lowercase();
    let target = if text(about, "name").is_empty() { kind } else { format!("{kind}/{}", text(about, "name")) };
    let either = |a: Option<&str>, b: &str| a.filter(|a| !a.is_empty()).unwrap_or(b).to_string();
    let mut source = either(event.str_at("source.component"), text(event, "reportingComponent"));
    let host = either(event.str_at("source.host"), text(event, "reportingInstance"));
    if !host.is_empty() {
        source = format!("{source}, {host}");
    }
    vec![
        json!(last),
        json!(text(event, "type")),
        json!(text(event, "reason")),
        json!(target),
        json!(text(about, "fieldPath")),
        json!(source),
        json!(text(event, "message").trim()),
        json!(first),
        json!(count),
        table::name(event),
    ]
}

impl Hooks for Events {
    fn default(&self, event: &mut Value) {
        default(event);
    }
    fn validate(&self, event: &Value, _old: Option<&Value>, errors: &mut Errors) {
        validate(event, "reportingComponent", errors);
    }
    fn selectable_value(&self, event: &Value, field: &str) -> String {
        selectable_value(event, field)
    }
    fn cells(&self, event: &Value, now_unix_s: i64) -> Vec<Value> {
        cells(event, now_unix_s)
    }
}
