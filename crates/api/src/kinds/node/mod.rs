//! The kinds of group `node.k8s.io`.

pub mod runtimeclasses;
