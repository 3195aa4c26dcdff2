//! ControllerRevision of apps.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{int, member},
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "ControllerRevision", "controllerrevisions").hooks(ControllerRevisions)
}

struct ControllerRevisions;

impl Hooks for ControllerRevisions {
    fn validate(&self, revision: &Value, old: Option<&Value>, errors: &mut Errors) {
        match member(revision, "data") {
            None => errors.required(Path::new("data"), "data is mandatory"),
            Some(data) if !data.is_object() => errors.required(Path::new("data"), "data must be a valid JSON object"),
            Some(_) => {}
        }
        if int(revision, "revision").unwrap_or(0) < 0 {
            errors.invalid(Path::new("revision"), int(revision, "revision").unwrap_or(0), checks::NOT_NEGATIVE);
        }
        if let Some(old) = old {
            checks::immutable(revision.get("data"), old.get("data"), &Path::new("data"), errors);
        }
    }
    fn cells(&self, revision: &Value, now_unix_s: i64) -> Vec<Value> {
        let owner = revision.controller().map_or("<none>".to_string(), |owner| {
            let group = owner.api_version.split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
            format!("{}{group}/{}", owner.kind.to_lowercase(), owner.name)
        });
        vec![table::name(revision), json!(owner), json!(int(revision, "revision").unwrap_or(0)), table::age(revision, now_unix_s)]
    }
}
