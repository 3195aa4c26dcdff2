//! Endpoints.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Endpoints", "endpoints")
        .short(&["ep"])
        .create_on_update()
}
