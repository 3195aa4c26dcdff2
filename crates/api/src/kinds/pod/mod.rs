//! Pods and pod templates: what Pod, the workloads and PodTemplate share.
//!
//! `defaults` fills, `spec` checks a spec and calls a room per topic, `template` wraps it for workloads, `update` says
//! what may change later, `display` makes the row of `kubectl get`.

pub mod annotations;
pub mod containers;
pub mod defaults;
pub mod display;
pub mod environment;
pub mod probes;
pub mod resources;
pub mod scheduling;
pub mod security;
pub mod spec;
pub mod status;
pub mod template;
pub mod update;
pub mod volumes;
pub mod warnings;
