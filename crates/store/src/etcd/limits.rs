//! Every bound of this back end, in one place.

/// How long a call may take in all before it fails with [`crate::Error::Unavailable`] or [`crate::Error::Unknown`].
/// A leader's election takes 1 to 2.5 s with etcd's own figures, so a call outlives one.
pub const CALL_MS: u64 = 4_000;
/// The same once a call has failed so, until one succeeds again: who asks a store that is known to be lost is told at once.
pub const CALL_WHILE_LOST_MS: u64 = 700;
/// How long one member may keep silent before the next is asked too.
pub const SILENT_MEMBER_MS: u64 = 1_200;
/// Attempts at one call that may wait for their answers at the same time.
pub const ATTEMPTS_AT_ONCE_MAX: usize = 3;
/// The pause after all members have refused, before they are asked again.
pub const ROUND_PAUSE_MS: u64 = 100;
/// How long a connection may take to come about.
pub const CONNECT_MS: u64 = 1_000;
/// When a quiet connection is probed, and how long the answer may take. etcd closes connections that probe more often than
/// every 5 s.
pub const KEEP_ALIVE_S: (u64, u64) = (10, 3);
/// The longest answer that is taken in one piece, in bytes; a list that is longer is asked for in smaller pages.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Keys per page asked of etcd; a longer list is put together from several, all of one revision.
pub const PAGE_KEYS_MAX: usize = 1_000;
/// How often a watch asks whether its member is alive and how far it is, in milliseconds.
pub const PROGRESS_EVERY_MS: u64 = 1_500;
/// The same once the store is known to be ahead of what the watch has seen: how soon, and how often from then on.
pub const PROGRESS_BEHIND_MS: (u64, u64) = (50, 300);
/// A watch whose member has said nothing for so long moves to another: in general, and while the store is known to be ahead.
pub const WATCH_SILENCE_MS: (u64, u64) = (4_000, 1_000);
/// A watch whose member speaks, but has fallen so long behind what other members have shown, moves too.
pub const WATCH_LAG_MS: u64 = 2_000;
/// Pauses between attempts to open a watch again, growing from the first to the last.
pub const WATCH_RETRY_MS: (u64, u64) = (20, 1_000);
/// Answers of a watch that may wait for its reader; then etcd is no longer read, and holds the rest.
pub const WATCH_ANSWERS_MAX: usize = 64;
/// How long a member may take to move its whole database into a new file, in seconds.
pub const DEFRAGMENT_S: u64 = 120;
/// What a member may send ahead on one connection, and on one call of it.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
pub const STREAM_WINDOW_BYTES: u32 = 2 << 20;
