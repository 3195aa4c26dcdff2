//! Bytes to and from nodes: `log`, `exec`, `attach`, `portforward`, `proxy`.

use crate::Error;

/// How nodes are reached.
#[derive(Clone, Debug, Default)]
pub struct Config {}

/// The connections to nodes.
pub struct Nodes {}

impl Nodes {
    pub fn new(_config: &crate::Config) -> Result<Nodes, Error> {
        Ok(Nodes {})
    }
}
