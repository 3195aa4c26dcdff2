//! The named limits of the pod network and of Service routing, with what happens at each.

use std::time::Duration;

/// A first change waits this long for companions (a Service and its slices come together) before it goes to the kernel.
pub const SYNC_GATHER_MS: u64 = 3;

/// Two transactions are at least this far apart; changes that come in between are joined in one.
pub const SYNC_PERIOD_MIN_MS: u64 = 20;

/// A proxy that finds the table of its predecessor leaves it as it is until the peers have been heard, but for no longer than this.
pub const VIEW_WAIT: Duration = Duration::from_secs(2);

/// How often it is checked that the table is still in the kernel. Somebody may have flushed the ruleset.
pub const TABLE_CHECK_PERIOD: Duration = Duration::from_secs(15);

/// First and longest wait after a transaction that the kernel refused; doubled in between.
pub const RETRY_FIRST_MS: u64 = 100;
/// See [`RETRY_FIRST_MS`].
pub const RETRY_LONGEST_MS: u64 = 5_000;

/// After this many refused transactions in a row, what the membership says is left out,
pub const FAILURES_BEFORE_DISTRUST: u32 = 2;
/// for this long, and until the kernel has taken a transaction again; then its newest word is tried once more.
pub const DISTRUST_FOR: Duration = Duration::from_secs(5);

/// One run of `nft` may take this long; then it is killed and the sync counts as failed.
pub const NFT_TIMEOUT: Duration = Duration::from_secs(30);

/// One run of `conntrack` may take this long; then it is killed, and stale flows expire by themselves.
pub const CONNTRACK_TIMEOUT: Duration = Duration::from_secs(10);

/// Flows to flush that wait at most; beyond, the oldest are forgotten and expire by themselves.
pub const CONNTRACK_QUEUE_MAX: usize = 1024;

/// Clients that a Service with session affinity remembers per endpoint; beyond, a new client is balanced without memory.
pub const AFFINITY_CLIENTS_MAX: usize = 65_536;

/// Session affinity without a configured timeout lasts this long (Kubernetes' default, three hours).
pub const AFFINITY_TIMEOUT_SECONDS: i32 = 10_800;

/// Bytes of a health request that are read at most.
pub const HEALTH_REQUEST_BYTES_MAX: usize = 4096;

/// Health requests answered at once at most; more wait in the listen queue.
pub const HEALTH_CONNECTIONS_MAX: usize = 32;

/// A health request is read and answered within this time or dropped.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// The proxy calls itself unhealthy when changes have waited this long for the kernel.
pub const UNHEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Bytes of network configuration that the IPAM plugin reads from its caller at most.
pub const IPAM_INPUT_BYTES_MAX: u64 = 1 << 20;

/// Addresses that leave the node for good are not forgotten before they have been quiet this long, so that endpoints that
/// still name them elsewhere have gone.
pub const ADDRESS_QUIET_SECONDS: u64 = 30;
