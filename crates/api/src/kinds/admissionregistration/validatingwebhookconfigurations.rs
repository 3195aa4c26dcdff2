//! ValidatingWebhookConfiguration of admissionregistration.k8s.io.

use super::rules;
use crate::{
    field::Errors,
    kind::{Hooks, Kind, MetadataAgain},
    kinds::values::list,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations")
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(ValidatingWebhookConfigurations)
}

struct ValidatingWebhookConfigurations;

impl Hooks for ValidatingWebhookConfigurations {
    fn default(&self, configuration: &mut Value) {
        rules::default_webhooks(configuration, false);
    }
    fn validate(&self, configuration: &Value, _old: Option<&Value>, errors: &mut Errors) {
        rules::validate_webhooks(configuration, false, errors);
    }
    fn warnings(&self, configuration: &Value, _old: Option<&Value>) -> Vec<String> {
        rules::name_warnings(configuration)
    }
    fn cells(&self, configuration: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![table::name(configuration), json!(list(configuration, "webhooks").len()), table::age(configuration, now_unix_s)]
    }
}
