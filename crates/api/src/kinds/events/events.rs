//! Event of events.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("events.k8s.io", "v1", "Event", "events")
        .short(&["ev"])
        .selectable(&["regarding.kind", "regarding.namespace", "regarding.name", "regarding.uid", "regarding.apiVersion", "regarding.resourceVersion", "regarding.fieldPath", "reason", "reportingController", "type"])
        .create_on_update()
}
