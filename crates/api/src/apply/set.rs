//! Sets of fields, as `managedFields` names them (`FieldsV1`).
//!
//! A path is a list of elements in their written form: `f:NAME` a field or key of a map, `k:{...}` an item of a list by its
//! keys, `v:VALUE` an item by its value, `i:N` one by its index. A set is a tree of elements; a node may be a member itself.

use crate::{
    Value,
    schema::{ListType, Schema, Type},
    structure,
};
use serde_json::{Map, map::Entry};
use std::{borrow::Cow, collections::BTreeMap, fmt::Write};

/// What marks an element that is in a set itself beside what is below it.
const ITSELF: &str = ".";
/// So long the text of a set usually is at most.
const TEXT_BYTES_USUAL: usize = 2048;

/// Elements and what is below each, as `fieldsV1` has them: an element with nothing below is in the set itself.
type Nodes = Map<String, Value>;

/// A set of paths. It is kept as it is written, so that reading and writing it costs next to nothing; the outermost elements
/// have no [`ITSELF`] beside them. What is below an element may also be there as text ([`Node::of_text`]): such a set can give
/// up and join others and be written as text, no more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    nodes: Nodes,
}

/// An element: whether it is in the set itself, and what of it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) member: bool,
    pub(super) children: Set,
    /// All of it in written form, in the place of the children.
    text: Option<String>,
}

impl Node {
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.nodes.is_empty()
    }
    /// What [`whole`] has written.
    pub(super) fn of_whole(written: Value) -> Node {
        let mut nodes = if let Value::Object(nodes) = written { nodes } else { Nodes::new() };
        nodes.remove(ITSELF);
        Node { member: true, children: Set { nodes }, text: None }
    }
    /// The same of what has been written as JSON: an element that is in the set itself, and what is below it.
    pub(super) fn of_text(text: String) -> Node {
        let text = (text != NOTHING).then_some(text);
        Node { member: true, children: Set::default(), text }
    }
    fn into_value(self) -> Value {
        if let Some(text) = self.text {
            return Value::String(text);
        }
        let mut nodes = self.children.nodes;
        settle(&mut nodes, self.member);
        Value::Object(nodes)
    }
}

/// An element with nothing below it, and the beginning of one with something, as JSON.
pub(super) const NOTHING: &str = "{}";
pub(super) const WHOLE: &str = r#"{".":{}"#;

/// Writes an element and the colon behind it.
pub(super) fn push_element(out: &mut String, sort: &str, name: &str) {
    out.push('"');
    out.push_str(sort);
    push_escaped(out, name);
    out.push_str("\":");
}

fn push_nodes(out: &mut String, nodes: &Nodes) {
    out.push('{');
    for (i, (element, below)) in nodes.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        push_element(out, "", element);
        match below {
            Value::Object(below) => push_nodes(out, below),
            Value::String(text) => out.push_str(text),
            _ => out.push_str(NOTHING),
        }
    }
    out.push('}');
}

/// An element that is in a set itself and with all that is below it, as it is written. No element of `below` comes twice.
pub(super) fn whole(below: impl Iterator<Item = (String, Value)>) -> Value {
    let mut below = below.peekable();
    if below.peek().is_none() {
        return Value::Object(Nodes::new());
    }
    let itself = (ITSELF.to_string(), Value::Object(Nodes::new()));
    // A map that is made of all its members at once searches for none of them.
    Value::Object(std::iter::once(itself).chain(below).collect())
}

/// The same for items of a list. Of an item that comes again, only itself is in the set.
pub(super) fn whole_of_items(below: impl Iterator<Item = (String, Value)>) -> Value {
    let mut nodes = Nodes::new();
    for (element, written) in below {
        match nodes.entry(element) {
            Entry::Vacant(place) => drop(place.insert(written)),
            Entry::Occupied(mut again) => drop(again.insert(Value::Object(Nodes::new()))),
        }
    }
    whole(nodes.into_iter())
}

/// The elements below an element.
fn elements_of(nodes: &Nodes) -> impl Iterator<Item = (&String, &Nodes)> {
    nodes.iter().filter_map(|(element, below)| Some((element, below.as_object().filter(|_| element != ITSELF)?)))
}

