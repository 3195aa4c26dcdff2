//! Who set which field: `metadata.managedFields`, and server-side apply, which decides by it.
//!
//! Both are functions of the live object, what the client sent, the schema and the caller's clock.
//!
//! - An update takes the fields that it changes: they leave the sets of all others. What it removes leaves every set.
//! - An apply says all that its manager wants. What it says is merged into the live object; what it said the last time and
//!   no longer says goes, unless somebody else owns it. A field that another manager owns and that would change is a
//!   conflict, unless forced; then it changes hands.

mod scale;
mod set;
mod typed;

pub use scale::{books_of_scale, take_books_of_scale};
pub use set::Set;
use std::{borrow::Cow, collections::BTreeMap, sync::LazyLock};
use typed::{Difference, View};

use crate::{
    Kind, Value, limits,
    object::ObjectExt,
    schema::{Schema, Type, Zero},
    status::{Result, Status},
};
use serde_json::{Map, json};

/// The fields that belong to the server and to nobody's set.
const STRIPPED: [&str; 11] = [
    "apiVersion",
    "kind",
    "metadata",
    "metadata.name",
    "metadata.namespace",
    "metadata.creationTimestamp",
    "metadata.selfLink",
    "metadata.uid",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.resourceVersion",
];
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// [`STRIPPED`] as a set.
static NOBODYS: LazyLock<Set> = LazyLock::new(|| Set::of(&STRIPPED));
/// What old updates are kept under when there are too many.
const ANCIENT: &str = "ancient-changes";
/// Who had set what was there before anybody kept books.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Who writes what.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    pub kind: &'a Kind,
    /// The version that is written, without the group.
    pub version: &'a str,
    /// Name of the field manager; empty is `unknown`.
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// RFC 3339 in whole seconds.
    pub now: &'a str,
}

impl Writer<'_> {
    fn api_version(&self) -> String {
        if self.kind.group.is_empty() { self.version.into() } else { format!("{}/{}", self.kind.group, self.version) }
    }
    fn manager(&self) -> &str {
        if self.manager.is_empty() { "unknown" } else { self.manager }
    }
    /// What this write does not change whatever it says, and therefore never owns.
    fn ignored(&self) -> Set {
        if (self.kind.group.as_str(), self.kind.kind.as_str()) == ("certificates.k8s.io", "CertificateSigningRequest") {
            // What is asked for stays, and of the answer each part has its own way in.
            return match self.subresource {
                "approval" => Set::of(&["spec", "status.certificate"]),
                "status" => Set::of(&["spec", "status.conditions"]),
                _ => Set::of(&["spec", "status"]),
            };
        }
        match self.subresource {
            "" if self.kind.has_status() && !self.kind.status_open => Set::of(&["status"]),
            "finalize" => Set::of(&["status"]),
            "status" => match (self.kind.group.as_str(), self.kind.kind.as_str()) {
                ("apps", "Deployment") => Set::of(&["spec", "metadata.labels"]),
                ("", "Pod") => Set::of(&["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"]),
                ("admissionregistration.k8s.io" | "apiextensions.k8s.io" | "apiregistration.k8s.io" | "flowcontrol.apiserver.k8s.io", _)
                | ("storage.k8s.io", "VolumeAttachment") => Set::of(&["spec", "metadata"]),
                _ if self.kind.status_open => Set::default(),
                _ => Set::of(&["spec"]),
            },
            _ => Set::default(),
        }
    }
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    applies: bool,
    api_version: String,
    subresource: String,
    time: Option<String>,
    set: Set,
}

