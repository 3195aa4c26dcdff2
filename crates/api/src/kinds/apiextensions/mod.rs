//! The kinds of group `apiextensions.k8s.io`.

pub mod customresourcedefinitions;
