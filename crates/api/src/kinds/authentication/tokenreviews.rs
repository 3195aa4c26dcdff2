//! TokenReview of authentication.k8s.io.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::cluster("authentication.k8s.io", "v1", "TokenReview", "tokenreviews").verbs(&["create"])
}
