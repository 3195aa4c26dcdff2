//! The kinds of group `autoscaling`.

pub mod horizontalpodautoscalers;
