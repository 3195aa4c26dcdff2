//! With which flags a member of etcd is to be started so that it serves this back end well. One place for all who start one.

/// A member's quota, in bytes: 8 GiB, etcd's own recommended most.
pub const QUOTA_BYTES: u64 = 8 << 30;
/// How often a member tells quiet watches how far it is, in seconds.
pub const PROGRESS_NOTIFY_S: u64 = 5;
/// The longest value that a member takes, in bytes: above what the API server lets through.
pub const REQUEST_BYTES_MAX: u64 = 8 << 20;

/// The flags, beside names, addresses, certificates and the data directory, which are the caller's. The API servers compact, so etcd
/// does not.
pub fn tuning() -> Vec<String> {
    vec![
        format!("--quota-backend-bytes={QUOTA_BYTES}"),
        format!("--max-request-bytes={REQUEST_BYTES_MAX}"),
        "--auto-compaction-retention=0".into(),
        format!("--experimental-watch-progress-notify-interval={PROGRESS_NOTIFY_S}s"),
        "--logger=zap".into(),
    ]
}
