//! The command line, one file per command.

pub mod agent;
pub mod apiserver;
pub mod balancer;
pub mod certs;
pub mod controller_manager;
pub mod dns;
pub mod drill;
pub mod election;
pub mod etcd;
pub mod install;
pub mod kubelet;
pub mod node;
pub mod proxy;
pub mod sandbox;
pub mod scheduler;
pub mod secrets_encrypt;
pub mod server;
pub mod snapshot;
pub mod store;
pub mod token;
