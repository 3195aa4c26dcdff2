//! Who may do what.

use crate::{Error, Server, User};
use api::request::RequestInfo;

/// Which authorizers are asked.
#[derive(Clone, Debug, Default)]
pub struct Config {}

/// The authorizers in the order they are asked.
pub struct Authorizer {}

impl Authorizer {
    pub fn new(_config: &crate::Config) -> Result<Authorizer, Error> {
        Ok(Authorizer {})
    }
}

/// What an authorizer says, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    Deny(String),
    NoOpinion(String),
}

/// Asks every authorizer; the first that decides, decides.
pub fn authorize(_server: &Server, _user: &User, _request: &RequestInfo) -> Decision {
    Decision::Allow(String::new())
}
