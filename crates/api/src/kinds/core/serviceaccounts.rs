//! ServiceAccount.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "ServiceAccount", "serviceaccounts")
        .short(&["sa"])
        .connect("token", ("authentication.k8s.io", "v1", "TokenRequest"), &["create"])
}
