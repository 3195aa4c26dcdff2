//! create and update: from an object to a commit, the same way for every kind.
//!
//! [`Writer`] is that way. [`Writer::create`] (`create.rs`) and [`Writer::modify`] (`modify.rs`) serve clients' requests, patches,
//! subresources and the server's own writes alike. Order: default, books, mutating admission, prepare, allocation, validation,
//! validating admission, commit. A write that changes nothing makes no new version. What is being deleted goes when its last
//! finalizer goes.
//!
//! What must stay true: nothing is taken from an allocator without being kept or given back; an answer means that the
//! commit is on disk, and that the cache shows it.

mod create;
mod modify;

use crate::{
    Body, Server, User,
    admission::{AdmissionContext, Operation, Options, Rounds},
    allocation,
    cache::{Encoded, Entry, encode, encode_stored},
    connect::{Answer, Call, Warnings},
    conversion,
    encode::View,
    keys, namespaces,
};
use api::{Kind, Status, Value, apply, field, object::ObjectExt, request::RequestInfo, schema, structure};
use bytes::Bytes;
use http::{Response, StatusCode};
use std::sync::Arc;
use store::{Outcome, Revision, Write};

/// Who writes what, and where.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    pub server: &'a Arc<Server>,
    pub user: &'a User,
    pub info: &'a RequestInfo,
    pub kind: &'a Kind,
    pub namespace: &'a str,
    /// Empty on create.
    pub name: &'a str,
    pub dry_run: bool,
    /// The field manager's name.
    pub manager: &'a str,
    pub books: Books,
    /// What the client has said beside the object.
    pub options: Options<'a>,
    pub warnings: &'a Warnings,
}

/// Who keeps `metadata.managedFields` in a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Books {
    /// Nobody: they stay as they were.
    Closed,
    /// The writer owns what it changes.
    Changes,
    /// They are right as they are given: server-side apply has kept them.
    Kept,
}

/// What came of a write.
#[derive(Clone, Debug)]
pub enum Written {
    /// The object as it is stored now.
    Stored(Arc<Entry>),
    /// The object as it would be (dry run), or as it last was.
    Unstored(Value),
}

impl Written {
    pub fn value(&self) -> Value {
        match self {
            Written::Stored(entry) => entry.value(),
            Written::Unstored(value) => value.clone(),
        }
    }
    pub fn into_value(self) -> Value {
        match self {
            Written::Stored(entry) => entry.value(),
            Written::Unstored(value) => value,
        }
    }
}

/// Which part of an object a modification may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but the status, if that is a subresource.
    Object,
    /// The status alone.
    Status,
    /// What a subresource shows of the object itself: the kind says what that may change.
    Piece,
    /// What code of the server itself has changed. Neither bound by the kind's rules nor counted as a new generation.
    Trusted,
}

/// A modified object, in stored form.
pub struct Changed {
    pub object: Value,
    /// Whether the writer insists on the version in `metadata.resourceVersion`.
    pub pinned: bool,
}

impl Changed {
    /// A change to whatever is newest.
    pub fn newest(object: Value) -> Changed {
        Changed { object, pinned: false }
    }
}

/// POST of a collection.
pub async fn create(mut call: Call) -> Answer {
    let options = call.write_options()?;
    let (encoding, bytes) = call.input().await?;
    let (mut object, warnings) = structure::decode_object(&bytes, encoding, &call.kind, &call.info.version, options.field_validation)?;
    call.warnings.extend(warnings);
    check_namespace(&call, &object)?;
    call.kind.hooks.to_stored(&call.info.version, &mut object);
    let writer = Writer::of(&call, options.dry_run, &options.field_manager);
    let written = Writer { name: "", ..writer }.create(object).await?;
    Ok(respond(&call, StatusCode::CREATED, &written))
}

