//! How every component but the API server reaches the cluster: through the API, and only through it.
//!
//! On `kube`: transports (TLS from a kubeconfig, or in-process), shared [`informer`]s (one watch per kind per process) of
//! objects that are read from [`json`], the work [`queue`], the [`controller`] runtime (which alone owns watch, queue,
//! rate limit, back-off, leadership, shutdown), leader [`election`], and the event recorder ([`events`]).
//!
//! ```text
//! API --list, watch--> reflector --> store (objects in memory) --> Changes --> queue --> reconcile --> write --> API
//!                                      ^                                                                |
//!                                      +------------------- what this process wrote itself -------------+
//! ```
//!
//! What must stay true: one watch per kind (and selector) per process; a reconcile gets a key, never an event; losing
//! the lease stops every loop at once; a failed watch never empties a store; a process sees its own writes (the store
//! shows them before the watch does), so that nobody acts twice on a stale view.
//!
//! On a node the objects that it lives on are kept on disk before they are shown ([`checkpoint`]), so that its informers
//! have something to say with no server alive.
//!
//! What this crate does not know: storage, HTTP serving, and what any controller does.

pub mod checkpoint;
pub mod clock;
pub mod controller;
pub mod election;
pub mod endpoints;
pub mod error;
pub mod events;
pub mod informer;
pub mod json;
pub mod limits;
pub mod metrics;
pub mod placement;
pub mod queue;
mod reflector;
pub mod resources;
pub mod socket;
mod store;
pub mod taints;
pub mod transport;
mod typed;
pub mod volumes;
mod write;

pub use checkpoint::Checkpoint;
pub use clock::Clock;
pub use error::ErrorExt;
pub use informer::{Change, Changes, Informer, Informers, Key, Object, Selection};
pub use json::Json;
pub use typed::{Api, Deleted};
pub use write::Deletion;
