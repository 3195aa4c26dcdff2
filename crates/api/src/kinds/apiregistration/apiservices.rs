//! APIService of apiregistration.k8s.io: who serves a group and version.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, NameRule},
    kinds::{
        base64, checks,
        values::{fill, flag, has, int, list, made, put, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("apiregistration.k8s.io", "v1", "APIService", "apiservices")
        .categories(&["api-extensions"])
        .names(NameRule::PathSegment)
        .conditional_update()
        .status_alone()
        .hooks(ApiServices)
}

struct ApiServices;

impl Hooks for ApiServices {
    fn default(&self, service: &mut Value) {
        within(made(service, "spec"), "service", |service| fill(service, "port", 443));
    }
    fn prepare_create(&self, service: &mut Value) {
        let mut status = json!({});
        if !has(workload::spec(service), "service") {
            let now = service.creation_timestamp();
            status = json!({"conditions": [{"type": "Available", "status": "True", "lastTransitionTime": now, "reason": "Local", "message": "Local APIServices are always available"}]});
        }
        put(service, "status", status);
    }
    fn validate(&self, service: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(service), Path::new("spec"));
        let (group, version) = (text(spec, "group"), text(spec, "version"));
        let wanted = format!("{version}.{group}");
        if service.name() != wanted {
            errors.invalid(Path::new("metadata").child("name"), service.name(), &format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"));
        }
        if group.is_empty() && version != "v1" {
            errors.required(path.child("group"), "only v1 may have an empty group and it better be legacy kube");
        }
        checks::checked(spec, "group", &path, names::dns1123_subdomain, errors);
        errors.invalid_all(&path.child("version"), version, names::dns1035_label(version));
        for (key, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            let value = int(spec, key).unwrap_or(0);
            if value <= 0 || value > max {
                errors.invalid(path.child(key), value, &format!("must be positive and less than {max}"));
            }
        }
        let insecure = flag(spec, "insecureSkipTLSVerify");
        let Some(target) = spec.get("service").filter(|s| s.is_object()) else {
            if !text(spec, "caBundle").is_empty() {
                errors.invalid(
                    path.child("caBundle"),
                    format!("{} bytes", base64::decode(text(spec, "caBundle")).map_or(0, |bytes| bytes.len())),
                    "local APIServices may not have a caBundle",
                );
            }
            if insecure {
                errors.invalid(path.child("insecureSkipTLSVerify"), true, "local APIServices may not have insecureSkipTLSVerify");
            }
            return;
        };
        let at = path.child("service");
        checks::required(target, "namespace", &at, errors);
        checks::required(target, "name", &at, errors);
        let port = int(target, "port").unwrap_or(0);
        if !checks::is_port(port) {
            errors.invalid(at.child("port"), port, &format!("port is not valid: {}", checks::PORT_RANGE));
        }
        if insecure && !text(spec, "caBundle").is_empty() {
            errors.invalid(path.child("insecureSkipTLSVerify"), true, "may not be true if caBundle is present");
        }
    }
    fn validate_status(&self, service: &Value, _old: &Value, errors: &mut Errors) {
        for (i, condition) in list(workload::status(service), "conditions").iter().enumerate() {
            let path = Path::new("status").child("conditions").index(i);
            checks::supported(condition, "status", &["True", "False", "Unknown"], &path, errors);
        }
    }
    fn cells(&self, service: &Value, now_unix_s: i64) -> Vec<Value> {
        let target = match workload::spec(service).get("service").filter(|s| s.is_object()) {
            Some(target) => format!("{}/{}", text(target, "namespace"), text(target, "name")),
            None => "Local".to_string(),
        };
        let available = match list(workload::status(service), "conditions").iter().find(|c| text(c, "type") == "Available") {
            Some(condition) if text(condition, "status") == "True" => "True".to_string(),
            Some(condition) => format!("{} ({})", text(condition, "status"), text(condition, "reason")),
            None => "Unknown".to_string(),
        };
        vec![table::name(service), json!(target), json!(available), table::age(service, now_unix_s)]
    }
}