/// PUT of an object or of its status.
pub async fn update(mut call: Call) -> Answer {
    let options = call.write_options()?;
    let (encoding, bytes) = call.input().await?;
    let (mut object, warnings) = structure::decode_object(&bytes, encoding, &call.kind, &call.info.version, options.field_validation)?;
    call.warnings.extend(warnings);
    check_name(&call, &object)?;
    check_namespace(&call, &object)?;
    call.kind.hooks.to_stored(&call.info.version, &mut object);
    let part = if call.info.subresource.is_empty() { Part::Object } else { Part::Status };
    let writer = Writer::of(&call, options.dry_run, &options.field_manager);
    let pinned = !matches!(object.resource_version(), "" | "0");
    match writer.modify(part, |_| Ok(Changed { object: object.clone(), pinned })).await {
        Err(status) if status.is_not_found() && part == Part::Object && call.kind.allow_create_on_update => {
            writer.check_uid(&object, "")?;
            object.remove("metadata.resourceVersion");
            let written = writer.create(object).await?;
            Ok(respond(&call, StatusCode::CREATED, &written))
        }
        other => Ok(respond(&call, StatusCode::OK, &other?)),
    }
}

/// The answer to a write.
pub fn respond(call: &Call, code: StatusCode, written: &Written) -> Response<Body> {
    match written {
        Written::Stored(entry) => call.output.entry(code, &call.view(), entry),
        Written::Unstored(value) => call.output.shown(code, &call.view(), value),
    }
}

/// The same for what a deletion has left, which is in the version that is stored.
pub async fn respond_stored(call: &Call, code: StatusCode, written: Written) -> Answer {
    if !conversion::is_by_webhook(&call.kind) {
        return Ok(respond(call, code, &written));
    }
    let shown = conversion::object(&call.server, &call.kind, written.value(), &call.info.version).await?;
    Ok(respond(call, code, &Written::Unstored(shown)))
}

/// 400 if the body names another object than the path.
pub fn check_name(call: &Call, object: &Value) -> Result<(), Status> {
    match object.name() {
        "" => Err(Status::bad_request(format!("the name of the object ({} based on URL) was undeterminable: name must be provided", call.info.name))),
        name if name != call.info.name => {
            Err(Status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({})", call.info.name)))
        }
        _ => Ok(()),
    }
}

pub fn check_namespace(call: &Call, object: &Value) -> Result<(), Status> {
    match object.namespace() {
        "" => Ok(()),
        namespace if namespace == call.namespace() || !call.kind.namespaced_scope() => Ok(()),
        _ => Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request")),
    }
}

/// What the store's failures are to a client.
pub fn store_failure(error: store::Error) -> Status {
    match error {
        store::Error::Unavailable(why) => Status::service_unavailable(format!("the store is unavailable, so nothing can be written: {why}")),
        // The client must look before it tries again, as with Kubernetes.
        error @ store::Error::Unknown(_) => Status::timeout(error, 0),
        error @ store::Error::TooLarge(_) => Status::request_entity_too_large(error),
        error @ store::Error::Unwritable(_) => Status::service_unavailable(error.to_string()),
        other => Status::internal(other),
    }
}

/// Removes owners that are named twice, and says so.
fn without_double_owners(object: &mut Value, warnings: &Warnings) {
    let Some(Value::Array(owners)) = object.at_mut("metadata.ownerReferences") else { return };
    let mut seen: Vec<Value> = Vec::new();
    let mut double: Vec<String> = Vec::new();
    owners.retain(|owner| {
        let new = !seen.contains(owner);
        if new {
            seen.push(owner.clone());
        } else {
            double.push(owner.str_at("uid").unwrap_or_default().to_string());
        }
        new
    });
    if !double.is_empty() {
        warnings.add(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            double.join(", ")
        ));
    }
}

/// Now, as timestamps of objects have it.
pub fn now() -> String {
    timestamp(jiff::Timestamp::now())
}

