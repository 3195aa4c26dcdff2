//! The JSON paths that definitions use (printer columns, selectable fields): `.spec.list[0].name`,
//! `.status.conditions[?(@.type=="Ready")].status`, `.metadata.annotations.a\.b`, `.spec['a','b']`, `.spec.list[0:6:2]`.
//!
//! They are read and followed as clients of Kubernetes read and follow them: what a bracket ends at, what a quoted key means and when
//! a path fails on the way are its own, and printed columns show it.

use crate::Value;
use serde_json::Number;

/// Steps of one path; longer paths are refused.
const STEPS_MAX: usize = 64;
/// Values that one path may find at a time.
const FOUND_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Child(String),
    All,
    Descend,
    Slice(Slice),
    /// What any of several paths finds.
    Union(Vec<Vec<Step>>),
    /// Items for which something is there.
    Exists(Vec<Step>),
    /// Items for which two things compare.
    Compares(Vec<Step>, String, Vec<Step>),
    /// A value that is written in the path.
    Literal(Value),
    /// A word that means nothing: the path is one, and never finds anything.
    Unknown,
}

/// Items from one place to another. What is not said is the whole list; `[3]` is one item.
#[derive(Clone, Debug, PartialEq)]
struct Slice {
    from: Option<i64>,
    to: Option<i64>,
    /// Whether `to` was not said but follows from `from`.
    single: bool,
    step: Option<i64>,
}

/// A path, parsed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses `.a.b[0]`. The error says what is wrong.
    pub fn parse(text: &str) -> Result<JsonPath, String> {
        action(text).map(JsonPath)
    }

    /// All values that the path leads to; none if a step cannot be taken: an index that is not there, a comparison with nothing.
    pub fn find<'v>(&'v self, value: &'v Value) -> Vec<&'v Value> {
        walk(&self.0, vec![value]).unwrap_or_default()
    }

    /// The path as plain field names; `None` if it has anything else.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0.iter().map(|step| if let Step::Child(name) = step { Some(name.as_str()) } else { None }).collect()
    }
}

/// What stands between the braces that clients write around a path.
fn action(text: &str) -> Result<Vec<Step>, String> {
    let chars: Vec<char> = text.chars().collect();
    let mut reader = Reader { chars: &chars, at: 0 };
    let mut steps = vec![];
    while reader.at < chars.len() {
        if steps.len() >= STEPS_MAX {
            return Err("the path is too long".into());
        }
        reader.step(&mut steps)?;
    }
    Ok(steps)
}

struct Reader<'a> {
    chars: &'a [char],
    at: usize,
}

/// What a name or number ends at.
fn ends(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}

