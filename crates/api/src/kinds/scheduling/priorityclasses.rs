//! PriorityClass of scheduling.k8s.io.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{fill_absent, flag, has, int, put, text},
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses").short(&["pc"]).hooks(PriorityClasses)
}

/// The highest priority that users may give.
pub const USER_PRIORITY_MAX: i64 = 1_000_000_000;
/// The classes that every cluster has, and their priorities.
pub const SYSTEM_CLASSES: &[(&str, i64)] = &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

struct PriorityClasses;

impl Hooks for PriorityClasses {
    fn default(&self, class: &mut Value) {
        fill_absent(class, "preemptionPolicy", "PreemptLowerPriority");
        if !has(class, "value") {
            put(class, "value", 0);
        }
    }
    /// The generation is said and never counted.
    fn prepare_create(&self, class: &mut Value) {
        class.set("metadata.generation", 1);
    }
    fn validate(&self, class: &Value, old: Option<&Value>, errors: &mut Errors) {
        if let Some(old) = old {
            if int(old, "value") != int(class, "value") {
                errors.forbidden(Path::new("value"), "may not be changed in an update.");
            }
            checks::immutable(class.get("preemptionPolicy"), old.get("preemptionPolicy"), &Path::new("preemptionPolicy"), errors);
            return;
        }
        let (name, value) = (class.name(), int(class, "value").unwrap_or(0));
        if name.starts_with("system-") {
            let problem = match SYSTEM_CLASSES.iter().find(|(system, _)| *system == name) {
                None => Some(format!("{name} is not a known system priority class")),
                Some((_, priority)) if *priority != value => Some(format!("value of {name} PriorityClass must be {priority}")),
                Some(_) if flag(class, "globalDefault") => Some(format!("globalDefault of {name} PriorityClass must be false")),
                Some(_) => None,
            };
            if let Some(problem) = problem {
                let rule = "priority class names with 'system-' prefix are reserved for system use only.";
                errors.forbidden(Path::new("metadata").child("name"), &format!("{rule} error: {problem}"));
            }
        } else if value > USER_PRIORITY_MAX {
            errors.forbidden(Path::new("value"), &format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}"));
        }
        checks::required_one_of(class, "preemptionPolicy", &["PreemptLowerPriority", "Never"], &Path::root(), errors);
    }
    fn cells(&self, class: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![
            table::name(class),
            json!(int(class, "value").unwrap_or(0)),
            json!(flag(class, "globalDefault")),
            table::age(class, now_unix_s),
            json!(text(class, "preemptionPolicy")),
        ]
    }
}
