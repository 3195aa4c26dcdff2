//! Event.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Event", "events")
        .short(&["ev"])
        .selectable(&["involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type"])
        .create_on_update()
}
