//! The difference of two texts in the unified form, three lines around each change: as `diff -u` without the file names.
//!
//! Which of several possible differences is shown is told by the way of looking for them, and messages that clients compare
//! contain them: it is that of Ratcliff and Obershelp as Python's difflib does it. The longest common run of lines first (the
//! earliest of equal ones), then the same on both sides of it; in long texts, lines that are very frequent start no run.

use std::collections::HashMap;

const CONTEXT: usize = 3;
/// From so many lines on, lines that make up more than a hundredth of them count as frequent.
const LONG_LINES: usize = 200;

struct Run {
    a: usize,
    b: usize,
    length: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Equal,
    Change,
}

/// From `a1..a2` to `b1..b2`.
#[derive(Clone, Copy)]
struct Step {
    tag: Tag,
    a1: usize,
    a2: usize,
    b1: usize,
    b2: usize,
}

/// The difference as text, each line with its newline; empty if there is none.
pub fn diff(old: &[String], new: &[String]) -> String {
    let mut text = String::new();
    for group in groups(steps(old, new)) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        text.push_str(&format!("@@ -{} +{} @@\n", range(first.a1, last.a2), range(first.b1, last.b2)));
        for step in &group {
            let mut add = |sign: char, lines: &[String]| {
                for line in lines {
                    text.push(sign);
                    text.push_str(line);
                    text.push('\n');
                }
            };
            match step.tag {
                Tag::Equal => add(' ', &old[step.a1..step.a2]),
                Tag::Change => {
                    add('-', &old[step.a1..step.a2]);
                    add('+', &new[step.b1..step.b2]);
                }
            }
        }
    }
    text
}

fn range(start: usize, end: usize) -> String {
    match end - start {
        1 => (start + 1).to_string(),
        0 => format!("{start},0"),
        length => format!("{},{length}", start + 1),
    }
}

fn runs(old: &[String], new: &[String]) -> Vec<Run> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, line) in new.iter().enumerate() {
        places.entry(line).or_default().push(i);
    }
    if new.len() >= LONG_LINES {
        let most = new.len() / 100 + 1;
        places.retain(|_, at| at.len() <= most);
    }
    let mut found = vec![];
    let mut left = vec![(0, old.len(), 0, new.len())];
    while let Some((a1, a2, b1, b2)) = left.pop() {
        let run = longest(old, new, &places, (a1, a2, b1, b2));
        if run.length == 0 {
            continue;
        }
        if a1 < run.a && b1 < run.b {
            left.push((a1, run.a, b1, run.b));
        }
        if run.a + run.length < a2 && run.b + run.length < b2 {
            left.push((run.a + run.length, a2, run.b + run.length, b2));
        }
        found.push(run);
    }
    found.sort_by_key(|run| (run.a, run.b));
    found
}

fn longest(old: &[String], new: &[String], places: &HashMap<&str, Vec<usize>>, (a1, a2, b1, b2): (usize, usize, usize, usize)) -> Run {
    let mut best = Run { a: a1, b: b1, length: 0 };
    // How long the run is that ends at the line before, by its place in `new`.
    let mut before: HashMap<usize, usize> = HashMap::new();
    for (i, line) in old.iter().enumerate().take(a2).skip(a1) {
        let mut now = HashMap::new();
        for &j in places.get(line.as_str()).map(Vec::as_slice).unwrap_or_default() {
            if j < b1 {
                continue;
            }
            if j >= b2 {
                break;
            }
            let length = j.checked_sub(1).and_then(|j| before.get(&j)).copied().unwrap_or(0) + 1;
            now.insert(j, length);
            if length > best.length {
                best = Run { a: i + 1 - length, b: j + 1 - length, length };
            }
        }
        before = now;
    }
    // Frequent lines start no run, but belong to one that they touch.
    while best.a > a1 && best.b > b1 && old[best.a - 1] == new[best.b - 1] {
        best = Run { a: best.a - 1, b: best.b - 1, length: best.length + 1 };
    }
    while best.a + best.length < a2 && best.b + best.length < b2 && old[best.a + best.length] == new[best.b + best.length] {
        best.length += 1;
    }
    best
}

fn steps(old: &[String], new: &[String]) -> Vec<Step> {
    let (mut a, mut b) = (0, 0);
    let mut steps: Vec<Step> = vec![];
    let end = Run { a: old.len(), b: new.len(), length: 0 };
    for run in runs(old, new).into_iter().chain([end]) {
        if a < run.a || b < run.b {
            steps.push(Step { tag: Tag::Change, a1: a, a2: run.a, b1: b, b2: run.b });
        }
        (a, b) = (run.a + run.length, run.b + run.length);
        match steps.last_mut() {
            // Runs that touch are one.
            Some(last) if last.tag == Tag::Equal && last.a2 == run.a && last.b2 == run.b => (last.a2, last.b2) = (a, b),
            _ if run.length > 0 => steps.push(Step { tag: Tag::Equal, a1: run.a, a2: a, b1: run.b, b2: b }),
            _ => {}
        }
    }
    steps
}

/// Changes with what is around them; those that are close share what is between them.
fn groups(mut steps: Vec<Step>) -> Vec<Vec<Step>> {
    if !steps.iter().any(|step| step.tag == Tag::Change) {
        return vec![];
    }
    if let Some(first) = steps.first_mut().filter(|step| step.tag == Tag::Equal) {
        first.a1 = first.a1.max(first.a2.saturating_sub(CONTEXT));
        first.b1 = first.b1.max(first.b2.saturating_sub(CONTEXT));
    }
    if let Some(last) = steps.last_mut().filter(|step| step.tag == Tag::Equal) {
        last.a2 = last.a2.min(last.a1 + CONTEXT);
        last.b2 = last.b2.min(last.b1 + CONTEXT);
    }
    let mut groups = vec![];
    let mut group: Vec<Step> = vec![];
    for step in steps {
        if step.tag == Tag::Equal && step.a2 - step.a1 > 2 * CONTEXT {
            group.push(Step { a2: step.a2.min(step.a1 + CONTEXT), b2: step.b2.min(step.b1 + CONTEXT), ..step });
            groups.push(std::mem::take(&mut group));
            group.push(Step { a1: step.a2 - CONTEXT, b1: step.b2 - CONTEXT, ..step });
        } else {
            group.push(step);
        }
    }
    if group.iter().any(|step| step.tag == Tag::Change) {
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: &str, new: &str, want: &str) {
        let lines = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        assert_eq!(diff(&lines(old), &lines(new)), want);
    }

    #[test]
    fn changes_far_apart_have_hunks_of_their_own() {
        check("a b c", "a b c", "");
        check("a b c", "a x c", "@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n");
        check("", "a", "@@ -0,0 +1 @@\n+a\n");
        check("1 2 3 4 5 6 7 8 9 10", "x 2 3 4 5 6 7 8 9 y", "@@ -1,4 +1,4 @@\n-1\n+x\n 2\n 3\n 4\n@@ -7,4 +7,4 @@\n 7\n 8\n 9\n-10\n+y\n");
        check("1 2 3 4 5", "1 2 9 3 4 5", "@@ -1,5 +1,6 @@\n 1\n 2\n+9\n 3\n 4\n 5\n");
    }
}
