//! From bytes to an object of the right structure: parse, check types, prune, name what is unknown or double.

use crate::{Kind, Value, request::FieldValidation, schema::Schema, status::Result};

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

impl Encoding {
    /// From a `Content-Type` header; an empty one is JSON. `None` for what cannot be read (415).
    pub fn of(_content_type: &str) -> Option<Encoding> {
        Some(Encoding::Json)
    }
}

/// An object and what is strictly wrong with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.replicaz"`, `duplicate field "spec.x"`, in document order.
    pub problems: Vec<String>,
}

/// Parses without a schema. The error is text in Go's words.
pub fn parse(_bytes: &[u8], _encoding: Encoding) -> Result<Value, String> {
    Ok(Value::Null)
}

/// Parses by a schema: wrong types are the error; unknown fields are dropped and named.
pub fn decode(_bytes: &[u8], _encoding: Encoding, _schema: &Schema) -> Result<Decoded, String> {
    Ok(Decoded::default())
}

/// The same for a value that is already parsed (a patched object).
pub fn check(value: Value, _schema: &Schema) -> Result<Decoded, String> {
    Ok(Decoded { value, problems: vec![] })
}

/// The body of a create or update of `kind` in `version`: sets apiVersion and kind, refuses other kinds, and treats strict
/// problems as asked. Gives the object and the warnings for the client.
pub fn decode_object(_bytes: &[u8], _encoding: Encoding, _kind: &Kind, _version: &str, _validation: FieldValidation) -> Result<(Value, Vec<String>)> {
    Ok((Value::Null, vec![]))
}

/// The same for an object that a patch has made.
pub fn check_object(value: Value, _kind: &Kind, _version: &str, _validation: FieldValidation) -> Result<(Value, Vec<String>)> {
    Ok((value, vec![]))
}
/// The media types of bodies that [`Encoding::of`] knows.
pub const READABLE_MEDIA_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
/// Parses an object without a schema; anything but an object (or null) is an error in Go's words.
pub fn parse_object(_bytes: &[u8], _encoding: Encoding) -> Result<Value, String> {
    Ok(Value::Null)
}
