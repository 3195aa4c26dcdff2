//! Sets of fields, as `managedFields` names them (`FieldsV1`).
//!
//! A path is a list of elements in their written form: `f:NAME` a field or key of a map, `k:{...}` an item of a list by its
//! keys, `v:VALUE` an item by its value, `i:N` one by its index. A set is a tree of elements; a node may be a member itself.

use crate::{
    Value,
    schema::{ListType, Schema, Type},
    structure,
};
use serde_json::Map;
use std::{borrow::Cow, collections::BTreeMap, fmt::Write};

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    nodes: BTreeMap<String, Node>,
}

/// An element: whether it is in the set itself, and what of it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) member: bool,
    pub(super) children: Set,
}

impl Node {
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.nodes.is_empty()
    }
}

impl Set {
    /// From the `fieldsV1` of a managed fields entry. Elements of an unknown sort are left out; `None` for what is no element.
    pub fn from_value(fields: &Value) -> Option<Set> {
        let mut set = Set::default();
        for (element, below) in fields.as_object().into_iter().flatten().filter(|(element, _)| *element != ".") {
            // In the written form that [`item_element`] gives, whatever order the keys came in.
            let canonical = match element.split_at_checked(2)? {
                ("f:", _) => element.clone(),
                ("k:", keys) => {
                    let keys = serde_json::from_str::<BTreeMap<String, Value>>(keys).ok()?;
                    key_element(keys.iter().map(|(key, value)| (key.as_str(), value)))
                }
                // Read as bodies are: exactly, also where a number has many digits.
                ("v:", value) => format!("v:{}", structure::parse(value.as_bytes(), structure::Encoding::Json).ok()?),
                ("i:", index) => {
                    index.parse::<i64>().ok()?;
                    element.clone()
                }
                (sort, _) if sort.ends_with(':') => continue,
                _ => return None,
            };
            let children = Set::from_value(below)?;
            let member = children.nodes.is_empty() || below.get(".").is_some();
            set.nodes.insert(canonical, Node { member, children });
        }
        Some(set)
    }

    /// As `fieldsV1`.
    pub fn into_value(self) -> Value {
        let field = |(element, node): (String, Node)| {
            let mut below = node.children.into_value();
            if let Value::Object(map) = &mut below
                && node.member
                && !map.is_empty()
            {
                map.insert(".".into(), Value::Object(Map::new()));
            }
            (element, below)
        };
        Value::Object(self.nodes.into_iter().map(field).collect())
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
        self.nodes.values().all(|node| !node.member && node.children.is_empty())
    }

    pub fn insert(&mut self, path: &[String]) {
        if let Some((first, rest)) = path.split_first() {
            let node = self.nodes.entry(first.clone()).or_default();
            if rest.is_empty() {
                node.member = true;
            } else {
                node.children.insert(rest);
            }
        }
    }

    /// Puts a whole element in the place of what was there.
    pub(super) fn put(&mut self, element: String, node: Node) {
        self.nodes.insert(element, node);
    }

    /// Of whole elements, in any order. Of an element that comes again, only itself is in the set.
    pub(super) fn of_nodes(nodes: impl Iterator<Item = (String, Node)>) -> Set {
        let mut nodes: Vec<(String, Node)> = nodes.collect();
        nodes.sort_by(|(a, _), (b, _)| a.cmp(b));
        nodes.dedup_by(|(again, _), (first, node)| {
            let same = again == first;
            if same {
                node.children = Set::default();
            }
            same
        });
        Set { nodes: nodes.into_iter().collect() }
    }

    /// Whether the element itself is in the set.
    pub fn has(&self, element: &str) -> bool {
        self.nodes.get(element).is_some_and(|node| node.member)
    }

    /// What the set holds below an element.
    pub fn below(&self, element: &str) -> Option<&Set> {
        self.nodes.get(element).map(|node| &node.children).filter(|children| !children.is_empty())
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
            return;
        }
        for (element, node) in other.nodes {
            match self.nodes.get_mut(&element) {
                Some(own) => {
                    own.member |= node.member;
                    own.children.join(node.children);
                }
                None => drop(self.nodes.insert(element, node)),
            }
        }
    }

    /// Gives up the members of another set.
    pub fn give_up(&mut self, other: &Set) {
        for (element, theirs) in &other.nodes {
            let Some(own) = self.nodes.get_mut(element) else { continue };
            own.member &= !theirs.member;
            own.children.give_up(&theirs.children);
            if own.is_empty() {
                self.nodes.remove(element);
            }
        }
    }

    fn keep(&self, other: &Set, member: impl Fn(bool, bool) -> bool + Copy) -> Set {
        let mut kept = Set::default();
        let nothing = Node::default();
        for (element, node) in &self.nodes {
            let theirs = other.nodes.get(element).unwrap_or(&nothing);
            let node = Node { member: member(node.member, theirs.member), children: node.children.keep(&theirs.children, member) };
            if node.member || !node.children.nodes.is_empty() {
                kept.nodes.insert(element.clone(), node);
            }
        }
        kept
    }

    pub fn intersection(&self, other: &Set) -> Set {
        self.keep(other, |own, theirs| own && theirs)
    }
    pub fn difference(&self, other: &Set) -> Set {
        self.keep(other, |own, theirs| own && !theirs)
    }

    /// Gives up the members of another set and everything below them.
    pub fn strip(&mut self, other: &Set) {
        for (element, theirs) in &other.nodes {
            if theirs.member {
                self.nodes.remove(element);
                continue;
            }
            let Some(own) = self.nodes.get_mut(element) else { continue };
            own.children.strip(&theirs.children);
            if own.is_empty() {
                self.nodes.remove(element);
            }
        }
    }

    /// Without the members of `other` and everything below them.
    pub fn without(mut self, other: &Set) -> Set {
        self.strip(other);
        self
    }

    /// The same with every declared field on the way a member too: who owns `a.b` owns the struct `a`.
    pub fn with_structs(&self, schema: Option<&Schema>) -> Set {
        let mut all = Set::default();
        for (element, node) in &self.nodes {
            let name = element.strip_prefix("f:");
            let declared = name.is_some_and(|name| schema.is_some_and(|schema| schema.type_ == Type::Object && schema.field(name).is_some()));
            let child = schema.and_then(|schema| match name {
                Some(name) => schema.child(name),
                None => schema.items.as_deref(),
            });
            all.nodes.insert(element.clone(), Node { member: node.member || declared, children: node.children.with_structs(child) });
        }
        all
    }

    /// All paths in words, `.spec.containers[name="a"].image`, in order.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = vec![];
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, parent: &str, paths: &mut Vec<String>) {
        for (element, node) in &self.nodes {
            let path = format!("{parent}{}", element_text(element));
            if node.member {
                paths.push(path.clone());
            }
            node.children.collect(&path, paths);
        }
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

fn key_element<'a>(keys: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let mut element = String::from("k:");
    for (i, (key, value)) in keys.enumerate() {
        element.push(if i == 0 { '{' } else { ',' });
        // Writing into a String cannot fail.
        let _ = write!(element, "{}:{value}", Value::from(key));
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
        let set = Set::from_value(&fields).unwrap();
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
        assert!(Set::from_value(&json!([1, "x"])).unwrap().is_empty());
        assert!(Set::from_value(&json!({"data": {}})).is_none() && Set::from_value(&json!({"k:x": {}})).is_none());
        assert!(Set::from_value(&json!({"x:data": {}})).unwrap().is_empty());
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
