//! ClusterRole of rbac.authorization.k8s.io.

use crate::kind::{Kind, NameRule};

pub fn kind() -> Kind {
    Kind::cluster("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles")
        .names(NameRule::PathSegment)
        .create_on_update()
}
