//! The flags of leader election, the same for scheduler and controller manager, and who was the last candidate on this machine.

use clap::Args;
use client::election::ElectionConfig;
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// Where a component that runs alone keeps its records.
const DATA_DIR: &str = "/var/lib/regent";
/// Bytes of an identity at most: a host's name and a number.
const IDENTITY_BYTES_MAX: u64 = 1_024;

#[derive(Args, Clone)]
pub struct Election {
    /// Act only while holding the Lease, so that several can run and one acts.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    leader_elect: bool,
    /// How long a lease lasts without renewal.
    #[arg(long, default_value = "15s", value_parser = duration)]
    leader_elect_lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    #[arg(long, default_value = "10s", value_parser = duration)]
    leader_elect_renew_deadline: Duration,
    /// The pause between attempts.
    #[arg(long, default_value = "2s", value_parser = duration)]
    leader_elect_retry_period: Duration,
    /// What is competed for: Leases are the only kind.
    #[arg(long, default_value = "leases", value_parser = ["leases"])]
    leader_elect_resource_lock: String,
    /// The Lease's name [default: the component's].
    #[arg(long)]
    leader_elect_resource_name: Option<String>,
    /// The Lease's namespace.
    #[arg(long, default_value = "kube-system")]
    leader_elect_resource_namespace: String,
    /// Where this machine remembers who was candidate on it last: a process that was killed and is started again need not wait
    /// until its own lease runs out [default: leader-election below the data directory].
    #[arg(long)]
    leader_elect_record_dir: Option<PathBuf>,
}

impl Election {
    /// Keeps its records in this data directory, unless it was told another place.
    pub fn within(mut self, data_dir: &Path) -> Election {
        self.leader_elect_record_dir.get_or_insert_with(|| data_dir.join("leader-election"));
        self
    }

    pub fn config(&self, lease_name: &str) -> Option<ElectionConfig> {
        if !self.leader_elect {
            return None;
        }
        let identity = format!("{}_{}", crate::runtime::host_name(), pki::hex(&rand::random::<[u8; 8]>()));
        let directory = self.leader_elect_record_dir.clone().unwrap_or_else(|| Path::new(DATA_DIR).join("leader-election"));
        let predecessor = succeed(&directory, lease_name, &identity).unwrap_or_else(|error| {
            tracing::debug!(path = %directory.display(), %error, "no predecessor is known");
            None
        });
        Some(ElectionConfig {
            predecessor,
            lease_duration: self.leader_elect_lease_duration,
            renew_deadline: self.leader_elect_renew_deadline,
            retry_period: self.leader_elect_retry_period,
            namespace: self.leader_elect_resource_namespace.clone(),
            ..ElectionConfig::new(self.leader_elect_resource_name.as_deref().unwrap_or(lease_name), identity)
        })
    }
}

/// Notes that this process is the candidate of a component on this machine, for as long as it lives, and answers who was before:
/// that one has ended, for the kernel has taken its lock away. An error: another one still runs, or nothing can be kept there.
fn succeed(directory: &Path, component: &str, identity: &str) -> std::io::Result<Option<String>> {
    std::fs::create_dir_all(directory)?;
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(directory.join(component))?;
    file.try_lock()?;
    let mut before = String::new();
    Read::by_ref(&mut file).take(IDENTITY_BYTES_MAX).read_to_string(&mut before)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(identity.as_bytes())?;
    file.sync_all()?;
    // The lock lasts as long as the process.
    Box::leak::<'static>(Box::<File>::new(file));
    Ok(Some(before).filter(|before| !before.is_empty()))
}

/// A duration as Go writes it: `15s`, `1m30s`, `500ms`, `5m0s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(|| format!("{text}: a number needs a unit, as in 15s"))?;
        let number: f64 = rest[..digits].parse().map_err(|_| format!("{text} is not a duration; say 15s, 5m or 1m30s"))?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |i| digits + i);
        let seconds = match &rest[digits..unit_end] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            unit => return Err(format!("{text}: {unit} is not a unit of time; use ms, s, m or h")),
        };
        total += Duration::try_from_secs_f64(number * seconds).map_err(|e| format!("{text}: {e}"))?;
        rest = &rest[unit_end..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predecessor_is_known_when_it_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(succeed(directory.path(), "kube-scheduler", "host_1").unwrap(), None);
        assert!(succeed(directory.path(), "kube-scheduler", "host_2").is_err(), "the first one still runs");
        assert_eq!(succeed(directory.path(), "kube-controller-manager", "host_3").unwrap(), None);
        std::fs::write(directory.path().join("ended"), "host_4").unwrap();
        assert_eq!(succeed(directory.path(), "ended", "host_5").unwrap().as_deref(), Some("host_4"));
        assert_eq!(std::fs::read_to_string(directory.path().join("ended")).unwrap(), "host_5");
    }

    #[test]
    fn durations_read_as_go_writes_them() {
        for (text, seconds) in [("15s", 15.0), ("1m30s", 90.0), ("500ms", 0.5), ("5m0s", 300.0), ("1.5h", 5400.0)] {
            assert_eq!(duration(text).unwrap().as_secs_f64(), seconds, "{text}");
        }
        for text in ["15", "s", "5 minutes", "-3s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
