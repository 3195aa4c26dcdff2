//! The named limits of the DNS server, with what happens at each.

use std::time::Duration;

/// Seconds that clients may remember the answer for a Service with a ClusterIP.
pub const TTL_SERVICE_SECONDS: u32 = 30;
/// The same for what changes with every pod: headless Services, and for "there is no such name".
pub const TTL_ENDPOINT_SECONDS: u32 = 5;

/// Bytes of an answer over UDP at most, whatever the client allows; longer ones are cut, and the client comes by TCP.
pub const UDP_ANSWER_BYTES_MAX: usize = 1232;
/// The same for clients that say nothing of what they allow.
pub const UDP_ANSWER_BYTES_PLAIN: usize = 512;
/// Bytes of a datagram that are read at most.
pub const DATAGRAM_BYTES_MAX: usize = 4096;

/// Questions that wait for others (upstreams, or the first list) at most; beyond, SERVFAIL at once.
pub const WAITING_MAX: usize = 512;
/// TCP connections at once; more wait in the listen queue.
pub const CONNECTIONS_MAX: usize = 128;
/// A TCP connection that is silent this long is closed.
pub const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// A question for the zone waits this long for the first whole list, then SERVFAIL.
pub const FIRST_LIST_WAIT: Duration = Duration::from_secs(4);

/// One upstream is waited for this long, then the next is asked.
pub const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// Upstreams asked for one question at most (resolv.conf itself knows three).
pub const UPSTREAMS_MAX: usize = 3;
/// An upstream that has failed is asked last for this long.
pub const UPSTREAM_PENALTY: Duration = Duration::from_secs(10);

/// Answers of upstreams that are remembered at most; beyond, the ones that expire first are forgotten.
pub const CACHE_ENTRIES_MAX: usize = 4096;
/// An answer is remembered this long at most.
pub const CACHE_SECONDS_MAX: u32 = 30;
/// "There is no such name" is remembered this long at most.
pub const CACHE_NEGATIVE_SECONDS_MAX: u32 = 5;
/// When no upstream answers, an answer may be this old.
pub const CACHE_STALE: Duration = Duration::from_secs(24 * 3600);

/// Aliases that are followed for one question at most.
pub const ALIASES_MAX: usize = 8;

/// How often it is checked that the DNS address is still on the loopback link.
pub const ADDRESS_CHECK_PERIOD: Duration = Duration::from_secs(15);
/// The wait after the address could not be listened on.
pub const BIND_RETRY: Duration = Duration::from_secs(1);
