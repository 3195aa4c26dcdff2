//! ReplicationController.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        apps::replicasets,
        checks,
        pod::template,
        values::{fill, has, made, map, put},
        workload,
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "ReplicationController", "replicationcontrollers")
        .short(&["rc"])
        .categories(&["all"])
        .generation()
        .selectable(&["status.replicas"])
        .scale("spec.replicas", "status.replicas", "spec.selector")
        .status()
        .hooks(ReplicationControllers)
}

struct ReplicationControllers;

impl Hooks for ReplicationControllers {
    fn default(&self, controller: &mut Value) {
        let labels = controller.at("spec.template.metadata.labels").filter(|l| l.as_object().is_some_and(|l| !l.is_empty())).cloned();
        if let Some(labels) = labels {
            if controller.labels().is_none_or(serde_json::Map::is_empty) {
                controller.set("metadata.labels", labels.clone());
            }
            let spec = made(controller, "spec");
            if map(spec, "selector").is_none_or(serde_json::Map::is_empty) {
                put(spec, "selector", labels);
            }
        }
        let spec = made(controller, "spec");
        fill(spec, "replicas", 1);
        if has(spec, "template") {
            template::default(spec);
        }
    }
    fn prepare_create(&self, controller: &mut Value) {
        template::drop_disabled(controller);
        put(controller, "status", json!({"replicas": 0}));
    }
    fn prepare_update(&self, controller: &mut Value, _old: &Value) {
        template::drop_disabled(controller);
    }
    fn validate(&self, controller: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(controller), Path::new("spec"));
        let selector = map(spec, "selector").filter(|selector| !selector.is_empty());
        if selector.is_none() {
            errors.required(path.child("selector"), "");
        }
        let selector = selector.map(|labels| json!({"matchLabels": labels}));
        template::validate_running(spec, "ReplicationController", selector.as_ref(), &path.child("template"), errors);
        checks::not_negatives(spec, &["replicas", "minReadySeconds"], &path, errors);
    }
    fn validate_status(&self, controller: &Value, _old: &Value, errors: &mut Errors) {
        replicasets::validate_status(controller, errors);
    }
    fn selectable_value(&self, controller: &Value, field: &str) -> String {
        controller.i64_at(field).unwrap_or(0).to_string()
    }
    fn warnings(&self, controller: &Value, old: Option<&Value>) -> Vec<String> {
        crate::kinds::pod::warnings::workload(controller, old, true)
    }
    fn cells(&self, controller: &Value, now_unix_s: i64) -> Vec<Value> {
        replicasets::cells(controller, table::labels_text(controller.at("spec.selector")), now_unix_s)
    }
}
