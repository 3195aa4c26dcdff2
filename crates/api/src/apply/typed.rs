//! Walks over objects by their schema: the fields of one, the differences of two, their merge, the removal of some.
//!
//! What is atomic is a leaf. Lists of maps and of values are walked by their items' keys and values. What has no schema is
//! walked as maps, with lists as leaves, as Kubernetes deduces it.

use super::set::{self, Node, Part, Set, element_text, field_element, item_element};
use crate::{
    Value,
    schema::{Field, ListType, Schema, Type},
};
use serde_json::Map;
use std::collections::BTreeMap;

/// How a value is seen.
#[derive(Clone, Copy)]
pub struct View<'a> {
    schema: Option<&'a Schema>,
    atomic: bool,
}

/// What two objects differ in.
#[derive(Debug, Default)]
pub struct Difference {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

impl Difference {
    /// The same but for some fields and everything below them.
    pub fn without(self, ignored: &Set) -> Difference {
        Difference { added: self.added.without(ignored), modified: self.modified.without(ignored), removed: self.removed.without(ignored) }
    }
    /// What the new object says differently.
    pub fn set(&self) -> Set {
        self.added.union(&self.modified)
    }
}

/// Equal as JSON; `1` and `1.0` are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b))),
        _ => a == b,
    }
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    }
}

fn map_of(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// The items of a list by their elements, in order. Items without keys are left out.
fn elements<'v>(list: &Schema, value: Option<&'v Value>) -> Vec<(String, &'v Value)> {
    let items = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().enumerate().filter_map(|(i, item)| item_element(list, item, i).ok().map(|element| (element, item))).collect()
}

/// Where in an object a comparison is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Object,
    Metadata,
    Below,
}

