//! Bodies that a real Go client made: what it sends in protobuf is what it means in JSON, and what is sent back has the same bytes.
//!
//! `testdata/go/` holds pairs `NAME.pb` and `NAME.json` that client-go (v0.20) encoded from the same objects. Since then `metadata` has lost a
//! field that Go always wrote (`clusterName`), and some kinds have got fields that it always writes: those are read, but not compared byte
//! for byte ([`GROWN`]). `REGENT_GO_BODIES=DIR` checks other pairs.

use api::{
    Catalogue, Value,
    object::ObjectExt,
    protobuf,
    request::FieldValidation,
    structure::{self, Encoding},
};
use std::{fs, path::PathBuf};

/// Kinds whose messages have got fields since which Go writes even when they say nothing.
const GROWN: &[&str] =
    &["Pod", "Deployment", "StatefulSet", "DaemonSet", "Job", "Service", "PersistentVolumeClaim", "PersistentVolume", "Node", "Ingress"];
/// `clusterName` in an object's metadata, empty.
const LOST: &[u8] = &[15 << 3 | 2, 0];

/// What protobuf cannot tell from nothing is nothing.
fn settled(value: Value) -> Value {
    let is_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    };
    match value {
        Value::Object(members) => members.into_iter().map(|(key, value)| (key, settled(value))).filter(|(_, value)| !is_nothing(value)).collect(),
        Value::Array(items) => items.into_iter().map(settled).collect(),
        other => other,
    }
}

fn varint(bytes: &[u8], at: &mut usize) -> usize {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        number |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    number
}

fn with_length(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut rest = payload.len();
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    [&out, payload].concat()
}

/// The first two fields of a message, both with a length, and what follows: of an envelope its type and object, of an object its metadata.
fn first_of(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut at = 1;
    let length = varint(bytes, &mut at);
    (&bytes[at..at + length], &bytes[at + length..])
}

/// Go's body without what metadata has lost since.
fn as_of_today(body: &[u8]) -> Vec<u8> {
    let (type_meta, rest) = first_of(&body[protobuf::MAGIC.len()..]);
    let (object, end) = first_of(rest);
    let (metadata, content) = first_of(object);
    let lost = metadata.windows(LOST.len()).rposition(|window| window == LOST).expect("the field that Go wrote then");
    let metadata = [&metadata[..lost], &metadata[lost + LOST.len()..]].concat();
    let object = [&with_length(1, &metadata), content].concat();
    [protobuf::MAGIC, &with_length(1, type_meta), &with_length(2, &object), end].concat()
}

#[test]
fn what_go_sends_is_what_it_means() {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/go");
    let directory = PathBuf::from(std::env::var("REGENT_GO_BODIES").unwrap_or_else(|_| own.into()));
    let catalogue = Catalogue::built_in();
    let (mut seen, mut wrong) = (0, vec![]);
    for file in fs::read_dir(&directory)
        .expect("the bodies")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|end| end == "pb"))
    {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (body, json) = (fs::read(&file).expect("a body"), fs::read(file.with_extension("json")).expect("the same in JSON"));
        let Ok(decoded) = protobuf::decode(&body) else {
            wrong.push(format!("{name}: {:?}", protobuf::decode(&body).err()));
            continue;
        };
        let (group, version) = decoded.api_version().split_once('/').unwrap_or(("", decoded.api_version()));
        // Kinds and versions that are no more.
        let Some(kind) = catalogue.kind(group, decoded.kind()).filter(|kind| kind.versions.iter().any(|known| known == version)) else { continue };
        seen += 1;
        let read = |bytes: &[u8]| structure::decode_object(bytes, Encoding::Json, kind, version, FieldValidation::Ignore).map(|(object, _)| object);
        match (read(decoded.to_string().as_bytes()), read(&json)) {
            (Ok(from_protobuf), Ok(from_json)) => {
                let (one, other) = (settled(from_protobuf), settled(from_json.clone()));
                if one != other {
                    wrong.push(format!("{name}: protobuf says\n{one:#}\nJSON says\n{other:#}"));
                }
                if directory.as_os_str() == own && !GROWN.contains(&decoded.kind()) {
                    let written = protobuf::encode(&from_json).expect("a kind with a message");
                    if written != as_of_today(&body) {
                        wrong.push(format!("{name}: Go writes\n{:?}\nwe write\n{written:?}", as_of_today(&body)));
                    }
                }
            }
            (one, other) => wrong.push(format!("{name}: {:?} {:?}", one.err(), other.err())),
        }
    }
    assert!(wrong.is_empty(), "{} of {seen} bodies are read or written otherwise:\n{}", wrong.len(), wrong.join("\n"));
    assert!(seen >= 10, "only {seen} bodies in {}", directory.display());
}
