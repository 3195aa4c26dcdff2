//! The drills: the failures that this project exists for, as scenarios that anyone can run and watch.
//!
//! A drill brings a sandbox up, serves nginx from it, drives constant traffic through a NodePort, a ClusterIP and a DNS
//! name from every node, breaks something, heals it, and says what kept working, for how long it did not, and what came
//! back, with a verdict.
//!
//! ```text
//!   scenarios/ (one file each)  --steps-->  stage  --stop, cut, kubectl-->  the sandbox
//!                                             ^ view                          |
//!                                             |                               v
//!   request (log lines) <-- traffic, run in every node          observer (pods, nodes, leaders, endpoints)
//!                     \                                        /
//!                      '--> timeline: what happened, and when <'
//!                               |  analysis (pure)
//!                               v
//!                   figures -> expectations -> verdict -> table, report (HTML, JSON), document (Markdown)
//! ```
//!
//! What must stay true: a drill can fail. Each has a sabotage that breaks what it checks and must turn its verdict. A
//! drill leaves the cluster as it found it, failed or not. Figures come from the log alone, by pure functions. Waiting
//! times are Kubernetes' defaults unless the topology says that they are shortened, and then the report says so.
//!
//! What this crate does not know: how anything that it breaks is made; it uses the API, kubectl and the sandbox only.

pub mod analysis;
pub mod engine;
mod error;
pub mod expectation;
pub mod limits;
mod observer;
pub mod outcome;
pub mod report;
pub mod request;
pub mod scenario;
pub mod scenarios;
pub mod soak;
mod sources;
pub mod stage;
pub mod timeline;
pub mod traffic;
mod workload;

pub use error::{Error, Result};

/// Milliseconds since 1970, now: the one clock of log lines and observations. All nodes of a sandbox share it.
pub fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}
