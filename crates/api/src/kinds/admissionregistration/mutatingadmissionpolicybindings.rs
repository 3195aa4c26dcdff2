//! MutatingAdmissionPolicyBinding of admissionregistration.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings")
        .categories(&["api-extensions"])
        .generation()
        .conditional_update()
}
