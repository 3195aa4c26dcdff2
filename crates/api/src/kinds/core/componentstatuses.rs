//! ComponentStatus: asked, never stored.

use crate::{
    kind::{Hooks, Kind},
    kinds::values::{list, text},
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("", "v1", "ComponentStatus", "componentstatuses").short(&["cs"]).verbs(&["get", "list"]).hooks(ComponentStatuses)
}

struct ComponentStatuses;

impl Hooks for ComponentStatuses {
    fn cells(&self, component: &Value, _now_unix_s: i64) -> Vec<Value> {
        let healthy = list(component, "conditions").iter().find(|c| text(c, "type") == "Healthy");
        let status = match healthy.map(|c| text(c, "status")) {
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
            None => "Unknown",
        };
        let part = |key: &str| json!(healthy.map(|c| text(c, key)).unwrap_or_default());
        vec![table::name(component), json!(status), part("message"), part("error")]
    }
}
