//! The kinds of group `events.k8s.io`.

#[allow(clippy::module_inception)]
pub mod events;
