//! SelfSubjectRulesReview of authorization.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews").verbs(&["create"])
}