impl Entry {
    fn of(writer: &Writer<'_>, applies: bool) -> Entry {
        Entry {
            manager: writer.manager().into(),
            applies,
            api_version: writer.api_version(),
            subresource: writer.subresource.into(),
            time: None,
            set: Set::default(),
        }
    }
    fn is(&self, other: &Entry) -> bool {
        (&self.manager, self.applies, &self.api_version, &self.subresource) == (&other.manager, other.applies, &other.api_version, &other.subresource)
    }
    fn from_value(entry: Value) -> Option<Entry> {
        let Value::Object(mut entry) = entry else { return None };
        let mut text = |key: &str| match entry.remove(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let applies = match text("operation")?.as_str() {
            "Apply" => true,
            "Update" => false,
            _ => return None,
        };
        if text("fieldsType")? != "FieldsV1" {
            return None;
        }
        let (manager, api_version) = (text("manager").unwrap_or_default(), text("apiVersion").unwrap_or_default());
        let (subresource, time) = (text("subresource").unwrap_or_default(), text("time"));
        let set = entry.remove("fieldsV1").map_or(Some(Set::default()), Set::from_value)?;
        Some(Entry { manager, applies, api_version, subresource, time, set })
    }
    fn into_value(self) -> Value {
        let mut entry = Map::new();
        for (key, text) in [("manager", self.manager), ("apiVersion", self.api_version), ("subresource", self.subresource)] {
            if !text.is_empty() {
                entry.insert(key.into(), json!(text));
            }
        }
        entry.insert("operation".into(), json!(if self.applies { "Apply" } else { "Update" }));
        entry.insert("fieldsType".into(), json!("FieldsV1"));
        entry.insert("fieldsV1".into(), self.set.into_value());
        if let Some(time) = self.time {
            entry.insert("time".into(), json!(time));
        }
        Value::Object(entry)
    }
    /// How a conflict names it.
    fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applies {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// The entries of an object; `None` if one of them cannot be read.
fn decode(object: &Value) -> Option<Vec<Entry>> {
    read(object.list_at("metadata.managedFields").to_vec())
}

fn read(books: Vec<Value>) -> Option<Vec<Entry>> {
    books.into_iter().map(Entry::from_value).collect()
}

/// Leaves out what was written in a version that the kind never had: nobody can say any more what it means.
fn forget_unknown_versions(entries: &mut Vec<Entry>, kind: &Kind) {
    entries.retain(|entry| {
        let (group, version) = entry.api_version.split_once('/').unwrap_or(("", &entry.api_version));
        let old = group == kind.group && (version.contains("alpha") || version.contains("beta"));
        kind.custom.is_some()
            || old
            || (group == kind.group && kind.versions.iter().any(|known| known == version))
            || (group == kind.group && crate::schema::is_known(group, version, &kind.kind))
    });
}

fn encode(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.set.is_empty());
    if entries.is_empty() {
        object.remove("metadata.managedFields");
        return;
    }
    entries.sort_by(|a, b| {
        (!a.applies, &a.time, &a.manager, &a.api_version, &a.subresource).cmp(&(!b.applies, &b.time, &b.manager, &b.api_version, &b.subresource))
    });
    object.set("metadata.managedFields", entries.into_iter().map(Entry::into_value).collect::<Vec<_>>());
}

fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    object.remove("metadata.managedFields");
    object
}

fn schema_of(writer: &Writer<'_>) -> std::sync::Arc<Schema> {
    writer.kind.schema(writer.version).unwrap_or_else(Schema::custom)
}

/// Structures that must be there and are pointers in Go: nobody has them without setting them.
const POINTERS: &[(&str, &str)] = &[("IPAddressSpec", "parentRef")];

/// The object that nobody has set anything in: what Go shows of an empty one.
fn blank(schema: &Schema) -> Value {
    let mut map = Map::new();
    for field in schema.fields.iter().filter(|field| field.always.is_some() || !field.omit_zero) {
        let value = match (field.always, field.required, field.schema.type_) {
            (None, true, Type::Object) if POINTERS.contains(&(schema.short_name(), field.name.as_ref())) => continue,
            (Some(Zero::Object), ..) | (None, true, Type::Object) => blank(&field.schema),
            (Some(always), ..) => always.value(),
            (None, true, Type::String) => json!(""),
            (None, true, Type::Integer { .. } | Type::Number) => json!(0),
            (None, true, Type::Boolean) => json!(false),
            (None, true, _) => Value::Null,
            (None, false, _) => continue,
        };
        map.insert(field.name.to_string(), value);
    }
    Value::Object(map)
}

/// What of a configuration does not fit its schema.
fn untyped(view: &View<'_>, config: &Value) -> Option<String> {
    match view.check(config).as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        all => Some(format!("errors:\n  {}\n", all.join("\n  "))),
    }
}

/// The live object with what `config` says, as an apply merges, without any books: how mutating policies change objects. They
/// may say nothing of what is only replaced as a whole.
pub fn merged(live: &Value, config: &Value, kind: &Kind, version: &str) -> Result<Value, String> {
    let schema = kind.schema(version).unwrap_or_else(Schema::custom);
    let view = View::of(&schema);
    if let Some(all) = untyped(&view, config) {
        return Err(format!("failed to convert patch object to typed object: {all}"));
    }
    match view.atomics(config).as_slice() {
        [] => Ok(view.merge(Some(live), Some(config))),
        all => Err(format!("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}", all.join(", "))),
    }
}

