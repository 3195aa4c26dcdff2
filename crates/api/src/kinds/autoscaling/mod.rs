//! The kinds of group `autoscaling`.

pub mod first_version;
pub mod horizontalpodautoscalers;
