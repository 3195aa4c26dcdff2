//! What several controllers need, each in one place.

pub mod amounts;
pub mod backends;
pub mod claim;
pub mod discovery;
pub mod disruption;
pub mod hash;
pub mod history;
pub mod namespaces;
pub mod on_return;
pub mod owner;
pub mod patch;
pub mod pod_state;
pub mod pods;
pub mod slices;
#[cfg(test)]
pub mod testing;
