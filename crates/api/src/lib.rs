//! The catalogue: what Kubernetes' objects are, said once.
//!
//! One record per kind ([`kind::Kind`], one file each in `kinds/`, one line each in [`catalogue`]); the engine that
//! reads schemas, merges, prunes and checks objects; and the plain values that every other crate speaks in
//! (quantities, selectors, durations, field paths, `Status`, named limits).
//!
//! What must stay true: everything here is a function of its arguments. An object is its JSON
//! ([`serde_json::Value`]); it is never forced through a lossy type.
//!
//! What this crate does not know: I/O, HTTP, storage, clocks.

pub mod apply;
pub mod catalogue;
pub mod cel;
pub mod cron;
pub mod custom;
pub mod field;
pub mod internal;
pub mod kind;
pub mod kinds;
pub mod limits;
pub mod merge;
pub mod metadata;
pub mod names;
pub mod object;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod request;
pub mod schema;
pub mod selector;
pub mod status;
pub mod structure;
pub mod table;
pub mod unified;

pub use catalogue::Catalogue;
pub use kind::Kind;
pub use serde_json::Value;
pub use status::Status;
