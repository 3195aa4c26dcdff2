//! LocalSubjectAccessReview of authorization.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews").verbs(&["create"])
}
