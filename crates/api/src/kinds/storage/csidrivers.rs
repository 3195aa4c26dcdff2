//! CSIDriver of storage.k8s.io.

use crate::{
    field::{Errors, Path, Reason},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        values::{fill, fill_absent, flag, has, int, list, made, put, shown, strings, text},
        workload,
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("storage.k8s.io", "v1", "CSIDriver", "csidrivers").conditional_update().hooks(CsiDrivers)
}

const TOKEN_MIN_S: i64 = 600;
const UPDATE_PERIOD_MIN_S: i64 = 10;

struct CsiDrivers;

impl Hooks for CsiDrivers {
    fn default(&self, driver: &mut Value) {
        let spec = made(driver, "spec");
        fill(spec, "attachRequired", true);
        for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            fill(spec, key, false);
        }
        fill_absent(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if list(spec, "volumeLifecycleModes").is_empty() {
            put(spec, "volumeLifecycleModes", json!(["Persistent"]));
        }
    }
    fn validate(&self, driver: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(driver), Path::new("spec"));
        checks::one_of(spec, "fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"], &path, errors);
        for (i, request, again) in checks::distinct(list(spec, "tokenRequests"), |request| text(request, "audience")) {
            let path = path.child("tokenRequests").index(i);
            let audience = text(request, "audience");
            if again {
                errors.duplicate(path.child("audience"), audience);
                continue;
            }
            match int(request, "expirationSeconds") {
                Some(s) if s < TOKEN_MIN_S => errors.invalid(path.child("expirationSeconds"), s, "may not specify a duration less than 10 minutes"),
                Some(s) if s > 1 << 32 => errors.invalid(path.child("expirationSeconds"), s, "may not specify a duration larger than 2^32 seconds"),
                _ => {}
            }
        }
        for mode in strings(spec, "volumeLifecycleModes") {
            if !matches!(mode, "Persistent" | "Ephemeral") {
                errors.not_supported(path.child("volumeLifecycleModes"), mode, &["Persistent", "Ephemeral"]);
            }
        }
        if let Some(s) = int(spec, "nodeAllocatableUpdatePeriodSeconds")
            && s < UPDATE_PERIOD_MIN_S
        {
            errors.invalid(path.child("nodeAllocatableUpdatePeriodSeconds"), s, "must be greater than or equal to 10 seconds");
        }
        if let Some(old) = old.map(workload::spec) {
            for (key, name) in [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")] {
                if spec.get(key) != old.get(key) {
                    errors.push(Reason::Invalid, path.child(name), Some(shown(spec, key)), checks::IMMUTABLE);
                }
            }
        }
    }
    /// Changes are counted, from none at the beginning.
    fn prepare_update(&self, driver: &mut Value, old: &Value) {
        let changed = workload::spec(driver) != workload::spec(old);
        let generation = old.generation() + i64::from(changed);
        if generation > 0 {
            driver.set("metadata.generation", generation);
        }
    }
    fn warnings(&self, driver: &Value, _old: Option<&Value>) -> Vec<String> {
        let spec = workload::spec(driver);
        let tokens = !list(spec, "tokenRequests").is_empty() && !has(spec, "serviceAccountTokenInSecrets");
        let unset = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes";
        tokens.then(|| unset.to_string()).into_iter().collect()
    }
    fn cells(&self, driver: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(driver);
        let join = |all: Vec<&str>| if all.is_empty() { "<unset>".to_string() } else { all.join(",") };
        vec![
            table::name(driver),
            json!(spec.get("attachRequired").and_then(Value::as_bool).unwrap_or(true)),
            json!(flag(spec, "podInfoOnMount")),
            json!(flag(spec, "storageCapacity")),
            json!(join(list(spec, "tokenRequests").iter().map(|r| text(r, "audience")).collect())),
            json!(flag(spec, "requiresRepublish")),
            json!(join(strings(spec, "volumeLifecycleModes").collect())),
            table::age(driver, now_unix_s),
        ]
    }
}