impl Reader<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }
    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c))
    }
    /// All up to a character, and behind it.
    fn until(&mut self, end: char, what: &str) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.peek(0) {
                None | Some('\n') => return Err(format!("unterminated {what}")),
                Some(c) => {
                    self.at += 1;
                    if c == end {
                        return Ok(text);
                    }
                    text.push(c);
                }
            }
        }
    }

    fn step(&mut self, steps: &mut Vec<Step>) -> Result<(), String> {
        if self.starts_with("[?(") {
            self.at += 3;
            steps.push(self.filter()?);
            return Ok(());
        }
        if self.starts_with("..") {
            if steps.last() == Some(&Step::Descend) {
                return Err("invalid multiple recursive descent".into());
            }
            self.at += 2;
            steps.push(Step::Descend);
            if self.peek(0).is_some_and(|c| c == '_' || c.is_alphanumeric()) {
                steps.push(self.field());
            }
            return Ok(());
        }
        let Some(c) = self.peek(0) else { return Ok(()) };
        match c {
            ' ' | '@' | '$' => self.at += 1,
            '[' => {
                self.at += 1;
                let text = self.until(']', "array")?;
                steps.extend(bracket(&text)?);
            }
            '"' | '\'' => {
                self.at += 1;
                steps.push(Step::Literal(Value::from(self.quoted(c)?)));
            }
            '.' => {
                self.at += 1;
                steps.push(self.field());
            }
            c if c == '+' || c == '-' || c.is_numeric() => steps.push(self.number()?),
            c if c == '_' || c.is_alphabetic() => {
                let word: String = self.chars[self.at..].iter().take_while(|c| !ends(**c)).collect();
                self.at += word.chars().count();
                steps.push(match word.as_str() {
                    "true" => Step::Literal(Value::Bool(true)),
                    "false" => Step::Literal(Value::Bool(false)),
                    _ => Step::Unknown,
                });
            }
            c => return Err(format!("unrecognized character in action: {c:?}")),
        }
        Ok(())
    }

    fn field(&mut self) -> Step {
        let mut name = String::new();
        while let Some(c) = self.peek(0).filter(|c| !ends(*c)) {
            self.at += 1;
            if c != '\\' {
                name.push(c);
            } else if let Some(escaped) = self.peek(0) {
                self.at += 1;
                name.push(escaped);
            }
        }
        if name == "*" { Step::All } else { Step::Child(name) }
    }

    fn number(&mut self) -> Result<Step, String> {
        let start = self.at;
        self.at += usize::from(matches!(self.peek(0), Some('+' | '-')));
        while self.peek(0).is_some_and(|c| c == '.' || c.is_numeric()) {
            self.at += 1;
        }
        let text: String = self.chars[start..self.at].iter().collect();
        let float = || text.parse().ok().and_then(Number::from_f64).map(Value::Number);
        let number = text.parse::<i64>().ok().map(Value::from).or_else(float);
        number.map(Step::Literal).ok_or_else(|| format!("cannot parse number {text}"))
    }

    /// A text up to its closing quote, without its escapes.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        loop {
            let c = self.peek(0).filter(|c| *c != '\n').ok_or("unterminated quoted string")?;
            self.at += 1;
            match c {
                c if c == quote => return Ok(text),
                '\\' => {
                    let escaped = self.peek(0).ok_or("unterminated quoted string")?;
                    self.at += 1;
                    text.push(match escaped {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        '\\' => '\\',
                        c if c == quote => c,
                        c => return Err(format!("unquote string: invalid syntax at {c:?}")),
                    });
                }
                c => text.push(c),
            }
        }
    }

    /// `[?(@.a == "b")]`, behind its opening bracket. It ends at the first bracket that does not stand in its one quoted text.
    fn filter(&mut self) -> Result<Step, String> {
        let (start, mut quote, mut closed) = (self.at, None, false);
        loop {
            let c = self.peek(0).filter(|c| *c != '\n').ok_or("unterminated filter")?;
            self.at += 1;
            match (c, quote) {
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(quote)) if c == quote && self.chars[self.at - 2] != '\\' => closed = true,
                (')', quote) if quote.is_some() == closed => break,
                _ => {}
            }
        }
        let text: String = self.chars[start..self.at - 1].iter().collect();
        if self.peek(0) != Some(']') {
            return Err("unclosed array expect ]".into());
        }
        self.at += 1;
        let is_operator = |c: char| matches!(c, '!' | '<' | '>' | '=');
        let compared = text.find(is_operator).filter(|at| *at > 0).and_then(|at| {
            let (left, rest) = text.split_at(at);
            // An operator with nothing behind it is cut in two.
            let end = rest.find(|c: char| !is_operator(c)).or_else(|| rest.len().checked_sub(1).filter(|end| *end > 0))?;
            Some((left, &rest[..end], &rest[end..]))
        });
        match compared {
            None => Ok(Step::Exists(action(&text)?)),
            Some((left, operator, right)) => Ok(Step::Compares(action(left)?, operator.to_string(), action(right)?)),
        }
    }
}

/// What stands in brackets: places in a list, keys in single quotes, or several of them.
fn bracket(text: &str) -> Result<Vec<Step>, String> {
    let text = if text == "*" { ":" } else { text };
    if text.contains(',') {
        let parts = text.split(',').map(|part| bracket(part.trim_matches(' ')));
        return Ok(vec![Step::Union(parts.collect::<Result<_, _>>()?)]);
    }
    if let Some(key) = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')).filter(|key| !key.contains('\'')) {
        // A key in quotes is a path of its own: dots in it mean what they mean outside.
        return action(&format!(".{key}"));
    }
    let invalid = || format!("invalid array index {text}");
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() > 3 || parts.iter().any(|part| part.strip_prefix('-').unwrap_or(part).contains(|c: char| !c.is_ascii_digit())) {
        return Err(invalid());
    }
    let place = |i: usize| match parts.get(i) {
        None | Some(&"") => Ok(None),
        Some(part) => part.parse::<i64>().map(Some).map_err(|_| format!("array index {part} is not a number")),
    };
    let (from, single) = (place(0)?, parts.len() == 1);
    let to = if single { Some(from.unwrap_or(0).saturating_add(1)) } else { place(1)? };
    Ok(vec![Step::Slice(Slice { from, to, single, step: place(2)? })])
}

