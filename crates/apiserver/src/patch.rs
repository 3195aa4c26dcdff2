//! patch: the three patches that change what is there, and server-side apply.

use crate::{
    authorization::{self, Decision},
    connect::{Answer, Call},
    write::{self, Books, Changed, Part, Writer},
};
use api::{
    Kind, Status, Value, apply, limits, merge,
    object::ObjectExt,
    request::{FieldValidation, PatchOptions, RequestInfo},
    structure::{self, Encoding},
};
use bytes::Bytes;
use http::{StatusCode, header};

/// How a patch is meant, by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchKind {
    pub fn of(content_type: &str) -> Option<PatchKind> {
        Some(match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => PatchKind::Json,
            "application/merge-patch+json" => PatchKind::Merge,
            "application/strategic-merge-patch+json" => PatchKind::Strategic,
            "application/apply-patch+yaml" => PatchKind::Apply,
            _ => return None,
        })
    }
}

/// 415 for a content type that is no patch.
pub fn unsupported() -> Status {
    let mut status = Status::custom(415, "UnsupportedMediaType", "415: Unsupported Media Type");
    status.details = Some(Default::default());
    status
}

/// Applies a patch to an object in the form in which the client sees it.
pub fn patched(call: &Call, patch_kind: PatchKind, old: &Value, patch: &Bytes) -> Result<Value, Status> {
    apply_to(&call.kind, &call.info.version, patch_kind, old, patch)
}

