//! RuntimeClass of node.k8s.io.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::{resources, scheduling, warnings},
        values::{entries, list, map, member, text},
    },
    names, table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").conditional_update().create_on_update().hooks(RuntimeClasses)
}

struct RuntimeClasses;

impl Hooks for RuntimeClasses {
    fn validate(&self, class: &Value, old: Option<&Value>, errors: &mut Errors) {
        let root = Path::root();
        checks::required_checked(class, "handler", &root, names::dns1123_label, errors);
        if let Some(overhead) = member(class, "overhead") {
            // The overhead is checked as limits, and named so.
            resources::validate(&json!({"limits": overhead.get("podFixed")}), &root.child("overhead"), &resources::Claims::default(), errors);
        }
        if let Some(placement) = member(class, "scheduling") {
            let path = root.child("scheduling");
            checks::labels(map(placement, "nodeSelector"), &path.child("nodeSelector"), errors);
            let all = list(placement, "tolerations");
            scheduling::tolerations(all, &path.child("tolerations"), errors);
            let repeated = checks::distinct(all, |toleration| ["key", "operator", "value", "effect"].map(|part| text(toleration, part)));
            for (i, toleration, _) in repeated.filter(|(.., again)| *again) {
                errors.duplicate_structure(path.child("tolerations").index(i), &internal::show("core.v1.Toleration", toleration));
            }
        }
        if let Some(old) = old {
            checks::immutable(class.get("handler"), old.get("handler"), &root.child("handler"), errors);
        }
    }
    fn warnings(&self, class: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut all = vec![];
        if let Some(placement) = member(class, "scheduling") {
            let path = Path::new("scheduling").child("nodeSelector");
            all.extend(entries(placement, "nodeSelector").filter_map(|(key, _)| Some(format!("{path}: {}", warnings::old_label(key)?))));
        }
        let overhead = class.get("overhead").and_then(|o| o.get("podFixed")).unwrap_or(&Value::Null);
        let path = Path::new("overhead").child("podFixed");
        all.extend(["memory", "ephemeral-storage"].into_iter().filter_map(|name| warnings::fraction(overhead, name, &path)));
        all
    }
    fn cells(&self, class: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![table::name(class), json!(text(class, "handler")), table::age(class, now_unix_s)]
    }
}