/// Keeps the books of a create (`old` is `None`), an update or a patch: `new` is what will be stored, with the
/// `managedFields` that the client sent, if any. Call after defaulting and before admission.
pub fn update(old: Option<&Value>, new: &mut Value, writer: &Writer<'_>) {
    let schema = schema_of(writer);
    let sent = match new.remove("metadata.managedFields") {
        Some(Value::Array(sent)) => sent,
        _ => vec![],
    };
    let reset = sent.len() == 1 && sent[0].as_object().is_some_and(|entry| entry.values().all(Value::is_null));
    let live = || old.and_then(decode).unwrap_or_default();
    let mut entries = match read(sent) {
        _ if reset => vec![],
        Some(entries) if !entries.is_empty() && writer.subresource.is_empty() => entries,
        _ => live(),
    };
    if entries.is_empty() && old.is_some_and(|old| !old.uid().is_empty()) {
        // Nobody keeps books of this object until somebody applies it.
        return;
    }
    forget_unknown_versions(&mut entries, writer.kind);
    let before = old.map_or_else(|| Cow::Owned(blank(&schema)), Cow::Borrowed);
    record(&mut entries, &before, new, writer, &schema);
    encode(new, capped(entries));
}

/// The `managedFields` of a new object as JSON: what [`update`] puts into it, where that is all the writer's own. `None` where it
/// is not, or nothing: then [`update`] knows better.
pub fn books_of_new(new: &Value, writer: &Writer<'_>) -> Option<String> {
    let is_sent = new.at("metadata.managedFields").is_some();
    if is_sent || !writer.subresource.is_empty() || writer.manager().len() > limits::FIELD_MANAGER_CHARS_MAX {
        return None;
    }
    let schema = schema_of(writer);
    let Difference { added: mut own, modified, .. } = View::of(&schema).compare_new(&blank(&schema), new).without(&writer.ignored());
    own.join(modified);
    own.give_up(&NOBODYS);
    if own.is_empty() {
        return None;
    }
    let mut text = String::from(r#"[{"apiVersion":"#);
    set::push_text(&mut text, &writer.api_version());
    text.push_str(r#","fieldsType":"FieldsV1","fieldsV1":"#);
    text.push_str(&own.into_text());
    for (key, value) in [(r#","manager":"#, writer.manager()), (r#","operation":"#, "Update"), (r#","time":"#, writer.now)] {
        text.push_str(key);
        set::push_text(&mut text, value);
    }
    text.push_str("}]");
    Some(text)
}

/// What a write changes, as each version in which somebody owns something says it.
struct Differences {
    /// In the version that is written.
    own: Difference,
    others: BTreeMap<String, Difference>,
}

impl Differences {
    fn of(before: &Value, after: &Value, writer: &Writer<'_>, view: &View<'_>, entries: &[Entry]) -> Differences {
        let own = view.compare(before, after).without(&writer.ignored());
        let mut others = BTreeMap::new();
        let written = writer.api_version();
        for entry in entries.iter().filter(|entry| entry.api_version != written) {
            let version = entry.api_version.rsplit('/').next().unwrap_or_default();
            // The kinds of definitions that a webhook converts cannot be compared here: their fields count by name.
            if others.contains_key(&entry.api_version) || !writer.kind.versions.iter().any(|known| known == version) || !converts(writer.kind) {
                continue;
            }
            let Some(schema) = writer.kind.schema(version) else { continue };
            let [before, after] = [before, after].map(|object| in_version(object, writer, version));
            others.insert(entry.api_version.clone(), View::of(&schema).compare(&before, &after).without(&writer.ignored()));
        }
        Differences { own, others }
    }

    fn of_entry(&self, entry: &Entry) -> &Difference {
        self.others.get(&entry.api_version).unwrap_or(&self.own)
    }
}

/// Whether a kind's hooks turn one version into another.
fn converts(kind: &Kind) -> bool {
    kind.stored_as.is_none() && kind.custom.as_ref().is_none_or(|custom| custom.conversion == crate::custom::Conversion::None)
}

/// An object that is in the writer's version, in another one.
fn in_version(object: &Value, writer: &Writer<'_>, version: &str) -> Value {
    let mut object = object.clone();
    let kind = writer.kind;
    kind.view(writer.version).map_or(kind, |view| &**view).hooks.to_stored(writer.version, &mut object);
    if version != kind.version() {
        kind.view(version).map_or(kind, |view| &**view).hooks.from_stored(version, &mut object);
    }
    without_managed_fields(&object)
}

/// What a write changed leaves all others' sets and joins the writer's.
fn record(entries: &mut Vec<Entry>, before: &Value, after: &Value, writer: &Writer<'_>, schema: &Schema) {
    let differences = Differences::of(before, after, writer, &View::of(schema), entries);
    for entry in entries.iter_mut() {
        let difference = differences.of_entry(entry);
        for lost in [&difference.added, &difference.modified, &difference.removed] {
            entry.set.give_up(lost);
        }
    }
    let mut own = differences.own.added;
    own.join(differences.own.modified);
    own.give_up(&NOBODYS);
    if !own.is_empty() {
        let fresh = Entry::of(writer, false);
        if !entries.iter().any(|entry| entry.is(&fresh)) {
            entries.push(fresh.clone());
        }
        if let Some(entry) = entries.iter_mut().find(|entry| entry.is(&fresh)) {
            entry.set.join(own);
            entry.time = Some(writer.now.into());
        }
    }
}

/// Merges the oldest updates of one version into one entry while there are too many.
fn capped(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.retain(|entry| !entry.set.is_empty());
    while entries.iter().filter(|entry| !entry.applies).count() > limits::MANAGED_FIELDS_UPDATERS_MAX {
        let oldest =
            entries.iter().enumerate().filter(|(_, entry)| !entry.applies && entry.manager != ANCIENT).min_by(|(_, a), (_, b)| a.time.cmp(&b.time));
        let Some(oldest) = oldest.map(|(i, _)| i) else { break };
        let old = entries.remove(oldest);
        let bucket = Entry { manager: ANCIENT.into(), subresource: String::new(), ..old };
        match entries.iter_mut().find(|entry| entry.is(&bucket)) {
            Some(entry) => {
                entry.set = entry.set.union(&bucket.set);
                entry.time = entry.time.take().max(bucket.time);
            }
            None => entries.push(bucket),
        }
        if entries.iter().all(|entry| entry.applies || entry.manager == ANCIENT) {
            break;
        }
    }
    entries
}

/// A group, version and kind as Go prints them.
fn gvk_text(object: &Value) -> String {
    let version = object.api_version();
    let version = if version.contains('/') { version.to_string() } else { format!("/{version}") };
    format!("{version}, Kind={}", object.kind())
}

/// Server-side apply of `config` to the live object (`None` makes a new one). Gives the object to be checked, defaulted and
/// stored. The result equals the live object but for `managedFields` if nothing changes.
pub fn apply(live: Option<&Value>, config: &Value, writer: &Writer<'_>, force: bool) -> Result<Value> {
    let odd = match config {
        Value::Array(_) => Some("array"),
        Value::String(_) => Some("string"),
        Value::Number(_) => Some("number"),
        Value::Bool(_) => Some("bool"),
        Value::Object(_) | Value::Null => None,
    };
    if let Some(found) = odd {
        return Err(Status::bad_request(format!(
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
        )));
    }
    if (config.kind(), config.api_version()) != (writer.kind.kind.as_str(), writer.api_version().as_str()) {
        let shown = if config.api_version().is_empty() && config.kind().is_empty() { "/, Kind=".to_string() } else { gvk_text(config) };
        return Err(Status::bad_request(format!("invalid object type: {shown}")));
    }
    if config.at("metadata.managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let schema = schema_of(writer);
    let view = View::of(&schema);
    if let Some(all) = untyped(&view, config) {
        return Err(Status::unknown(format!(
            "failed to create typed patch object ({}/{}; {}): {all}",
            config.namespace(),
            config.name(),
            gvk_text(config)
        )));
    }
    match run(live, config, writer, &view, &schema, force) {
        Err(conflicts) if allowed(live, writer, &view, &conflicts) => run(live, config, writer, &view, &schema, true),
        other => other,
    }
    .map_err(|conflicts| conflict_status(&conflicts))
    .and_then(|mut object| {
        check_other_versions(&object, writer)?;
        remember_for_client_side(live, config, writer, &mut object);
        Ok(object)
    })
}

/// The object must be what managers of its other versions could have written too: their sets are read in those versions.
fn check_other_versions(object: &Value, writer: &Writer<'_>) -> Result<()> {
    if writer.kind.custom.is_none() {
        return Ok(());
    }
    for entry in decode(object).unwrap_or_default() {
        let version = entry.api_version.rsplit('/').next().unwrap_or_default();
        if version == writer.version || !entry.subresource.is_empty() {
            continue;
        }
        let Some(schema) = writer.kind.schema(version) else { continue };
        if let Some(first) = View::of(&schema).check(&without_managed_fields(object)).first() {
            return Err(Status::unknown(format!("failed to convert new object: {first}")));
        }
    }
    Ok(())
}

/// What other managers own and would lose.
type Conflicts = Vec<Entry>;

fn run(live: Option<&Value>, config: &Value, writer: &Writer<'_>, view: &View<'_>, schema: &Schema, force: bool) -> Result<Value, Conflicts> {
    let empty = || json!({"apiVersion": writer.api_version(), "kind": writer.kind.kind});
    let before = live.map_or_else(empty, without_managed_fields);
    let mut entries = live.and_then(decode).unwrap_or_default();
    if let Some(live) = live
        && entries.is_empty()
    {
        let unknown = Writer { manager: BEFORE_FIRST_APPLY, ..*writer };
        record(&mut entries, &blank(schema), live, &unknown, schema);
    }
    forget_unknown_versions(&mut entries, writer.kind);
    let fresh = Entry::of(writer, true);
    let previous = entries.iter().position(|entry| entry.is(&fresh)).map(|i| entries.remove(i));
    let said = view.fields(config).without(&writer.ignored());
    let own = said.difference(&Set::of(&STRIPPED));

    let merged = view.merge(Some(&before), Some(config));
    // What the manager said last time, and nobody says now, goes.
    let owned = entries.iter().fold(said, |all, entry| all.union(&entry.set)).with_structs(Some(schema));
    let after = match &previous {
        Some(previous) => {
            let gone = previous.set.with_structs(Some(schema)).difference(&owned);
            view.remove(&merged, &gone).unwrap_or_else(empty)
        }
        None => merged,
    };

    let differences = Differences::of(&before, &after, writer, view, &entries);
    let conflicts: Conflicts = (entries.iter())
        .map(|entry| Entry { set: entry.set.intersection(&differences.of_entry(entry).set()), ..entry.clone() })
        .filter(|conflict| !conflict.set.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    for entry in &mut entries {
        let difference = differences.of_entry(entry);
        entry.set = entry.set.difference(&difference.set()).difference(&difference.removed);
    }
    let difference = &differences.own;
    let changed = !(difference.set().is_empty() && difference.removed.is_empty());
    let time = if changed { Some(writer.now.to_string()) } else { previous.and_then(|previous| previous.time) };
    entries.push(Entry { set: own, time, ..fresh });
    let mut object = after;
    encode(&mut object, entries);
    Ok(object)
}

/// Whether the conflicts are all about fields that kubectl applied from the client before: the same user in another way.
fn allowed(live: Option<&Value>, writer: &Writer<'_>, view: &View<'_>, conflicts: &Conflicts) -> bool {
    if writer.manager != "kubectl" || !writer.subresource.is_empty() {
        return false;
    }
    let Some(applied) = live.and_then(|live| live.annotation(LAST_APPLIED)).and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return false;
    };
    let allowed = view.fields(&applied).union(&Set::of(&["metadata.annotations"]));
    let mut annotation = Set::default();
    annotation.insert(&["f:metadata".into(), "f:annotations".into(), format!("f:{LAST_APPLIED}")]);
    let allowed = allowed.union(&annotation);
    conflicts.iter().all(|conflict| conflict.set.difference(&allowed).is_empty())
}

/// kubectl's own record of the last apply is kept up, so that its users can go back to applying from the client.
fn remember_for_client_side(live: Option<&Value>, config: &Value, writer: &Writer<'_>, object: &mut Value) {
    if writer.manager == "kubectl"
        && writer.subresource.is_empty()
        && live.is_some_and(|live| live.annotation(LAST_APPLIED).is_some())
        && object.annotation(LAST_APPLIED).is_some_and(|record| !record.is_empty())
    {
        let mut record = config.clone();
        record.remove_annotation(LAST_APPLIED);
        object.set_annotation(LAST_APPLIED, &format!("{record}\n"));
    }
}

fn conflict_status(conflicts: &Conflicts) -> Status {
    let mut by_manager: Vec<(String, Vec<String>)> = conflicts.iter().map(|conflict| (conflict.shown(), conflict.set.paths())).collect();
    by_manager.sort();
    let causes: Vec<(String, String)> =
        by_manager.iter().flat_map(|(manager, paths)| paths.iter().map(move |path| (format!("conflict with {manager}"), path.clone()))).collect();
    let message = match causes.as_slice() {
        [(message, path)] => format!("Apply failed with 1 conflict: {message}: {path}"),
        _ => {
            let all: Vec<String> = by_manager
                .iter()
                .map(|(manager, paths)| {
                    format!("conflicts with {manager}:\n{}", paths.iter().map(|path| format!("- {path}")).collect::<Vec<_>>().join("\n"))
                })
                .collect();
            format!("Apply failed with {} conflicts: {}", causes.len(), all.join("\n"))
        }
    };
    Status::apply_conflict(message, causes)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
