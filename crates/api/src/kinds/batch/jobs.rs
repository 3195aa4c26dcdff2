//! Job of batch.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("batch", "v1", "Job", "jobs")
        .categories(&["all"])
        .generation()
        .selectable(&["status.successful"])
        .status()
}
