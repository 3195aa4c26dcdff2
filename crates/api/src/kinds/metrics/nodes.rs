//! `nodes` of `metrics.k8s.io`: what each node uses.

use super::{GROUP, VERSION, cells, measured};
use crate::kind::{Hooks, Kind};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind { definitions: DEFINITIONS, ..measured(Kind::cluster(GROUP, VERSION, "NodeMetrics", "nodes")) }.hooks(NodeMetrics)
}

const DEFINITIONS: &[(&str, &str)] = &[
    (
        "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics",
        r##"{"description": "What a node uses.", "type": "object", "required": ["timestamp", "window", "usage"],
            "x-kubernetes-group-version-kind": [{"group": "metrics.k8s.io", "kind": "NodeMetrics", "version": "v1beta1"}],
            "properties": {
                "apiVersion": {"type": "string", "description": "The version of the schema of this object."},
                "kind": {"type": "string", "description": "The REST resource that this object is."},
                "metadata": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "description": "Name and labels of the node."},
                "timestamp": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Time", "description": "The end of the interval that was measured."},
                "window": {"type": "string", "description": "How long the interval was, as a duration: 15s."},
                "usage": {"type": "object", "description": "The memory is that of the working set.",
                    "additionalProperties": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.api.resource.Quantity"}}}}"##,
    ),
    (
        "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetricsList",
        r##"{"description": "What nodes use.", "type": "object", "required": ["items"],
            "x-kubernetes-group-version-kind": [{"group": "metrics.k8s.io", "kind": "NodeMetricsList", "version": "v1beta1"}],
            "properties": {
                "apiVersion": {"type": "string", "description": "The version of the schema of this object."},
                "kind": {"type": "string", "description": "The REST resource that this object is."},
                "metadata": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta", "description": "Metadata of the list."},
                "items": {"type": "array", "description": "One per node.",
                    "items": {"$ref": "#/definitions/io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics"}}}}"##,
    ),
];

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
