//! `/scale`: an `autoscaling/v1` Scale read from and written to fields of the object.

use crate::{
    Body,
    admission::AdmissionContext,
    connect::{Answer, Call},
    conversion,
    encode::{Shape, View},
    patch::{self, PatchKind},
    write::{self, Books, Changed, Part, Writer},
};
use api::{
    Kind, Status, Value, apply, field,
    kind::{Hooks, Subresource},
    object::ObjectExt,
    request::PatchOptions,
    selector::LabelSelector,
    structure::{self, Encoding},
    table::{self, Column},
};
use http::{Response, StatusCode, header};
use serde_json::json;
use std::{borrow::Cow, sync::Arc};

/// Where the object keeps what a Scale says.
#[derive(Clone)]
pub struct Paths {
    pub replicas: Cow<'static, str>,
    pub status_replicas: Cow<'static, str>,
    pub selector: Cow<'static, str>,
}

impl Paths {
    /// Of a kind, if the subresource is its Scale.
    pub fn of(kind: &Kind, subresource: &str) -> Option<Paths> {
        match kind.subresource(subresource)? {
            Subresource::Scale { replicas, status_replicas, selector } => {
                Some(Paths { replicas: replicas.clone(), status_replicas: status_replicas.clone(), selector: selector.clone() })
            }
            _ => None,
        }
    }
}

/// Who admits a change by a Scale sees the Scale, and may change what it says.
pub async fn admit(cx: &AdmissionContext<'_>, paths: &Paths, new: &mut Value) -> Result<(), Status> {
    let mut scale = of(new, paths);
    let before = scale.i64_at("spec.replicas");
    cx.server.admission.admit(cx, &mut scale).await?;
    let wanted = scale.i64_at("spec.replicas");
    if wanted != before {
        new.set(&paths.replicas, wanted.unwrap_or(0));
    }
    Ok(())
}

/// The Scale of an object.
pub fn of(object: &Value, paths: &Paths) -> Value {
    let mut metadata = json!({"name": object.name()});
    for key in ["namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.metadata().and_then(|metadata| metadata.get(key)) {
            metadata.set(key, value.clone());
        }
    }
    let mut scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": {}, "status": {"replicas": object.i64_at(&paths.status_replicas).unwrap_or(0)}});
    if let Some(replicas) = object.i64_at(&paths.replicas).filter(|&replicas| replicas != 0) {
        scale.set("spec.replicas", replicas);
    }
    if let Some(selector) = selector_text(object, &paths.selector) {
        scale.set("status.selector", selector);
    }
    scale
}

fn selector_text(object: &Value, path: &str) -> Option<String> {
    let selector = object.at(path)?;
    if let Some(text) = selector.as_str() {
        return Some(text.to_string()).filter(|text| !text.is_empty());
    }
    let is_label_selector = selector.as_object()?.keys().all(|key| matches!(key.as_str(), "matchLabels" | "matchExpressions"));
    let parsed = if is_label_selector { LabelSelector::from_value(selector).ok()? } else { LabelSelector::from_map(selector.as_object()) };
    Some(parsed.to_string()).filter(|text| !text.is_empty())
}

