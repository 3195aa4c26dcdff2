//! With which flags a member of etcd is to be started so that it serves this back end well. One place for all who start one.

/// A member's quota, in bytes: 8 GiB, etcd's own recommended most.
pub const QUOTA_BYTES: u64 = 8 << 30;
/// How often a member tells quiet watches how far it is, in seconds.
pub const PROGRESS_NOTIFY_S: u64 = 5;
/// The longest value that a member takes, in bytes: above what the API server lets through.
pub const REQUEST_BYTES_MAX: u64 = 8 << 20;
/// How often the members compare their data, in hours; they do at each start too. A difference raises the CORRUPT alarm.
pub const CORRUPT_CHECK_H: u64 = 4;

/// The flags, beside names, addresses, certificates and the data directory, which are the caller's. The API servers compact, so etcd
/// does not. Understood by 3.4 to 3.6.
pub fn tuning() -> Vec<String> {
    tuning_of("3.4")
}

/// The same for the etcd of this version; what `etcd --version` prints will do.
pub fn tuning_of(version: &str) -> Vec<String> {
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut numbers = digits.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let settled = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (3, 6);
    let mut flags = vec![
        format!("--quota-backend-bytes={QUOTA_BYTES}"),
        format!("--max-request-bytes={REQUEST_BYTES_MAX}"),
        "--auto-compaction-retention=0".into(),
        // A member that was cut off must not unseat a leader that the others are content with.
        "--pre-vote=true".into(),
        "--logger=zap".into(),
    ];
    // What was an experiment has since been given a name, or a gate, of its own.
    if settled {
        flags.push(format!("--watch-progress-notify-interval={PROGRESS_NOTIFY_S}s"));
        flags.push(format!("--corrupt-check-time={CORRUPT_CHECK_H}h"));
        flags.push("--feature-gates=InitialCorruptCheck=true".into());
    } else {
        flags.push(format!("--experimental-watch-progress-notify-interval={PROGRESS_NOTIFY_S}s"));
        flags.push(format!("--experimental-corrupt-check-time={CORRUPT_CHECK_H}h"));
        flags.push("--experimental-initial-corrupt-check=true".into());
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_told_in_its_own_words() {
        let has = |version: &str, flag: &str| tuning_of(version).iter().any(|given| given.starts_with(flag));
        assert!(has("etcd Version: 3.4.23\nGit SHA: abc", "--experimental-watch-progress-notify-interval="));
        assert!(has("3.5.17", "--experimental-corrupt-check-time="));
        assert!(has("etcd Version: 3.6.1", "--watch-progress-notify-interval=") && !has("3.6.1", "--experimental"));
        assert!(has("3.10.0", "--feature-gates="));
    }
}
