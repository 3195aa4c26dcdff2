//! The OpenAPI v2 document as protobuf (`openapi.v2.Document`), which every kubectl before 1.27 asks for and cannot do
//! without. The field numbers are those of gnostic's public message; only what our document holds is written.

use serde_json::{Map, Value};

/// The media type of the answer. The older name holds an `@`, which no parser of media types takes.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The media types under which clients ask for it.
pub const MEDIA_TYPES: &[&str] = &[MEDIA_TYPE, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"];

/// A message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
    fn message(&mut self, field: u32, message: Message) {
        self.bytes(field, &message.0);
    }
    fn text(&mut self, field: u32, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }
    fn flag(&mut self, field: u32, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }
    fn texts(&mut self, field: u32, value: Option<&Value>) {
        for item in value.and_then(Value::as_array).into_iter().flatten() {
            self.text(field, Some(item));
        }
    }
    /// Members that begin with `x-`.
    fn extensions(&mut self, field: u32, value: &Value) {
        for (name, value) in members(value).filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Message::default();
            // JSON is YAML.
            any.bytes(2, value.to_string().as_bytes());
            self.message(field, named(name, any));
        }
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn named(name: &str, value: Message) -> Message {
    let mut message = Message::default();
    message.bytes(1, name.as_bytes());
    message.message(2, value);
    message
}

fn wrapped(field: u32, inner: Message) -> Message {
    let mut message = Message::default();
    message.message(field, inner);
    message
}

/// Encodes a document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, document.get("swagger"));
    if let Some(info) = document.get("info") {
        let mut message = Message::default();
        message.text(1, info.get("title"));
        message.text(2, info.get("version"));
        out.message(2, message);
    }
    let mut paths = Message::default();
    for (name, item) in document.get("paths").into_iter().flat_map(members) {
        paths.message(2, named(name, path_item(item)));
    }
    out.message(8, paths);
    let mut definitions = Message::default();
    for (name, item) in document.get("definitions").into_iter().flat_map(members) {
        definitions.message(1, named(name, schema(item)));
    }
    out.message(9, definitions);
    out.0
}

fn path_item(item: &Value) -> Message {
    let mut message = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = item.get(method) {
            message.message(field, operation(found));
        }
    }
    parameters(&mut message, 9, item.get("parameters"));
    message
}

fn operation(value: &Value) -> Message {
    let mut message = Message::default();
    message.texts(1, value.get("tags"));
    message.text(5, value.get("operationId"));
    message.texts(6, value.get("produces"));
    message.texts(7, value.get("consumes"));
    parameters(&mut message, 8, value.get("parameters"));
    let mut responses = Message::default();
    for (code, response) in value.get("responses").into_iter().flat_map(members) {
        let mut one = Message::default();
        one.text(1, response.get("description"));
        if let Some(found) = response.get("schema") {
            one.message(2, wrapped(1, schema(found)));
        }
        responses.message(1, named(code, wrapped(1, one)));
    }
    message.message(9, responses);
    message.extensions(13, value);
    message
}

fn parameters(message: &mut Message, field: u32, value: Option<&Value>) {
    for parameter in value.and_then(Value::as_array).into_iter().flatten() {
        let mut one = Message::default();
        let place = parameter.get("in").and_then(Value::as_str);
        let inner = match place {
            Some("body") => {
                one.text(2, parameter.get("name"));
                one.text(3, parameter.get("in"));
                one.flag(4, parameter.get("required"));
                if let Some(found) = parameter.get("schema") {
                    one.message(5, schema(found));
                }
                wrapped(1, one)
            }
            _ => {
                one.flag(1, parameter.get("required"));
                one.text(2, parameter.get("in"));
                one.text(4, parameter.get("name"));
                let (kind, type_, unique) = if place == Some("path") { (4, 5, 19) } else { (3, 6, 20) };
                one.text(type_, parameter.get("type"));
                one.flag(unique, parameter.get("uniqueItems"));
                wrapped(2, wrapped(kind, one))
            }
        };
        message.message(field, wrapped(1, inner));
    }
}

fn schema(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, value.get("$ref"));
    message.text(2, value.get("format"));
    message.text(4, value.get("description"));
    message.texts(19, value.get("required"));
    match value.get("additionalProperties") {
        Some(Value::Bool(allowed)) => {
            let mut item = Message::default();
            item.varint(2 << 3);
            item.varint(u64::from(*allowed));
            message.message(21, item);
        }
        Some(found) => message.message(21, wrapped(1, schema(found))),
        None => {}
    }
    if value.get("type").is_some_and(Value::is_string) {
        let mut kind = Message::default();
        kind.text(1, value.get("type"));
        message.message(22, kind);
    }
    if let Some(found) = value.get("items") {
        message.message(23, wrapped(1, schema(found)));
    }
    if let Some(found) = value.get("properties") {
        let mut properties = Message::default();
        for (name, property) in members(found) {
            properties.message(1, named(name, schema(property)));
        }
        message.message(25, properties);
    }
    message.extensions(31, value);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_definition_is_written_field_by_field() {
        let bytes = encode(&json!({"swagger": "2.0", "definitions": {"A": {"type": "object", "required": ["b"]}}}));
        assert_eq!(bytes, b"\x0a\x032.0\x42\x00\x4a\x16\x0a\x14\x0a\x01A\x12\x0f\x9a\x01\x01b\xb2\x01\x08\x0a\x06object");
    }
}
