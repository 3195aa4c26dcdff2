//! RuntimeClass of node.k8s.io.

use crate::{
    field::{Errors, Path, Reason},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::{resources, scheduling},
        values::{list, map, member, text},
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
            resources::validate(&json!({"limits": overhead.get("podFixed")}), &root.child("overhead"), &[], errors);
        }
        if let Some(placement) = member(class, "scheduling") {
            let path = root.child("scheduling");
            checks::labels(map(placement, "nodeSelector"), &path.child("nodeSelector"), errors);
            let all = list(placement, "tolerations");
            scheduling::tolerations(all, &path.child("tolerations"), errors);
            for (i, toleration) in all.iter().enumerate().filter(|(i, t)| all[..*i].contains(t)) {
                let shown = json!({"Key": text(toleration, "key"), "Operator": text(toleration, "operator"), "Value": text(toleration, "value"), "Effect": text(toleration, "effect"), "TolerationSeconds": toleration.get("tolerationSeconds")});
                errors.push(Reason::Duplicate, path.child("tolerations").index(i), Some(shown), "");
            }
        }
        if let Some(old) = old {
            checks::immutable(class.get("handler"), old.get("handler"), &root.child("handler"), errors);
        }
    }
    fn cells(&self, class: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![table::name(class), json!(text(class, "handler")), table::age(class, now_unix_s)]
    }
}
