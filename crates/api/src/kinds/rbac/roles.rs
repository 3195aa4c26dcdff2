//! Role of rbac.authorization.k8s.io.

use crate::kind::{Kind, NameRule};

pub fn kind() -> Kind {
    Kind::namespaced("rbac.authorization.k8s.io", "v1", "Role", "roles")
        .names(NameRule::PathSegment)
        .create_on_update()
}
