//! modify: what is stored is read, changed and put back, until no other writer comes between.

use super::{Books, Changed, Part, Writer, Written, books_of, complete, may_go, now, put_books, schema_of, without_double_owners};
use crate::{
    admission::{Operation, admin_access},
    allocation,
    cache::Entry,
    conversion,
    encode::View,
    keys, scale,
};
use api::{Status, Value, field, limits, metadata, object::ObjectExt, structure};
use std::sync::Arc;
use store::{Outcome, Write};

impl Writer<'_> {
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
        self.keep_to(part, &mut new, old);
        self.carry_over(&mut new, old);
        if part == Part::Trusted || self.books == Books::Closed {
            put_books(&mut new, books_of(old));
        }
        without_double_owners(&mut new, self.warnings);
        let hooks = &self.kind.hooks;
        if part != Part::Trusted {
            hooks.default(&mut new);
            self.keep_books(Some(old), &mut new);
        }
        let scale = scale::Paths::of(self.kind, &self.info.subresource);
        let scale_before = scale.as_ref().map(|paths| scale::of(old, paths));
        let cx = self.admission(Operation::Update, self.name, Some(scale_before.as_ref().unwrap_or(old)));
        match &scale {
            Some(paths) => scale::admit(&cx, paths, &mut new).await?,
            None => self.server.admission.admit(&cx, &mut new).await?,
        }
        if cx.rounds.has_changed() {
            // Who was asked outside may change no more than the request itself.
            self.keep_to(part, &mut new, old);
        }
        // A hook that begins with the old object would take the old books too.
        let books = new.remove("metadata.managedFields");
        match part {
            Part::Object => hooks.prepare_update(&mut new, old),
            Part::Status => hooks.prepare_status(&mut new, old),
            Part::Piece => hooks.prepare_view(&self.info.subresource, &mut new, old),
            Part::Trusted => {}
        }
        if matches!(part, Part::Status | Part::Piece) {
            hooks.stamp(&mut new, old, &now());
        }
        put_books(&mut new, books);
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
        match part {
            Part::Object if !self.same_template(&new, old) => self.warnings.extend(hooks.warnings(&new, Some(old))),
            Part::Status => self.warnings.extend(hooks.status_warnings(&new)),
            _ => {}
        }
        if let Some(schema) = schema_of(&new) {
            structure::complete_changed(&mut new, old, &schema);
        }
        if part != Part::Trusted {
            self.count_generation(&mut new, old);
        }
        match &scale {
            Some(paths) => self.server.admission.validate(&cx, &scale::of(&new, paths)).await?,
            None => self.server.admission.validate(&cx, &new).await?,
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

    /// Makes all that a write has no part in what it was.
    fn keep_to(&self, part: Part, new: &mut Value, old: &Value) {
        match part {
            Part::Object if self.kind.has_status() && !self.kind.status_open => take_back(new, old, "status"),
            Part::Status => {
                // Beside the status, metadata may change here too: that is where nodes put what they find out.
                let keys = [&*new, old].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys());
                let others: Vec<String> = keys.filter(|key| !matches!(key.as_str(), "status" | "metadata")).cloned().collect();
                others.iter().for_each(|key| take_back(new, old, key));
                if self.kind.custom.is_some() || self.kind.status_alone {
                    // Not so with custom resources and some kinds: only the books are the writer's. The uid is still to be compared.
                    let metadata = std::mem::replace(new.metadata_mut(), old.metadata().cloned().unwrap_or_default());
                    let kept = metadata.into_iter().filter(|(key, _)| matches!(key.as_str(), "managedFields" | "uid"));
                    new.metadata_mut().extend(kept);
                }
            }
            _ => {}
        }
    }

    /// 409 if the object given is another than the one that stands there.
    pub(super) fn check_uid(&self, new: &Value, standing: &str) -> Result<(), Status> {
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
        // A hook may have counted what is not content here but counts for its kind.
        if self.kind.has_generation && new.generation() <= old.generation() && !same_content(new, old) {
            new.set("metadata.generation", old.generation() + 1);
        }
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

/// Whether two states of an object differ in nothing but metadata and status.
fn same_content(new: &Value, old: &Value) -> bool {
    fn members(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
        object.as_object().into_iter().flatten().filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"))
    }
    members(new).all(|(key, value)| old.get(key) == Some(value)) && members(old).all(|(key, _)| new.get(key).is_some())
}

/// Whether two states of an object differ in nothing but their version and the times at which somebody said the same.
pub(super) fn same(new: &Value, old: &Value) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn content_is_what_is_neither_metadata_nor_status() {
        let old = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        assert!(same_content(&json!({"metadata": {}, "spec": {"replicas": 1}}), &old));
        for other in [json!({"spec": {"replicas": 2}}), json!({}), json!({"spec": {"replicas": 1}, "data": {}})] {
            assert!(!same_content(&other, &old), "{other}");
        }
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
}
