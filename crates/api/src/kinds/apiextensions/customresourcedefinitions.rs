//! CustomResourceDefinition of apiextensions.k8s.io.

use crate::{
    kind::{Hooks, Kind},
    kinds::{
        values::{fill, flag, list, made, put, text, within},
        workload,
    },
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
        .short(&["crd", "crds"])
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
        .status()
        .hooks(CustomResourceDefinitions)
}

struct CustomResourceDefinitions;

impl Hooks for CustomResourceDefinitions {
    fn default(&self, definition: &mut Value) {
        let spec = made(definition, "spec");
        let names = made(spec, "names");
        let kind = text(names, "kind").to_string();
        if !kind.is_empty() {
            fill(names, "singular", kind.to_lowercase());
            fill(names, "listKind", format!("{kind}List"));
        }
        let conversion = made(spec, "conversion");
        fill(conversion, "strategy", "None");
        within(conversion, "webhook", |webhook| {
            within(webhook, "clientConfig", |client| within(client, "service", |service| fill(service, "port", 443)))
        });
    }
    fn prepare_create(&self, definition: &mut Value) {
        let stored: Vec<Value> =
            list(workload::spec(definition), "versions").iter().filter(|v| flag(v, "storage")).map(|v| json!(text(v, "name"))).collect();
        put(definition, "status", json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}));
    }
}
