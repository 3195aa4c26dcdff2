//! YAML to JSON text, as Kubernetes does it: the first document, YAML 1.1 booleans, keys as strings, order kept.
//!
//! Double keys stay in the text, so that the JSON decoder behind this finds them.

use crate::limits;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy};
use std::fmt::{self, Display};

/// Appends a YAML node as JSON text.
struct Node<'a> {
    text: &'a mut String,
    /// It is the key of an entry: a string whatever it is, and no collection.
    key: bool,
}

impl<'a> Node<'a> {
    /// Of a key, a value, or an item; what aliases repeat counts each time.
    fn append<E: Error>(self, token: impl Display) -> Result<(), E> {
        use fmt::Write;
        // Cannot fail: the text is in memory.
        let _ = if self.key { write!(self.text, "\"{token}\"") } else { write!(self.text, "{token}") };
        within_limits(self.text)
    }

    fn append_string<E: Error>(self, string: &str) -> Result<(), E> {
        self.text.push_str(&serde_json::Value::from(string).to_string());
        within_limits(self.text)
    }

    /// Begins a collection; the text to go on with.
    fn collection<E: Error>(self, open: char) -> Result<&'a mut String, E> {
        if self.key {
            return Err(E::custom("invalid map key: it is a collection"));
        }
        self.text.push(open);
        Ok(self.text)
    }
}

fn within_limits<E: Error>(text: &str) -> Result<(), E> {
    let most = limits::YAML_AS_JSON_BYTES_MAX;
    if text.len() > most { Err(E::custom(format_args!("document contains excessive aliasing: more than {most} bytes"))) } else { Ok(()) }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.append("null")
    }
    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.append("null")
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.deserialize(deserializer)
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.append(value)
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.append(value)
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.append(value)
    }
    fn visit_i128<E: Error>(self, value: i128) -> Result<(), E> {
        self.append(value)
    }
    fn visit_u128<E: Error>(self, value: u128) -> Result<(), E> {
        self.append(value)
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        // What JSON has no number for becomes a string, and then the wrong type.
        if !value.is_finite() {
            self.append_string(&value.to_string())
        } else if value.fract() == 0.0 && value.abs() < 1e15 {
            self.append(format_args!("{value:.0}"))
        } else {
            self.append(serde_json::Value::from(value))
        }
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.append_string(value)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let text = self.collection('[')?;
        let mut end = text.len();
        while items.next_element_seed(Node { text, key: false })?.is_some() {
            end = text.len();
            text.push(',');
        }
        text.truncate(end);
        text.push(']');
        within_limits(text)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let text = self.collection('{')?;
        let mut end = text.len();
        while entries.next_key_seed(Node { text, key: true })?.is_some() {
            text.push(':');
            entries.next_value_seed(Node { text, key: false })?;
            end = text.len();
            text.push(',');
        }
        text.truncate(end);
        text.push('}');
        within_limits(text)
    }
}

/// Levels of a document that are read on the stack of whoever asks. What may be deeper is read on a stack of its own, for the frames of the
/// parser are long: without optimisation, a hundred levels fill a thread's.
const LEVELS_IN_PLACE_MAX: usize = 90;
/// That stack, enough for [`limits::NESTING_DEPTH_MAX`]; what is not used of it costs nothing.
const STACK_BYTES: usize = 16 << 20;

/// The first document of a YAML text. The error begins with `yaml:`.
pub fn to_json(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "yaml: invalid leading UTF-8 octet".to_string())?;
    let document = first_document(text);
    if document.lines().all(|line| matches!(line.trim_start().as_bytes().first(), None | Some(b'#'))) {
        return Ok("null".into());
    }
    if levels_at_most(document) <= LEVELS_IN_PLACE_MAX {
        return read(document);
    }
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || read(document));
        let reader = reader.map_err(|error| format!("yaml: a nested document cannot be read now: {error}"))?;
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// How deep a document can be: by what opens collections, and by how far its lines are indented. Either may stand for two levels.
fn levels_at_most(document: &str) -> usize {
    let opened = document.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count();
    let indented = document.lines().map(|line| line.bytes().take_while(|byte| matches!(byte, b' ' | b'-' | b'?' | b':')).count());
    2 * (opened + indented.max().unwrap_or(0))
}