/// Whether an element is in a set itself, by what is below it.
fn is_member(below: &Nodes) -> bool {
    below.is_empty() || below.contains_key(ITSELF)
}

/// Writes down whether an element is in the set itself. False if nothing is left of it: then it has to go.
fn settle(below: &mut Nodes, member: bool) -> bool {
    let marked = below.contains_key(ITSELF);
    let has_children = below.len() > usize::from(marked);
    match (member && has_children, marked) {
        (true, false) => drop(below.insert(ITSELF.into(), Value::Object(Nodes::new()))),
        (false, true) => drop(below.remove(ITSELF)),
        _ => {}
    }
    member || has_children
}

fn node_mut<'a>(nodes: &'a mut Nodes, element: &str) -> Option<&'a mut Nodes> {
    nodes.get_mut(element).and_then(Value::as_object_mut)
}

/// Whether an element is surely in the form that [`item_element`] gives: its text is what it means.
fn is_plain(element: &str) -> bool {
    let simple = |text: &str| text.bytes().all(|byte| byte >= 0x20 && !matches!(byte, b'"' | b'\\'));
    match element.split_at_checked(2) {
        Some(("f:", _)) => true,
        Some(("k:", keys)) => {
            let only = keys.strip_prefix("{\"").and_then(|keys| keys.strip_suffix("\"}")).and_then(|keys| keys.split_once("\":\""));
            only.is_some_and(|(key, value)| simple(key) && simple(value))
        }
        Some(("v:", value)) => value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).is_some_and(simple),
        _ => false,
    }
}

/// Read as bodies are: exactly, also where a number has many digits.
fn exact(text: &str) -> Option<Value> {
    structure::parse(text.as_bytes(), structure::Encoding::Json).ok()
}

/// An element in the form that [`item_element`] gives, whatever order its keys came in. Of an unknown sort: the inner `None`.
fn canonical(element: &str) -> Option<Option<String>> {
    Some(Some(match element.split_at_checked(2)? {
        ("f:", _) => element.to_string(),
        ("k:", keys) => {
            let keys: BTreeMap<_, _> = exact(keys)?.as_object()?.clone().into_iter().collect();
            key_element(keys.iter().map(|(key, value)| (key.as_str(), value)))
        }
        ("v:", value) => format!("v:{}", exact(value)?),
        ("i:", index) => {
            index.parse::<i64>().ok()?;
            element.to_string()
        }
        (sort, _) if sort.ends_with(':') => return Some(None),
        _ => return None,
    }))
}

/// Reads what is below an element. `None` for what is no element.
fn read(below: Value) -> Option<Nodes> {
    let Value::Object(mut nodes) = below else { return Some(Nodes::new()) };
    if nodes.keys().all(|element| element == ITSELF || is_plain(element)) {
        for (element, below) in &mut nodes {
            *below = if element == ITSELF { Value::Object(Nodes::new()) } else { read_node(below.take())? };
        }
        return Some(nodes);
    }
    let mut found = Nodes::new();
    for (element, below) in nodes {
        if element == ITSELF {
            found.insert(element, Value::Object(Nodes::new()));
        } else if let Some(element) = canonical(&element)? {
            found.insert(element, read_node(below)?);
        }
    }
    Some(found)
}

fn read_node(below: Value) -> Option<Value> {
    let mut below = read(below)?;
    let member = is_member(&below);
    settle(&mut below, member);
    Some(Value::Object(below))
}

fn insert(nodes: &mut Nodes, path: &[String]) {
    let Some((first, rest)) = path.split_first() else { return };
    let was_member = nodes.get(first).and_then(Value::as_object).is_some_and(is_member);
    if let Value::Object(below) = nodes.entry(first.as_str()).or_insert_with(|| Value::Object(Nodes::new())) {
        insert(below, rest);
        settle(below, was_member || rest.is_empty());
    }
}

fn join(nodes: &mut Nodes, other: Nodes) {
    for (element, theirs) in other {
        match (node_mut(nodes, &element), theirs) {
            _ if element == ITSELF => {}
            (Some(own), Value::Object(theirs)) => {
                let member = is_member(own) || is_member(&theirs);
                join(own, theirs);
                settle(own, member);
            }
            (_, theirs) => drop(nodes.insert(element, theirs)),
        }
    }
}

