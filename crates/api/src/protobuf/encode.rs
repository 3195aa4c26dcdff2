//! Objects written in Kubernetes' protobuf form, byte for byte as Go writes them: fields in the order of their numbers,
//! maps in the order of their keys, fields that are no pointers even when they are zero.
//!
//! Bytes are put down from the end to the beginning, because a message's length stands before it; one turn at the end.

use super::{
    EPOCH, MAGIC,
    facts::{self, Count, Form, Message, Type},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

/// What stands behind `raw` in the envelope: no content encoding, no content type.
pub const ENVELOPE_END: &[u8] = &[3 << 3 | 2, 0, 4 << 3 | 2, 0];

/// Bytes in the making, last one first.
#[derive(Default)]
struct Backwards(Vec<u8>);

impl Backwards {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.iter().rev());
    }
    fn varint(&mut self, mut number: u64) {
        let start = self.0.len();
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self.0[start..].reverse();
    }
    fn key(&mut self, number: u32, wire: u64) {
        self.varint(u64::from(number) << 3 | wire);
    }
    /// The length of all that was written since there were `before` bytes, and the key.
    fn close(&mut self, number: u32, before: usize) {
        self.varint((self.0.len() - before) as u64);
        self.key(number, 2);
    }
    fn text(&mut self, number: u32, bytes: &[u8]) {
        let before = self.0.len();
        self.bytes(bytes);
        self.close(number, before);
    }
    fn number(&mut self, number: u32, value: u64) {
        self.varint(value);
        self.key(number, 0);
    }
    fn finish(mut self) -> Vec<u8> {
        self.0.reverse();
        self.0
    }
}

/// The object's message alone, as it stands in a list or in the envelope. `None` if the kind has no such form.
pub fn encode_message(api_version: &str, kind: &str, object: &Value) -> Option<Vec<u8>> {
    let index = super::message_index(api_version, kind)?;
    let mut out = Backwards::default();
    message(&mut out, facts::message(index), object);
    Some(out.finish())
}

/// The object with its envelope: what a body of this form is. `None` if its kind has no such form.
pub fn encode(object: &Value) -> Option<Vec<u8>> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let raw = encode_message(text("apiVersion"), text("kind"), object)?;
    Some(envelope(text("apiVersion"), text("kind"), &raw))
}

/// The envelope around a message.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut whole = envelope_start(api_version, kind, raw.len());
    whole.extend_from_slice(raw);
    whole.extend_from_slice(ENVELOPE_END);
    whole
}

/// The envelope up to where a message of so many bytes begins.
pub fn envelope_start(api_version: &str, kind: &str, raw_bytes: usize) -> Vec<u8> {
    let mut out = Backwards::default();
    out.varint(raw_bytes as u64);
    out.key(2, 2);
    let before = out.0.len();
    out.text(2, kind.as_bytes());
    out.text(1, api_version.as_bytes());
    out.close(1, before);
    out.bytes(MAGIC);
    out.finish()
}

/// The `metadata` of a list, with its key: how every list's message begins.
pub fn list_start(metadata: &Value) -> Vec<u8> {
    let mut out = Backwards::default();
    if let Some(index) = facts::index("k8s.io.apimachinery.pkg.apis.meta.v1.ListMeta") {
        message(&mut out, facts::message(index), metadata);
    }
    out.close(1, 0);
    out.finish()
}

/// What stands before an item of so many bytes in a list's message.
pub fn item_start(item_bytes: usize) -> Vec<u8> {
    let mut out = Backwards::default();
    out.varint(item_bytes as u64);
    out.key(2, 2);
    out.finish()
}

/// A frame of a watch: four bytes of length, then the event with the object in its envelope.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Backwards::default();
    out.text(1, object);
    out.close(2, 0);
    out.text(1, event.as_bytes());
    let length = u32::try_from(out.0.len()).unwrap_or(u32::MAX);
    out.bytes(&length.to_be_bytes());
    out.finish()
}

fn message(out: &mut Backwards, message: &Message, value: &Value) {
    match message.form {
        Form::Fields => {
            let none = Map::new();
            fields(out, message, value.as_object().unwrap_or(&none));
        }
        Form::Time { micro } => {
            if let Some(since) = value.as_str().and_then(since_epoch) {
                let nanoseconds = if micro { i64::from(since.subsec_nanos()) / 1000 * 1000 } else { 0 };
                // Seconds count down to the past, nanoseconds always up.
                let (seconds, nanoseconds) =
                    if nanoseconds < 0 { (since.as_secs() - 1, nanoseconds + 1_000_000_000) } else { (since.as_secs(), nanoseconds) };
                out.number(2, nanoseconds as u64);
                out.number(1, seconds as u64);
            }
        }
        Form::Quantity => match value {
            Value::String(text) => out.text(1, text.as_bytes()),
            Value::Number(number) => out.text(1, number.to_string().as_bytes()),
            _ => out.text(1, b"0"),
        },
        Form::IntOrString => {
            let text = value.as_str();
            out.text(3, text.unwrap_or_default().as_bytes());
            out.number(2, signed(value).unwrap_or(0));
            out.number(1, u64::from(text.is_some()));
        }
        Form::Raw => out.text(1, value.to_string().as_bytes()),
        Form::Items => {
            for text in value.as_array().into_iter().flatten().rev().filter_map(Value::as_str) {
                out.text(1, text.as_bytes());
            }
        }
        Form::SchemaOrArray => match value {
            Value::Array(all) => one_of(out, message, 2, all),
            one => one_of(out, message, 1, std::slice::from_ref(one)),
        },
        Form::SchemaOrBool => {
            if value.is_object() {
                one_of(out, message, 2, std::slice::from_ref(value));
            }
            out.number(1, u64::from(value.as_bool().unwrap_or(value.is_object())));
        }
        Form::SchemaOrTexts => match value {
            Value::Array(names) => one_of(out, message, 2, names),
            one => one_of(out, message, 1, std::slice::from_ref(one)),
        },
    }
}