/// What is found; where a step fails, `Err` with what it failed on.
type Found<'v> = Result<Vec<&'v Value>, Vec<&'v Value>>;

fn walk<'v>(steps: &'v [Step], mut values: Vec<&'v Value>) -> Found<'v> {
    for step in steps {
        values = taken(step, values)?;
        values.truncate(FOUND_MAX);
    }
    Ok(values)
}

fn taken<'v>(step: &'v Step, values: Vec<&'v Value>) -> Found<'v> {
    let mut next: Vec<&Value> = vec![];
    match step {
        Step::Child(name) => next.extend(values.into_iter().filter_map(|value| value.get(name))),
        Step::All => next.extend(values.into_iter().flat_map(children)),
        Step::Descend => values.into_iter().for_each(|value| descend(value, &mut next)),
        Step::Literal(Value::String(_)) => {
            let Step::Literal(text) = step else { return Err(values) };
            next.push(text);
        }
        Step::Literal(literal) => next.extend(values.iter().map(|_| literal)),
        Step::Unknown => return Err(values),
        Step::Slice(slice) => {
            for value in &values {
                // A null is passed over; anything else must be a list.
                if value.is_null() {
                    continue;
                }
                let Some(list) = value.as_array() else { return Err(values) };
                match slice.of(list.len()) {
                    None => return Err(values),
                    Some(None) => return Ok(next),
                    Some(Some((places, step))) => next.extend(list[places].iter().step_by(step)),
                }
            }
        }
        Step::Union(paths) => {
            for path in paths {
                match walk(path, values.clone()) {
                    Ok(found) => next.extend(found),
                    Err(_) => return Err(values),
                }
            }
        }
        Step::Exists(path) => {
            for value in &values {
                let Some(list) = value.as_array() else { return Err(values) };
                // Where the path fails there is what it failed on.
                let is_there = |item: &&Value| !walk(path, vec![*item]).unwrap_or_else(|partly| partly).is_empty();
                next.extend(list.iter().filter(is_there));
            }
        }
        Step::Compares(left, operator, right) => {
            for value in &values {
                let Some(list) = value.as_array() else { return Err(values) };
                for item in list {
                    let (Ok(left), Ok(right)) = (walk(left, vec![item]), walk(right, vec![item])) else { return Err(values) };
                    let ([left], [right]) = (left.as_slice(), right.as_slice()) else { return Err(values) };
                    match compares(left, operator, right) {
                        Some(true) => next.push(item),
                        Some(false) => {}
                        None => return Err(next),
                    }
                }
            }
        }
    }
    Ok(next)
}