/// A time as timestamps of objects have it: whole seconds.
pub fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl<'a> Writer<'a> {
    /// For a client's request.
    pub fn of(call: &'a Call, dry_run: bool, manager: &'a str) -> Writer<'a> {
        Writer {
            server: &call.server,
            user: &call.user,
            info: &call.info,
            kind: &call.kind,
            namespace: call.namespace(),
            name: &call.info.name,
            dry_run,
            manager,
            books: Books::Changes,
            options: Options::Query(&call.query),
            warnings: &call.warnings,
        }
    }

    fn admission<'b>(&'b self, operation: Operation, name: &'b str, old: Option<&'b Value>) -> AdmissionContext<'b> {
        AdmissionContext {
            server: self.server,
            request: self.info,
            user: self.user,
            operation,
            kind: self.kind,
            namespace: self.namespace,
            name,
            subresource: &self.info.subresource,
            old,
            dry_run: self.dry_run,
            options: self.options,
            rounds: Rounds::default(),
            warnings: self.warnings,
        }
    }

    /// Admission of what is not a change of the object: delete and connect.
    pub async fn admit(&self, operation: Operation, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let cx = self.admission(operation, self.name, old);
        self.server.admission.admit(&cx, object).await?;
        self.server.admission.validate(&cx, object).await
    }

    fn invalid(&self, name: &str, errors: &field::Errors) -> Result<(), Status> {
        let (group, _) = keys::stored(self.kind);
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid(group, &self.kind.kind, name, errors)) }
    }

    fn key(&self, name: &str) -> String {
        let (group, resource) = keys::stored(self.kind);
        keys::object(group, resource, self.namespace, name)
    }

    /// What stands under a name now.
    pub async fn standing(&self, name: &str) -> Result<Option<Arc<Entry>>, Status> {
        self.server.cache.certain().await?;
        Ok(self.server.cache.of(self.kind).get(self.namespace, name))
    }

    /// Keeps the books of a change, after defaults and before anything else: what hooks and admission set is nobody's.
    fn keep_books(&self, old: Option<&Value>, new: &mut Value) {
        if self.books != Books::Changes {
            return;
        }
        // In the form in which the writer sees the object: that is what its sets speak of.
        let version = if self.info.version.is_empty() { self.kind.version() } else { self.info.version.as_str() };
        let subresource = self.info.subresource.as_str();
        let writer = apply::Writer { kind: self.kind, version, manager: self.manager, subresource, now: &now() };
        if (self.kind.stored_as.is_none() && version == self.kind.version()) || conversion::is_by_webhook(self.kind) {
            return apply::update(old, new, &writer);
        }
        let view = View { kind: Arc::new(self.kind.clone()), version: version.to_string() };
        let shown = |object: &Value| {
            let mut object = object.clone();
            view.show(&mut object);
            object
        };
        let (old, mut seen) = (old.map(shown), shown(new));
        apply::update(old.as_ref(), &mut seen, &writer);
        put_books(new, books_of(&seen));
    }

    /// Deletes what stands at `entry`; `last` is how it looked at the end. `None` if another writer came between.
    pub async fn remove(&self, entry: &Arc<Entry>, last: Value) -> Result<Option<Written>, Status> {
        if !self.dry_run {
            match self.commit(Write::Delete { key: self.key(self.name), expected: entry.revision }).await? {
                Outcome::Committed(revision) => {
                    allocation::release(self.server, self.kind, &last).await;
                    // The answer is true even if the cache is late.
                    let _ = self.server.cache.reach(revision).await;
                }
                Outcome::Conflict(_) => return Ok(None),
            }
        }
        Ok(Some(Written::Unstored(last)))
    }

    /// Puts `new` in the place of `old` as it is, without hooks: the marks of a deletion.
    pub async fn mark(&self, entry: &Arc<Entry>, new: Value) -> Result<Option<Written>, Status> {
        if modify::same(&new, &entry.value()) {
            return Ok(Some(Written::Stored(entry.clone())));
        }
        if self.dry_run {
            return Ok(Some(Written::Unstored(new)));
        }
        let stored = encode(&new);
        let key = self.key(self.name);
        let _draft = self.server.cache.draft(self.kind, &key, &stored, &new);
        let seen = self.seen(new);
        match self.commit(Write::Update { key, value: stored.bytes.clone(), expected: entry.revision }).await? {
            Outcome::Committed(revision) => self.stored(self.name, &stored.bytes, seen, revision).await.map(Some),
            Outcome::Conflict(_) => Ok(None),
        }
    }

    async fn commit(&self, write: Write) -> Result<Outcome, Status> {
        if let Some(why) = self.server.cache.lost() {
            return Err(store_failure(store::Error::Unavailable(why.to_string())));
        }
        self.server.store.commit(write).await.map_err(store_failure)
    }

    /// The version that is written.
    fn version(&self) -> &str {
        if self.info.version.is_empty() { self.kind.version() } else { &self.info.version }
    }

    /// What is stored of an object.
    async fn encoded(&self, object: &Value) -> Result<Encoded, Status> {
        if !conversion::is_by_webhook(self.kind) {
            return Ok(encode(object));
        }
        let stored = conversion::object(self.server, self.kind, object.clone(), self.kind.version()).await?;
        Ok(encode(&stored))
    }

    /// What is kept of an object while it is committed: nothing, unless the client is to see it in another version than is
    /// stored. A tree is best dropped where it grew; the thread that goes on after the commit may be another one.
    fn seen(&self, object: Value) -> Option<Value> {
        conversion::is_by_webhook(self.kind).then_some(object)
    }

    /// The answer to a commit: the object's bytes with its version. Waits until the cache shows it.
    async fn stored(&self, name: &str, stored: &Bytes, seen: Option<Value>, revision: Revision) -> Result<Written, Status> {
        // The write is done; that the cache is late is no reason to say otherwise.
        let _ = self.server.cache.reach(revision).await;
        let cache = self.server.cache.of(self.kind);
        let place = keys::place(self.namespace, name);
        let entry = match seen {
            // The client sees what it wrote, in its own version.
            Some(object) => Entry::of(&place, &encode_stored(&object).into(), &object, revision, Some(self.kind)),
            None => match cache.get(self.namespace, name).filter(|entry| entry.revision == revision) {
                Some(entry) => return Ok(Written::Stored(entry)),
                None => Entry::read(&place, stored, revision, cache.kind().as_deref()),
            },
        };
        Ok(Written::Stored(Arc::new(entry.ok_or_else(|| Status::internal("the stored object cannot be read"))?)))
    }
}

