//! `nodes` of `metrics.k8s.io`: what each node uses.

use super::{GROUP, VERSION, cells, measured};
use crate::kind::{Hooks, Kind};
use serde_json::Value;

pub fn kind() -> Kind {
    measured(Kind::cluster(GROUP, VERSION, "NodeMetrics", "nodes")).hooks(NodeMetrics)
}

struct NodeMetrics;

impl Hooks for NodeMetrics {
    fn cells(&self, metrics: &Value, _now_unix_s: i64) -> Vec<Value> {
        cells(metrics, &metrics.get("usage").into_iter().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_shows_what_is_used() {
        let node = json!({"metadata": {"name": "n"}, "window": "15s", "usage": {"cpu": "250000000n", "memory": "2048Ki"}});
        assert_eq!(kind().hooks.cells(&node, 0), [json!("n"), json!("250m"), json!("2Mi"), json!("15s")]);
    }
}
