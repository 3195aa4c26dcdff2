//! The nodes' own failure detector and notice board: who is alive, and how every node's endpoints are, seen without a server.
//!
//! ```text
//!   roster, own endpoints --> Member (pure) --packets--> transport (UDP, sealed) --> peers
//!                               |  detector    SWIM (foca) + direct contact: how each peer stands
//!                               |  electorate  which of those standings is a death, by majority
//!                               |  records     every node's own word about its endpoints
//!                               v
//!                             View --> transport's watch channel --> local (Unix socket) --> proxy, DNS, controllers
//! ```
//!
//! Ways chosen: [`detector`] lets foca keep the member list, probe at random, probe indirectly, spread and refute; but a
//! suspicion becomes a verdict only where this node itself has pinged the suspect in vain and asked others in vain. Each
//! node also watches two fixed neighbours, so that the time until a death is noticed does not depend on luck or on the
//! number of nodes. [`electorate`] tells a partition from deaths. Time is *heard* time ([`clock`]): what passed while this
//! process did not run counts against nobody.
//!
//! Ways rejected: a heartbeat of everyone to everyone (the packets grow with the square of the nodes), SWIM's verdict alone
//! (one node's word kills for all), a lease in a store (there is none when it matters).
//!
//! What must stay true: no clock, socket or source of randomness is used inside [`member`] and what it is made of; a record
//! has one writer and never goes back; what comes from the network is validated before use and panics nothing; a minority
//! never calls the majority dead.
//!
//! Beside that, [`cluster`] says which server may write: a promise per node, and a majority of the last agreed list.
//!
//! What this crate does not know: Kubernetes' objects. A node is a name and an address, an endpoint a UID and an address.

pub mod clock;
pub mod cluster;
pub mod detector;
pub mod electorate;
pub mod epoch;
pub mod identity;
pub mod limits;
pub mod local;
pub mod member;
pub mod records;
pub mod seal;
pub mod transport;
pub mod view;
pub mod wire;

pub use identity::NodeId;
pub use member::{Member, Peer};
pub use records::Endpoint;
pub use seal::Keys;
pub use transport::{Config, Handle, Requests, start};
pub use view::{Doubt, Health, Refined, Said, Standing, View};