fn since_epoch(text: &str) -> Option<jiff::SignedDuration> {
    match text.strip_suffix('Z').and_then(|civil| civil.parse::<jiff::civil::DateTime>().ok()) {
        Some(time) => Some(time.duration_since(EPOCH)),
        None => text.parse::<jiff::Timestamp>().ok().map(|time| time.as_duration()),
    }
}

/// Values of one field.
fn one_of(out: &mut Backwards, message: &Message, number: u64, values: &[Value]) {
    if let Some(field) = message.field(number) {
        for value in values.iter().rev() {
            single(out, field.number, field.type_, value);
        }
    }
}

fn fields(out: &mut Backwards, message: &Message, members: &Map<String, Value>) {
    for field in message.fields.iter().rev() {
        if let Some(inner) = &field.embedded {
            let before = out.0.len();
            fields(out, inner, members);
            out.close(field.number, before);
            continue;
        }
        let value = members.get(&field.key).filter(|value| !value.is_null());
        match (field.count, value) {
            (Count::One, Some(value)) => single(out, field.number, field.type_, value),
            (Count::One, None) if field.always => zero(out, field.number, field.type_),
            (Count::Many, Some(Value::Array(items))) => items.iter().rev().for_each(|item| single(out, field.number, field.type_, item)),
            (Count::Map, Some(Value::Object(map))) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_unstable_by_key(|(key, _)| key.as_str());
                for (key, value) in entries.into_iter().rev() {
                    let before = out.0.len();
                    single(out, 2, field.type_, value);
                    out.text(1, key.as_bytes());
                    out.close(field.number, before);
                }
            }
            _ => {}
        }
    }
}

/// An integer as the wire has it.
fn signed(value: &Value) -> Option<u64> {
    value.as_i64().map(|number| number as u64).or_else(|| value.as_u64()).or_else(|| value.as_f64().map(|number| number as i64 as u64))
}

fn single(out: &mut Backwards, number: u32, type_: Type, value: &Value) {
    match type_ {
        Type::Text => out.text(number, value.as_str().unwrap_or_default().as_bytes()),
        Type::Bytes => out.text(number, &STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default()),
        Type::Bool => out.number(number, u64::from(value.as_bool().unwrap_or_default())),
        Type::Signed | Type::Unsigned => out.number(number, signed(value).unwrap_or_default()),
        Type::Double => {
            out.bytes(&value.as_f64().unwrap_or_default().to_le_bytes());
            out.key(number, 1);
        }
        Type::Float => {
            out.bytes(&(value.as_f64().unwrap_or_default() as f32).to_le_bytes());
            out.key(number, 5);
        }
        Type::Message(index) => {
            let before = out.0.len();
            message(out, facts::message(index), value);
            out.close(number, before);
        }
    }
}

/// A field that nobody set.
fn zero(out: &mut Backwards, number: u32, type_: Type) {
    single(out, number, type_, &Value::Null);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_config_map_is_what_go_writes() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "creationTimestamp": "1970-01-01T00:00:05Z"},
            "data": {"b": "2", "a": "1"}, "binaryData": {"x": "/w=="}});
        // metadata: name, generateName, namespace, selfLink, uid, resourceVersion, generation, creationTimestamp.
        let metadata = "0a01611200 1a00 2200 2a00 3200 3800 4204 0805 1000".replace(' ', "");
        let body = format!("0a{:02x}{metadata}12060a01611201311206 0a01621201321a060a01781201ff", metadata.len() / 2).replace(' ', "");
        assert_eq!(hex(&encode_message("v1", "ConfigMap", &object).unwrap()), body);
        let whole = encode(&object).unwrap();
        assert_eq!(hex(&whole[..21]), "6b3873000a0f0a0276311209436f6e6669674d6170");
        assert!(whole.ends_with(ENVELOPE_END));
    }

    #[test]
    fn numbers_texts_and_times_have_their_forms() {
        let service = json!({"spec": {"ports": [{"port": 80, "targetPort": "web"}, {"port": 81, "targetPort": -1}]}});
        let raw = hex(&encode_message("v1", "Service", &service).unwrap());
        // name, protocol, port, targetPort {type, intVal, strVal}, nodePort: none of them is a pointer.
        assert!(raw.contains("0a00120018502209080110001a037765622800"), "{raw}");
        assert!(raw.contains("0a001200185122 0f080010ffffffffffffffffff011a002800".replace(' ', "").as_str()), "{raw}");
        let lease = json!({"spec": {"renewTime": "1969-12-31T23:59:59.500000Z"}});
        let raw = hex(&encode_message("coordination.k8s.io/v1", "Lease", &lease).unwrap());
        assert!(raw.contains("08ffffffffffffffffff011080cab5ee01"), "{raw}");
    }

    #[test]
    fn a_frame_says_how_long_it_is() {
        assert_eq!(hex(&watch_frame("ADDED", b"xy")), "0000000d0a05414444454412040a027879");
        assert_eq!(hex(&list_start(&json!({"resourceVersion": "7"}))), "0a070a0012013 71a00".replace(' ', ""));
    }
}
