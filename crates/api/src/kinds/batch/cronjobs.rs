//! CronJob of batch.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("batch", "v1", "CronJob", "cronjobs")
        .short(&["cj"])
        .categories(&["all"])
        .generation()
        .status()
}
