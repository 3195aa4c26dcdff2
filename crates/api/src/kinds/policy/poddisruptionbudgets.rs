//! PodDisruptionBudget of policy.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
        .short(&["pdb"])
        .generation()
        .conditional_update()
        .status()
}
