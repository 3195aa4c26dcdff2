//! Service.

use crate::kind::{Kind, NameRule};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Service", "services")
        .short(&["svc"])
        .categories(&["all"])
        .names(NameRule::Label)
        .selectable(&["spec.clusterIP", "spec.type"])
        .create_on_update()
        .connect("proxy", ("", "", "ServiceProxyOptions"), &["create", "delete", "get", "patch", "update"])
        .status()
}