fn give_up(nodes: &mut Nodes, other: &Nodes) {
    for (element, theirs) in elements_of(other) {
        let Some(own) = node_mut(nodes, element) else { continue };
        let member = is_member(own) && !is_member(theirs);
        give_up(own, theirs);
        if !settle(own, member) {
            nodes.remove(element);
        }
    }
}

fn keep(nodes: &Nodes, other: &Nodes, member: impl Fn(bool, bool) -> bool + Copy) -> Nodes {
    let mut kept = Nodes::new();
    let nothing = Nodes::new();
    for (element, own) in elements_of(nodes) {
        let theirs = other.get(element).and_then(Value::as_object);
        let mut below = keep(own, theirs.unwrap_or(&nothing), member);
        if settle(&mut below, member(is_member(own), theirs.is_some_and(is_member))) {
            kept.insert(element.clone(), Value::Object(below));
        }
    }
    kept
}

fn strip(nodes: &mut Nodes, other: &Nodes) {
    for (element, theirs) in elements_of(other) {
        if is_member(theirs) {
            nodes.remove(element);
            continue;
        }
        let Some(own) = node_mut(nodes, element) else { continue };
        let member = is_member(own);
        strip(own, theirs);
        if !settle(own, member) {
            nodes.remove(element);
        }
    }
}

fn with_structs(nodes: &Nodes, schema: Option<&Schema>) -> Nodes {
    let mut all = Nodes::new();
    for (element, own) in elements_of(nodes) {
        let name = element.strip_prefix("f:");
        let declared = name.is_some_and(|name| schema.is_some_and(|schema| schema.type_ == Type::Object && schema.field(name).is_some()));
        let child = schema.and_then(|schema| match name {
            Some(name) => schema.child(name),
            None => schema.items.as_deref(),
        });
        let mut below = with_structs(own, child);
        settle(&mut below, is_member(own) || declared);
        all.insert(element.clone(), Value::Object(below));
    }
    all
}

fn collect(nodes: &Nodes, parent: &str, paths: &mut Vec<String>) {
    for (element, own) in elements_of(nodes) {
        let path = format!("{parent}{}", element_text(element));
        if is_member(own) {
            paths.push(path.clone());
        }
        collect(own, &path, paths);
    }
}

/// A set, or what of one is below an element.
#[derive(Clone, Copy)]
pub(super) struct Part<'a>(&'a Nodes);

impl<'a> Part<'a> {
    /// Whether the element itself is in it.
    pub(super) fn has(&self, element: &str) -> bool {
        self.0.get(element).and_then(Value::as_object).is_some_and(is_member)
    }
    /// What it holds below an element.
    pub(super) fn below(&self, element: &str) -> Option<Part<'a>> {
        let below = self.0.get(element).and_then(Value::as_object)?;
        (!below.is_empty()).then_some(Part(below))
    }
}

impl Set {
    /// From the `fieldsV1` of a managed fields entry. Elements of an unknown sort are left out; `None` for what is no element.
    pub fn from_value(fields: Value) -> Option<Set> {
        let mut nodes = read(fields)?;
        nodes.remove(ITSELF);
        Some(Set { nodes })
    }

    /// As `fieldsV1`.
    pub fn into_value(self) -> Value {
        Value::Object(self.nodes)
    }

    /// As the JSON of `fieldsV1`.
    pub fn into_text(self) -> String {
        let mut text = String::with_capacity(TEXT_BYTES_USUAL);
        push_nodes(&mut text, &self.nodes);
        text
    }

