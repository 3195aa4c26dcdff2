//! The node's network: the pod network (addresses, routes, VXLAN) and the routing of Services, in nftables and netlink.
//!
//! Four components live here. [`services`] is the Service proxy: Services and EndpointSlices in, nftables maps out.
//! [`pods`] is the node's part of the pod network: CNI configuration, our own address management ([`addresses`]), routes to
//! the other nodes' pods, masquerading and hostPorts. [`policy`] enforces NetworkPolicies. All share one engine: [`table`]
//! (pure: what each owner wants in a table, and the text of the difference) and [`nft`] (the shell that applies it
//! atomically). [`balancer`] is the node's way to the API servers.
//!
//! What must stay true: what is decided is decided in pure functions and tested there; the kernel's table is changed in
//! one transaction or not at all; the cost of a packet does not grow with the number of Services; a pod keeps its address
//! as long as its UID lives on the node, also through a reboot.
//!
//! What this crate does not know: storage, the API's HTTP, how pods are started.

pub mod addresses;
pub mod balancer;
pub mod conntrack;
pub mod health;
pub mod limits;
pub mod links;
pub mod nft;
pub mod pods;
pub mod policy;
pub mod service_health;
pub mod services;
pub mod table;

pub use addresses::{ipam_main, is_ipam_invocation};