/// Shows or hides zero values in an object of a built-in kind, as they are shown ever after.
pub fn complete(object: &mut Value) {
    if let Some(schema) = schema_of(object) {
        structure::complete(object, &schema);
    }
}

/// The schema of an object of a built-in kind.
fn schema_of(object: &Value) -> Option<Arc<schema::Schema>> {
    let (group, version) = object.api_version().rsplit_once('/').unwrap_or(("", object.api_version()));
    schema::of(group, version, object.kind())
}

fn books_of(object: &Value) -> Option<Value> {
    object.at("metadata.managedFields").cloned()
}

fn put_books(object: &mut Value, books: Option<Value>) {
    match books {
        Some(books) => object.set("metadata.managedFields", books),
        None => drop(object.remove("metadata.managedFields")),
    }
}

/// Whether an object that is being deleted has nothing left that holds it.
pub fn may_go(kind: &Kind, object: &Value) -> bool {
    object.deletion_timestamp().is_some()
        && object.finalizers().is_empty()
        && object.i64_at("metadata.deletionGracePeriodSeconds").unwrap_or(0) == 0
        && !namespaces::holds(kind, object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finalizers_and_grace_hold_an_object() {
        let kind = Kind::namespaced("", "v1", "ConfigMap", "configmaps");
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}});
        assert!(may_go(&kind, &going));
        assert!(!may_go(&kind, &json!({"metadata": {}})));
        let mut held = going.clone();
        held.add_finalizer("example.com/x");
        assert!(!may_go(&kind, &held));
        let mut graceful = going;
        graceful.set("metadata.deletionGracePeriodSeconds", 30);
        assert!(!may_go(&kind, &graceful));
    }
}
