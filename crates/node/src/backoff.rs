//! How long to wait before trying the same thing again: crash loops and image pulls. Pure; the clock comes in.
//!
//! The rule is Kubernetes': the first retry is immediate, then 10 s doubling to 300 s, forgotten after twice the
//! longest delay without a failure.

use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

pub const FIRST: SignedDuration = SignedDuration::from_secs(10);
pub const LONGEST: SignedDuration = SignedDuration::from_secs(300);
/// Times by which the runtime's clock and this one may differ, on one machine.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(1);

/// Whether a moment up to which something waits has come: also when it is further away than anything ever waits, because the
/// clock was set back meanwhile.
pub fn has_come(until: Timestamp, now: Timestamp) -> bool {
    until <= now || until.duration_since(now) > LONGEST.saturating_add(CLOCK_SLACK)
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: SignedDuration,
    last_try: Timestamp,
}

/// Delays by name.
#[derive(Clone, Debug, Default)]
pub struct Backoffs {
    entries: BTreeMap<String, Entry>,
}

/// A delay that is still running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub delay: SignedDuration,
    pub until: Timestamp,
}

impl Backoffs {
    /// Whether `key`, which failed at `failed_at`, still has to wait.
    pub fn waiting(&self, key: &str, failed_at: Timestamp, now: Timestamp) -> Option<Waiting> {
        let entry = self.entries.get(key)?;
        if expired(entry, failed_at) {
            return None;
        }
        // The clock was set back since: when that was is not known any more, and nobody waits for the clock to come there again.
        if failed_at.duration_since(now) > CLOCK_SLACK {
            return None;
        }
        let until = failed_at.checked_add(entry.delay).ok()?;
        (now < until).then_some(Waiting { delay: entry.delay, until })
    }

    /// Notes that `key`, which failed at `failed_at`, is tried again now: the next delay is twice as long.
    pub fn tried(&mut self, key: &str, failed_at: Timestamp, now: Timestamp) {
        let delay = match self.entries.get(key) {
            Some(entry) if !expired(entry, failed_at) => entry.delay.saturating_mul(2).min(LONGEST),
            _ => FIRST,
        };
        self.entries.insert(key.to_owned(), Entry { delay, last_try: now });
    }

    /// Forgets `key`: it went well.
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }
}

fn expired(entry: &Entry, failed_at: Timestamp) -> bool {
    failed_at.duration_since(entry.last_try) > LONGEST.saturating_mul(2)
}

/// A duration as Go prints it (`10s`, `1m20s`, `5m0s`), for messages that people and tools read.
pub fn go_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    let millis = duration.subsec_millis();
    if seconds == 0 {
        return if millis == 0 { "0s".into() } else { format!("{millis}ms") };
    }
    let rest = if millis == 0 { rest.to_string() } else { format!("{rest}.{millis:03}").trim_end_matches('0').to_owned() };
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn doubles_up_to_the_longest_and_is_forgotten() {
        let mut backoffs = Backoffs::default();
        assert_eq!(backoffs.waiting("a", at(0), at(0)), None);
        backoffs.tried("a", at(0), at(0));
        assert_eq!(backoffs.waiting("a", at(1), at(2)).map(|w| (w.delay, w.until)), Some((FIRST, at(11))));
        assert_eq!(backoffs.waiting("a", at(1), at(11)), None);
        let mut now = 11;
        let mut delays = Vec::new();
        for _ in 0..6 {
            backoffs.tried("a", at(now - 1), at(now));
            let waiting = backoffs.waiting("a", at(now + 1), at(now + 1)).unwrap();
            delays.push(go_duration(waiting.delay));
            now += 1 + waiting.delay.as_secs();
        }
        assert_eq!(delays, ["20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
        assert_eq!(backoffs.waiting("a", at(now + 1000), at(now + 1000)), None);
        backoffs.tried("a", at(now + 1000), at(now + 1000));
        assert_eq!(backoffs.waiting("a", at(now + 1001), at(now + 1001)).unwrap().delay, FIRST);
    }

    #[test]
    fn nobody_waits_for_a_clock_that_was_set_back() {
        let mut backoffs = Backoffs::default();
        backoffs.tried("a", at(0), at(0));
        assert!(backoffs.waiting("a", at(5), at(6)).is_some() && backoffs.waiting("a", at(5), at(4)).is_some());
        assert_eq!(backoffs.waiting("a", at(5), at(-3600)), None);
        assert!(has_come(at(5), at(5)) && !has_come(at(5), at(0)) && has_come(at(3600), at(0)));
    }
}
