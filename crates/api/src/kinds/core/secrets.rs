//! Secret.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Secret", "secrets").selectable(&["type"])
}