/// get, update and patch of a Scale.
pub async fn answer(mut call: Call, paths: Paths) -> Answer {
    if call.info.verb == "get" {
        call.server.cache.fresh().await?;
        let found = call.server.cache.of(&call.kind).get(call.namespace(), &call.info.name);
        let entry = found.ok_or_else(|| Status::not_found(call.resource(), &call.info.name))?;
        let object = conversion::entry(&call.server, &call.view(), entry).await?.value();
        if call.kind.custom.is_some() && object.at(&paths.replicas).is_none() {
            return Err(Status::internal(format!("the spec replicas field \".{}\" does not exist", paths.replicas)));
        }
        return Ok(respond(&call, of(&object, &paths)));
    }
    let scale_kind = kind();
    let patch_kind = match call.info.verb.as_str() {
        "update" => None,
        _ => Some(PatchKind::of(call.header(header::CONTENT_TYPE)).ok_or_else(patch::unsupported)?),
    };
    if call.kind.custom.is_some() && patch_kind == Some(PatchKind::Strategic) {
        return Err(Status::unsupported_media_type(&["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]));
    }
    let is_apply = patch_kind == Some(PatchKind::Apply);
    let options = PatchOptions::parse(&call.query, call.header(header::USER_AGENT), is_apply)?;
    let (encoding, bytes) = if call.info.verb == "update" { call.input().await? } else { (Encoding::Json, call.body().await?) };
    let put = match patch_kind {
        Some(PatchKind::Apply) => {
            let unreadable = |why| Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {why}"));
            Some(structure::parse(&bytes, Encoding::Yaml).map_err(unreadable)?)
        }
        Some(_) => None,
        None => {
            let said = structure::parse(&bytes, encoding).unwrap_or_default();
            if call.kind.custom.is_some() && said.is_object() && !matches!((said.api_version(), said.kind()), ("autoscaling/v1" | "", "Scale" | "")) {
                return Err(Status::bad_request(
                    "no kind is registered for the type v1.Scale in scheme \"k8s.io/apiextensions-apiserver/pkg/apiserver/customresource_handler.go:781\"",
                ));
            }
            let (scale, warnings) = structure::decode_object(&bytes, encoding, &scale_kind, "v1", options.field_validation)?;
            call.warnings.extend(warnings);
            write::check_name(&call, &scale)?;
            Some(scale)
        }
    };
    // The Scale's own books are made of the object's and go back into them.
    let writer = Writer { books: Books::Kept, ..Writer::of(&call, options.dry_run, &options.field_manager) };
    let (manager, now, api_version) = (options.field_manager.as_str(), write::now(), call.view().api_version());
    let books = apply::Writer { kind: &scale_kind, version: "v1", manager, subresource: "scale", now: &now };
    let written = writer.modify(Part::Object, |old| {
        let shown = of(old, &paths);
        let mut live = shown.clone();
        apply::books_of_scale(old, &paths.replicas, &mut live);
        let scale = match (&put, patch_kind) {
            (Some(config), _) if is_apply => {
                let applied = apply::apply(Some(&live), config, &books, options.force.unwrap_or(false))?;
                if call.kind.custom.is_some() {
                    let (namespace, name) = (config.namespace(), config.name());
                    return Err(Status::unknown(format!(
                        "failed to convert new object ({namespace}/{name}; autoscaling/v1, Kind=Scale) to proper version: request to convert CR to an invalid group/version: autoscaling/v1"
                    )));
                }
                let fitted = structure::conform(applied, &scale_kind, "v1").map_err(Status::bad_request)?;
                write::check_name(&call, &fitted)?;
                fitted
            }
            (Some(scale), _) => scale.clone(),
            (None, kind) => {
                let patched = patch::apply_to(&scale_kind, "v1", kind.unwrap_or(PatchKind::Merge), &shown, &bytes)?;
                let (scale, warnings) = structure::check_object(patched, &scale_kind, "v1", options.field_validation)?;
                call.warnings.extend(warnings);
                scale
            }
        };
        let mut changed = change(old, &scale, &paths, &call.kind)?;
        let mut booked = scale;
        if !is_apply {
            apply::update(Some(&live), &mut booked, &books);
        }
        apply::take_books_of_scale(&mut changed.object, &paths.replicas, &api_version, &booked);
        Ok(changed)
    });
    let written = written.await?;
    Ok(respond(&call, of(&written.value(), &paths)))
}

/// Answers with a Scale, or with its row.
fn respond(call: &Call, scale: Value) -> Response<Body> {
    match call.output.shape {
        Shape::Object => call.output.value(StatusCode::OK, &scale),
        _ => call.output.object(StatusCode::OK, &View { kind: Arc::new(kind()), version: "v1".into() }, scale),
    }
}

/// What a Scale is, whatever it is of.
fn kind() -> Kind {
    let count = |name: &str, description: &str| Column { description: description.into(), ..Column::new(name, "integer", "", 0) };
    let mut kind = Kind::namespaced("autoscaling", "v1", "Scale", "scales").hooks(Scales);
    kind.columns = vec![
        Column::new("Name", "string", "name", 0),
        count("Desired", "replicas is the desired number of instances for the scaled object."),
        count("Available", "replicas is the actual number of observed instances of the scaled object."),
        Column::new("Age", "string", "", 0),
    ];
    kind
}

struct Scales;

impl Hooks for Scales {
    fn cells(&self, scale: &Value, now_unix_s: i64) -> Vec<Value> {
        let count = |path: &str| json!(scale.i64_at(path).unwrap_or(0));
        vec![table::name(scale), count("spec.replicas"), count("status.replicas"), table::age(scale, now_unix_s)]
    }
}

fn change(old: &Value, scale: &Value, paths: &Paths, kind: &Kind) -> Result<Changed, Status> {
    let replicas = scale.i64_at("spec.replicas").unwrap_or(0);
    if replicas < 0 {
        let mut errors = field::Errors::default();
        if kind.custom.is_some() {
            errors.invalid(field::Path::new(&format!(".{}", paths.replicas)), replicas, "should be a non-negative integer");
            return Err(Status::invalid(&kind.group, &kind.kind, old.name(), &errors));
        }
        errors.invalid(field::Path::new("spec").child("replicas"), replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", old.name(), &errors));
    }
    if !scale.uid().is_empty() && scale.uid() != old.uid() {
        let detail = format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", scale.uid(), old.uid());
        return Err(Status::conflict(kind.resource_pair(), old.name(), &detail));
    }
    let pinned = !matches!(scale.resource_version(), "" | "0");
    let mut object = old.clone();
    object.set(&paths.replicas, replicas);
    if pinned {
        object.set("metadata.resourceVersion", scale.resource_version());
    }
    Ok(Changed { object, pinned })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: Paths = Paths {
        replicas: Cow::Borrowed("spec.replicas"),
        status_replicas: Cow::Borrowed("status.replicas"),
        selector: Cow::Borrowed("spec.selector"),
    };

    #[test]
    fn a_scale_has_a_row() {
        let scale = json!({"metadata": {"name": "a"}, "spec": {"replicas": 3}, "status": {"replicas": 2}});
        let kind = kind();
        let cells = table::cells(&kind, &scale, 0);
        assert_eq!((cells.len(), &cells[..3]), (kind.columns.len(), &[json!("a"), json!(3), json!(2)][..]));
    }

    #[test]
    fn a_scale_is_read_and_written() {
        let old = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "4", "labels": {"x": "y"}},
            "spec": {"replicas": 3}, "status": {"replicas": 2}});
        let scale = of(&old, &PATHS);
        assert_eq!(scale["metadata"], json!({"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "4"}));
        assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(3), &json!(2)));
        let wanted = json!({"metadata": {"name": "a"}, "spec": {"replicas": 5}});
        let changed = change(&old, &wanted, &PATHS, &Kind::namespaced("apps", "v1", "Deployment", "deployments")).unwrap();
        assert_eq!((changed.object["spec"]["replicas"].as_i64(), changed.pinned), (Some(5), false));
        let bad = change(&old, &json!({"spec": {"replicas": -1}}), &PATHS, &Kind::namespaced("apps", "v1", "Deployment", "deployments"));
        assert_eq!(bad.err().unwrap().code, 422);
    }
}
