//! Simulations of one component alone: for what takes longer than a world lasts, or goes byte by byte.

pub mod balancer;
pub mod checkpoint;
pub mod election;

/// Each one with its name.
pub const ALL: &[(&str, fn(u64) -> Result<(), String>)] =
    &[("balancer", balancer::simulate), ("checkpoint", checkpoint::simulate), ("election", election::simulate)];
