//! The JSON paths that definitions use (printer columns, scale, selectable fields): `.spec.list[0].name`,
//! `.status.conditions[?(@.type=="Ready")].status`, `.metadata.annotations.a\.b`.

use crate::Value;

/// Steps of one path; longer paths are refused.
const STEPS_MAX: usize = 64;
/// Values that one path may find at a time.
const FOUND_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Child(String),
    Index(i64),
    All,
    Descend,
    Slice(Option<i64>, Option<i64>),
    Filter(Vec<Step>, Option<(String, Value)>),
}

/// A path, parsed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses `.a.b[0]`. The error says what is wrong.
    pub fn parse(text: &str) -> Result<JsonPath, String> {
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        let steps = steps(&chars, &mut at, false)?;
        if at != chars.len() {
            return Err(format!("unexpected {:?} in a JSON path", chars[at]));
        }
        Ok(JsonPath(steps))
    }

    /// All values that the path leads to; none if a step cannot be taken: an index that is not there, a comparison with nothing.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        walk(&self.0, vec![value]).unwrap_or_default()
    }

    /// The path as plain field names; `None` if it has anything else.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0.iter().map(|step| if let Step::Child(name) = step { Some(name.as_str()) } else { None }).collect()
    }
}

/// `filtering`: whether these are steps inside a filter. There is no filter in a filter, for each would multiply what a path may cost.
fn steps(chars: &[char], at: &mut usize, filtering: bool) -> Result<Vec<Step>, String> {
    let mut found = vec![];
    while *at < chars.len() {
        if found.len() >= STEPS_MAX {
            return Err("the path is too long".into());
        }
        match chars[*at] {
            '.' if chars.get(*at + 1) == Some(&'.') => {
                *at += 1;
                found.push(Step::Descend);
            }
            '.' => {
                *at += 1;
                if chars.get(*at) == Some(&'[') {
                    continue;
                }
                let name = name(chars, at);
                match name.as_str() {
                    "" if *at >= chars.len() => break,
                    "" => return Err("a name is missing".into()),
                    "*" => found.push(Step::All),
                    _ => found.push(Step::Child(name)),
                }
            }
            '[' => {
                *at += 1;
                found.push(bracket(chars, at, filtering)?);
            }
            _ => break,
        }
    }
    Ok(found)
}

fn name(chars: &[char], at: &mut usize) -> String {
    let mut name = String::new();
    while let Some(&c) = chars.get(*at) {
        match c {
            '\\' => {
                *at += 1;
                let Some(&escaped) = chars.get(*at) else { break };
                name.push(escaped);
            }
            '.' | '[' | ']' | '(' | ')' | '=' | '!' | '<' | '>' | ' ' | ',' => break,
            c => name.push(c),
        }
        *at += 1;
    }
    name
}

fn bracket(chars: &[char], at: &mut usize, filtering: bool) -> Result<Step, String> {
    let expect = |at: &mut usize, wanted: char| {
        if chars.get(*at) == Some(&wanted) {
            *at += 1;
            Ok(())
        } else {
            Err(format!("expected {wanted:?} in a JSON path"))
        }
    };
    let step = match chars.get(*at) {
        Some('*') => {
            *at += 1;
            Step::All
        }
        Some('\'' | '"') => Step::Child(quoted(chars, at)?),
        Some('?') if filtering => return Err("a filter stands in a filter".into()),
        Some('?') => {
            *at += 1;
            expect(at, '(')?;
            spaces(chars, at);
            expect(at, '@')?;
            let path = steps(chars, at, true)?;
            spaces(chars, at);
            let mut operator = String::new();
            while let Some(&c @ ('=' | '!' | '<' | '>')) = chars.get(*at) {
                operator.push(c);
                *at += 1;
            }
            spaces(chars, at);
            let comparison = if operator.is_empty() { None } else { Some((operator, literal(chars, at)?)) };
            spaces(chars, at);
            expect(at, ')')?;
            Step::Filter(path, comparison)
        }
        _ => {
            let text: String = chars[*at..].iter().take_while(|c| **c != ']').collect();
            *at += text.chars().count();
            let whole = |text: &str| {
                if text.is_empty() { Ok(None) } else { text.trim().parse::<i64>().map(Some).map_err(|_| format!("{text:?} is no index")) }
            };
            match text.split_once(':') {
                Some((from, to)) => Step::Slice(whole(from)?, whole(to)?),
                None => Step::Index(whole(&text)?.ok_or("an index is missing")?),
            }
        }
    };
    expect(at, ']')?;
    Ok(step)
}

fn spaces(chars: &[char], at: &mut usize) {
    while chars.get(*at) == Some(&' ') {
        *at += 1;
    }
}

fn quoted(chars: &[char], at: &mut usize) -> Result<String, String> {
    let Some(&quote) = chars.get(*at) else { return Err("a text is missing".into()) };
    *at += 1;
    let mut text = String::new();
    loop {
        match chars.get(*at) {
            None => return Err("a text does not end".into()),
            Some('\\') => {
                *at += 1;
                text.push(*chars.get(*at).ok_or("a text does not end")?);
            }
            Some(&c) if c == quote => break,
            Some(&c) => text.push(c),
        }
        *at += 1;
    }
    *at += 1;
    Ok(text)
}

