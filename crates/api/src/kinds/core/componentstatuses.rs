//! ComponentStatus.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("", "v1", "ComponentStatus", "componentstatuses")
        .short(&["cs"])
        .verbs(&["get", "list"])
}
