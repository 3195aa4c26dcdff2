//! Whether a server can be asked, so that nothing here waits for one that is not there.
//!
//! The node's pods are watched all the time, and that watch knows. Just after the agent's start it does not know yet: then
//! who asks waits a moment, all together and once, for a server that is there must be asked (a Secret may have changed while
//! the agent was away), and one that is not must not hold up the pods of a node that has just been switched on.

use client::Informer;
use k8s_openapi::api::core::v1::Pod;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long after the agent's start a server may take to answer for the first time before it counts as away.
const FIRST_ANSWER: Duration = Duration::from_millis(1500);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Contact {
    pods: Informer<Pod>,
    started: Instant,
}

impl Contact {
    pub fn new(pods: Informer<Pod>) -> Contact {
        Contact { pods, started: Instant::now() }
    }

    /// Whether a server answers.
    pub async fn is_there(&self) -> bool {
        if self.pods.is_connected() {
            return true;
        }
        // Once it was there, its going was noticed: there is nothing to wait for.
        self.pods.is_stale() && timeout_at(self.started + FIRST_ANSWER, self.pods.connected()).await.is_ok()
    }

    /// Whether what is known of the pods is the disk's word alone.
    pub fn is_stale(&self) -> bool {
        self.pods.is_stale()
    }

    /// As [`Contact::is_there`], without waiting.
    pub fn is_there_now(&self) -> bool {
        self.pods.is_connected()
    }
}
