//! The API server: the one door to the cluster's state.
//!
//! A request comes in through [`serve`] (TLS, HTTP/1.1 and HTTP/2) or in process, walks the one [`pipeline`], and ends in
//! [`read`] (watch [`cache`], bytes out), in [`write`] (decode, default, admit, validate, commit) or in one of the few
//! special handlers listed in [`connect`]. There is no handler per kind: what is special about a kind is said in `api`.
//!
//! What must stay true: an object is serialised once per change, never once per reader; a reader sees its own writes;
//! a watch never skips and never repeats; nothing that comes from the network can panic this process.
//!
//! What this crate does not know: controllers, the scheduler, and what goes on inside a node.

pub mod admission;
pub mod aggregation;
pub mod allocation;
pub mod audit;
pub mod authentication;
pub mod authorization;
pub mod body;
pub mod bootstrap;
pub mod cache;
pub mod connect;
pub mod context;
pub mod conversion;
pub mod copies;
pub mod definitions;
pub mod delete;
pub mod discovery;
pub mod encode;
pub mod encryption;
pub mod eviction;
pub mod flow;
mod gathered;
pub mod health;
pub mod keys;
pub mod metrics;
pub mod namespaces;
mod onward;
pub mod openapi;
mod own;
pub mod patch;
pub mod pipeline;
mod presence;
pub mod read;
pub mod resource_metrics;
pub mod reviews;
pub mod scale;
pub mod serve;
mod streams;
pub mod subresource;
pub mod tokens;
pub mod tunnel;
pub mod watch;
mod websocket;
pub mod write;
mod yaml;

pub use body::{Body, BoxError};
pub use context::{Config, Error, Identity, SERVER_BUNDLE_PATH, Server, ServerBundle, User};
