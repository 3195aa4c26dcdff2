//! Tables: how objects look as rows, made by the server so that every client prints the same.
//!
//! Which columns a built-in resource has is a fact (`facts/table-columns.json`, what clients are told
//! of them `facts/column-descriptions.json`); what stands in them is a kind's hook, made
//! of the helpers here. Everything is a function of the object and the time that the caller gives.

use crate::{
    Kind, Value,
    object::ObjectExt,
    selector::LabelSelector,
    structure::{Precision, time},
};
use serde_json::{Map, json};
use std::{collections::BTreeMap, sync::LazyLock};

/// What clients know the columns of names and ages by; theirs word for word.
const NAME_DESCRIPTION: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const AGE_DESCRIPTION: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// A column of a Table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_: String,
    pub format: String,
    pub description: String,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// A column of strings that is always shown.
    pub fn new(name: &str, type_: &str, format: &str, priority: i32) -> Column {
        let description = match (name, format) {
            (_, "name") => NAME_DESCRIPTION,
            ("Age" | "Created At", _) => AGE_DESCRIPTION,
            _ => "",
        };
        Column { name: name.into(), type_: type_.into(), format: format.into(), description: description.into(), priority }
    }
    fn to_value(&self) -> Value {
        json!({"name": self.name, "type": self.type_, "format": self.format, "description": self.description, "priority": self.priority})
    }
}

/// How much of the object a row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// From the query's `includeObject`. The error is the message of a BadRequest.
    pub fn parse(text: &str) -> Result<IncludeObject, String> {
        match text {
            "" | "Metadata" => Ok(IncludeObject::Metadata),
            "None" => Ok(IncludeObject::None),
            "Object" => Ok(IncludeObject::Object),
            other => Err(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            )),
        }
    }
}

type ColumnFacts = BTreeMap<String, Vec<(String, String, String, i32)>>;

/// Part of the program, read by a test: what cannot be read is a programmer's error.
static COLUMNS: LazyLock<ColumnFacts> =
    LazyLock::new(|| serde_json::from_str(include_str!("../facts/table-columns.json")).expect("facts/table-columns.json is JSON"));

/// What clients are told of the columns, by resource and column; names and ages are described above.
static DESCRIPTIONS: LazyLock<BTreeMap<String, BTreeMap<String, String>>> =
    LazyLock::new(|| serde_json::from_str(include_str!("../facts/column-descriptions.json")).expect("facts/column-descriptions.json is JSON"));

/// The columns that Kubernetes gives a built-in resource; `Name` and `Created At` where it has no own ones.
pub fn golden_columns(group: &str, version: &str, resource: &str) -> Vec<Column> {
    let key = if group.is_empty() { format!("{version}/{resource}") } else { format!("{group}/{version}/{resource}") };
    match COLUMNS.get(&key) {
        Some(columns) => {
            let column = |(name, type_, format, priority): &(String, String, String, i32)| {
                let mut column = Column::new(name, type_, format, *priority);
                if let Some(description) = DESCRIPTIONS.get(&key).and_then(|columns| columns.get(name)) {
                    column.description.clone_from(description);
                }
                column
            };
            columns.iter().map(column).collect()
        }
        None => vec![Column::new("Name", "string", "name", 0), Column::new("Created At", "date", "", 0)],
    }
}