    /// Of paths with dots, `metadata.name`.
    pub fn of(paths: &[&str]) -> Set {
        let mut set = Set::default();
        for path in paths {
            let elements: Vec<String> = path.split('.').map(|name| format!("f:{name}")).collect();
            set.insert(&elements);
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn insert(&mut self, path: &[String]) {
        insert(&mut self.nodes, path);
    }

    /// Puts a whole element in the place of what was there. It MUST NOT be empty.
    pub(super) fn put(&mut self, element: String, node: Node) {
        self.nodes.insert(element, node.into_value());
    }

    /// All of it.
    pub(super) fn part(&self) -> Part<'_> {
        Part(&self.nodes)
    }

    pub fn union(&self, other: &Set) -> Set {
        let mut all = self.clone();
        all.join(other.clone());
        all
    }

    /// Takes in all of another set.
    pub fn join(&mut self, other: Set) {
        if self.nodes.is_empty() {
            *self = other;
        } else {
            join(&mut self.nodes, other.nodes);
        }
    }

    /// Gives up the members of another set.
    pub fn give_up(&mut self, other: &Set) {
        give_up(&mut self.nodes, &other.nodes);
    }

    pub fn intersection(&self, other: &Set) -> Set {
        Set { nodes: keep(&self.nodes, &other.nodes, |own, theirs| own && theirs) }
    }
    pub fn difference(&self, other: &Set) -> Set {
        Set { nodes: keep(&self.nodes, &other.nodes, |own, theirs| own && !theirs) }
    }

    /// Gives up the members of another set and everything below them.
    pub fn strip(&mut self, other: &Set) {
        strip(&mut self.nodes, &other.nodes);
    }

    /// Without the members of `other` and everything below them.
    pub fn without(mut self, other: &Set) -> Set {
        self.strip(other);
        self
    }

    /// The same with every declared field on the way a member too: who owns `a.b` owns the struct `a`.
    pub fn with_structs(&self, schema: Option<&Schema>) -> Set {
        Set { nodes: with_structs(&self.nodes, schema) }
    }

    /// All paths in words, `.spec.containers[name="a"].image`, in order.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = vec![];
        collect(&self.nodes, "", &mut paths);
        paths
    }
}

/// The element of a field or of a key of a map.
pub(super) fn field_element(name: &str) -> String {
    ["f:", name].concat()
}

/// An element as errors show it.
pub fn element_text(element: &str) -> String {
    match element.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("k:", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let mut keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            keys.sort();
            format!("[{}]", keys.join(","))
        }
        Some(("v:", value)) => format!("[={value}]"),
        Some(("i:", index)) => format!("[{index}]"),
        _ => format!(".{element}"),
    }
}

/// A text as JSON.
pub(super) fn push_text(out: &mut String, text: &str) {
    out.push('"');
    push_escaped(out, text);
    out.push('"');
}

/// The same without its quotation marks.
fn push_escaped(out: &mut String, text: &str) {
    if text.bytes().all(|byte| byte >= 0x20 && !matches!(byte, b'"' | b'\\')) {
        return out.push_str(text);
    }
    if text.bytes().all(|byte| byte >= 0x20) {
        for part in text.split_inclusive(['"', '\\']) {
            let plain = part.trim_end_matches(['"', '\\']);
            out.push_str(plain);
            if plain.len() < part.len() {
                out.push('\\');
                out.push_str(&part[plain.len()..]);
            }
        }
        return;
    }
    let written = Value::from(text).to_string();
    out.push_str(&written[1..written.len() - 1]);
}

fn key_element<'a>(keys: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let mut element = String::from("k:");
    for (i, (key, value)) in keys.enumerate() {
        element.push(if i == 0 { '{' } else { ',' });
        push_text(&mut element, key);
        element.push(':');
        match value {
            Value::String(text) => push_text(&mut element, text),
            // Writing into a String cannot fail.
            other => drop(write!(element, "{other}")),
        }
    }
    element.push_str(if element.len() == 2 { "{}" } else { "}" });
    element
}

/// Keys of list items that may be left out, by the type of the item, and what they are then.
const KEY_DEFAULTS: [(&str, &str, &str); 4] =
    [("ContainerPort", "protocol", "TCP"), ("ServicePort", "protocol", "TCP"), ("LocalObjectReference", "name", ""), ("SecretReference", "name", "")];

