//! ControllerRevision of apps.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "ControllerRevision", "controllerrevisions")
}