/// Makes the element of a value where there was none.
type Whole = fn(&View<'_>, &Value) -> Node;

/// What two values differ in, themselves and below.
#[derive(Default)]
struct Differs {
    added: Node,
    modified: Node,
    removed: Node,
}

impl Differs {
    fn put(&mut self, element: impl FnOnce() -> String, below: Differs) {
        let Differs { added, modified, removed } = below;
        let mut all = [(&mut self.added, added), (&mut self.modified, modified), (&mut self.removed, removed)];
        let mut left = all.iter().filter(|(_, node)| !node.is_empty()).count();
        if left == 0 {
            return;
        }
        let mut element = element();
        for (whole, node) in all.iter_mut().filter(|(_, node)| !node.is_empty()) {
            left -= 1;
            let name = if left == 0 { std::mem::take(&mut element) } else { element.clone() };
            whole.children.put(name, std::mem::take(node));
        }
    }
}

/// How a walk goes on below a value.
enum Shape<'a> {
    Leaf,
    Map,
    List(&'a Schema),
}

impl<'a> View<'a> {
    pub fn of(schema: &'a Schema) -> View<'a> {
        View { schema: Some(schema), atomic: schema.atomic }
    }
    fn field(field: &'a Field) -> View<'a> {
        View { schema: Some(&field.schema), atomic: field.is_atomic() }
    }
    fn unknown() -> View<'a> {
        View { schema: None, atomic: false }
    }

    fn shape(&self, value: Option<&Value>) -> Shape<'a> {
        let Some(schema) = self.schema else {
            return if value.is_some_and(Value::is_object) { Shape::Map } else { Shape::Leaf };
        };
        match schema.type_ {
            _ if self.atomic => Shape::Leaf,
            Type::Object | Type::Map => Shape::Map,
            Type::Array if schema.list != ListType::Atomic => Shape::List(schema),
            Type::Any if schema.name.is_empty() && value.is_some_and(Value::is_object) => Shape::Map,
            _ => Shape::Leaf,
        }
    }
    fn member(&self, key: &str) -> View<'a> {
        let Some(schema) = self.schema else { return View::unknown() };
        match schema.type_ {
            Type::Object => schema.field(key).map_or_else(View::unknown, View::field),
            Type::Map => schema.items.as_deref().map_or_else(View::unknown, View::of),
            _ => View::unknown(),
        }
    }
    fn declares(&self, key: &str) -> bool {
        self.schema.is_some_and(|schema| schema.type_ == Type::Object && schema.field(key).is_some())
    }
    fn item(&self) -> View<'a> {
        self.schema.and_then(|schema| schema.items.as_deref()).map_or_else(View::unknown, View::of)
    }

    /// The fields that a value says something about.
    pub fn fields(&self, value: &Value) -> Set {
        let mut set = Set::default();
        self.collect(value, &mut vec![], &mut set);
        set
    }

    fn collect(&self, value: &Value, path: &mut Vec<String>, set: &mut Set) {
        match self.shape(Some(value)) {
            Shape::Map => {
                for (key, below) in value.as_object().into_iter().flatten() {
                    path.push(field_element(key));
                    self.member(key).collect(below, path, set);
                    if below.is_null() || below.as_object().is_some_and(Map::is_empty) || !self.declares(key) {
                        set.insert(path);
                    }
                    path.pop();
                }
            }
            Shape::List(list) => {
                for (element, item) in elements(list, Some(value)) {
                    path.push(element);
                    self.item().collect(item, path, set);
                    set.insert(path);
                    path.pop();
                }
            }
            Shape::Leaf => set.insert(path),
        }
    }

    /// What two whole objects differ in. Their own `metadata.managedFields` do not count.
    pub fn compare(&self, old: &Value, new: &Value) -> Difference {
        self.compare_by(old, new, |view, value| Node::of_whole(view.whole(value)))
    }

    /// The same, with what is wholly new as text.
    pub fn compare_new(&self, old: &Value, new: &Value) -> Difference {
        self.compare_by(old, new, |view, value| {
            let mut text = String::new();
            view.write_whole(value, &mut text);
            Node::of_text(text)
        })
    }

    fn compare_by(&self, old: &Value, new: &Value, whole: Whole) -> Difference {
        let differs = self.differ(Some(old), Some(new), Depth::Object, whole);
        Difference { added: differs.added.children, modified: differs.modified.children, removed: differs.removed.children }
    }

    /// Bottom up: what is equal costs one comparison, and no path is made for it.
    fn differ(&self, old: Option<&Value>, new: Option<&Value>, depth: Depth, whole: Whole) -> Differs {
        let mut differs = Differs::default();
        match (old, new) {
            (None, None) => return differs,
            (None, Some(new)) if depth == Depth::Below => {
                differs.added = whole(self, new);
                return differs;
            }
            (None, Some(_)) => differs.added.member = true,
            (Some(_), None) => differs.removed.member = true,
            // Two objects' books differ where nothing else does.
            (Some(old), Some(new)) if depth == Depth::Below && same(old, new) => return differs,
            (Some(_), Some(_)) => {}
        }
        let shape = self.shape(new.filter(|new| !new.is_null()).or(old));
        let leaf = matches!(shape, Shape::Leaf) || (is_empty(old) && is_empty(new));
        if leaf {
            differs.modified.member = matches!((old, new), (Some(old), Some(new)) if depth == Depth::Below || !same(old, new));
            return differs;
        }
        match shape {
            Shape::Map => {
                let (old, new) = (map_of(old), map_of(new));
                let keys = old
                    .into_iter()
                    .flat_map(Map::keys)
                    .chain(new.into_iter().flat_map(Map::keys).filter(|key| old.is_none_or(|old| !old.contains_key(*key))));
                for key in keys.filter(|key| depth != Depth::Metadata || *key != "managedFields") {
                    let depth = if depth == Depth::Object && key == "metadata" { Depth::Metadata } else { Depth::Below };
                    let below = self.member(key).differ(old.and_then(|old| old.get(key)), new.and_then(|new| new.get(key)), depth, whole);
                    differs.put(|| field_element(key), below);
                }
            }
            Shape::List(list) => {
                let mut pairs: BTreeMap<String, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
                elements(list, old).into_iter().for_each(|(element, item)| pairs.entry(element).or_default().0.push(item));
                elements(list, new).into_iter().for_each(|(element, item)| pairs.entry(element).or_default().1.push(item));
                for (element, (old, new)) in pairs {
                    let mut below = Differs::default();
                    match (old.as_slice(), new.as_slice()) {
                        ([] | [_], [] | [_]) => below = self.item().differ(old.first().copied(), new.first().copied(), Depth::Below, whole),
                        ([], _) => below.added.member = true,
                        (_, []) => below.removed.member = true,
                        (old, new) if old.len() == new.len() && old.iter().zip(new).all(|(old, new)| same(old, new)) => {}
                        _ => below.modified.member = true,
                    }
                    differs.put(|| element, below);
                }
            }
            Shape::Leaf => {}
        }
        differs
    }

    /// A value where there was none: all of it is new. In written form.
    fn whole(&self, value: &Value) -> Value {
        match self.shape(Some(value)) {
            _ if is_empty(Some(value)) => set::whole(std::iter::empty()),
            Shape::Map => {
                set::whole(map_of(Some(value)).into_iter().flatten().map(|(key, below)| (field_element(key), self.member(key).whole(below))))
            }
            Shape::List(list) => {
                set::whole_of_items(elements(list, Some(value)).into_iter().map(|(element, item)| (element, self.item().whole(item))))
            }
            Shape::Leaf => set::whole(std::iter::empty()),
        }
    }

    /// The same as JSON, without a tree between: of a new object this is nearly all there is to say.
    fn write_whole(&self, value: &Value, out: &mut String) {
        match (self.shape(Some(value)), value) {
            (Shape::Map, Value::Object(map)) if !map.is_empty() => {
                out.push_str(set::WHOLE);
                for (key, below) in map {
                    out.push(',');
                    set::push_element(out, "f:", key);
                    self.member(key).write_whole(below, out);
                }
                out.push('}');
            }
            (Shape::List(list), Value::Array(_)) => {
                let mut items = elements(list, Some(value));
                if items.is_empty() {
                    return out.push_str(set::NOTHING);
                }
                items.sort_by(|(a, _), (b, _)| a.cmp(b));
                out.push_str(set::WHOLE);
                for same in items.chunk_by(|(a, _), (b, _)| a == b) {
                    let [(element, item), again @ ..] = same else { continue };
                    out.push(',');
                    set::push_element(out, "", element);
                    // Of an item that comes again, only itself is in the set.
                    if again.is_empty() { self.item().write_whole(item, out) } else { out.push_str(set::NOTHING) }
                }
                out.push('}');
            }
            _ => out.push_str(set::NOTHING),
        }
    }

    /// The live object with what the applied one says.
    pub fn merge(&self, live: Option<&Value>, applied: Option<&Value>) -> Value {
        let (live, applied) = match (live, applied) {
            (Some(live), None) => return live.clone(),
            (None, Some(applied)) => (None, applied),
            (None, None) => return Value::Null,
            (live, Some(applied)) => (live, applied),
        };
        match self.shape(Some(applied)) {
            // A null says nothing about what is in a map or list that is there.
            Shape::Map if applied.is_object() || (applied.is_null() && live.is_some_and(|live| live.is_object() && !is_empty(Some(live)))) => {
                let mut merged = map_of(live).cloned().unwrap_or_default();
                for (key, below) in applied.as_object().into_iter().flatten() {
                    let old = merged.remove(key);
                    merged.insert(key.clone(), self.member(key).merge(old.as_ref(), Some(below)));
                }
                Value::Object(merged)
            }
            Shape::List(list) if applied.is_array() || (applied.is_null() && live.is_some_and(|live| live.is_array() && !is_empty(Some(live)))) => {
                self.merge_list(list, live, applied)
            }
            _ => applied.clone(),
        }
    }

    /// Items of both in one order: that of the applied list, with the others where the live list has them.
    fn merge_list(&self, list: &Schema, live: Option<&Value>, applied: &Value) -> Value {
        let (left, right) = (elements(list, live), elements(list, Some(applied)));
        let in_left: BTreeMap<&str, &Value> = left.iter().rev().map(|(element, item)| (element.as_str(), *item)).collect();
        let in_right: BTreeMap<&str, &Value> = right.iter().map(|(element, item)| (element.as_str(), *item)).collect();
        let mut shared = right.iter().map(|(element, _)| element.as_str()).filter(|element| in_left.contains_key(element)).peekable();
        let mut done = std::collections::BTreeSet::new();
        let mut merged = vec![];
        let (mut l, mut r) = (0, 0);
        while l < left.len() || r < right.len() {
            if let (Some((of_left, _)), Some((of_right, item))) = (left.get(l), right.get(r)) {
                if of_left == of_right {
                    done.insert(of_right.as_str());
                    merged.push(self.item().merge(in_left.get(of_left.as_str()).copied(), Some(item)));
                    (l, r) = (l + 1, r + 1);
                    shared.next();
                    continue;
                }
                if in_right.contains_key(of_left.as_str()) && shared.peek().is_some_and(|next| next != of_left) {
                    l += 1;
                    continue;
                }
            }
            if let Some((element, item)) = left.get(l) {
                if !in_right.contains_key(element.as_str()) {
                    merged.push((*item).clone());
                    l += 1;
                    continue;
                }
                if done.contains(element.as_str()) {
                    l += 1;
                }
            }
            if let Some((element, item)) = right.get(r) {
                done.insert(element.as_str());
                merged.push(self.item().merge(in_left.get(element.as_str()).copied(), Some(item)));
                r += 1;
                if shared.peek() == Some(&element.as_str()) {
                    shared.next();
                }
            }
        }
        Value::Array(merged)
    }

    /// The value without the members of a set. What becomes empty by that goes too.
    pub fn remove(&self, value: &Value, set: &Set) -> Option<Value> {
        self.remove_part(value, set.part())
    }

    fn remove_part(&self, value: &Value, set: Part<'_>) -> Option<Value> {
        match (self.shape(Some(value)), value) {
            (Shape::Map, Value::Object(map)) => {
                let mut kept = Map::new();
                for (key, below) in map {
                    let element = field_element(key);
                    if set.has(&element) {
                        continue;
                    }
                    let below = match set.below(&element) {
                        Some(deeper) => self.member(key).remove_part(below, deeper),
                        None => Some(below.clone()),
                    };
                    if let Some(below) = below {
                        kept.insert(key.clone(), below);
                    }
                }
                (!kept.is_empty() || map.is_empty()).then_some(Value::Object(kept))
            }
            (Shape::List(list), Value::Array(items)) => {
                let mut kept = vec![];
                for (i, item) in items.iter().enumerate() {
                    let element = item_element(list, item, i).unwrap_or_default();
                    if set.has(&element) {
                        continue;
                    }
                    kept.extend(match set.below(&element) {
                        Some(deeper) => self.item().remove_part(item, deeper),
                        None => Some(item.clone()),
                    });
                }
                (!kept.is_empty() || items.is_empty()).then_some(Value::Array(kept))
            }
            _ => Some(value.clone()),
        }
    }

    /// The paths of all maps and lists in a value that are only replaced as a whole.
    pub fn atomics(&self, value: &Value) -> Vec<String> {
        let mut found = vec![];
        self.find_atomics(value, &mut String::new(), &mut found);
        found
    }

    fn find_atomics(&self, value: &Value, path: &mut String, found: &mut Vec<String>) {
        let Some(schema) = self.schema else { return };
        let length = path.len();
        match (schema.type_, value) {
            (Type::Object | Type::Map, Value::Object(map)) => {
                if self.atomic {
                    found.push(path.clone());
                }
                for (key, below) in map.iter().filter(|(key, _)| self.declares(key)) {
                    path.push_str(&format!(".{key}"));
                    self.member(key).find_atomics(below, path, found);
                    path.truncate(length);
                }
            }
            (Type::Array, Value::Array(items)) => {
                if self.atomic || schema.list == ListType::Atomic {
                    found.push(path.clone());
                }
                for (i, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{i}]"));
                    self.item().find_atomics(item, path, found);
                    path.truncate(length);
                }
            }
            _ => {}
        }
    }

    /// Whether a value fits its schema, in the words of server-side apply.
    pub fn check(&self, value: &Value) -> Vec<String> {
        let mut errors = vec![];
        self.validate(value, &mut String::new(), &mut errors);
        errors
    }

    fn validate(&self, value: &Value, path: &mut String, errors: &mut Vec<String>) {
        let Some(schema) = self.schema else { return };
        if value.is_null() {
            return;
        }
        let shown = || format!("&{{{}}}", crate::merge::go_text(value));
        match (schema.type_, value) {
            (Type::Object | Type::Map, Value::Object(map)) => {
                for (key, below) in map {
                    let length = path.len();
                    path.push_str(&format!(".{key}"));
                    if schema.type_ == Type::Object && !schema.preserve_unknown && schema.field(key).is_none() {
                        errors.push(format!("{path}: field not declared in schema"));
                    } else {
                        self.member(key).validate(below, path, errors);
                    }
                    path.truncate(length);
                }
            }
            (Type::Object | Type::Map, _) => errors.push(format!("{path}: expected map, got {}", shown())),
            (Type::Array, Value::Array(items)) => {
                let mut seen = std::collections::BTreeSet::new();
                for (i, item) in items.iter().enumerate() {
                    match item_element(schema, item, i) {
                        Err(why) => errors.push(format!("{path}: element {i}: {why}")),
                        Ok(element) => {
                            let text = element_text(&element);
                            if !seen.insert(element) {
                                errors.push(format!("{path}: duplicate entries for key {text}"));
                            }
                            let length = path.len();
                            path.push_str(&text);
                            self.item().validate(item, path, errors);
                            path.truncate(length);
                        }
                    }
                }
            }
            (Type::Array, _) => errors.push(format!("{path}: expected list, got {}", shown())),
            (Type::String | Type::Bytes, Value::String(_)) => {}
            (Type::String | Type::Bytes, _) => {
                errors.push(format!("{path}: expected string, got &value.valueUnstructured{{Value:{}}}", crate::merge::go_text(value)))
            }
            (Type::Integer { .. } | Type::Number, Value::Number(_)) => {}
            (Type::Integer { .. } | Type::Number, other) => {
                let found = match other {
                    Value::String(_) => "string",
                    Value::Bool(_) => "bool",
                    Value::Array(_) => "[]interface {}",
                    _ => "map[string]interface {}",
                };
                errors.push(format!("{path}: expected numeric (int or float), got {found}"));
            }
            (Type::Boolean, Value::Bool(_)) => {}
            (Type::Boolean, _) => errors.push(format!("{path}: expected boolean, got {}", shown())),
            _ => {}
        }
    }
}
