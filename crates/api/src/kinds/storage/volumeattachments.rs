//! VolumeAttachment of storage.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::volumes::csi_driver,
        values::{flag, made, put, text},
        workload,
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments").conditional_update().status().hooks(VolumeAttachments)
}

struct VolumeAttachments;

impl Hooks for VolumeAttachments {
    fn default(&self, attachment: &mut Value) {
        made(attachment, "spec");
    }
    fn prepare_create(&self, attachment: &mut Value) {
        put(attachment, "status", json!({"attached": false}));
    }
    fn validate(&self, attachment: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(attachment), Path::new("spec"));
        checks::required_checked(spec, "attacher", &path, csi_driver, errors);
        if spec.str_at("source.persistentVolumeName").is_none() && spec.at("source.inlineVolumeSpec").is_none_or(Value::is_null) {
            errors.required(path.child("source"), "must specify exactly one of inlineVolumeSpec and persistentVolumeName");
        }
        checks::required(spec, "nodeName", &path, errors);
        if let Some(old) = old {
            checks::immutable(attachment.get("spec"), old.get("spec"), &path, errors);
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
