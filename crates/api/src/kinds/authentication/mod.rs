//! The kinds of group `authentication.k8s.io`.

pub mod selfsubjectreviews;
pub mod tokenreviews;
