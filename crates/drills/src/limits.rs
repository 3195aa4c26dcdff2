//! Every bound of this crate, with what happens there.

use std::time::Duration;

/// A request that is not answered in this time has failed.
pub const REQUEST_TIMEOUT: Duration = Duration::from_millis(1500);
/// A call of the API that is not answered in this time has failed (and is tried once more).
pub const API_CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A look-up is sent again after this, as a resolver does,
pub const LOOK_UP_RETRY_AFTER: Duration = Duration::from_millis(400);
/// and so often at most; then the request has failed.
pub const LOOK_UPS_MAX: u8 = 3;
/// Requests of one source under way at once. Beyond it a request is logged as failed without being sent.
pub const IN_FLIGHT_MAX: usize = 512;
/// Log lines that wait to be written; a request waits for room before it counts as over.
pub const LINES_WAITING_MAX: usize = 4096;
/// Bytes read of an answer; nginx' page is far smaller.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Requests kept of one drill. A run that reaches it goes on without logging more, and says so.
pub const REQUESTS_MAX: usize = 2_000_000;
/// Events kept of one drill, likewise.
pub const EVENTS_MAX: usize = 50_000;
/// Failed requests that the JSON beside the report lists.
pub const FAILURES_LISTED_MAX: usize = 200;
/// Requests per second on each way, shared by all sources, unless told otherwise.
pub const RATE_DEFAULT: u32 = 110;
/// Requests per second of each source on each way over a connection that is kept.
pub const KEPT_RATE: u32 = 4;
/// How long traffic runs undisturbed before a fault, and after all is as before.
pub const STEADY: Duration = Duration::from_secs(2);
/// Pause between two looks at something that cannot be watched.
pub const LOOK_EVERY: Duration = Duration::from_millis(150);
/// How long the cluster may take to be as before.
pub const AS_BEFORE_MAX: Duration = Duration::from_secs(90);
/// How long nodes, workload or traffic may take to be ready before a drill.
pub const READY_MAX: Duration = Duration::from_secs(90);
