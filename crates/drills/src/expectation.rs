//! What a drill promises of its figures. Pure: figures in, checks out.

use crate::{analysis::Figures, request::Way};
use serde::{Deserialize, Serialize};

/// One thing that must hold, and whether it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub what: String,
    pub held: bool,
    /// What was seen.
    pub seen: String,
}

/// A promise about a figure. Times are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Every request to the application was answered.
    NoFailedRequest,
    /// After each fault, and after each heal, requests fail for this long at most.
    RoutedAroundWithin(u64),
    /// No source waits longer than this for an answer on any way.
    GapAtMost(u64),
    /// Every API call was answered, at the second attempt at the latest.
    NoFailedApiCall,
    /// Writes of the API succeed again within this time, and go on.
    ApiWritesAgainWithin(u64),
    /// The cluster knows of the fault.
    DetectedWithin(u64),
    /// What was lost runs elsewhere.
    ReplacedWithin(u64),
    /// After the heal, all is as before.
    RecoveredWithin(u64),
    /// A node that was powered on again is answered on every way.
    ReturnedWithin(u64),
}

/// Requests below which nothing is proved.
const SENT_MIN: u64 = 200;

/// Judges figures, the amount of traffic first.
pub fn judge(expectations: &[Expectation], figures: &Figures) -> Vec<Check> {
    let enough = Check { what: "traffic flowed".into(), held: figures.sent >= SENT_MIN, seen: format!("{} requests sent", figures.sent) };
    std::iter::once(enough).chain(expectations.iter().map(|expectation| expectation.check(figures))).collect()
}

/// Milliseconds as people read them.
pub fn seconds(ms: u64) -> String {
    match ms {
        u64::MAX => "never".into(),
        0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => format!("{} s", ms / 1000),
    }
}

impl Expectation {
    fn check(self, figures: &Figures) -> Check {
        let check = |what: String, held: bool, seen: String| Check { what, held, seen };
        let within = |what: &str, limit: u64, took: Option<u64>| {
            let seen = took.map_or("never".into(), seconds);
            check(format!("{what} within {}", seconds(limit)), took.is_some_and(|took| took <= limit), seen)
        };
        match self {
            Expectation::NoFailedRequest => {
                check("no request to the application fails".into(), figures.failed == 0, format!("{} of {} failed", figures.failed, figures.sent))
            }
            Expectation::RoutedAroundWithin(limit) => {
                let seen = if figures.failed == 0 { "none failed".into() } else { seconds(figures.route_around_ms) };
                check(format!("requests fail for {} at most", seconds(limit)), figures.route_around_ms <= limit, seen)
            }
            Expectation::GapAtMost(limit) => {
                let gap = figures.longest_gap_ms;
                check(format!("nobody waits longer than {} for an answer", seconds(limit)), gap <= limit, seconds(gap))
            }
            Expectation::NoFailedApiCall => {
                let sum = |of: fn(&crate::analysis::Traffic) -> u64| Way::API.iter().filter_map(|way| figures.ways.get(way)).map(of).sum::<u64>();
                let (sent, failed, repeated) = (sum(|t| t.sent), sum(|t| t.failed), sum(|t| t.repeated));
                let seen = format!("{failed} of {sent} failed, {repeated} were repeated");
                check("no API call fails beyond one retry".into(), failed == 0 && sent > 0, seen)
            }
            Expectation::ApiWritesAgainWithin(limit) => {
                within("API writes succeed again", limit, figures.ways.get(&Way::ApiWrite).map(|writes| writes.longest_gap_ms))
            }
            Expectation::DetectedWithin(limit) => within("detected", limit, figures.detect_ms),
            Expectation::ReplacedWithin(limit) => within("replaced", limit, figures.replace_ms),
            Expectation::RecoveredWithin(limit) => within("as before", limit, figures.recover_ms),
            Expectation::ReturnedWithin(limit) => {
                within("a returned node is answered on every way", limit, figures.returned_ms.values().max().copied())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_held_or_not_and_says_what_was_seen() {
        let good = Figures { sent: 5000, recover_ms: Some(900), ..Figures::default() };
        let bad = Figures { failed: 3, route_around_ms: 4000, recover_ms: None, ..good.clone() };
        let judged = |expectation, figures: &Figures| {
            let check = judge(&[expectation], figures).remove(1);
            (check.held, check.seen)
        };
        assert_eq!(judged(Expectation::NoFailedRequest, &good), (true, "0 of 5000 failed".into()));
        assert_eq!(judged(Expectation::NoFailedRequest, &bad), (false, "3 of 5000 failed".into()));
        assert_eq!(judged(Expectation::RoutedAroundWithin(3000), &bad), (false, "4.0 s".into()));
        assert_eq!(judged(Expectation::RoutedAroundWithin(3000), &good), (true, "none failed".into()));
        assert_eq!(judged(Expectation::RecoveredWithin(1000), &good), (true, "900 ms".into()));
        assert_eq!(judged(Expectation::RecoveredWithin(1000), &bad), (false, "never".into()));
        assert!(!judged(Expectation::NoFailedApiCall, &good).0, "no call is no proof");
    }

    #[test]
    fn too_little_traffic_proves_nothing() {
        assert!(!judge(&[], &Figures::default())[0].held);
    }
}
