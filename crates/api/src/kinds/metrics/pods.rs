//! `pods` of `metrics.k8s.io`: what each pod's containers use.

use super::{GROUP, VERSION, cells, measured};
use crate::{
    kind::{Hooks, Kind},
    kinds::values::list,
};
use serde_json::Value;

pub fn kind() -> Kind {
    measured(Kind::namespaced(GROUP, VERSION, "PodMetrics", "pods")).hooks(PodMetrics)
}

struct PodMetrics;

impl Hooks for PodMetrics {
    fn cells(&self, metrics: &Value, _now_unix_s: i64) -> Vec<Value> {
        let usages: Vec<&Value> = list(metrics, "containers").iter().filter_map(|container| container.get("usage")).collect();
        cells(metrics, &usages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_sums_the_containers() {
        let container = |cpu: &str| json!({"name": "c", "usage": {"cpu": cpu, "memory": "1Ki"}});
        let pod = json!({"metadata": {"name": "p"}, "window": "1.5s", "containers": [container("1500n"), container("1m")]});
        assert_eq!(kind().hooks.cells(&pod, 0), [json!("p"), json!("1001500n"), json!("2Ki"), json!("1.5s")]);
    }
}
