//! Subresources that change a part of an object: `binding`, and those that are views of the object itself.

use crate::{
    admission::connections,
    connect::{Answer, Call},
    patch::{self, PatchKind},
    read,
    write::{self, Changed, Part, Writer, now},
};
use api::{
    Status, Value,
    object::ObjectExt,
    request::PatchOptions,
    structure::{self, Encoding},
};
use http::{StatusCode, header};
use serde_json::json;

/// POST of a Binding: puts a pod on a node. Answered when it is on disk; a pod that has a node already is a conflict.
pub async fn binding(mut call: Call) -> Answer {
    let options = call.write_options()?;
    let mut binding = call.object("", "v1", "Binding").await?;
    let name = if call.info.name.is_empty() { binding.name().to_string() } else { call.info.name.clone() };
    if binding.name() != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    connections::admit_posted(&call, &mut binding, options.dry_run).await?;
    let target = binding.str_at("target.name").unwrap_or_default().to_string();
    let mut errors = api::field::Errors::default();
    let path = api::field::Path::new("target");
    match binding.str_at("target.kind") {
        None | Some("" | "Node") => {}
        Some(other) => errors.not_supported(path.child("kind"), other, &["Node", "<empty>"]),
    }
    if target.is_empty() {
        errors.required(path.child("name"), "");
    }
    if !errors.is_empty() {
        return Err(Status::unknown(errors.to_string()));
    }
    let kind = call.server.kind("", "pods")?;
    let namespace = call.info.namespace.clone();
    let writer = Writer { kind: &kind, namespace: &namespace, name: &name, ..Writer::of(&call, options.dry_run, &options.field_manager) };
    let written = writer.modify(Part::Trusted, |old| bound(old, &binding, &name, &target));
    written.await?;
    Ok(call.done(StatusCode::CREATED))
}

fn bound(old: &Value, binding: &Value, name: &str, target: &str) -> Result<Changed, Status> {
    let refused = |detail: &str| Status::conflict(("", "pods/binding"), name, detail);
    if old.deletion_timestamp().is_some() {
        return Err(refused(&format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    if let Some(node) = old.str_at("spec.nodeName").filter(|node| !node.is_empty()) {
        return Err(refused(&format!("pod {name} is already assigned to node {node:?}")));
    }
    if !old.list_at("spec.schedulingGates").is_empty() {
        return Err(refused(&format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut new = old.clone();
    if !binding.uid().is_empty() {
        new.set("metadata.uid", binding.uid());
    }
    new.set("spec.nodeName", target);
    for (key, value) in binding.annotations().into_iter().flatten() {
        new.set_annotation(key, value.as_str().unwrap_or_default());
    }
    for (key, value) in binding.labels().into_iter().flatten() {
        new.set_label(key, value.as_str().unwrap_or_default());
    }
    set_condition(&mut new, json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now()}));
    Ok(Changed::newest(new))
}

/// Puts a condition into `status.conditions`, in the place of the one of its type.
pub fn set_condition(object: &mut Value, mut condition: Value) {
    if object.at("status.conditions").and_then(Value::as_array).is_none() {
        object.set("status.conditions", json!([]));
    }
    let Some(Value::Array(conditions)) = object.at_mut("status.conditions") else { return };
    match conditions.iter_mut().find(|known| known.get("type") == condition.get("type")) {
        Some(known) => {
            if known.get("status") == condition.get("status")
                && let Some(since) = known.get("lastTransitionTime")
            {
                condition.set("lastTransitionTime", since.clone());
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

/// get, update and patch of a part of an object.
pub async fn part(mut call: Call) -> Answer {
    if !matches!(call.info.subresource.as_str(), "ephemeralcontainers" | "resize" | "approval") {
        return Err(Status::path_not_found());
    }
    let kind = match call.info.verb.as_str() {
        "get" => return read::get(call).await,
        "update" => None,
        _ => Some(PatchKind::of(call.header(header::CONTENT_TYPE)).ok_or_else(patch::unsupported)?),
    };
    if kind == Some(PatchKind::Apply) {
        return patch::server_side_apply(call).await;
    }
    let options = PatchOptions::parse(&call.query, call.header(header::USER_AGENT), false)?;
    let (encoding, bytes) = if call.info.verb == "update" { call.input().await? } else { (Encoding::Json, call.body().await?) };
    let put = match kind {
        Some(_) => None,
        None => {
            let (object, warnings) = structure::decode_object(&bytes, encoding, &call.kind, &call.info.version, options.field_validation)?;
            call.warnings.extend(warnings);
            write::check_name(&call, &object)?;
            Some(object)
        }
    };
    let writer = Writer::of(&call, options.dry_run, &options.field_manager);
    let view = call.view();
    let written = writer.modify(Part::Piece, |old| {
        let mut given = match (&put, kind) {
            (Some(object), _) => object.clone(),
            (None, kind) => {
                let mut shown = old.clone();
                view.show(&mut shown);
                let patched = patch::patched(&call, kind.unwrap_or(PatchKind::Merge), &shown, &bytes)?;
                let (object, warnings) = structure::check_object(patched, &call.kind, &call.info.version, options.field_validation)?;
                call.warnings.extend(warnings);
                object
            }
        };
        call.kind.hooks.to_stored(&call.info.version, &mut given);
        let pinned = !matches!(given.resource_version(), "" | "0") && given.resource_version() != old.resource_version();
        Ok(Changed { object: given, pinned })
    });
    let written = written.await?;
    Ok(write::respond(&call, StatusCode::OK, &written))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {}});
        let binding = json!({"metadata": {"name": "p", "annotations": {"a": "b"}}, "target": {"name": "n"}});
        let new = bound(&pod, &binding, "p", "n").unwrap().object;
        assert_eq!(new["spec"]["nodeName"], "n");
        assert_eq!(new.annotation("a"), Some("b"));
        assert_eq!(new["status"]["conditions"][0]["type"], "PodScheduled");
        assert_eq!(bound(&new, &binding, "p", "m").err().unwrap().code, 409);
    }
}
