//! `--membership`: whether a component listens to the cluster's membership, the same for all that do.

use clap::{ArgAction, Args};
use membership::{View, local};
use std::{path::PathBuf, sync::Arc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a component is told of the membership.
#[derive(Args, Clone, Debug)]
pub struct MembershipFlags {
    /// Use what the nodes know of each other beside the API; `false` leaves all as Kubernetes does it.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub membership: bool,
    /// The socket on which the node's kubelet publishes it.
    #[arg(long, default_value = local::SOCKET)]
    pub membership_socket: PathBuf,
}

impl MembershipFlags {
    /// What this node believes, as it changes; `None` when that is not wanted.
    pub fn view(&self, shutdown: &CancellationToken) -> Option<watch::Receiver<Option<Arc<View>>>> {
        self.membership.then(|| local::follow(self.membership_socket.clone(), shutdown.clone()))
    }

    /// How the node itself is a member.
    pub fn member(&self, data_dir: &std::path::Path) -> Option<node::peers::Config> {
        self.membership.then(|| node::peers::Config { socket: self.membership_socket.clone(), ..node::peers::Config::below(data_dir) })
    }
}
