//! Cluster IPs and node ports of Services.
//!
//! [`reserve`] runs on every create and update after mutating admission and before validation; what it takes is given
//! back unless [`Reservation::keep`] is called after the commit. [`release`] runs after an object is gone.

use crate::{Error, Server};
use api::{Kind, Status, Value};

/// What is taken.
pub struct Allocators {}

impl Allocators {
    pub fn new(_config: &crate::Config) -> Result<Allocators, Error> {
        Ok(Allocators {})
    }
    /// Learns what the stored Services hold.
    pub fn load(&self, _server: &Server) -> Result<(), Error> {
        Ok(())
    }
}

/// What one write took. Dropped without `keep`, it is given back.
#[must_use]
pub struct Reservation {}

impl Reservation {
    /// The write is on disk.
    pub fn keep(self) {}
}

/// Takes what the object needs and writes it into the object.
pub fn reserve(_server: &Server, _kind: &Kind, _object: &mut Value, _old: Option<&Value>, _dry_run: bool) -> Result<Reservation, Status> {
    Ok(Reservation {})
}

/// Gives back what a deleted object held.
pub fn release(_server: &Server, _kind: &Kind, _object: &Value) {}
