//! How a drill ended: all that the table, the report and the document are made from.

use crate::{
    analysis::{self, Figures, Strip},
    expectation::{Check, seconds},
    limits,
    request::{Request, Way},
    timeline::{Event, Log},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A drill's end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub name: String,
    pub shows: String,
    pub kubernetes: String,
    pub topology: String,
    /// What was broken on purpose, if it was.
    pub sabotage: Option<String>,
    pub began_ms: u64,
    pub ended_ms: u64,
    pub figures: Figures,
    /// Further figures that only this drill has.
    pub further: Vec<(String, String)>,
    pub checks: Vec<Check>,
    /// Why its steps ended early.
    pub error: Option<String>,
    pub events: Vec<Event>,
    /// The traffic by way, in bins of [`analysis::BIN_MS`].
    pub strips: BTreeMap<Way, Vec<Strip>>,
    /// The first failed requests.
    pub failures: Vec<Request>,
    /// Reasons of failed requests, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// Log lines beyond the limits.
    pub dropped: u64,
}

impl Outcome {
    /// Whether the drill held what it promises.
    pub fn passed(&self) -> bool {
        self.error.is_none() && self.checks.iter().all(|check| check.held)
    }

    /// What did not hold, in one line; empty if it passed.
    pub fn why_failed(&self) -> String {
        let missed = self.checks.iter().filter(|check| !check.held).map(|check| format!("not so: {} ({})", check.what, check.seen));
        self.error.iter().cloned().chain(missed).collect::<Vec<_>>().join("; ")
    }

    /// Takes the log in: strips, failures, reasons.
    pub fn absorb(&mut self, log: Log) {
        let end = log.requests.iter().map(Request::ended_ms).max().unwrap_or(self.ended_ms).max(self.ended_ms);
        for way in Way::APPLICATION.into_iter().chain(Way::API) {
            let strips = analysis::strips(&log.requests, way, self.began_ms, end);
            if !strips.is_empty() {
                self.strips.insert(way, strips);
            }
        }
        for failed in log.requests.iter().filter(|r| !r.ok()) {
            let why = failed.error.clone().unwrap_or_default();
            *self.reasons.entry(format!("{}: {why}", failed.way.title())).or_default() += 1;
            if self.failures.len() < limits::FAILURES_LISTED_MAX {
                self.failures.push(failed.clone());
            }
        }
        self.dropped = log.dropped;
        self.events = log.events;
    }
}

/// The table at the end: one line per drill.
pub fn table(outcomes: &[Outcome]) -> String {
    let width = outcomes.iter().map(|o| o.name.len()).max().unwrap_or(5).max(5);
    let mut text = format!(
        "{:<width$}  {:<7} {:>8} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
        "DRILL", "VERDICT", "REQUESTS", "FAILED", "GAP", "DETECT", "ROUTE", "REPLACE", "RECOVER"
    );
    for outcome in outcomes {
        let figures = &outcome.figures;
        let time = |ms: Option<u64>| ms.map_or("-".to_owned(), seconds);
        let route = if figures.failed == 0 { "-".to_owned() } else { seconds(figures.route_around_ms) };
        text += &format!(
            "{:<width$}  {:<7} {:>8} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
            outcome.name,
            if outcome.passed() { "passed" } else { "FAILED" },
            figures.sent,
            figures.failed,
            seconds(figures.longest_gap_ms),
            time(figures.detect_ms),
            route,
            time(figures.replace_ms),
            time(figures.recover_ms)
        );
    }
    for outcome in outcomes.iter().filter(|o| !o.passed()) {
        text += &format!("\nFAILED {}: {}\n", outcome.name, outcome.why_failed());
    }
    text
}
