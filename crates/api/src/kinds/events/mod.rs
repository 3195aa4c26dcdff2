//! The kinds of group `events.k8s.io`.

pub mod events;
