//! The kinds of group `apiregistration.k8s.io`.

pub mod apiservices;
