//! PodTemplate.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::pod::{template, warnings},
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "PodTemplate", "podtemplates").generation().hooks(PodTemplates)
}

struct PodTemplates;

impl Hooks for PodTemplates {
    fn default(&self, object: &mut Value) {
        template::default(object);
    }
    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        template::validate(object.get("template").unwrap_or(&Value::Null), &Path::new("template"), errors);
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        object.get("template").map(|pod| warnings::pod(pod, &Path::new("template"), true)).unwrap_or_default()
    }
    fn cells(&self, object: &Value, _now_unix_s: i64) -> Vec<Value> {
        let (containers, images) = template::containers_and_images(object.get("template").unwrap_or(&Value::Null));
        vec![table::name(object), json!(containers), json!(images), json!(table::labels_text(object.at("template.metadata.labels")))]
    }
}
