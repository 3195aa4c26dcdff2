//! PodTemplate.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "PodTemplate", "podtemplates").generation()
}