fn literal(chars: &[char], at: &mut usize) -> Result<Value, String> {
    if matches!(chars.get(*at), Some('\'' | '"')) {
        return quoted(chars, at).map(Value::from);
    }
    let text: String = chars[(*at).min(chars.len())..].iter().take_while(|c| !matches!(**c, ')' | ' ')).collect();
    *at += text.chars().count();
    serde_json::from_str(&text).map_err(|_| format!("{text:?} is no value"))
}

fn walk<'v>(steps: &[Step], mut values: Vec<&'v Value>) -> Option<Vec<&'v Value>> {
    for step in steps {
        let mut next: Vec<&Value> = vec![];
        for value in values {
            match step {
                Step::Child(name) => next.extend(value.get(name)),
                // A null is passed over; anything else must be a list.
                Step::Index(_) | Step::Slice(..) if value.is_null() => {}
                Step::Index(index) => {
                    let list = value.as_array()?;
                    let place = if *index < 0 { index + list.len() as i64 } else { *index };
                    next.push(usize::try_from(place).ok().and_then(|place| list.get(place))?);
                }
                Step::All => next.extend(children(value)),
                Step::Descend => descend(value, &mut next),
                Step::Slice(from, to) => {
                    let list = value.as_array()?;
                    let length = list.len() as i64;
                    let place = |index: i64| if index < 0 { index + length } else { index };
                    let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(length)));
                    if from != to {
                        next.extend(list.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)?);
                    }
                }
                Step::Filter(path, comparison) => {
                    for item in value.as_array()? {
                        let found = walk(path, vec![item]);
                        let passes = match comparison {
                            None => found.is_some_and(|found| !found.is_empty()),
                            Some(comparison) => compares(<[&Value; 1]>::try_from(found?).ok()?[0], comparison),
                        };
                        if passes {
                            next.push(item);
                        }
                    }
                }
            }
            if next.len() > FOUND_MAX {
                next.truncate(FOUND_MAX);
                break;
            }
        }
        values = next;
    }
    Some(values)
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(list) => Box::new(list.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn descend<'v>(value: &'v Value, found: &mut Vec<&'v Value>) {
    if found.len() < FOUND_MAX {
        found.push(value);
        children(value).for_each(|below| descend(below, found));
    }
}

fn compares(found: &Value, (operator, wanted): &(String, Value)) -> bool {
    let order = match (found, wanted) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) => (a == b).then_some(std::cmp::Ordering::Equal),
    };
    match operator.as_str() {
        "==" => order.is_some_and(|order| order.is_eq()),
        "!=" => !order.is_some_and(|order| order.is_eq()),
        "<" => order.is_some_and(|order| order.is_lt()),
        "<=" => order.is_some_and(|order| order.is_le()),
        ">" => order.is_some_and(|order| order.is_gt()),
        ">=" => order.is_some_and(|order| order.is_ge()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_that_end_too_early_are_refused() {
        assert!(JsonPath::parse(&".a[?(@".repeat(10_000)).is_err() && JsonPath::parse(".a[?(@.b[?(@.c)])]").is_err());
        for path in [".a[", ".a['", ".a['b", ".a[?(", ".a[?(@.b==", ".a[?(@.b==\"", ".a[1:", ".a\\", "..", ".a[?(@.b==\"c\")", "[*", "{.a"] {
            let _ = JsonPath::parse(path);
            assert!(!path.contains('[') || JsonPath::parse(path).is_err(), "{path}");
        }
    }

    #[test]
    fn paths_find_values() {
        let object = json!({"spec": {"l": [{"n": "a", "v": 1}, {"n": "b", "v": 2}], "x.y": true}, "n": 5});
        for (path, found) in [
            (".spec.l[0].n", vec![json!("a")]),
            (".spec.l[-1].n", vec![json!("b")]),
            (".spec.l[*].v", vec![json!(1), json!(2)]),
            (".spec.l[?(@.n==\"b\")].v", vec![json!(2)]),
            (".spec.l[?(@.v > 1)].n", vec![json!("b")]),
            (".spec.x\\.y", vec![json!(true)]),
            (".spec['x.y']", vec![json!(true)]),
            ("..v", vec![json!(1), json!(2)]),
            (".spec.l[0:1].v", vec![json!(1)]),
            (".nothing.here", vec![]),
            (".spec.l[7].n", vec![]),
            (".spec.l[0:7].n", vec![]),
            (".spec.l[?(@.w==1)].n", vec![]),
            (".spec.l[?(@.n)].v", vec![json!(1), json!(2)]),
            (".spec[?(@.n)]", vec![]),
        ] {
            assert_eq!(JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect::<Vec<_>>(), found, "{path}");
        }
        assert!(JsonPath::parse(".a[").is_err() && JsonPath::parse("{.a}").is_err() && JsonPath::parse(".a[?(@.b==)]").is_err());
        assert_eq!(JsonPath::parse(".spec.replicas").unwrap().fields(), Some(vec!["spec", "replicas"]));
    }
}
