//! Namespace.

use crate::kind::{Kind, NameRule};

pub fn kind() -> Kind {
    Kind::cluster("", "v1", "Namespace", "namespaces")
        .short(&["ns"])
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .names(NameRule::Label)
        .selectable(&["status.phase"])
        .connect("finalize", ("", "", "Namespace"), &["update"])
        .status()
}
