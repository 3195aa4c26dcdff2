//! The picture of a drill: traffic, faults, endpoints, nodes with their pods, leaders, over one axis of seconds. SVG by hand.

use super::{
    escape,
    lanes::{self, Kind, Moment},
};
use crate::{analysis::BIN_MS, outcome::Outcome, request::Way, timeline::Mark};
use std::fmt::Write;

const WIDTH: f64 = 1180.0;
/// Where names end and time begins.
const LEFT: f64 = 168.0;
const RIGHT: f64 = 18.0;
const MARKS: f64 = 34.0;
const TRAFFIC: f64 = 40.0;
/// Columns of a traffic strip are at least this wide.
const COLUMN_MIN: f64 = 2.5;

struct Picture {
    svg: String,
    begin_ms: u64,
    /// Time zero: the first fault.
    zero_ms: u64,
    end_ms: u64,
}

impl Picture {
    fn x(&self, at_ms: u64) -> f64 {
        let span = self.end_ms.saturating_sub(self.begin_ms).max(1) as f64;
        LEFT + (at_ms.clamp(self.begin_ms, self.end_ms) - self.begin_ms) as f64 / span * (WIDTH - LEFT - RIGHT)
    }

    fn rect(&mut self, class: &str, from_ms: u64, to_ms: u64, y: f64, height: f64, title: &str) {
        let (x, end) = (self.x(from_ms), self.x(to_ms));
        let width = (end - x).max(1.0);
        let _ = write!(
            self.svg,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"><title>{}</title></rect>"#,
            escape(title)
        );
    }

