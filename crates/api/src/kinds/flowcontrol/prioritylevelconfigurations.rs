//! PriorityLevelConfiguration of flowcontrol.apiserver.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration", "prioritylevelconfigurations")
        .generation()
        .status()
}
