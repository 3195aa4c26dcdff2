//! ServiceAccount.

use crate::{
    kind::{Hooks, Kind},
    kinds::values::each,
    object::ObjectExt,
    table,
};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "ServiceAccount", "serviceaccounts")
        .short(&["sa"])
        .connect("token", ("authentication.k8s.io", "v1", "TokenRequest"), &["create"])
        .hooks(ServiceAccounts)
}

struct ServiceAccounts;

/// Secrets of an account are in its namespace: only their names are kept.
fn only_names(account: &mut Value) {
    each(account, "secrets", |secret| {
        if let Value::Object(reference) = secret {
            reference.retain(|key, _| key == "name");
        }
    });
}

impl Hooks for ServiceAccounts {
    fn prepare_create(&self, account: &mut Value) {
        only_names(account);
    }
    fn prepare_update(&self, account: &mut Value, _old: &Value) {
        only_names(account);
    }
    fn warnings(&self, account: &Value, old: Option<&Value>) -> Vec<String> {
        const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
        let says = |account: &Value| account.annotation(MOUNTABLE).is_some();
        let why = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
        let is_new = says(account) && !old.is_some_and(says);
        is_new.then(|| format!("metadata.annotations[{MOUNTABLE}]: {why}")).into_iter().collect()
    }
    fn cells(&self, account: &Value, now_unix_s: i64) -> Vec<Value> {
        table::name_and_age(account, now_unix_s)
    }
}