fn read(document: &str) -> Result<String, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Merge,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_nodes: limits::YAML_NODES_MAX,
            max_depth: limits::NESTING_DEPTH_MAX,
            // One anchor may be used often: what comes of it is limited in bytes and nodes.
            enforce_alias_anchor_ratio: false,
        },
    };
    let mut text = String::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(document, options, |deserializer| {
        Node { text: &mut text, key: false }.deserialize(deserializer)
    });
    read.map(|()| text).map_err(|error| {
        let line = error.location().map(|location| location.line());
        let message = error.to_string();
        let message = message.lines().next().unwrap_or_default();
        // Go says where before it says what.
        let message = in_go_words(message.rsplit_once(" at line ").map_or(message, |(what, _)| what));
        match line {
            Some(line) => format!("yaml: line {line}: {message}"),
            None => format!("yaml: {message}"),
        }
    })
}

/// The commonest mistakes in the words that Kubernetes has for them.
fn in_go_words(message: &str) -> &str {
    if message.starts_with("tabs disallowed") {
        "found character that cannot start any token"
    } else if message.starts_with("unclosed bracket '{'") {
        "did not find expected ',' or '}'"
    } else if message.starts_with("unclosed bracket '['") {
        "did not find expected ',' or ']'"
    } else {
        message
    }
}

/// Up to the next `---`; one at the start opens the first document.
fn first_document(text: &str) -> &str {
    let mut start = 0;
    let mut seen = false;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            if seen {
                return &text[start..at];
            }
            start = at;
            seen = true;
        } else if !seen && !line.trim().is_empty() && !line.starts_with(['#', '%']) {
            seen = true;
        }
        at += line.len();
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deep_does_not_end_the_process() {
        let deep = |open: &str, close: &str, levels: usize| format!("{}1{}", open.repeat(levels), close.repeat(levels));
        let indented = |levels: usize| (0..levels).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>();
        for levels in [90, 190, 50_000] {
            for text in [deep("{a: ", "}", levels), deep("[", "]", levels), deep("{? a : ", "}", levels), deep("- ", "", levels)] {
                assert_eq!(to_json(text.as_bytes()).is_ok(), levels < limits::NESTING_DEPTH_MAX, "{levels} levels of {}", &text[..2]);
            }
            // Two levels for each bracket.
            assert_eq!(to_json(deep("[a: ", "]", levels).as_bytes()).is_ok(), 2 * levels < limits::NESTING_DEPTH_MAX, "{levels}");
        }
        assert!(to_json(indented(150).as_bytes()).is_ok() && to_json(indented(300).as_bytes()).is_err());
    }

    #[test]
    fn yaml_becomes_json() {
        for (yaml, json) in [
            ("a: 1\nb: [x, 2.5, true, null]\n", "{\"a\":1,\"b\":[\"x\",2.5,true,null]}"),
            ("metadata: {name: a}\n---\nmetadata: {name: b}\n", "{\"metadata\":{\"name\":\"a\"}}"),
            ("---\nmetadata: {name: e}\n", "{\"metadata\":{\"name\":\"e\"}}"),
            ("# note\n---\na: b\n---\nc: d\n", "{\"a\":\"b\"}"),
            ("k: no\nl: yes\n", "{\"k\":false,\"l\":true}"),
            ("{1: x}", "{\"1\":\"x\"}"),
            ("k: &v hello\nl: *v\n", "{\"k\":\"hello\",\"l\":\"hello\"}"),
            ("k: one\nk: two\n", "{\"k\":\"one\",\"k\":\"two\"}"),
            ("k: |\n  a\n  b\n", "{\"k\":\"a\\nb\\n\"}"),
            ("port: 1.0\n", "{\"port\":1}"),
            ("", "null"),
            ("hello", "\"hello\""),
            ("{\"metadata\": {\"name\": \"h\"}}", "{\"metadata\":{\"name\":\"h\"}}"),
        ] {
            assert_eq!(to_json(yaml.as_bytes()).as_deref(), Ok(json), "{yaml}");
        }
        assert!(to_json(b"metadata: {name: f\n").unwrap_err().starts_with("yaml: line"));
        assert!(to_json(b"a: [1\nb").is_err());
    }

    #[test]
    fn little_text_does_not_become_much() {
        // Each level of a key would double the backslashes of the one within.
        let keys = format!("{}a: b", "? ".repeat(60));
        assert_eq!(to_json(keys.as_bytes()).unwrap_err(), "yaml: line 1: invalid map key: it is a collection");
        let aliases = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a,".repeat(100_000));
        assert!(to_json(aliases.as_bytes()).unwrap_err().contains("excessive aliasing"));
        let few = format!("a: &a {}\nb: [{}]\n", "x".repeat(1_000), "*a,".repeat(100));
        assert_eq!(to_json(few.as_bytes()).map(|text| text.len()), Ok(1_000 * 101 + 314));
    }
}
