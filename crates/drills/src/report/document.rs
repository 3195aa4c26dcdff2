//! `docs/what-happens-when.md`: for every part that can fail, what goes on, what Kubernetes does instead, our figures.

use crate::{expectation::seconds, outcome::Outcome};
use std::fmt::Write;

/// The drill whose timeline is drawn at the head of the document.
pub const PICTURED: &str = "master-with-workloads-dies";

/// The document. `picture` is the file of the timeline of [`PICTURED`], if it is drawn. What is in it was measured; nothing is written by hand.
pub fn document(outcomes: &[Outcome], picture: Option<&str>) -> String {
    let mut text = String::from(
        "# What happens when\n\n\
         For each part that can fail: what Regent does, what Kubernetes does, and what was measured. This page is made by\n\
         `regent drill run all --report target/drills.html --document docs/what-happens-when.md`; every figure in it comes from\n\
         runs of that command on a sandbox of real nodes with real containers, all on one machine, while every node asked a\n\
         Service by NodePort, ClusterIP and DNS name all the time. Run it yourself: `make drills`.\n\n",
    );
    if let (Some(file), Some(drill)) = (picture, outcomes.iter().find(|outcome| outcome.name == PICTURED)) {
        let _ = write!(
            text,
            "![{}]({file})\n\n*{}:* {} Red is what is broken, by row the traffic, the nodes and their pods.\n\n",
            drill.shows, drill.name, drill.shows
        );
    }
    text += concat!(
        "| when | requests sent | failed | longest wait | known after | routed around | replaced | as before |\n",
        "|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let time = |ms: Option<u64>| ms.map_or("–".to_owned(), seconds);
    for outcome in outcomes {
        let figures = &outcome.figures;
        let route = if figures.failed == 0 { "–".to_owned() } else { seconds(figures.route_around_ms) };
        let _ = writeln!(
            text,
            "| [{0}](#{0}) | {1} | {2} | {3} | {4} | {route} | {5} | {6} |",
            outcome.name,
            figures.sent,
            figures.failed,
            seconds(figures.longest_gap_ms),
            time(figures.detect_ms),
            time(figures.replace_ms),
            time(figures.recover_ms)
        );
    }
    text += "\nTimes run from the fault; *as before* runs from the moment at which what was broken was mended.\n";
    for outcome in outcomes {
        let _ = write!(text, "\n## {}\n\n{}\n\n*Kubernetes:* {}\n\n", outcome.name, outcome.shows, outcome.kubernetes);
        for check in &outcome.checks {
            let mark = if check.held { "held" } else { "**not so**" };
            let seen = if check.seen == "so" { String::new() } else { format!(" ({})", one_line(&check.seen)) };
            let _ = writeln!(text, "- {}: {mark}{seen}", check.what);
        }
        for (node, took) in &outcome.figures.returned_ms {
            let _ = writeln!(text, "- {node} was answered again on every way: {} after power on", seconds(*took));
        }
        for (name, value) in &outcome.further {
            let _ = writeln!(text, "- {name}: {value}");
        }
        if let Some(error) = &outcome.error {
            let _ = writeln!(text, "- **ended early**: {}", one_line(error));
        }
        let _ = writeln!(text, "\nTopology: {}.", outcome.topology);
    }
    text
}

fn one_line(text: &str) -> String {
    const LONGEST: usize = 200;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    if line.chars().count() <= LONGEST { line } else { line.chars().take(LONGEST).chain("…".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_a_row_and_a_section_for_each() {
        let text = document(&[super::super::tests::sample()], None);
        assert!(text.contains("| [sample](#sample) | 400 | 10 |"), "{text}");
        assert!(text.contains("\n## sample\n\nIt shows.\n\n*Kubernetes:* It fails."));
        assert!(text.contains("- no request fails: **not so** (10 failed)"));
    }
}
