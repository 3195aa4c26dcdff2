//! The objects that every cluster has from its first second.

use crate::{Error, Server};
use std::sync::Arc;

/// Which objects are made.
#[derive(Clone, Debug, Default)]
pub struct Config {}

/// Makes what is missing. Idempotent.
pub async fn run(_server: &Arc<Server>) -> Result<(), Error> {
    Ok(())
}
