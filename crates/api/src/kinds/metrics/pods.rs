//! `pods` of `metrics.k8s.io`: what each pod's containers use.

use super::{GROUP, VERSION, cells, measured};
use crate::{
    kind::{Hooks, Kind},
    kinds::values::list,
};
use serde_json::Value;

pub fn kind() -> Kind {
    Kind { definitions: DEFINITIONS, ..measured(Kind::namespaced(GROUP, VERSION, "PodMetrics", "pods")) }.hooks(PodMetrics)
}

const DEFINITIONS: &[(&str, &str)] = &[
    (
        "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics",
        r##"{"description": "What a pod uses.", "type": "object", "required": ["timestamp", "window", "containers"],
            "x-kubernetes-group-version-kind": [{"group": "metrics.k8s.io", "kind": "PodMetrics", "version": "v1beta1"}],
            "properties": {
                "apiVersion": {"type": "string", "description": "The version of the schema of this object."},
                "kind": {"type": "string", "description": "The REST resource that this object is."},
                "metadata": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "description": "Name, namespace and labels of the pod."},
                "timestamp": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Time", "description": "The end of the interval that was measured."},
                "window": {"type": "string", "description": "How long the interval was, as a duration: 15s."},
                "containers": {"type": "array", "description": "All containers were measured in the same interval.",
                    "items": {"$ref": "#/definitions/io.k8s.metrics.pkg.apis.metrics.v1beta1.ContainerMetrics"},
                    "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge"}}}"##,
    ),
    (
        "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetricsList",
        r##"{"description": "What pods use.", "type": "object", "required": ["items"],
            "x-kubernetes-group-version-kind": [{"group": "metrics.k8s.io", "kind": "PodMetricsList", "version": "v1beta1"}],
            "properties": {
                "apiVersion": {"type": "string", "description": "The version of the schema of this object."},
                "kind": {"type": "string", "description": "The REST resource that this object is."},
                "metadata": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta", "description": "Metadata of the list."},
                "items": {"type": "array", "description": "One per pod.",
                    "items": {"$ref": "#/definitions/io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics"}}}}"##,
    ),
    (
        "io.k8s.metrics.pkg.apis.metrics.v1beta1.ContainerMetrics",
        r##"{"description": "What a container uses.", "type": "object", "required": ["name", "usage"],
            "properties": {
                "name": {"type": "string", "description": "The container's name, as in the pod's spec."},
                "usage": {"type": "object", "description": "The memory is that of the working set.",
                    "additionalProperties": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.api.resource.Quantity"}}}}"##,
    ),
];

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
