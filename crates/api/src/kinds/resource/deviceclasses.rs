//! DeviceClass of resource.k8s.io.

use super::devices;
use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        pod::resources,
        values::{list, made, member},
        workload,
    },
    names,
};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind::cluster("resource.k8s.io", "v1", "DeviceClass", "deviceclasses").generation().hooks(DeviceClasses)
}

struct DeviceClasses;

impl Hooks for DeviceClasses {
    fn default(&self, class: &mut Value) {
        made(class, "spec");
    }
    fn validate(&self, class: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(class), Path::new("spec"));
        // What has not changed has been checked when it came.
        let stored = |key: &str| old.is_some_and(|old| devices::same(spec.get(key), workload::spec(old).get(key)));
        devices::selectors(list(spec, "selectors"), stored("selectors"), &path.child("selectors"), errors);
        devices::each(list(spec, "config"), devices::CONFIGS_MAX, &path.child("config"), errors, |config, path, errors| {
            devices::configuration(config, stored("config"), path, errors);
        });
        if let Some(name) = member(spec, "extendedResourceName").and_then(Value::as_str)
            && !is_extended_resource(name)
        {
            errors.invalid(path.child("extendedResourceName"), name, "must be a valid extended resource name");
        }
    }
}

/// Whether a name can be that of a resource of which only its provider knows.
fn is_extended_resource(name: &str) -> bool {
    name.contains('/')
        && !resources::is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}
