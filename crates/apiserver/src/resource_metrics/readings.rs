//! What a node says of itself and of its containers, and what follows from two such answers: how much is used now.
//!
//! A node tells how much CPU has been used since a container's start (`/metrics/resource`); how much is used now is the
//! difference of two answers over the time between them. So nothing is said of what only one answer knows, nor of a container
//! that has been started anew in between: less has been used by then than before.
//!
//! Everything here is a function of its arguments.

use std::{collections::BTreeMap, sync::Arc};

/// How long what two answers say is current.
pub const RESOLUTION_MS: i64 = 15_000;
/// An answer that is older than this says nothing about now.
pub const KEPT_MS: i64 = 60_000;
/// Two answers that are closer together say nothing about the use of CPU.
pub const APART_MS: i64 = 1_000;

/// What had been used at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Since 1970.
    pub at_ms: i64,
    /// All the time that it has had on a processor.
    pub cpu_ns: Option<u64>,
    /// The memory that cannot be taken from it.
    pub memory_bytes: Option<u64>,
}

/// What is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// When this was so.
    pub at_ms: i64,
    /// Over which time the use of CPU is an average.
    pub window_ms: i64,
    /// Billionths of a processor.
    pub nano_cores: u64,
    pub memory_bytes: u64,
}

impl Usage {
    /// What two points say; `None` if they say nothing.
    fn between(older: &Point, newer: &Point) -> Option<Usage> {
        let window_ms = newer.at_ms.checked_sub(older.at_ms).filter(|window| *window > 0)?;
        let used_ns = newer.cpu_ns?.checked_sub(older.cpu_ns?)?;
        let nano_cores = u128::from(used_ns) * 1_000 / u128::from(window_ms.unsigned_abs());
        Some(Usage { at_ms: newer.at_ms, window_ms, nano_cores: u64::try_from(nano_cores).ok()?, memory_bytes: newer.memory_bytes? })
    }
}

/// The containers of a pod, by name.
type Containers = BTreeMap<String, Point>;

/// One answer of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// When it was given.
    pub at_ms: i64,
    pub node: Point,
    /// By the pod, `namespace/name`.
    pub pods: BTreeMap<String, Containers>,
}

impl Answer {
    /// Reads an answer in the text form of metrics. What is not asked for and what cannot be read is passed over.
    pub fn read(text: &str, at_ms: i64) -> Answer {
        let mut answer = Answer { at_ms, node: Point { at_ms, ..Point::default() }, pods: BTreeMap::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some(sample) = Sample::read(line) else { continue };
            let point = match sample.name {
                "node_cpu_usage_seconds_total" | "node_memory_working_set_bytes" => &mut answer.node,
                "container_cpu_usage_seconds_total" | "container_memory_working_set_bytes" => {
                    let (Some(namespace), Some(pod), Some(container)) = (sample.label("namespace"), sample.label("pod"), sample.label("container"))
                    else {
                        continue;
                    };
                    let containers = answer.pods.entry(format!("{namespace}/{pod}")).or_default();
                    containers.entry(container.to_string()).or_insert(Point { at_ms, ..Point::default() })
                }
                _ => continue,
            };
            if sample.name.ends_with("_seconds_total") {
                point.cpu_ns = whole(sample.value * 1e9);
                // The rate is that of the CPU, so its time counts.
                point.at_ms = sample.at_ms.unwrap_or(at_ms);
            } else {
                point.memory_bytes = whole(sample.value);
            }
        }
        answer
    }
}

fn whole(value: f64) -> Option<u64> {
    // From 2^63 on nothing is measured; what is not a number is not in any range.
    (0.0..9.2e18).contains(&value).then(|| value.round() as u64)
}

/// A line of the text form: `name{label="value",…} value [milliseconds]`.
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
    at_ms: Option<i64>,
}

impl<'a> Sample<'a> {
    fn read(line: &'a str) -> Option<Sample<'a>> {
        let (name, labels, rest) = match line.split_once('{') {
            Some((name, rest)) => {
                let end = labels_end(rest)?;
                (name, &rest[..end], &rest[end + 1..])
            }
            None => {
                let (name, rest) = line.split_once(' ')?;
                (name, "", rest)
            }
        };
        let mut words = rest.split_whitespace();
        let value = words.next()?.parse().ok()?;
        Some(Sample { name: name.trim(), labels, value, at_ms: words.next().and_then(|word| word.parse().ok()) })
    }

    /// The value of a label. The names of Kubernetes' objects need no escapes; a value that has some is not one of them.
    fn label(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (key, after) = rest.split_once("=\"")?;
            let end = value_end(after)?;
            let value = &after[..end];
            if key.trim_start_matches([',', ' ']) == name {
                return Some(value).filter(|value| !value.contains('\\'));
            }
            rest = &after[end + 1..];
        }
    }
}

/// Where the labels of a line end: at the brace that is in no value.
fn labels_end(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Where a label's value ends: at the quote that is not escaped.
fn value_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// The last two answers of a node. A copy costs next to nothing.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    older: Option<Arc<Answer>>,
    newer: Option<Arc<Answer>>,
    /// When the node last failed to answer.
    failed_ms: Option<i64>,
}

/// What is to be done before the readings can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// They are current; or the node has just failed, and is left alone for a while.
    Nothing,
    /// The node's answer, after so many milliseconds.
    Answer { after_ms: i64 },
}