    fn label(&mut self, class: &str, y: f64, text: &str) {
        let _ = write!(self.svg, r#"<text class="{class}" x="{:.1}" y="{y:.1}" text-anchor="end">{}</text>"#, LEFT - 10.0, escape(text));
    }

    fn seconds(&self, at_ms: u64) -> f64 {
        (at_ms as f64 - self.zero_ms as f64) / 1000.0
    }
}

/// The picture, and the numbered moments under it.
pub fn draw(outcome: &Outcome) -> String {
    let (svg, legend) = drawn(outcome);
    svg + &legend
}

/// The picture alone, as a file that needs nothing else.
pub fn picture(outcome: &Outcome) -> String {
    let (svg, _) = drawn(outcome);
    let head = format!(r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" "#);
    let style = format!("<style>{}</style><rect width=\"100%\" height=\"100%\" fill=\"var(--card)\"/>", super::STYLE);
    let svg = svg.replacen("<svg ", &head, 1);
    match svg.find('>') {
        Some(end) => format!("{}{style}{}\n", &svg[..=end], &svg[end + 1..]),
        None => svg,
    }
}

fn drawn(outcome: &Outcome) -> (String, String) {
    let moments = lanes::moments(&outcome.events);
    let begin_ms = outcome.began_ms;
    let end_ms = outcome.ended_ms.max(begin_ms + 1000);
    let zero_ms = moments.iter().find(|moment| moment.mark == Mark::Fault).map_or(begin_ms, |moment| moment.at_ms);
    let mut picture = Picture { svg: String::new(), begin_ms, zero_ms, end_ms };
    let rows = lanes::lanes(&outcome.events, begin_ms, end_ms);
    let strips: Vec<Way> = Way::APPLICATION.into_iter().chain(Way::API).filter(|way| outcome.strips.contains_key(way)).collect();
    let lane_height = |kind: Kind| match kind {
        Kind::Node => 22.0,
        Kind::Pod => 13.0,
        Kind::Leader => 18.0,
        Kind::Endpoints => 22.0,
    };
    let bottom = MARKS + 8.0 + strips.len() as f64 * TRAFFIC + 10.0 + rows.iter().map(|row| lane_height(row.kind)).sum::<f64>() + 6.0;
    for (from, to) in lanes::faults(&moments, end_ms) {
        picture.rect("fault-span", from, to, MARKS - 6.0, bottom - MARKS + 6.0, "something is broken");
    }
    axis(&mut picture, bottom);
    let mut y = MARKS + 8.0;
    for way in strips {
        strip(&mut picture, outcome, way, y);
        y += TRAFFIC;
    }
    y += 10.0;
    for row in rows {
        let height = lane_height(row.kind);
        let (class, thick) = match row.kind {
            Kind::Node => ("node-name", 12.0),
            Kind::Pod => ("pod-name", 9.0),
            Kind::Leader => ("leader-name", 12.0),
            Kind::Endpoints => ("node-name", 14.0),
        };
        let top = y + (height - thick) / 2.0;
        picture.label(class, y + height / 2.0 + 4.0, &row.label);
        for bar in row.bars.iter().filter(|bar| bar.to_ms > begin_ms) {
            let class = format!("bar {} {}", kind_class(row.kind), colour(&bar.state));
            let from = picture.seconds(bar.from_ms.max(begin_ms));
            picture.rect(
                &class,
                bar.from_ms,
                bar.to_ms,
                top,
                thick,
                &format!("{} · from {from:.1} s for {:.1} s", bar.title, (bar.to_ms - bar.from_ms) as f64 / 1000.0),
            );
            inside(&mut picture, row.kind, bar, top + thick - 2.8);
        }
        y += height;
    }
    marks(&mut picture, &moments, bottom);
    let height = bottom + 24.0;
    let svg =
        format!(r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="timeline of {}">{}</svg>"#, escape(&outcome.name), picture.svg);
    let legend = legend(&picture, &moments);
    (svg, legend)
}

fn kind_class(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "of-node",
        Kind::Pod => "of-pod",
        Kind::Leader => "of-leader",
        Kind::Endpoints => "of-endpoints",
    }
}

/// The colour of a state: leaders have one per server.
fn colour(state: &str) -> String {
    match state.strip_prefix("leader-") {
        Some(holder) => format!("leader-{}", holder.bytes().rev().find(u8::is_ascii_digit).map_or(1, |digit| (digit - b'0') % 3)),
        None => state.to_owned(),
    }
}

/// Words inside a bar that is wide enough for them.
fn inside(picture: &mut Picture, kind: Kind, bar: &lanes::Bar, y: f64) {
    let text = match kind {
        Kind::Endpoints => bar.title.split(' ').next().unwrap_or_default(),
        Kind::Leader => bar.title.split('_').next().unwrap_or_default().trim_end_matches(" leads"),
        _ => return,
    };
    let (x, end) = (picture.x(bar.from_ms), picture.x(bar.to_ms));
    if end - x > text.len() as f64 * 7.0 + 6.0 {
        let _ = write!(picture.svg, r#"<text class="inside" x="{:.1}" y="{y:.1}">{}</text>"#, x + 5.0, escape(text));
    }
}

fn axis(picture: &mut Picture, bottom: f64) {
    let span_s = (picture.end_ms - picture.begin_ms) as f64 / 1000.0;
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0].into_iter().find(|step| span_s / step <= 14.0).unwrap_or(600.0);
    let first = (picture.seconds(picture.begin_ms) / step).ceil();
    let mut tick = first * step;
    while tick <= picture.seconds(picture.end_ms) {
        let at = (picture.zero_ms as f64 + tick * 1000.0) as u64;
        let x = picture.x(at);
        let _ = write!(picture.svg, r#"<line class="grid" x1="{x:.1}" y1="{MARKS}" x2="{x:.1}" y2="{bottom:.1}"/>"#);
        let _ = write!(picture.svg, r#"<text class="tick" x="{x:.1}" y="{:.1}" text-anchor="middle">{tick:.0} s</text>"#, bottom + 16.0);
        tick += step;
    }
}

/// One way's requests: the height of a column is what was answered, red is what failed.
fn strip(picture: &mut Picture, outcome: &Outcome, way: Way, y: f64) {
    let Some(strips) = outcome.strips.get(&way) else { return };
    let bins = strips.iter().map(|strip| strip.answered.len()).max().unwrap_or(0);
    let sum = |of: fn(&crate::analysis::Strip) -> &Vec<u32>, from: usize, to: usize| -> u32 {
        strips.iter().map(|strip| of(strip).get(from..to.min(of(strip).len())).unwrap_or_default().iter().sum::<u32>()).sum()
    };
    let per_column = (bins as f64 * COLUMN_MIN / (WIDTH - LEFT - RIGHT)).ceil().max(1.0) as usize;
    // Calls of the API are few: wider columns.
    let per_column = if way.is_api() { per_column.max(5) } else { per_column };
    let columns: Vec<(u64, u32, u32)> = (0..bins)
        .step_by(per_column)
        .map(|bin| (picture.begin_ms + bin as u64 * BIN_MS, sum(|s| &s.answered, bin, bin + per_column), sum(|s| &s.failed, bin, bin + per_column)))
        .collect();
    let most = columns.iter().map(|(_, answered, failed)| answered + failed).max().unwrap_or(1).max(1);
    let (room, base) = (TRAFFIC - 8.0, y + TRAFFIC - 4.0);
    let traffic = outcome.figures.ways.get(&way).cloned().unwrap_or_default();
    picture.label("way-name", y + 18.0, way.title());
    let said =
        if traffic.failed == 0 { format!("{} sent, none failed", traffic.sent) } else { format!("{} sent, {} failed", traffic.sent, traffic.failed) };
    picture.label(if traffic.failed == 0 { "way-said" } else { "way-said bad" }, y + 31.0, &said);
    let (mut good, mut bad) = (String::new(), String::new());
    for (at, answered, failed) in columns {
        let (x, end) = (picture.x(at), picture.x(at + per_column as u64 * BIN_MS));
        let width = (end - x - 0.3).max(0.5);
        let high = |count: u32| f64::from(count) / f64::from(most) * room;
        let red = if failed > 0 { high(failed).max(3.0) } else { 0.0 };
        if answered > 0 {
            let _ = write!(good, "M{x:.1} {:.1}h{width:.1}v-{:.1}h-{width:.1}z", base - red, high(answered).min(room - red));
        }
        if failed > 0 {
            let _ = write!(bad, "M{x:.1} {base:.1}h{width:.1}v-{red:.1}h-{width:.1}z");
        }
    }
    let class = if way.is_api() { "calls" } else { "answered" };
    let _ = write!(picture.svg, r#"<path class="{class}" d="{good}"/><path class="failed" d="{bad}"/>"#);
    let _ = write!(picture.svg, r#"<line class="base" x1="{LEFT}" y1="{base:.1}" x2="{:.1}" y2="{base:.1}"/>"#, WIDTH - RIGHT);
}

fn mark_class(mark: Mark) -> &'static str {
    match mark {
        Mark::Fault => "fault",
        Mark::Heal => "heal",
        Mark::Replaced => "replaced",
        Mark::Recovered => "recovered",
        Mark::Step => "step",
    }
}

fn marks(picture: &mut Picture, moments: &[Moment], bottom: f64) {
    let mut last_x = f64::MIN;
    let mut raised = false;
    for (i, moment) in moments.iter().enumerate() {
        let (x, class) = (picture.x(moment.at_ms), mark_class(moment.mark));
        // Two that are close together stand one above the other.
        raised = x - last_x < 17.0 && !raised;
        last_x = x;
        let y = if raised { 9.0 } else { 25.0 };
        let _ = write!(picture.svg, r#"<line class="mark {class}" x1="{x:.1}" y1="{y:.1}" x2="{x:.1}" y2="{bottom:.1}"/>"#);
        let _ = write!(
            picture.svg,
            r#"<g class="flag {class}"><circle cx="{x:.1}" cy="{y:.1}" r="8"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text><title>{}</title></g>"#,
            y + 3.6,
            i + 1,
            escape(&moment.text)
        );
    }
}

fn legend(picture: &Picture, moments: &[Moment]) -> String {
    let items = moments.iter().enumerate().map(|(i, moment)| {
        let at = picture.seconds(moment.at_ms);
        format!(r#"<li class="{}"><b>{}</b><span>{at:.1} s</span>{}</li>"#, mark_class(moment.mark), i + 1, escape(&moment.text))
    });
    format!(r#"<ol class="moments">{}</ol>"#, items.collect::<String>())
}