/// `3d4h`, `5m10s`, `47h`: a duration as kubectl prints it. The longer, the coarser.
pub fn human_duration(seconds: i64) -> String {
    let pair = |whole: i64, unit: &str, rest: i64, rest_unit: &str| {
        if rest == 0 { format!("{whole}{unit}") } else { format!("{whole}{unit}{rest}{rest_unit}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match seconds {
        // Two seconds of disagreement between clocks are no error.
        i64::MIN..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => pair(days, "d", hours % 24, "h"),
        _ if years < 2 => format!("{days}d"),
        _ if years < 8 => pair(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

/// Seconds since 1970 of an RFC 3339 time.
pub fn unix_s(timestamp: &str) -> Option<i64> {
    time(timestamp, Precision::Seconds).ok().map(|(unix_s, _)| unix_s)
}

/// The time since `timestamp`, `<unknown>` if there is none.
pub fn since(timestamp: Option<&str>, now_unix_s: i64) -> String {
    timestamp.and_then(unix_s).map_or_else(|| "<unknown>".to_string(), |then| human_duration(now_unix_s.saturating_sub(then)))
}

/// The age of an object.
pub fn human_age(object: &Value, now_unix_s: i64) -> String {
    since(object.creation_timestamp(), now_unix_s)
}

/// The cell of an age column.
pub fn age(object: &Value, now_unix_s: i64) -> Value {
    human_age(object, now_unix_s).into()
}

/// The cells `Name` and `Age`.
pub fn name_and_age(object: &Value, now_unix_s: i64) -> Vec<Value> {
    vec![name(object), age(object, now_unix_s)]
}

/// The cell of a name column.
pub fn name(object: &Value) -> Value {
    object.name().into()
}

/// Strings with commas between, `<none>` if there are none.
pub fn join<S: AsRef<str>>(parts: impl IntoIterator<Item = S>) -> String {
    let mut text = String::new();
    for part in parts {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(part.as_ref());
    }
    if text.is_empty() { "<none>".into() } else { text }
}

/// A map of labels as `a=b,c=d`, `<none>` if empty.
pub fn labels_text(labels: Option<&Value>) -> String {
    let labels = labels.and_then(Value::as_object).into_iter().flatten();
    join(labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())))
}

/// A LabelSelector object as text, `<none>` if it selects everything, as kubectl shows selectors.
pub fn selector_text(selector: Option<&Value>) -> String {
    match selector.map(LabelSelector::from_value) {
        Some(Err(_)) => "<error>".into(),
        Some(Ok(selector)) if !selector.requirements.is_empty() => selector.to_string(),
        _ => "<none>".into(),
    }
}

/// The cells of an object: those of the kind's hook, with columns of dates as dates. A kind without own cells shows of its
/// columns what every object has.
pub fn cells(kind: &Kind, object: &Value, now_unix_s: i64) -> Vec<Value> {
    let mut cells = kind.hooks.cells(object, now_unix_s);
    if cells.len() < kind.columns.len() {
        cells = (kind.columns.iter())
            .map(|column| match column.name.as_str() {
                "Name" => name(object),
                "Age" => age(object, now_unix_s),
                _ => "<none>".into(),
            })
            .collect();
    }
    for (cell, column) in cells.iter_mut().zip(&kind.columns) {
        if column.type_ == "date" && column.name == "Created At" {
            *cell = object.creation_timestamp().into();
        }
    }
    cells
}

/// The row of one object.
pub fn row(kind: &Kind, object: &Value, include: IncludeObject, now_unix_s: i64) -> Value {
    let shown = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial_metadata(object),
        IncludeObject::Object => object.clone(),
    };
    let mut row = json!({"cells": cells(kind, object, now_unix_s), "object": shown});
    let conditions = kind.hooks.row_conditions(object);
    if !conditions.is_empty() {
        row["conditions"] = Value::from(conditions);
    }
    row
}

/// A Table from rows; `list_metadata` is the list's `metadata`, `headers` false leaves the column definitions out (later events of a watch).
pub fn table(columns: &[Column], rows: Vec<Value>, list_metadata: Value, headers: bool) -> Value {
    let definitions = if headers { columns.iter().map(Column::to_value).collect() } else { Value::Null };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "columnDefinitions": definitions, "rows": rows})
}

/// PartialObjectMetadata of an object.
pub fn partial_metadata(object: &Value) -> Value {
    let metadata = object.metadata().cloned().unwrap_or_else(Map::new);
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_kubectl_prints_them() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
            (i64::MAX, "292471208677y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
        assert_eq!(since(Some("1970-01-01T00:01:00Z"), 120), "60s");
        assert_eq!((since(None, 0), since(Some("x"), 0)), ("<unknown>".into(), "<unknown>".into()));
    }

    #[test]
    fn columns_and_rows() {
        let pods = golden_columns("", "v1", "pods");
        assert_eq!(pods.iter().take(3).map(|c| c.name.as_str()).collect::<Vec<_>>(), ["Name", "Ready", "Status"]);
        assert!(pods.iter().any(|c| c.name == "Node" && c.priority == 1));
        assert_eq!(golden_columns("example.com", "v1", "things").last().map(|c| c.type_.as_str()), Some("date"));
        let thing = Kind::namespaced("example.com", "v1", "Thing", "things");
        let object = json!({"metadata": {"name": "a", "creationTimestamp": "1970-01-01T00:00:00Z"}});
        assert_eq!(row(&thing, &object, IncludeObject::None, 60), json!({"cells": ["a", "1970-01-01T00:00:00Z"], "object": null}));
        assert_eq!(row(&thing, &object, IncludeObject::Metadata, 60)["object"]["kind"], "PartialObjectMetadata");
    }

    #[test]
    fn texts() {
        assert_eq!(labels_text(Some(&json!({"a": "b", "c": "d"}))), "a=b,c=d");
        assert_eq!((labels_text(None), join(["x", "y"]), selector_text(Some(&json!({})))), ("<none>".into(), "x,y".into(), "<none>".into()));
        assert_eq!(
            selector_text(Some(&json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "t", "operator": "In", "values": ["b", "a"]}]}))),
            "app=web,t in (a,b)"
        );
    }
}
