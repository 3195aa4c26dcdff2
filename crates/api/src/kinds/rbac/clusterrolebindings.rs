//! ClusterRoleBinding of rbac.authorization.k8s.io.

use crate::kind::{Kind, NameRule};

pub fn kind() -> Kind {
    Kind::cluster("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings")
        .names(NameRule::PathSegment)
        .create_on_update()
}
