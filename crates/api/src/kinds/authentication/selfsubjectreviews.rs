//! SelfSubjectReview of authentication.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews").verbs(&["create"])
}
