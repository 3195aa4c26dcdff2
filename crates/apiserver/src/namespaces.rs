//! What is special about the deletion of namespaces: `spec.finalizers` hold one until its content is gone, and
//! `/finalize` alone can change them. Like every update, that takes the metadata as it is given.

use crate::{
    connect::{Answer, Call},
    write::{self, Changed, Part, Writer},
};
use api::{Kind, Status, Value, field, names, object::ObjectExt, structure};
use http::StatusCode;

/// Whether objects of this kind are namespaces.
pub fn is_namespace(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.resource == "namespaces"
}

/// Whether `spec.finalizers` hold it.
pub fn holds(kind: &Kind, object: &Value) -> bool {
    is_namespace(kind) && !object.list_at("spec.finalizers").is_empty()
}

fn check_finalizers(finalizers: &[Value]) -> field::Errors {
    let mut errors = field::Errors::default();
    for (i, finalizer) in finalizers.iter().enumerate() {
        let (name, path) = (finalizer.as_str().unwrap_or_default(), field::Path::new("spec").child("finalizers").index(i));
        errors.invalid_all(&path, name, names::qualified_name(name));
        if !name.contains('/') && name != "kubernetes" {
            errors.invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
    errors
}

/// PUT of `/finalize`: sets `spec.finalizers` and metadata.
pub async fn finalize(mut call: Call) -> Answer {
    let options = call.write_options()?;
    let (encoding, bytes) = call.input().await?;
    let (object, warnings) = structure::decode_object(&bytes, encoding, &call.kind, &call.info.version, options.field_validation)?;
    call.warnings.extend(warnings);
    write::check_name(&call, &object)?;
    let errors = check_finalizers(object.list_at("spec.finalizers"));
    if !errors.is_empty() {
        return Err(Status::invalid("", "Namespace", &call.info.name, &errors));
    }
    let pinned = !object.resource_version().is_empty();
    let writer = Writer::of(&call, options.dry_run, &options.field_manager);
    let written = writer.modify(Part::Piece, |old| {
        let mut new = old.clone();
        new.set("metadata", object.get("metadata").cloned().unwrap_or_default());
        new.set_label("kubernetes.io/metadata.name", old.name());
        match object.at("spec.finalizers").filter(|finalizers| !finalizers.is_null()) {
            Some(finalizers) => new.set("spec.finalizers", finalizers.clone()),
            None => drop(new.remove("spec.finalizers")),
        }
        Ok(Changed { object: new, pinned })
    });
    let written = written.await?;
    Ok(write::respond(&call, StatusCode::OK, &written))
}
