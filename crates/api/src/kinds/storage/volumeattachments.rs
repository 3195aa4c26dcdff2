//! VolumeAttachment of storage.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        pod::{defaults, volumes},
        values::{flag, int, made, member, put, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments")
        .conditional_update()
        .status_alone()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(VolumeAttachments)
}

struct VolumeAttachments;

const ERROR_BYTES_MAX: usize = 1024;
const METADATA_BYTES_MAX: usize = 262_144;

/// What an attacher tells of a volume that it has attached.
fn metadata_of_volume(status: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("attachmentMetadata");
    let mut bytes = 0;
    for (key, value) in checks::text_entries(status, "attachmentMetadata") {
        bytes += key.len() + value.len();
    }
    if bytes > METADATA_BYTES_MAX {
        errors.too_long(path, "", METADATA_BYTES_MAX);
    }
}

impl Hooks for VolumeAttachments {
    fn default(&self, attachment: &mut Value) {
        let spec = made(attachment, "spec");
        within(spec, "source", |source| within(source, "inlineVolumeSpec", defaults::source));
    }
    fn prepare_create(&self, attachment: &mut Value) {
        put(attachment, "status", json!({"attached": false}));
    }
    fn validate(&self, attachment: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(attachment), Path::new("spec"));
        checks::required(spec, "attacher", &path, errors);
        let (name, inline) = (spec.str_at("source.persistentVolumeName"), spec.at("source.inlineVolumeSpec").filter(|i| !i.is_null()));
        let at = path.child("source");
        match (name, inline) {
            (None, None) => errors.required(at, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
            (Some(_), Some(_)) => errors.forbidden(at, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
            (None, Some(inline)) => super::super::core::persistentvolumes::inline(inline, &at.child("inlineVolumeSpec"), errors),
            (Some(""), None) => errors.required(at.child("persistentVolumeName"), "must specify non empty persistentVolumeName"),
            _ => {}
        }
        let node = text(spec, "nodeName");
        errors.invalid_all(&path.child("nodeName"), node, names::dns1123_subdomain(node));
        if old.is_none() {
            // What came with the first version is checked after all else, and only in what is new.
            volumes::csi_driver(text(spec, "attacher"), &Path::new("spec.attacher"), errors);
            if let Some(name) = name {
                errors.invalid_all(&Path::new("spec.source.persistentVolumeName"), name, names::dns1123_subdomain(name));
            }
        }
        if let Some(old) = old {
            checks::immutable_structure("storage.v1.VolumeAttachmentSpec", attachment.get("spec"), old.get("spec"), &path, errors);
        }
    }
    fn validate_status(&self, attachment: &Value, _old: &Value, errors: &mut Errors) {
        let (status, path) = (workload::status(attachment), Path::new("status"));
        metadata_of_volume(status, &path, errors);
        for key in ["attachError", "detachError"] {
            let Some(error) = member(status, key) else { continue };
            let path = path.child(key);
            if text(error, "message").len() > ERROR_BYTES_MAX {
                // It is measured by one limit and told the other.
                errors.too_long(path.child("message"), "", METADATA_BYTES_MAX);
            }
            if let Some(code) = int(error, "errorCode").filter(|code| *code < 0) {
                errors.invalid(path.child("errorCode"), code, "must be between 0 and 2147483647, inclusive");
            }
        }
    }
    fn cells(&self, attachment: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(attachment);
        vec![
            table::name(attachment),
            json!(text(spec, "attacher")),
            json!(spec.str_at("source.persistentVolumeName").unwrap_or_default()),
            json!(text(spec, "nodeName")),
            json!(flag(workload::status(attachment), "attached")),
            table::age(attachment, now_unix_s),
        ]
    }
}
