//! One world under one seed: a cluster of 3 to 50 nodes in one process, on virtual time, of the code that runs in production.
//!
//! ```text
//!            seed --> plan of faults ------------------------------------------------------------.
//!                                                                                                v
//!   agent of each node: informers + checkpoint, peers (membership), balancer's core,      links (loss, jitter, cuts)
//!     pods (decide, status), reporter, Service routing, DNS                    <--I/O-->  disks (slow, torn), kernels,
//!   server: leader election, EndpointSlices, node lifecycle                               container runtimes, an API
//!            |                                                                                   |
//!            '--------------------------> checkers, at every look <------------------------------'
//! ```
//!
//! **What runs as it is**: `client` (informers, checkpoint, election, controller runtime), `membership::Member`, `node::peers`,
//! `node::reporter`, `node::pod::decide`, `node::status`, `network::services::route`, the balancer's `Servers`, `dns::follow` and
//! its zone, the two controllers that endpoints and nodes hang on. **What is simulated** is what they meet: packets and
//! connections, disks, kernels, runtimes, clocks, and an API server in front of a store ([`api`]).
//!
//! **Ways chosen.** tokio's paused clock, one thread, one process per seed: everything that could differ between two runs
//! (randomness of the hash maps, of tokio, of `rand`) comes from the seed, because the test binary gives the C library's
//! `getrandom` ([`chance`]). A process of a node is killed by cutting it off from all that it could act on, and paused by
//! letting nothing in or out. **Way rejected**: turmoil, whose sockets production code would have to be written for, and whose
//! hosts each step through every tick.
//!
//! What must stay true: the same seed gives the same run; a checker that cannot fail is no checker ([`sabotage`]); nothing here
//! decides what a component decides in production.

pub mod agent;
pub mod api;
pub mod chance;
pub mod checks;
pub mod faults;
pub mod kernel;
pub mod member;
pub mod pods;
pub mod sabotage;
pub mod seeds;
pub mod server;
pub mod way;
pub mod world;
