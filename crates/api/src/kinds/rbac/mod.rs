//! The kinds of group `rbac.authorization.k8s.io`.

pub mod clusterrolebindings;
pub mod clusterroles;
pub mod rolebindings;
pub mod roles;
pub mod rules;
