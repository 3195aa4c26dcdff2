//! ResourceClaim of resource.k8s.io.

use crate::{
    kind::{Hooks, Kind},
    kinds::{
        values::{each, fill, has, list, made, put, text, within},
        workload,
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims").status().hooks(ResourceClaims)
}

struct ResourceClaims;

/// Defaults of the spec of a claim, alone or in a template.
pub fn default_spec(spec: &mut Value) {
    let devices = made(spec, "devices");
    let request = |request: &mut Value| {
        fill(request, "allocationMode", "ExactCount");
        if text(request, "allocationMode") == "ExactCount" {
            fill(request, "count", 1);
        }
    };
    each(devices, "requests", |item| {
        within(item, "exactly", request);
        each(item, "firstAvailable", request);
    });
}

impl Hooks for ResourceClaims {
    fn default(&self, claim: &mut Value) {
        default_spec(made(claim, "spec"));
    }
    fn prepare_create(&self, claim: &mut Value) {
        put(claim, "status", json!({}));
    }
    fn cells(&self, claim: &Value, now_unix_s: i64) -> Vec<Value> {
        let status = workload::status(claim);
        let mut states = vec![];
        if claim.deletion_timestamp().is_some() {
            states.push("deleted");
        }
        if !has(status, "allocation") {
            if claim.deletion_timestamp().is_none() {
                states.push("pending");
            }
        } else {
            states.push("allocated");
            if !list(status, "reservedFor").is_empty() {
                states.push("reserved");
            }
        }
        vec![table::name(claim), json!(states.join(",")), table::age(claim, now_unix_s)]
    }
}
