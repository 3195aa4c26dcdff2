//! The flags of leader election, the same for scheduler and controller manager.

use clap::Args;
use client::election::ElectionConfig;
use std::time::Duration;

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
}

impl Election {
    pub fn config(&self, lease_name: &str) -> Option<ElectionConfig> {
        let identity = format!("{}_{}", crate::runtime::host_name(), pki::hex(&rand::random::<[u8; 8]>()));
        self.leader_elect.then(|| ElectionConfig {
            lease_duration: self.leader_elect_lease_duration,
            renew_deadline: self.leader_elect_renew_deadline,
            retry_period: self.leader_elect_retry_period,
            namespace: self.leader_elect_resource_namespace.clone(),
            ..ElectionConfig::new(self.leader_elect_resource_name.as_deref().unwrap_or(lease_name), identity)
        })
    }
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
    fn durations_read_as_go_writes_them() {
        for (text, seconds) in [("15s", 15.0), ("1m30s", 90.0), ("500ms", 0.5), ("5m0s", 300.0), ("1.5h", 5400.0)] {
            assert_eq!(duration(text).unwrap().as_secs_f64(), seconds, "{text}");
        }
        for text in ["15", "s", "5 minutes", "-3s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
