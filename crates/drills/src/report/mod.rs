//! The report: one HTML page that needs nothing but itself, and the document `what-happens-when`. Pure.

mod document;
pub mod lanes;
mod timeline;

use crate::{expectation::seconds, outcome::Outcome, request::Way};
use std::fmt::Write;

pub use document::{PICTURED, document};
pub use timeline::picture;

/// Text as HTML shows it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page.
pub fn html(outcomes: &[Outcome]) -> String {
    let passed = outcomes.iter().filter(|outcome| outcome.passed()).count();
    let sent: u64 = outcomes.iter().map(|outcome| outcome.figures.sent).sum();
    let failed: u64 = outcomes.iter().map(|outcome| outcome.figures.failed).sum();
    let when = outcomes.first().and_then(|outcome| jiff::Timestamp::from_millisecond(i64::try_from(outcome.began_ms).ok()?).ok());
    let when = when.map(|time| time.strftime("%Y-%m-%d %H:%M UTC").to_string()).unwrap_or_default();
    let verdict = if passed == outcomes.len() { "all passed".to_owned() } else { format!("{} failed", outcomes.len() - passed) };
    let mut page = format!(
        r#"<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>Regent drills: {verdict}</title><style>{STYLE}</style></head><body>
<header><h1>What happens when it fails</h1><p class="lead">{count} drills on a sandbox of real nodes, with constant traffic from every node. {when}.</p>
<div class="totals"><div><b class="{mood}">{passed} of {count}</b>drills passed</div><div><b>{sent}</b>requests sent</div><div><b>{failed}</b>failed, in the drills that cost some</div></div></header>
<main>{summary}"#,
        count = outcomes.len(),
        mood = if passed == outcomes.len() { "good" } else { "bad" },
        summary = summary(outcomes),
    );
    for outcome in outcomes {
        page += &card(outcome);
    }
    page += "</main></body></html>\n";
    page
}

fn time(ms: Option<u64>) -> String {
    ms.map_or("–".to_owned(), seconds)
}

fn summary(outcomes: &[Outcome]) -> String {
    let mut rows = String::new();
    for outcome in outcomes {
        let figures = &outcome.figures;
        let route = if figures.failed == 0 { "–".to_owned() } else { seconds(figures.route_around_ms) };
        let _ = write!(
            rows,
            r##"<tr><td><a href="#{name}">{name}</a></td><td>{badge}</td><td>{}</td><td class="{}">{}</td><td>{}</td><td>{}</td><td>{route}</td><td>{}</td><td>{}</td></tr>"##,
            figures.sent,
            if figures.failed == 0 { "zero" } else { "some" },
            figures.failed,
            seconds(figures.longest_gap_ms),
            time(figures.detect_ms),
            time(figures.replace_ms),
            time(figures.recover_ms),
            name = escape(&outcome.name),
            badge = badge(outcome),
        );
    }
    format!(
        r#"<section class="card"><table class="summary"><thead><tr><th>drill</th><th>verdict</th><th>requests</th><th>failed</th><th>longest gap</th><th>detected</th><th>routed around</th><th>replaced</th><th>recovered</th></tr></thead><tbody>{rows}</tbody></table>
<p class="key"><span class="sw answered"></span>answered <span class="sw failed"></span>failed <span class="sw ready"></span>ready <span class="sw starting"></span>running, not ready <span class="sw pending"></span>pending <span class="sw terminating"></span>terminating <span class="sw unknown"></span>node unknown <span class="sw cordoned"></span>cordoned. Times are from the first fault.</p></section>"#
    )
}

fn badge(outcome: &Outcome) -> &'static str {
    if outcome.passed() { r#"<span class="badge good">passed</span>"# } else { r#"<span class="badge bad">FAILED</span>"# }
}

