//! The scheduler: binds every pod to a node, one cycle at a time.
//!
//! ```text
//! informers --> state (snapshot + queue) --pop--> cycle --node--> assume --> bind (POST pods/binding)
//!                    ^                              |  \--nowhere--> preemption --> evict, nominate
//!                    +-------- what helps ----------+---> condition PodScheduled, event FailedScheduling
//! ```
//!
//! [`cycle`] decides and [`preemption`] proposes, both pure functions of the [`snapshot`], the pod and random numbers;
//! [`plugins`] hold one judgement each behind the traits of [`framework`]; [`queue`] says who is next; [`state`] keeps
//! up snapshot and queue; `run` alone does I/O.
//!
//! What must stay true: a pod that was placed counts in the next cycle at once (assumed), long before the API shows it;
//! a pod refused is tried again when something happens that can help it, and says in its condition and events why it
//! waits; two schedulers never act at once (leader election).
//!
//! What this crate does not know: storage, HTTP serving, and what any other component does.

pub mod cycle;
pub mod devices;
pub mod framework;
pub mod plugins;
pub mod pod;
pub mod preemption;
pub mod queue;
mod run;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod scenario_tests;
pub mod snapshot;
pub mod state;
pub mod volumes;

pub use run::{Config, Error, run};
