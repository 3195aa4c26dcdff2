//! Tables: how objects look as rows, made by the server so that every client prints the same.

use crate::{Kind, Value};

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

/// How much of the object a row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

/// The columns that Kubernetes gives a built-in resource; `Name` and `Created At` where it has no own ones.
pub fn golden_columns(_group: &str, _version: &str, _resource: &str) -> Vec<Column> {
    vec![]
}
/// `3d4h`, `5m10s`, `47h`: a duration as kubectl prints it.
pub fn human_duration(_seconds: i64) -> String {
    String::new()
}
/// Seconds since 1970 of an RFC 3339 time.
pub fn unix_s(_timestamp: &str) -> Option<i64> {
    None
}
/// The time since `timestamp`, `<unknown>` if there is none.
pub fn since(_timestamp: Option<&str>, _now_unix_s: i64) -> String {
    String::new()
}
/// The age of an object.
pub fn human_age(_object: &Value, _now_unix_s: i64) -> String {
    String::new()
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
pub fn name(_object: &Value) -> Value {
    Value::Null
}
/// Strings with commas between, `<none>` if there are none.
pub fn join<S: AsRef<str>>(_parts: impl IntoIterator<Item = S>) -> String {
    String::new()
}
/// A map of labels as `a=b,c=d`, `<none>` if empty.
pub fn labels_text(_labels: Option<&Value>) -> String {
    String::new()
}
/// A LabelSelector object as text, `<none>` if it selects everything, as kubectl shows selectors.
pub fn selector_text(_selector: Option<&Value>) -> String {
    String::new()
}
/// The row of one object.
pub fn row(_kind: &Kind, _object: &Value, _include: IncludeObject, _now_unix_s: i64) -> Value {
    Value::Null
}
/// A Table from rows; `list_metadata` is the list's `metadata`, `headers` false leaves the column definitions out (later events of a watch).
pub fn table(_columns: &[Column], _rows: Vec<Value>, _list_metadata: Value, _headers: bool) -> Value {
    Value::Null
}
/// PartialObjectMetadata of an object.
pub fn partial_metadata(_object: &Value) -> Value {
    Value::Null
}