/// How a list of a schema names one of its items. The error is what is wrong with the item.
pub fn item_element(schema: &Schema, item: &Value, index: usize) -> Result<String, String> {
    match &schema.list {
        ListType::Atomic => Ok(format!("i:{index}")),
        ListType::Set => match item {
            Value::Object(_) | Value::Array(_) | Value::Null => Err("associative list without keys has an element that's a map type".into()),
            item => Ok(format!("v:{item}")),
        },
        ListType::Map(keys) => {
            let Value::Object(map) = item else { return Err("associative list with keys may not have non-map elements".into()) };
            let of = schema.items.as_deref().map_or("", Schema::short_name);
            let mut found: Vec<(&str, Cow<'_, Value>)> = Vec::with_capacity(keys.len());
            for key in keys {
                let default = || KEY_DEFAULTS.iter().find(|(type_, name, _)| *type_ == of && *name == key).map(|(_, _, value)| Value::from(*value));
                let given = map.get(key.as_ref()).filter(|value| !value.is_null()).map(Cow::Borrowed);
                if let Some(value) = given.or_else(|| default().map(Cow::Owned)) {
                    found.push((key.as_ref(), value));
                }
            }
            found.sort_by_key(|(key, _)| *key);
            if found.is_empty() {
                return Err(format!(
                    "associative list with keys has an element that omits key field {:?} (and doesn't have default value)",
                    keys.first().map_or("", |key| key.as_ref())
                ));
            }
            Ok(key_element(found.iter().map(|(key, value)| (*key, value.as_ref()))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sets_keep_their_written_form() {
        let fields = json!({"f:data": {".": {}, "f:k": {}}, "f:spec": {"f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}}, "f:finalizers": {"v:\"a/b\"": {}}}});
        let set = Set::from_value(fields.clone()).unwrap();
        assert_eq!(set.clone().into_value(), fields);
        assert_eq!(
            set.paths(),
            [
                ".data",
                ".data.k",
                ".spec.finalizers[=\"a/b\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"].name"
            ]
        );
        assert!(Set::from_value(json!([1, "x"])).unwrap().is_empty());
        assert!(Set::from_value(json!({"data": {}})).is_none() && Set::from_value(json!({"k:x": {}})).is_none());
        assert!(Set::from_value(json!({"x:data": {}})).unwrap().is_empty());
    }

    #[test]
    fn what_is_written_oddly_is_brought_into_form() {
        let odd = json!({".": {}, "f:a": {".": {}}, "f:b": {"x:unknown": {}}, "f:c": null, "x:gone": {}, "i:3": {},
            "k:{ \"b\": 1, \"a\": \"\\u0078\" }": {"f:d": {}}, "v:1.0": {}, "v:\"\\u0041\"": {}});
        let set = Set::from_value(odd).unwrap();
        let expected = json!({"f:a": {}, "f:b": {}, "f:c": {}, "i:3": {}, "k:{\"a\":\"x\",\"b\":1}": {"f:d": {}}, "v:1.0": {}, "v:\"A\"": {}});
        assert_eq!(set.into_value(), expected);
        assert!(Set::from_value(json!({"i:x": {}})).is_none() && Set::from_value(json!({"f:a": {"?": {}}})).is_none());
    }

    #[test]
    fn an_element_is_a_member_beside_what_is_below_it() {
        let written = |set: &Set| set.clone().into_value();
        let mut set = Set::of(&["a", "a.b", "c.d"]);
        assert_eq!(written(&set), json!({"f:a": {".": {}, "f:b": {}}, "f:c": {"f:d": {}}}));
        set.give_up(&Set::of(&["a"]));
        assert_eq!(written(&set), json!({"f:a": {"f:b": {}}, "f:c": {"f:d": {}}}));
        set.join(Set::of(&["c", "a.e"]));
        assert_eq!(written(&set), json!({"f:a": {"f:b": {}, "f:e": {}}, "f:c": {".": {}, "f:d": {}}}));
        set.give_up(&Set::of(&["c.d", "a.b"]));
        assert_eq!(written(&set), json!({"f:a": {"f:e": {}}, "f:c": {}}));
        set.strip(&Set::of(&["a.e"]));
        assert_eq!(written(&set), json!({"f:c": {}}));
    }

    #[test]
    fn sets_are_sets() {
        let set = |paths: &[&str]| Set::of(paths);
        let (a, b) = (set(&["a", "b.c", "b.d"]), set(&["b.c", "e"]));
        assert_eq!(a.intersection(&b), set(&["b.c"]));
        assert_eq!(a.difference(&b), set(&["a", "b.d"]));
        assert_eq!(a.union(&b), set(&["a", "b.c", "b.d", "e"]));
        assert_eq!(a.clone().without(&set(&["b"])), set(&["a"]));
        let mut rest = a.clone();
        rest.give_up(&b);
        assert_eq!(rest, a.difference(&b));
        assert!(a.difference(&a).is_empty());
    }
}
