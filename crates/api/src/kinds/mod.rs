//! The kinds, one file each (`kinds/<group>/<resource>.rs`, the core group in `kinds/core/`): `pub fn kind() -> Kind`.
//! What several kinds share (pod templates, label selectors, volumes) has a module of its own here.

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod authentication;
pub mod authorization;
pub mod autoscaling;
pub mod base64;
pub mod batch;
pub mod certificates;
pub mod checks;
pub mod conditions;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod events;
pub mod flowcontrol;
pub mod metrics;
pub mod networking;
pub mod node;
pub mod pem;
pub mod pod;
pub mod policy;
pub mod rbac;
pub mod resource;
pub mod scheduling;
pub mod storage;
pub mod values;
pub mod workload;
