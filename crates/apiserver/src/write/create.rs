//! create: a new object, under its own name or under one that is made for it.

use super::{Books, Writer, Written, complete, now, without_double_owners};
use crate::{
    admission::{AdmissionContext, Operation, admin_access},
    allocation,
    cache::encode_with_books,
    conversion,
};
use api::{Status, Value, apply, field, limits, metadata, object::ObjectExt};
use rand::Rng;
use serde_json::json;
use store::{Outcome, Write};

impl Writer<'_> {
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
        self.make_new(&mut object);
        hooks.prepare_create(&mut object);
        let name = object.name().to_string();
        let reservation = allocation::reserve(self.server, self.kind, &mut object, None, self.dry_run).await?;
        let mut errors = field::Errors::default();
        metadata::validate_create(&object, self.kind, &mut errors);
        admin_access::validate(&cx, self.kind, &object, None, &mut errors)?;
        hooks.validate(&object, None, &mut errors);
        self.invalid(&name, &errors)?;
        self.warnings.extend(hooks.warnings(&object, None));
        complete(&mut object);
        self.server.admission.validate(&cx, &object).await?;
        if insists {
            return Err(Status::unknown("resourceVersion should not be set on objects to be created"));
        }
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
}

/// A name that begins with `prefix` and ends with five random characters, none of which makes words.
fn generated_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut name: String = prefix.chars().take(limits::GENERATE_NAME_CHARS_MAX).collect();
    let mut random = rand::rng();
    name.extend((0..limits::GENERATE_NAME_SUFFIX_CHARS).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])));
    name
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
}
