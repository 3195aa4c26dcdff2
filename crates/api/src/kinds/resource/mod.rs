//! The kinds of group `resource.k8s.io`.

pub mod deviceclasses;
pub mod devices;
pub mod resourceclaims;
pub mod resourceclaimtemplates;
pub mod resourceslices;