impl Readings {
    /// What is needed now.
    pub fn need(&self, now_ms: i64) -> Need {
        if self.failed_ms.is_some_and(|failed| (0..RESOLUTION_MS).contains(&(now_ms - failed))) {
            return Need::Nothing;
        }
        let age_ms = self.newer.as_ref().map(|newer| now_ms - newer.at_ms);
        match (age_ms, &self.older) {
            (Some(0..RESOLUTION_MS), Some(_)) => Need::Nothing,
            (Some(age @ 0..APART_MS), None) => Need::Answer { after_ms: APART_MS - age },
            _ => Need::Answer { after_ms: 0 },
        }
    }

    /// Takes an answer in. One from long ago goes: the average since then is not what is used now.
    pub fn take(&mut self, answer: Answer) {
        self.failed_ms = None;
        self.older = self.newer.take().filter(|older| (0..KEPT_MS).contains(&(answer.at_ms - older.at_ms)));
        self.newer = Some(Arc::new(answer));
    }

    /// The node did not answer: nothing is known of it now.
    pub fn failed(&mut self, now_ms: i64) {
        *self = Readings { failed_ms: Some(now_ms), ..Readings::default() };
    }

    fn both(&self) -> Option<(&Answer, &Answer)> {
        self.older.as_deref().zip(self.newer.as_deref())
    }

    /// What the node uses.
    pub fn node(&self) -> Option<Usage> {
        let (older, newer) = self.both()?;
        Usage::between(&older.node, &newer.node)
    }

    /// What each container of a pod uses; `None` unless it is known of all that run.
    pub fn pod(&self, place: &str) -> Option<Vec<(&str, Usage)>> {
        let (older, newer) = self.both()?;
        let (before, now) = (older.pods.get(place)?, newer.pods.get(place).filter(|now| !now.is_empty())?);
        now.iter().map(|(name, point)| Some((name.as_str(), Usage::between(before.get(name)?, point)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(cpu_s: f64, at_ms: i64) -> String {
        format!(
            "# HELP node_cpu_usage_seconds_total x\nnode_cpu_usage_seconds_total {} {at_ms}\nnode_memory_working_set_bytes 4.096e+03\n\
             container_cpu_usage_seconds_total{{container=\"main\",namespace=\"ns\",pod=\"web\"}} {cpu_s} {at_ms}\n\
             container_memory_working_set_bytes{{container=\"main\",namespace=\"ns\",pod=\"web\"}} 2048 {at_ms}\n\
             scrape_error 0\nnonsense\n",
            cpu_s * 10.0,
        )
    }

    fn readings(one: (f64, i64), other: (f64, i64)) -> Readings {
        let mut readings = Readings::default();
        for (cpu, at) in [one, other] {
            readings.take(Answer::read(&text(cpu, at), at));
        }
        readings
    }

    #[test]
    fn the_use_follows_from_two_answers() {
        let two = readings((5.0, 10_000), (7.0, 20_000));
        let node = two.node().unwrap();
        assert_eq!((node.nano_cores, node.memory_bytes, node.window_ms, node.at_ms), (2_000_000_000, 4096, 10_000, 20_000));
        let pod = two.pod("ns/web").unwrap();
        assert_eq!(pod, [("main", Usage { at_ms: 20_000, window_ms: 10_000, nano_cores: 200_000_000, memory_bytes: 2048 })]);
        assert_eq!(two.pod("ns/other"), None);
        assert_eq!(readings((5.0, 10_000), (1.0, 20_000)).pod("ns/web"), None, "started anew");
        assert_eq!(readings((5.0, 10_000), (6.0, 10_000)).node(), None, "the same moment");
        assert_eq!(readings((5.0, 10_000), (6.0, 90_000)).node(), None, "the first is from long ago");
    }

    #[test]
    fn a_node_is_asked_when_that_says_something() {
        let mut one = Readings::default();
        assert_eq!(one.need(0), Need::Answer { after_ms: 0 });
        one.take(Answer::read(&text(1.0, 100), 100));
        assert_eq!(one.need(400), Need::Answer { after_ms: 700 });
        assert_eq!(one.need(1_200), Need::Answer { after_ms: 0 });
        one.take(Answer::read(&text(2.0, 1_200), 1_200));
        assert_eq!(one.need(16_100), Need::Nothing);
        assert_eq!(one.need(16_200), Need::Answer { after_ms: 0 });
        assert_eq!(one.need(100), Need::Answer { after_ms: 0 }, "a clock that was set back");
        one.failed(17_000);
        assert_eq!((one.need(20_000), one.node()), (Need::Nothing, None));
        assert_eq!(one.need(32_000), Need::Answer { after_ms: 0 });
    }

    #[test]
    fn lines_are_read_or_passed_over() {
        let label = |line: &'static str, name: &str| Sample::read(line).and_then(|sample| sample.label(name)).map(str::to_string);
        assert_eq!(label("a{x=\"1\", y=\"}\\\"{\",z=\"3\"} 4", "z").as_deref(), Some("3"));
        assert_eq!(label("a{x=\"1\",y=\"\\\"\"} 4", "y"), None, "no name of Kubernetes'");
        for odd in ["a{x=\"1 4", "a{x=\"1\"}", "a", "", "a{} b", "a{=\"} 1"] {
            assert!(Sample::read(odd).is_none_or(|sample| sample.label("x").is_none()), "{odd}");
        }
        let answer = Answer::read("node_cpu_usage_seconds_total -1\nnode_memory_working_set_bytes NaN\n", 5);
        assert_eq!(answer.node, Point { at_ms: 5, cpu_ns: None, memory_bytes: None });
    }
}
