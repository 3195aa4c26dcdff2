//! MutatingWebhookConfiguration of admissionregistration.k8s.io.

use super::rules;
use crate::{
    field::Errors,
    kind::{Hooks, Kind, MetadataAgain},
    kinds::values::list,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations")
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(MutatingWebhookConfigurations)
}

struct MutatingWebhookConfigurations;

impl Hooks for MutatingWebhookConfigurations {
    fn default(&self, configuration: &mut Value) {
        rules::default_webhooks(configuration, true);
    }
    fn validate(&self, configuration: &Value, _old: Option<&Value>, errors: &mut Errors) {
        rules::validate_webhooks(configuration, true, errors);
    }
    fn warnings(&self, configuration: &Value, _old: Option<&Value>) -> Vec<String> {
        rules::name_warnings(configuration)
    }
    fn cells(&self, configuration: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![table::name(configuration), json!(list(configuration, "webhooks").len()), table::age(configuration, now_unix_s)]
    }
}