impl Slice {
    /// The places in a list of so many items, and how far from one to the next. `None` if there are none such, `Some(None)` for no items.
    fn of(&self, length: usize) -> Option<Option<(std::ops::Range<usize>, usize)>> {
        let length = length as i64;
        let from = self.from.unwrap_or(0);
        let from = if from < 0 { from.saturating_add(length) } else { from };
        let to = self.to.unwrap_or(length);
        let to = if to < 0 || (to == 0 && self.single) { to.saturating_add(length) } else { to };
        if from == to {
            return Some(None);
        }
        let step = usize::try_from(self.step.unwrap_or(1)).ok().filter(|step| *step > 0)?;
        let is_inside = (0..length).contains(&from) && (0..=length).contains(&to) && from < to;
        is_inside.then_some(Some((from as usize..to as usize, step)))
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(list) => Box::new(list.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// A value and all below it that hold something: texts hold characters, numbers nothing.
fn descend<'v>(value: &'v Value, found: &mut Vec<&'v Value>) {
    if found.len() >= FOUND_MAX {
        return;
    }
    if value.as_str().is_some_and(|text| !text.is_empty()) || children(value).next().is_some() {
        found.push(value);
        children(value).for_each(|below| descend(below, found));
    }
}

/// `None` for what does not compare: values of two kinds, or without an order.
fn compares(left: &Value, operator: &str, right: &Value) -> Option<bool> {
    let order = match (left, right) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() == b.is_f64() => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?)?,
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) if matches!(operator, "==" | "!=") => a.cmp(b),
        _ => return None,
    };
    match operator {
        "==" => Some(order.is_eq()),
        "!=" => Some(order.is_ne()),
        "<" => Some(order.is_lt()),
        "<=" => Some(order.is_le()),
        ">" => Some(order.is_gt()),
        ">=" => Some(order.is_ge()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_that_mean_nothing_are_refused() {
        assert!(JsonPath::parse(&".a[?(@".repeat(10_000)).is_err());
        for path in [
            ".a[",
            ".a['",
            ".a['b",
            ".a[?(",
            ".a[?(@.b==",
            ".a[?(@.b==\"",
            ".a[?(@.b==\"c\")",
            ".a[?(@.b[?(@.c)])]",
            ".a[?(@.b && @.c)]",
            ".a[?(@.b==)]",
            ".a[b]",
            ".a[\"b\"]",
            ".a['b,c']",
            ".a[1:2:3:4]",
            ".a[1-2]",
            ".a[-]",
            ".a,b",
            ".a]",
            "....a",
            "..*",
            "{.a}",
        ] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }

    #[test]
    fn paths_find_values() {
        let object = json!({"spec": {"l": [{"n": "a", "v": 1}, {"n": "b", "v": 2}, {"n": "c", "v": 3}], "x.y": true, "x": {"y": 7}, "e": [],
            "t": true, "f": [1.5]}, "n": 5});
        for (path, found) in [
            (".spec.l[0].n", vec![json!("a")]),
            (".spec.l[-1].n", vec![json!("c")]),
            (".spec.l[*].v", vec![json!(1), json!(2), json!(3)]),
            (".spec.l[].v", vec![json!(1)]),
            (".spec.l[?(@.n==\"b\")].v", vec![json!(2)]),
            (".spec.l[?(@.n=='b')].v", vec![json!(2)]),
            (".spec.l[?(@.v > 1)].n", vec![json!("b"), json!("c")]),
            (".spec.l[?(@.v != 2)].n", vec![json!("a"), json!("c")]),
            (".spec.l[?(@.v == @.v)].v", vec![json!(1), json!(2), json!(3)]),
            (".spec.l[?(@.n == \"a)\")].v", vec![]),
            (".spec.x\\.y", vec![json!(true)]),
            // A dot in quotes is a dot.
            (".spec['x.y']", vec![json!(7)]),
            (".spec['x\\.y']", vec![json!(true)]),
            ("..v", vec![json!(1), json!(2), json!(3)]),
            (".spec.l[0:1].v", vec![json!(1)]),
            (".spec.l[0:3:2].v", vec![json!(1), json!(3)]),
            (".spec.l[1:].v", vec![json!(2), json!(3)]),
            (".spec.l[:-1].v", vec![json!(1), json!(2)]),
            (".spec.l[0,2].v", vec![json!(1), json!(3)]),
            (".spec.l[0]['n', 'v']", vec![json!("a"), json!(1)]),
            (".spec.l[0]['v','w']", vec![json!(1)]),
            (".spec.l[1:1].v", vec![]),
            (".spec.l[2:1].v", vec![]),
            (".spec.l[0:3:0].v", vec![]),
            (".nothing.here", vec![]),
            (".spec.l[7].n", vec![]),
            (".spec.l[0,7].n", vec![]),
            (".spec.l[0:7].n", vec![]),
            (".spec.l[?(@.w==1)].n", vec![]),
            (".spec.l[?(@.v==1.0)].n", vec![]),
            (".spec.l[?(@.v==\"1\")].n", vec![]),
            (".spec.f[?(@ > 1.0)]", vec![json!(1.5)]),
            (".spec.l[?(@.n)].v", vec![json!(1), json!(2), json!(3)]),
            (".spec.e[0]", vec![]),
            (".spec[?(@.n)]", vec![]),
            (".spec.t \"said\"", vec![json!("said")]),
            (".spec.t nothing", vec![]),
            (".", vec![]),
        ] {
            assert_eq!(JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect::<Vec<_>>(), found, "{path}");
        }
        assert_eq!(JsonPath::parse(".spec.replicas").unwrap().fields(), Some(vec!["spec", "replicas"]));
    }
}
