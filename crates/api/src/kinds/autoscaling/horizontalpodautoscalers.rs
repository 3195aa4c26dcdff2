//! HorizontalPodAutoscaler of autoscaling.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .short(&["hpa"])
        .categories(&["all"])
        .served(&["v2", "v1"])
        .status()
}
