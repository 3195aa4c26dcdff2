//! ConfigMap.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "ConfigMap", "configmaps").short(&["cm"])
}
