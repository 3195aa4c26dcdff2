//! How every component but the API server reaches the cluster: through the API, and only through it.
//!
//! On `kube`: transports (TLS from a kubeconfig, or in-process), shared [`informer`]s (one watch per kind per process),
//! the work [`queue`], the [`controller`] runtime (which alone owns watch, queue, rate limit, back-off, leadership,
//! shutdown), leader [`election`], and the event recorder ([`events`]).
//!
//! What must stay true: one watch per kind (and selector) per process; a reconcile gets a key, never an event; losing
//! the lease stops every loop at once.
//!
//! What this crate does not know: storage, HTTP serving, and what any controller does.

pub mod controller;
pub mod election;
pub mod events;
pub mod informer;
pub mod queue;
pub mod transport;

pub use informer::{Informer, Informers};
