//! create and update: from an object to a commit, the same way for every kind.
//!
//! [`Writer`] is that way. [`Writer::create`] and [`Writer::modify`] serve clients' requests, patches, subresources and the
//! server's own writes alike. Order: default, mutating admission, prepare (of updates before it), allocation, validation,
//! validating admission, commit. A write that changes nothing makes no new version. What is being deleted goes when its last finalizer goes.
//!
//! What must stay true: nothing is taken from an allocator without being kept or given back; an answer means that the
//! commit is on disk, and that the cache shows it.

use crate::{
    Body, Server, User,
    admission::{AdmissionContext, Operation, Options, Rounds, admin_access},
    allocation,
    cache::{Encoded, Entry, encode, encode_stored, encode_with_books},
    connect::{Answer, Call, Warnings},
    conversion,
    encode::View,
    keys, namespaces, scale,
};
use api::{Kind, Status, Value, apply, field, limits, metadata, object::ObjectExt, request::RequestInfo, schema, structure};
use bytes::Bytes;
use http::{Response, StatusCode};
use rand::Rng;
use serde_json::json;
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

/// 500 in Go's words for a resourceVersion that is none.
fn check_number(version: &str) -> Result<(), Status> {
    crate::read::number(version).map(drop).map_err(|text| {
        let reason = text.split_once("strconv").map_or("", |(_, reason)| reason);
        Status::unknown(format!("strconv{reason}"))
    })
}

/// Makes a field what it was.
fn take_back(new: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(before) if new.get(key) == Some(before) => {}
        Some(before) => new.set(key, before.clone()),
        None => drop(new.remove(key)),
    }
}