fn tile(name: &str, value: &str, class: &str) -> String {
    format!(r#"<div class="tile {class}"><b>{}</b>{}</div>"#, escape(value), escape(name))
}

fn card(outcome: &Outcome) -> String {
    let figures = &outcome.figures;
    let mut tiles = tile("requests", &figures.sent.to_string(), "");
    tiles += &tile("failed", &figures.failed.to_string(), if figures.failed == 0 { "good" } else { "bad" });
    tiles += &tile("longest gap", &seconds(figures.longest_gap_ms), "");
    if figures.failed > 0 {
        tiles += &tile("routed around", &seconds(figures.route_around_ms), "");
    }
    for (name, value) in [("detected", figures.detect_ms), ("replaced", figures.replace_ms), ("recovered", figures.recover_ms)] {
        if value.is_some() {
            tiles += &tile(name, &time(value), "");
        }
    }
    for (node, took) in &figures.returned_ms {
        tiles += &tile(&format!("{node} answered again"), &seconds(*took), "");
    }
    for (name, value) in &outcome.further {
        tiles += &tile(name, value, "");
    }
    let checks = outcome.checks.iter().map(|check| {
        let class = if check.held { "good" } else { "bad" };
        format!(r#"<li class="{class}">{}<span>{}</span></li>"#, escape(&check.what), escape(&shorten(&check.seen)))
    });
    let checks: String = checks.collect();
    let error = outcome.error.as_ref().map(|error| format!(r#"<p class="error">{}</p>"#, escape(error))).unwrap_or_default();
    let sabotage = outcome.sabotage.as_ref();
    let sabotage =
        sabotage.map(|text| format!(r#"<p class="sabotage">Broken on purpose: {}. This drill must fail.</p>"#, escape(text))).unwrap_or_default();
    format!(
        r#"<section class="card" id="{name}"><h2>{name} {badge}</h2><p class="shows">{shows}</p><p class="elsewhere"><b>Kubernetes:</b> {kubernetes}</p>{sabotage}{error}<div class="tiles">{tiles}</div>{picture}<ul class="checks">{checks}</ul>{details}<p class="topology">{topology}</p></section>"#,
        name = escape(&outcome.name),
        badge = badge(outcome),
        shows = escape(&outcome.shows),
        kubernetes = escape(&outcome.kubernetes),
        picture = timeline::draw(outcome),
        details = details(outcome),
        topology = escape(&outcome.topology),
    )
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 160;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LONGEST { line } else { line.chars().take(LONGEST).chain("…".chars()).collect() }
}

/// Each way's figures, and why requests failed.
fn details(outcome: &Outcome) -> String {
    let mut rows = String::new();
    let ways = Way::APPLICATION.into_iter().chain(Way::API).filter_map(|way| Some((way.title().to_owned(), outcome.figures.ways.get(&way)?)));
    let kept = [("kept connections".to_owned(), &outcome.figures.kept)];
    for (name, traffic) in ways.chain(kept) {
        let ms = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
        let _ = write!(
            rows,
            "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            traffic.sent,
            traffic.failed,
            traffic.repeated,
            ms(traffic.p50_us),
            ms(traffic.p99_us),
            seconds(traffic.longest_gap_ms)
        );
    }
    let reasons: String = outcome.reasons.iter().map(|(reason, count)| format!("<li>{count} × {}</li>", escape(reason))).collect();
    let dropped = if outcome.dropped > 0 { format!("<p>{} log lines beyond the limits were dropped.</p>", outcome.dropped) } else { String::new() };
    format!(
        r#"<details><summary>requests by way</summary><table><thead><tr><th></th><th>sent</th><th>failed</th><th>repeated</th><th>median</th><th>99 %</th><th>longest gap</th></tr></thead><tbody>{rows}</tbody></table><ul class="reasons">{reasons}</ul>{dropped}</details>"#
    )
}

const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis,
        expectation::Check,
        request::Request,
        timeline::{Event, Log, Mark, Node, Pod, What},
    };

    pub(super) fn sample() -> Outcome {
        let request = |i: u64| Request {
            started_ms: 1_000_000 + i * 20,
            took_us: 900,
            source: "worker-1".into(),
            boot: 0,
            way: Way::ClusterIp,
            kept: false,
            attempts: 1,
            pod: None,
            error: (100..110).contains(&i).then(|| "connect: refused".into()),
        };
        let at = |at_ms: u64, what: What| Event { at_ms: 1_000_000 + at_ms, what };
        let log = Log {
            requests: (0..400).map(request).collect(),
            events: vec![
                at(0, What::Node(Node { name: "worker-1".into(), ready: "True".into(), ..Node::default() })),
                at(
                    0,
                    What::Pod(Pod {
                        uid: "u".into(),
                        name: "web-<1>".into(),
                        node: "worker-1".into(),
                        phase: "Running".into(),
                        ready: true,
                        ..Pod::default()
                    }),
                ),
                at(2000, What::Mark { mark: Mark::Fault, text: "the cat & the cable".into() }),
                at(4000, What::Mark { mark: Mark::Heal, text: "mended".into() }),
                at(5000, What::Mark { mark: Mark::Recovered, text: "all is as before".into() }),
            ],
            dropped: 0,
        };
        let mut outcome = Outcome {
            name: "sample".into(),
            shows: "It shows.".into(),
            kubernetes: "It fails.".into(),
            topology: "1 server".into(),
            sabotage: None,
            began_ms: 1_000_000,
            ended_ms: 1_008_000,
            figures: analysis::figures(&log),
            further: vec![("speed".into(), "fast".into())],
            checks: vec![Check { what: "no request fails".into(), held: false, seen: "10 failed".into() }],
            error: None,
            events: vec![],
            strips: Default::default(),
            failures: vec![],
            reasons: Default::default(),
            dropped: 0,
        };
        outcome.absorb(log);
        outcome
    }

    #[test]
    fn the_page_is_whole_needs_nothing_else_and_escapes_what_it_shows() {
        let page = html(&[sample()]);
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        for foreign in ["src=", "<script", "@import", "url(", "http://", "https://"] {
            assert!(!page.contains(foreign), "the page asks for something else: {foreign}");
        }
        for part in ["the cat &amp; the cable", "web-&lt;1&gt;", "FAILED", "10 × ClusterIP: connect: refused", "<svg", "400 sent, 10 failed"] {
            assert!(page.contains(part), "{part} is missing");
        }
        for tag in ["svg", "section", "table", "ol", "ul", "div"] {
            assert_eq!(page.matches(&format!("<{tag}")).count(), page.matches(&format!("</{tag}>")).count(), "{tag} is not closed");
        }
    }
}
