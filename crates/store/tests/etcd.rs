//! The store on real etcd: the common suite, and what only a cluster can do to it: members that die, hang, lag, fill up.

mod support;

use bytes::Bytes;
use futures::StreamExt;
use std::{sync::Arc, time::Duration};
use store::{Error, Event, Outcome, Revision, Store, Watch, Watched, Write, suite};
use support::Cluster;
use tokio::time::{Instant, timeout};

/// How long a check waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn etcd_passes_the_suite() {
    let clusters = parking_lot::Mutex::new(Vec::new());
    suite::run(|| async {
        let cluster = Cluster::start(1).await;
        let store = cluster.connect().await;
        // The one before is of no more use.
        let mut clusters = clusters.lock();
        clusters.clear();
        clusters.push(cluster);
        store as Arc<dyn Store>
    })
    .await;
}