/// The fields of either that a writer of the status has no part in.
fn keys_beside_status(new: &Value, old: &Value) -> Vec<String> {
    let keys = [new, old].into_iter().filter_map(Value::as_object).flat_map(|map| map.keys());
    keys.filter(|key| !matches!(key.as_str(), "status" | "metadata")).cloned().collect()
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

/// A name that begins with `prefix` and ends with five random characters, none of which makes words.
fn generated_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut name: String = prefix.chars().take(limits::GENERATE_NAME_CHARS_MAX).collect();
    let mut random = rand::rng();
    name.extend((0..limits::GENERATE_NAME_SUFFIX_CHARS).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])));
    name
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

    /// Creates an object, given in stored form.
    pub async fn create(&self, object: Value) -> Result<Written, Status> {
        let prefix = object.str_at("metadata.generateName").unwrap_or_default().to_string();
        if prefix.is_empty() {
            let name = object.name().to_string();
            return self.create_named(object, &name).await;
        }
        if !object.name().is_empty() {
            let name = object.name().to_string();
            let exhausted =
                |status: Status| if status.is_already_exists() { Status::generate_name_exhausted(self.kind.resource_pair(), &name) } else { status };
            return self.create_named(object, &name).await.map_err(exhausted);
        }
        let mut name = String::new();
        for _ in 0..limits::GENERATE_NAME_ATTEMPTS_MAX {
            name = generated_name(&prefix);
            let mut object = object.clone();
            object.set("metadata.name", name.as_str());
            match self.create_named(object, &prefix).await {
                Err(status) if status.is_already_exists() => {}
                other => return other,
            }
        }
        Err(Status::generate_name_exhausted(self.kind.resource_pair(), &name))
    }

    /// `known_as` is the name by which admission speaks of the object: a generated one is nobody's word yet. Who may change the
    /// object sees what the writer has said; what the server says of a new object comes after that, and before it is judged.
    async fn create_named(&self, mut object: Value, known_as: &str) -> Result<Written, Status> {
        let insists = object.resource_version().parse::<u64>().is_ok_and(|version| version > 0);
        self.begin(&mut object);
        let hooks = &self.kind.hooks;
        let name = object.name().to_string();
        if known_as != name {
            object.remove("metadata.name");
        }
        hooks.default(&mut object);
        let cx = self.admission(Operation::Create, known_as, None);
        let books = self.keep_new_books(&cx, &mut object);
        self.server.admission.admit(&cx, &mut object).await?;
        object.set_default("metadata.name", name.as_str());
        let name = object.name().to_string();
        self.make_new(&mut object);
        hooks.prepare_create(&mut object);
        let reservation = allocation::reserve(self.server, self.kind, &mut object, None, self.dry_run).await?;
        let mut errors = field::Errors::default();
        metadata::validate_create(&object, self.kind, &mut errors);
        admin_access::validate(&cx, self.kind, &object, None, &mut errors)?;
        hooks.validate(&object, None, &mut errors);
        self.invalid(&name, &errors)?;
        self.warnings.extend(hooks.warnings(&object, None));
        self.server.admission.validate(&cx, &object).await?;
        if insists {
            return Err(Status::unknown("resourceVersion should not be set on objects to be created"));
        }
        complete(&mut object);
        if self.dry_run {
            return match self.standing(&name).await? {
                Some(standing) => Err(self.exists(&name, standing.deleting)),
                None => Ok(Written::Unstored(object)),
            };
        }
        let stored = match books {
            Some(books) => encode_with_books(&object, &books),
            None => self.encoded(&object).await?,
        };
        let key = self.key(&name);
        let _draft = self.server.cache.draft(self.kind, &key, &stored, &object);
        let seen = self.seen(object);
        match self.commit(Write::Create { key, value: stored.bytes.clone() }).await? {
            Outcome::Committed(revision) => {
                reservation.keep().await;
                self.stored(&name, &stored.bytes, seen, revision).await
            }
            Outcome::Conflict(standing) => {
                let deleting = standing
                    .and_then(|standing| serde_json::from_slice::<Value>(&standing.value).ok())
                    .is_some_and(|value| value.deletion_timestamp().is_some());
                Err(self.exists(&name, deleting))
            }
        }
    }

    fn exists(&self, name: &str, deleting: bool) -> Status {
        let resource = self.kind.resource_pair();
        if deleting { Status::already_exists_deleting(resource, name) } else { Status::already_exists(resource, name) }
    }

    /// Takes out what only the server says.
    fn begin(&self, object: &mut Value) {
        let metadata = object.metadata_mut();
        for key in ["uid", "creationTimestamp", "resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            metadata.remove(key);
        }
        if self.books == Books::Closed {
            metadata.remove("managedFields");
        }
        metadata.retain(|_, value| !value.is_null());
        match self.namespace {
            "" => drop(metadata.remove("namespace")),
            namespace => drop(metadata.insert("namespace".into(), json!(namespace))),
        }
        without_double_owners(object, self.warnings);
    }

    /// The metadata that the server gives to every new object.
    fn make_new(&self, object: &mut Value) {
        let metadata = object.metadata_mut();
        metadata.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
        metadata.insert("creationTimestamp".into(), json!(now()));
        if self.kind.has_generation {
            metadata.insert("generation".into(), json!(1));
        }
    }

    /// What stands under a name now.
    pub async fn standing(&self, name: &str) -> Result<Option<Arc<Entry>>, Status> {
        self.server.cache.certain().await?;
        Ok(self.server.cache.of(self.kind).get(self.namespace, name))
    }

    /// Reads, changes and writes an object, again and again until no other writer comes between. `change` is given the
    /// stored object and answers with the new one, both in stored form.
    pub async fn modify(&self, part: Part, mut change: impl FnMut(&Value) -> Result<Changed, Status> + Send) -> Result<Written, Status> {
        for _ in 0..limits::UPDATE_ATTEMPTS_MAX {
            let standing = self.standing(self.name).await?;
            let entry = standing.ok_or_else(|| Status::not_found(self.kind.resource_pair(), self.name))?;
            let old = conversion::object(self.server, self.kind, entry.value(), self.version()).await?;
            let changed = change(&old)?;
            if let Some(written) = self.replace(part, &entry, old, changed).await? {
                return Ok(written);
            }
        }
        Err(Status::modified(self.kind.resource_pair(), self.name))
    }

    /// One attempt to put a changed object in the place of `old`. `None` if another writer came between.
    async fn replace(&self, part: Part, entry: &Arc<Entry>, standing: Value, changed: Changed) -> Result<Option<Written>, Status> {
        let old = &standing;
        let Changed { object: mut new, pinned } = changed;
        self.check_preconditions(old, &new, pinned)?;
        if part == Part::Status {
            // Beside the status, metadata may change here too: that is where nodes put what they find out.
            let (status, mut metadata) = (new.remove("status"), new.remove("metadata"));
            if self.kind.custom.is_some() {
                // Not so with custom resources: only the books are the writer's.
                let books = metadata.as_mut().and_then(|metadata| metadata.remove("managedFields"));
                let uid = metadata.as_ref().and_then(|metadata| metadata.get("uid").cloned());
                metadata = old.get("metadata").cloned();
                if let Some(metadata) = metadata.as_mut() {
                    for (key, value) in [("managedFields", books), ("uid", uid)] {
                        if let Some(value) = value {
                            metadata.set(key, value);
                        }
                    }
                }
            }
            new = old.clone();
            for (key, value) in [("status", status), ("metadata", metadata)] {
                match value {
                    Some(value) => new.set(key, value),
                    None => drop(new.remove(key)),
                }
            }
        }
        self.carry_over(&mut new, old);
        if part == Part::Trusted || self.books == Books::Closed {
            put_books(&mut new, books_of(old));
        }
        without_double_owners(&mut new, self.warnings);
        let hooks = &self.kind.hooks;
        if part == Part::Object && self.kind.has_status() {
            take_back(&mut new, old, "status");
        }
        if part != Part::Trusted {
            hooks.default(&mut new);
            self.keep_books(Some(old), &mut new);
        }
        // A hook that begins with the old object would take the old books too.
        let books = new.remove("metadata.managedFields");
        match part {
            Part::Object => hooks.prepare_update(&mut new, old),
            Part::Status => hooks.prepare_status(&mut new, old),
            Part::Piece => hooks.prepare_view(&self.info.subresource, &mut new, old),
            Part::Trusted => {}
        }
        put_books(&mut new, books);
        let scale = scale::Paths::of(self.kind, &self.info.subresource);
        let scale_before = scale.as_ref().map(|paths| scale::of(old, paths));
        let cx = self.admission(Operation::Update, self.name, Some(scale_before.as_ref().unwrap_or(old)));
        match &scale {
            Some(paths) => scale::admit(&cx, paths, &mut new).await?,
            None => self.server.admission.admit(&cx, &mut new).await?,
        }
        if cx.rounds.has_changed() {
            // Who was asked outside may change no more than the request itself.
            match part {
                Part::Object if self.kind.has_status() => take_back(&mut new, old, "status"),
                Part::Status => keys_beside_status(&new, old).iter().for_each(|key| take_back(&mut new, old, key)),
                _ => {}
            }
        }
        let reservation = allocation::reserve(self.server, self.kind, &mut new, Some(old), self.dry_run).await?;
        let mut errors = field::Errors::default();
        metadata::validate_update(&new, old, self.kind, &mut errors);
        metadata::validate_update_again(&new, self.kind, &mut errors);
        if part == Part::Object {
            admin_access::validate(&cx, self.kind, &new, Some(old), &mut errors)?;
        }
        match part {
            Part::Object => hooks.validate(&new, Some(old), &mut errors),
            Part::Status => hooks.validate_status(&new, old, &mut errors),
            Part::Piece => hooks.validate_view(&self.info.subresource, &new, old, &mut errors),
            Part::Trusted => {}
        }
        self.invalid(self.name, &errors)?;
        if part == Part::Object && !self.same_template(&new, old) {
            self.warnings.extend(hooks.warnings(&new, Some(old)));
        }
        match &scale {
            Some(paths) => self.server.admission.validate(&cx, &scale::of(&new, paths)).await?,
            None => self.server.admission.validate(&cx, &new).await?,
        }
        if let Some(schema) = schema_of(&new) {
            structure::complete_changed(&mut new, old, &schema);
        }
        if part != Part::Trusted {
            self.count_generation(&mut new, old);
        }
        if may_go(self.kind, &new) {
            return self.remove(entry, new).await;
        }
        if same(&new, old) {
            let view = View { kind: Arc::new(self.kind.clone()), version: self.version().to_string() };
            let shown =
                if conversion::is_by_webhook(self.kind) { conversion::entry(self.server, &view, entry.clone()).await? } else { entry.clone() };
            return Ok(Some(Written::Stored(shown)));
        }
        if self.dry_run {
            return Ok(Some(Written::Unstored(new)));
        }
        let stored = self.encoded(&new).await?;
        let key = self.key(self.name);
        let _draft = self.server.cache.draft(self.kind, &key, &stored, &new);
        drop(standing);
        let seen = self.seen(new);
        match self.commit(Write::Update { key, value: stored.bytes.clone(), expected: entry.revision }).await? {
            Outcome::Committed(revision) => {
                reservation.keep().await;
                self.stored(self.name, &stored.bytes, seen, revision).await.map(Some)
            }
            Outcome::Conflict(_) => Ok(None),
        }
    }

    /// 409 if the object given is another than the one that stands there.
    fn check_uid(&self, new: &Value, standing: &str) -> Result<(), Status> {
        if new.uid().is_empty() || new.uid() == standing {
            return Ok(());
        }
        let detail = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {}, UID in object meta: {standing}",
            self.kind.resource,
            keys::place(self.namespace, self.name),
            new.uid(),
        );
        Err(Status::conflict(self.kind.resource_pair(), self.name, &detail))
    }

    fn check_preconditions(&self, old: &Value, new: &Value, pinned: bool) -> Result<(), Status> {
        let resource = self.kind.resource_pair();
        self.check_uid(new, old.uid())?;
        if pinned && new.resource_version() != old.resource_version() {
            check_number(new.resource_version())?;
            return Err(Status::modified(resource, self.name));
        }
        if matches!(new.resource_version(), "" | "0") && !self.kind.allow_unconditional_update {
            let mut errors = field::Errors::default();
            errors.invalid(field::Path::new("metadata").child("resourceVersion"), 0, "must be specified for an update");
            return Err(Status::invalid(&self.kind.group, &self.kind.resource, self.name, &errors));
        }
        Ok(())
    }

    /// Takes over the metadata that only the server sets. What a client may leave out but not change is checked later.
    fn carry_over(&self, new: &mut Value, old: &Value) {
        let metadata = new.metadata_mut();
        metadata.retain(|_, value| !value.is_null());
        metadata.remove("selfLink");
        for key in ["resourceVersion", "generation", "deletionTimestamp"] {
            match old.metadata().and_then(|old| old.get(key)) {
                Some(value) => drop(metadata.insert(key.into(), value.clone())),
                // Nobody can begin a deletion by an update; who tries is told so.
                None if key == "deletionTimestamp" => {}
                None => drop(metadata.remove(key)),
            }
        }
        for key in ["uid", "creationTimestamp", "deletionGracePeriodSeconds", "namespace"] {
            let left_out = metadata.get(key).is_none_or(|value| value == "");
            if let (true, Some(value)) = (left_out, old.metadata().and_then(|old| old.get(key))) {
                metadata.insert(key.into(), value.clone());
            }
        }
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

    /// The same for a new object. Where nobody sees it before it is stored, its books need never be a tree: they are given back
    /// as JSON, to be written with it.
    fn keep_new_books(&self, cx: &AdmissionContext<'_>, new: &mut Value) -> Option<String> {
        let version = if self.info.version.is_empty() { self.kind.version() } else { self.info.version.as_str() };
        let as_stored = self.kind.stored_as.is_none() && version == self.kind.version() && !conversion::is_by_webhook(self.kind);
        if self.books == Books::Changes && as_stored && !self.dry_run && !self.server.admission.shows(cx) {
            let writer = apply::Writer { kind: self.kind, version, manager: self.manager, subresource: &self.info.subresource, now: &now() };
            if let Some(books) = apply::books_of_new(new, &writer) {
                return Some(books);
            }
        }
        self.keep_books(None, new);
        None
    }

    /// Whether a write leaves all of a kind that makes pods from a template as it was: what is odd about the template has been
    /// said before.
    fn same_template(&self, new: &Value, old: &Value) -> bool {
        if !self.kind.has_generation || (new.at("spec.template").is_none() && new.at("spec.jobTemplate").is_none()) {
            return false;
        }
        let mut new = new.clone();
        complete(&mut new);
        new.get("spec") == old.get("spec")
    }

    fn count_generation(&self, new: &mut Value, old: &Value) {
        let content = |object: &Value, other: &Value| {
            let mut members = object.as_object().into_iter().flatten().filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"));
            members.all(|(key, value)| other.get(key) == Some(value))
        };
        // A hook may have counted what is not content here but counts for its kind.
        if self.kind.has_generation && new.generation() <= old.generation() && !(content(new, old) && content(old, new)) {
            new.set("metadata.generation", old.generation() + 1);
        }
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
        if same(&new, &entry.value()) {
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

/// Shows or hides zero values in an object in stored form, as they are shown ever after.
fn complete(object: &mut Value) {
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

/// Whether two states of an object differ in nothing but their version and the times at which somebody said the same.
fn same(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return false };
    new.len() == old.len()
        && new.iter().all(|(key, value)| key == "metadata" || old.get(key) == Some(value))
        && same_but(new.get("metadata"), old.get("metadata"), "resourceVersion", |key, new, old| {
            new == old || (key == "managedFields" && same_books(new, old))
        })
}

fn same_books(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_array(), old.as_array()) else { return false };
    new.len() == old.len() && new.iter().zip(old).all(|(new, old)| same_but(Some(new), Some(old), "time", |_, new, old| new == old))
}

/// Whether two objects are the same but for one member, as `equal` sees the others.
fn same_but(new: Option<&Value>, old: Option<&Value>, but: &str, equal: impl Fn(&str, &Value, &Value) -> bool) -> bool {
    let members = |object: Option<&'_ Value>| object.and_then(Value::as_object).map_or(0, |map| map.len() - usize::from(map.contains_key(but)));
    members(new) == members(old)
        && new
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .all(|(key, value)| key == but || old.and_then(|old| old.get(key)).is_some_and(|old| equal(key, value, old)))
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

    #[test]
    fn generated_names_keep_their_prefix_and_fit() {
        let name = generated_name("web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_eq!(generated_name(&"x".repeat(200)).len(), 63);
    }

    #[test]
    fn sameness_leaves_out_the_version_alone() {
        let old = json!({"metadata": {"name": "a", "resourceVersion": "1"}, "data": {"k": "v"}});
        let mut new = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
        assert!(same(&new, &old));
        new.set("data.k", "w");
        assert!(!same(&new, &old));
        assert!(!same(&json!({"metadata": {"name": "a"}}), &old));
        let with_books = |time: &str, manager: &str| json!({"metadata": {"managedFields": [{"manager": manager, "time": time}]}});
        assert!(same(&with_books("1", "a"), &with_books("2", "a")));
        assert!(!same(&with_books("1", "a"), &with_books("1", "b")));
    }

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
