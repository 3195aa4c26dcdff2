//! Binding.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Binding", "bindings").verbs(&["create"])
}
