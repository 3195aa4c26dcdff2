//! Every limit of this crate, with what happens there.

use std::time::Duration;

/// A single request (not a watch) that has not been answered by then fails and is retried by whoever asked.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A list is read in pages of this many objects.
pub const LIST_PAGE_OBJECTS: u32 = 500;
/// The server is asked to end a watch after this long (up to a fifth less, at random); it is then resumed.
pub const WATCH_TIMEOUT: Duration = Duration::from_secs(290);
/// A watch on which neither an event nor a bookmark has arrived for this long is taken for dead and resumed.
/// Servers send a bookmark about once a minute.
pub const WATCH_SILENCE: Duration = Duration::from_secs(90);
/// The first pause after a failed list or watch; it doubles up to [`WATCH_RETRY_MAX`], each jittered.
pub const WATCH_RETRY_INITIAL: Duration = Duration::from_millis(100);
/// The longest pause between two attempts to list or watch. Short, because agreement after an outage waits for it.
pub const WATCH_RETRY_MAX: Duration = Duration::from_secs(2);

/// The first pause after a failed reconcile of a key; it doubles up to [`RECONCILE_RETRY_MAX`].
pub const RECONCILE_RETRY_INITIAL: Duration = Duration::from_millis(5);
/// The longest pause between two attempts to reconcile a failing key.
pub const RECONCILE_RETRY_MAX: Duration = Duration::from_secs(60);
/// How long reconciles in progress may go on after shutdown. MUST stay below the election's margin between the renew
/// deadline and the lease's end, so that a loser has stopped before a winner starts.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Events waiting to be sent; more are dropped and counted.
pub const EVENT_QUEUE_MAX: usize = 1000;
/// Event series remembered for counting; the oldest are forgotten (and start again at one).
pub const EVENT_SERIES_MAX: usize = 4096;
/// Events that wait for a server to be reached; the oldest are dropped and counted.
pub const EVENT_BACKLOG_MAX: usize = 1000;
/// The first pause after an event could not be sent; it doubles up to [`EVENT_RETRY_MAX`].
pub const EVENT_RETRY_INITIAL: Duration = Duration::from_millis(250);
/// The longest pause between two attempts to send an event.
pub const EVENT_RETRY_MAX: Duration = Duration::from_secs(2);
/// Events that differ only in their message are folded into one after this many within [`EVENT_SIMILAR_WINDOW`].
pub const EVENT_SIMILAR_MAX: usize = 10;
/// The window of [`EVENT_SIMILAR_MAX`].
pub const EVENT_SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// Events about one object that may come at once; further ones are let through at [`EVENT_REFILL`].
pub const EVENT_BURST: f64 = 25.0;
/// The time after which an object may have one more event.
pub const EVENT_REFILL: Duration = Duration::from_secs(300);

/// The bytes of all rows of one checkpoint; what does not fit is left out, is said, and is asked for after the next start.
pub const CHECKPOINT_BYTES_MAX: usize = 64 << 20;
/// The bytes of one row; a larger one is left out in the same way.
pub const CHECKPOINT_ROW_BYTES_MAX: usize = 4 << 20;
/// Two commits keep this far apart; what comes between them shares the second.
pub const CHECKPOINT_COMMIT_SPACING: Duration = Duration::from_millis(5);
/// How long a change waits for the disk before the node acts on it all the same.
pub const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(2);
/// The pause before a failed commit is tried again.
pub const CHECKPOINT_RETRY: Duration = Duration::from_secs(1);
/// UIDs remembered per informer of objects that were deleted; the oldest are forgotten.
pub const CHECKPOINT_GONE_MAX: usize = 1024;
/// Events of a watch that are taken together if they are there together.
pub const WATCH_BATCH_MAX: usize = 256;
