//! The container runtime as the node agent sees it: CRI v1 over a Unix socket.
//!
//! Every call has a deadline and every failure is a value that says what to do ([`Error`]). Messages are CRI's own
//! ([`v1`]); this crate adds no meaning to them.
//!
//! What must stay true: no call can hang for ever; a runtime that restarts is found again without a new client; "not
//! found" is never confused with "cannot tell".
//!
//! What this crate does not know: pods' life, Kubernetes objects, files on disk.

mod channel;
mod error;
mod images;
mod runtime;

pub use channel::Client;
pub use error::Error;
pub use k8s_cri::v1;
pub use runtime::ExecOutput;

/// Deadlines of the calls, by what the runtime has to do in them.
pub mod deadlines {
    use std::time::Duration;

    /// Reading state.
    pub const READ: Duration = Duration::from_secs(10);
    /// Changing something small: creating or starting a container, removing one.
    pub const CHANGE: Duration = Duration::from_secs(120);
    /// Making or stopping a sandbox, which runs network plugins.
    pub const SANDBOX: Duration = Duration::from_secs(240);
    /// Pulling an image: a slow registry is a fact of life, a dead one is noticed by the runtime.
    pub const PULL: Duration = Duration::from_secs(1800);
    /// What a stop or an exec gets beyond its own time-out.
    pub const SLACK: Duration = Duration::from_secs(15);
}
