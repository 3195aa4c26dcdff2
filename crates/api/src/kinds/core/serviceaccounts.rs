//! ServiceAccount.

use crate::{
    kind::{Hooks, Kind},
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

impl Hooks for ServiceAccounts {
    fn cells(&self, account: &Value, now_unix_s: i64) -> Vec<Value> {
        table::name_and_age(account, now_unix_s)
    }
}
