//! LimitRange.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "LimitRange", "limitranges")
        .short(&["limits"])
        .create_on_update()
}