/// Applies a patch to an object of `kind` in `version`.
pub fn apply_to(kind: &Kind, version: &str, patch_kind: PatchKind, old: &Value, patch: &Bytes) -> Result<Value, Status> {
    match patch_kind {
        PatchKind::Json => merge::json_patch(old, patch),
        PatchKind::Merge => merge::merge_patched(old, patch),
        PatchKind::Strategic if kind.custom.is_some() => {
            Err(Status::unsupported_media_type(&["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]))
        }
        PatchKind::Strategic => {
            let schema = kind.schema(version).ok_or_else(unsupported)?;
            let mut new = merge::strategic_patched(old, patch, &schema)?;
            // What the object is does not merge.
            for key in ["apiVersion", "kind"] {
                new.set(key, old.get(key).cloned().unwrap_or_default());
            }
            Ok(new)
        }
        PatchKind::Apply => Err(unsupported()),
    }
}

/// What a patch's own text says twice or of what nobody asked, which its effect does not show.
fn problems_of_text(kind: PatchKind, patch: &Bytes) -> Vec<String> {
    let (prefix, unknown) = match kind {
        PatchKind::Json => ("json patch ", structure::parse(patch, Encoding::Json).map(|patch| merge::json_patch_unknown_fields(&patch))),
        _ => ("", Ok(vec![])),
    };
    structure::duplicates(patch).into_iter().chain(unknown.unwrap_or_default()).map(|problem| format!("{prefix}{problem}")).collect()
}

/// PATCH of an object or of its status.
pub async fn patch(mut call: Call) -> Answer {
    let kind = PatchKind::of(call.header(header::CONTENT_TYPE)).ok_or_else(unsupported)?;
    if kind == PatchKind::Apply {
        return server_side_apply(call).await;
    }
    let options = PatchOptions::parse(&call.query, call.header(header::USER_AGENT), false)?;
    let bytes = call.body().await?;
    let part = if call.info.subresource.is_empty() { Part::Object } else { Part::Status };
    let problems = if options.field_validation == FieldValidation::Ignore { vec![] } else { problems_of_text(kind, &bytes) };
    let writer = Writer::of(&call, options.dry_run, &options.field_manager);
    let view = call.view();
    let written = writer.modify(part, |old| {
        let patched = || {
            let mut patched = if view.is_stored_form() {
                patched(&call, kind, old, &bytes)?
            } else {
                let mut shown = old.clone();
                view.show(&mut shown);
                patched(&call, kind, &shown, &bytes)?
            };
            // A version that the patch itself names is a condition; the one that was there is not.
            if matches!(patched.resource_version(), "" | "0") {
                patched.set("metadata.resourceVersion", old.resource_version());
            }
            Ok::<_, Status>(patched)
        };
        let mut object = patched()?;
        let quick = view.is_stored_form() && problems.is_empty() && structure::conforms(&mut object, old, &call.kind, &call.info.version);
        if !quick {
            // Refusals show a strategic merge patch itself, and of the others what they have made.
            let given = if kind == PatchKind::Strategic { structure::parse(&bytes, Encoding::Json).ok() } else { None };
            let given = given.map(|patch| merge::go_text(&patch));
            let (checked, warnings) =
                structure::check_patched(patched()?, &call.kind, &call.info.version, options.field_validation, given, problems.clone())?;
            call.warnings.extend(warnings);
            object = checked;
        }
        write::check_name(&call, &object)?;
        call.kind.hooks.to_stored(&call.info.version, &mut object);
        let pinned = object.resource_version() != old.resource_version();
        Ok(Changed { object, pinned })
    });
    let written = written.await?;
    Ok(write::respond(&call, StatusCode::OK, &written))
}

/// Server-side apply: PATCH that says all that its manager wants, of an object that need not exist yet.
pub async fn server_side_apply(mut call: Call) -> Answer {
    let options = PatchOptions::parse(&call.query, call.header(header::USER_AGENT), true)?;
    let bytes = call.body().await?;
    let unreadable = |why| Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {why}"));
    let config = structure::parse(&bytes, Encoding::Yaml).map_err(unreadable)?;
    let doubled = if options.field_validation == FieldValidation::Ignore { vec![] } else { structure::yaml_duplicates(&bytes) };
    if options.field_validation == FieldValidation::Strict && !doubled.is_empty() {
        let all = doubled.join("\n  ");
        return Err(Status::bad_request(format!("error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {all}")));
    }
    call.warnings.extend(doubled);
    let part = match call.info.subresource.as_str() {
        "" => Part::Object,
        "status" => Part::Status,
        _ => Part::Piece,
    };
    let force = options.force.unwrap_or(false);
    let writer = Writer { books: Books::Kept, ..Writer::of(&call, options.dry_run, &options.field_manager) };
    for _ in 0..limits::UPDATE_ATTEMPTS_MAX {
        let modified = writer.modify(part, |old| {
            let object = applied(&call, Some(old), &config, &options.field_manager, force)?;
            let pinned = object.resource_version() != old.resource_version();
            Ok(Changed { object, pinned })
        });
        match modified.await {
            Err(status) if status.is_not_found() && part == Part::Object && writer.standing(writer.name).await?.is_none() => {}
            other => return Ok(write::respond(&call, StatusCode::OK, &other?)),
        }
        let mut object = applied(&call, None, &config, &options.field_manager, force)?;
        object.remove("metadata.resourceVersion");
        if !object.uid().is_empty() {
            let why = format!("uid mismatch: the provided object specified uid {}, and no existing object was found", object.uid());
            return Err(Status::conflict(call.resource(), &call.info.name, &why));
        }
        let asked = RequestInfo { verb: "create".into(), ..call.info.clone() };
        match authorization::authorize(&call.server, &call.user, &asked) {
            Decision::Allow(_) => {}
            Decision::Deny(reason) | Decision::NoOpinion(reason) => return Err(authorization::forbidden(&call.user, &asked, &reason)),
        }
        match (Writer { name: "", ..writer }).create(object).await {
            // Somebody else was faster: what stands there now is to be changed.
            Err(status) if status.is_already_exists() => {}
            other => return Ok(write::respond(&call, StatusCode::CREATED, &other?)),
        }
    }
    Err(Status::modified(call.resource(), &call.info.name))
}

/// What is wrong with a value, in the words of the converter that an apply goes through.
fn unconverted(why: &str) -> String {
    if why.starts_with("illegal base64") {
        return format!("error decoding from json: {why}");
    }
    let Some((found, type_)) = why.strip_prefix("json: cannot unmarshal ").and_then(|rest| rest.rsplit_once(" of type ")) else { return why.into() };
    match found.split(' ').collect::<Vec<_>>().as_slice() {
        ["number", number, ..] if number.contains(['.', 'e', 'E']) && type_.starts_with("int") => format!("cannot convert float64 to {type_}"),
        // What reads itself knows nothing of where it stands.
        [found, "into", "Go", "struct", "field", ..] if type_ == "int32" => format!("json: cannot unmarshal {found} into Go value of type {type_}"),
        _ => why.into(),
    }
}

/// What an apply makes of the stored object, in stored form.
fn applied(call: &Call, live: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, Status> {
    let shown = live.map(|live| {
        let mut shown = live.clone();
        call.view().show(&mut shown);
        shown
    });
    let writer = apply::Writer { kind: &call.kind, version: &call.info.version, manager, subresource: &call.info.subresource, now: &write::now() };
    let mut object = apply::apply(shown.as_ref(), config, &writer, force)?;
    if let (Some(live), "" | "0") = (live, object.resource_version()) {
        object.set("metadata.resourceVersion", live.resource_version());
    }
    let of = format!("{}{}, Kind={}", if call.kind.group.is_empty() { "/" } else { "" }, call.view().api_version(), call.kind.kind);
    let (namespace, name) = (config.namespace().to_string(), config.name().to_string());
    let converted = structure::conform(object, &call.kind, &call.info.version).map_err(|why| unconverted(&why));
    let mut object = converted.map_err(|why| {
        Status::unknown(format!(
            "failed to convert new object ({namespace}/{name}; {of}) to proper version: unable to convert unstructured object to {of}: {why}"
        ))
    })?;
    write::check_name(call, &object)?;
    write::check_namespace(call, &object)?;
    if let Some(created) = live.and_then(|live| live.at("metadata.creationTimestamp")) {
        object.set("metadata.creationTimestamp", created.clone());
    }
    if !call.kind.namespaced_scope() {
        object.remove("metadata.namespace");
    }
    call.kind.hooks.to_stored(&call.info.version, &mut object);
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apply_says_what_cannot_be_converted_in_other_words() {
        let check = |why: &str, expected: &str| assert_eq!(unconverted(why), expected);
        check("illegal base64 data at input byte 0", "error decoding from json: illegal base64 data at input byte 0");
        check("json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32", "cannot convert float64 to int32");
        check("json: cannot unmarshal bool into Go struct field R.a.b of type int32", "json: cannot unmarshal bool into Go value of type int32");
        check(
            "json: cannot unmarshal string into Go struct field R.a of type bool",
            "json: cannot unmarshal string into Go struct field R.a of type bool",
        );
    }
}
