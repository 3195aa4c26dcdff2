//! Label and field selectors: parsed once, matched against many objects.

use crate::{
    Value, field, names,
    status::{Result, Status},
};
use serde_json::Map;
use std::fmt;

/// A conjunction of requirements on labels. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without duplicates.
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl Requirement {
    fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Requirement {
        values.sort();
        values.dedup();
        Requirement { key: key.into(), operator, values }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let one_of = |value: &str| self.values.iter().any(|v| v == value);
        match self.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In => value.is_some_and(one_of),
            Operator::NotEquals | Operator::NotIn => !value.is_some_and(one_of),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = |text: &str| text.parse::<i64>().ok();
                match (value.and_then(number), self.values.first().and_then(|v| number(v))) {
                    (Some(found), Some(bound)) if self.operator == Operator::GreaterThan => found > bound,
                    (Some(found), Some(bound)) => found < bound,
                    _ => false,
                }
            }
        }
    }

    /// What is wrong with key and values, as the query form reports it.
    fn problem(&self) -> Option<String> {
        let mut errors = field::Errors::default();
        errors.invalid_all(&field::Path::root(), self.key.as_str(), names::qualified_name(&self.key));
        let numeric = matches!(self.operator, Operator::GreaterThan | Operator::LessThan);
        for (i, value) in self.values.iter().enumerate() {
            let path = field::Path::new("values").index(i);
            if numeric && value.parse::<i64>().is_err() {
                errors.invalid(path.clone(), value.as_str(), "for 'Gt', 'Lt' operators, the value must be an integer");
            }
            errors.invalid_all(&path.key(&self.key), value.as_str(), names::label_value(value));
        }
        if errors.is_empty() { None } else { Some(errors.to_string()) }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = || self.values.join(",");
        match self.operator {
            Operator::Equals => write!(f, "{}={}", self.key, value()),
            Operator::DoubleEquals => write!(f, "{}=={}", self.key, value()),
            Operator::NotEquals => write!(f, "{}!={}", self.key, value()),
            Operator::In => write!(f, "{} in ({})", self.key, value()),
            Operator::NotIn => write!(f, "{} notin ({})", self.key, value()),
            Operator::Exists => f.write_str(&self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
            Operator::GreaterThan => write!(f, "{}>{}", self.key, value()),
            Operator::LessThan => write!(f, "{}<{}", self.key, value()),
        }
    }
}

impl LabelSelector {
    /// From a query: `a=b,c in (d,e),!f`. The error is a BadRequest.
    pub fn parse(text: &str) -> Result<LabelSelector> {
        if text.is_empty() {
            return Ok(LabelSelector::default());
        }
        let mut requirements = Parser { tokens: tokens(text), next: 0 }.requirements().map_err(Status::bad_request)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// From a LabelSelector object (`matchLabels`, `matchExpressions`): null selects nothing, `{}` everything.
    pub fn from_value(selector: &Value) -> Result<LabelSelector, String> {
        if selector.is_null() {
            return Ok(LabelSelector::nothing());
        }
        let mut requirements = vec![];
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.as_str().unwrap_or_default().into()]));
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression.get("key").and_then(Value::as_str).unwrap_or_default();
            let operator = match expression.get("operator").and_then(Value::as_str).unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::GreaterThan,
                "Lt" => Operator::LessThan,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values =
                expression.get("values").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(String::from).collect();
            requirements.push(Requirement::new(key, operator, values));
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// From a plain map of labels (a Service's or ReplicationController's): absent or empty selects nothing.
    pub fn from_map(labels: Option<&Map<String, Value>>) -> LabelSelector {
        match labels {
            Some(labels) if !labels.is_empty() => {
                let equals =
                    |(key, value): (&String, &Value)| Requirement::new(key, Operator::Equals, vec![value.as_str().unwrap_or_default().into()]);
                LabelSelector { requirements: labels.iter().map(equals).collect(), nothing: false }
            }
            _ => LabelSelector::nothing(),
        }
    }

    pub fn nothing() -> LabelSelector {
        LabelSelector { requirements: vec![], nothing: true }
    }
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }
    pub fn matches<'a>(&self, labels: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels(&r.key)))
    }
    /// On the labels of an object's JSON (`metadata.labels`).
    pub fn matches_map(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches(|key| labels?.get(key)?.as_str())
    }
}

impl fmt::Display for LabelSelector {
    /// The form that a query takes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Identifiers and operators of the query form. The end is an empty text.
fn tokens(text: &str) -> Vec<&str> {
    let special = |c: char| "=!(),><".contains(c);
    let mut tokens = vec![];
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if special(first) {
            ["==", "!="].iter().find(|t| rest.starts_with(**t)).map_or(1, |t| t.len())
        } else {
            rest.find(|c: char| special(c) || c.is_whitespace()).unwrap_or(rest.len())
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    next: usize,
}

fn is_identifier(token: &str) -> bool {
    token.chars().next().is_some_and(|c| !"=!(),><".contains(c))
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.next).copied().unwrap_or_default()
    }
    fn take(&mut self) -> &'a str {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn requirements(mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = vec![];
        loop {
            let token = self.peek();
            if token.is_empty() {
                return Ok(requirements);
            }
            if token != "!" && !is_identifier(token) {
                return Err(format!("found '{token}', expected: !, identifier, or 'end of string'"));
            }
            requirements.push(self.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?);
            match self.take() {
                "" => return Ok(requirements),
                "," => {
                    let token = self.peek();
                    if token != "!" && !is_identifier(token) {
                        return Err(format!("found '{token}', expected: identifier after ','"));
                    }
                }
                token => return Err(format!("found '{token}', expected: ',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.peek() == "!";
        if negated {
            self.take();
        }
        let key = self.take();
        if !is_identifier(key) {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let checked = |requirement: Requirement| requirement.problem().map_or(Ok(requirement), Err);
        if negated {
            return checked(Requirement::new(key, Operator::DoesNotExist, vec![]));
        }
        let operator = match self.peek() {
            "" | "," => return checked(Requirement::new(key, Operator::Exists, vec![])),
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            "=" => Operator::Equals,
            "==" => Operator::DoubleEquals,
            "!=" => Operator::NotEquals,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            token => return Err(format!("found '{token}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        self.take();
        let values = match operator {
            Operator::In | Operator::NotIn => self.set()?,
            _ => vec![self.exact()?],
        };
        checked(Requirement::new(key, operator, values))
    }

    /// `a`, or nothing at all before a comma or the end.
    fn exact(&mut self) -> Result<String, String> {
        match self.peek() {
            "" | "," => Ok(String::new()),
            token if is_identifier(token) => Ok(self.take().to_string()),
            token => Err(format!("found '{token}', expected: identifier")),
        }
    }

    /// `(a,b)`; a place between commas may be empty.
    fn set(&mut self) -> Result<Vec<String>, String> {
        match self.take() {
            "(" => {}
            token => return Err(format!("found '{token}' expected: '('")),
        }
        let mut values = vec![];
        let mut after_comma = true;
        loop {
            match self.take() {
                ")" => {
                    if after_comma {
                        values.push(String::new());
                    }
                    return Ok(values);
                }
                "," => {
                    if after_comma {
                        values.push(String::new());
                    }
                    after_comma = true;
                }
                token if is_identifier(token) && after_comma => {
                    values.push(token.to_string());
                    after_comma = false;
                }
                token => return Err(format!("found '{token}', expected: {}", if after_comma { "',', ')' or identifier" } else { "',' or ')'" })),
            }
        }
    }
}

/// A conjunction of (in)equalities on fields. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field, whether it must be equal (or must not), value.
    pub terms: Vec<(String, bool, String)>,
}

impl FieldSelector {
    /// `metadata.name=x,status.phase!=Running`. The error is a BadRequest.
    pub fn parse(text: &str) -> Result<FieldSelector> {
        let mut terms = vec![];
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let operator = ["!=", "==", "="].iter().filter_map(|o| part.find(o).map(|at| (at, *o))).min_by_key(|(at, o)| (*at, usize::MAX - o.len()));
            let Some((at, operator)) = operator else {
                return Err(Status::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            let value = unescape(&part[at + operator.len()..]).map_err(Status::bad_request)?;
            terms.push((part[..at].to_string(), operator != "!=", value));
        }
        terms.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(FieldSelector { terms })
    }
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }
    /// A field that the object lacks counts as empty.
    pub fn matches<'a>(&self, fields: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|(field, equal, value)| (fields(field).unwrap_or_default() == value) == *equal)
    }
    /// The value that `field` must have, if the selector says so (`metadata.name=x` makes a list a get).
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|(f, equal, _)| *equal && f == field).map(|(_, _, v)| v.as_str())
    }
    /// The fields that it speaks of.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().map(|(field, _, _)| field.as_str())
    }
}

/// Splits at commas that no backslash guards.
fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut guarded) = (vec![], 0, false);
    for (i, c) in text.char_indices() {
        if c == ',' && !guarded {
            parts.push(&text[start..i]);
            start = i + 1;
        }
        guarded = c == '\\' && !guarded;
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {c}")),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (field, equal, value)) in self.terms.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{}{field}{}{value}", if i > 0 { "," } else { "" }, if *equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}

/// Checks a LabelSelector object, as validation of many kinds needs it.
pub fn validate(selector: &Value, path: &field::Path, errors: &mut field::Errors) {
    for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        let path = path.child("matchLabels");
        errors.invalid_all(&path, key.as_str(), names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid_all(&path, value, names::label_value(value));
    }
    for (i, expression) in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(i);
        if let Some(operator) = validate_operator(expression, &path, errors) {
            errors.invalid(path.child("operator"), operator, "not a valid selector operator");
        }
        validate_label(expression, &path, errors);
    }
}

/// One requirement as an access review asks about it: operators may be such as are not known yet.
pub fn validate_asked(requirement: &Value, of_labels: bool, path: &field::Path, errors: &mut field::Errors) {
    if !of_labels && requirement.get("key").and_then(Value::as_str).unwrap_or_default().is_empty() {
        errors.required(path.child("key"), "must be specified");
    }
    validate_operator(requirement, path, errors);
    if of_labels {
        validate_label(requirement, path, errors);
    }
}

/// That values are there where the operator needs some, and only there. Gives an operator that is not known.
fn validate_operator<'v>(requirement: &'v Value, path: &field::Path, errors: &mut field::Errors) -> Option<&'v str> {
    let has_values = requirement.get("values").and_then(Value::as_array).is_some_and(|values| !values.is_empty());
    match requirement.get("operator").and_then(Value::as_str).unwrap_or_default() {
        "In" | "NotIn" if !has_values => errors.required(path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'"),
        "Exists" | "DoesNotExist" if has_values => {
            errors.forbidden(path.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => return Some(other),
    }
    None
}

/// That key and values of a requirement can be a label's.
fn validate_label(requirement: &Value, path: &field::Path, errors: &mut field::Errors) {
    let key = requirement.get("key").and_then(Value::as_str).unwrap_or_default();
    errors.invalid_all(&path.child("key"), key, names::qualified_name(key));
    for (j, value) in requirement.get("values").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let value = value.as_str().unwrap_or_default();
        errors.invalid_all(&path.child("values").index(j), value, names::label_value(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selects(selector: &str, labels: Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches_map(labels.as_object())
    }

    #[test]
    fn label_selectors_select() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "e": ""});
        for yes in [
            "",
            "app=web",
            "app==web",
            "app!=db",
            "x!=y",
            "app in (web, db)",
            "x notin (y)",
            "app",
            "!x",
            " app in ( web ) , tier notin (back)",
            "n>4",
            "n<6",
            "e=",
            "e in ()",
            "app in (,web)",
        ] {
            assert!(selects(yes, labels.clone()), "{yes}");
        }
        for no in ["app=db", "app!=web", "x", "!app", "n>5", "app>1", "x in (y)", "app in ()"] {
            assert!(!selects(no, labels.clone()), "{no}");
        }
        assert!(!LabelSelector::from_map(None).matches(|_| Some("")));
        assert!(LabelSelector::from_value(&json!({})).unwrap().is_everything());
        assert!(!LabelSelector::from_value(&Value::Null).unwrap().matches(|_| None));
        let expression =
            LabelSelector::from_value(&json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}))
                .unwrap();
        assert!(expression.matches_map(labels.as_object()));
        assert_eq!(expression.to_string(), "app=web,!x");
    }

    #[test]
    fn label_selectors_are_refused_in_kubernetes_words() {
        for (text, message) in [
            ("app in web", "unable to parse requirement: found 'web' expected: '('"),
            ("=web", "found '=', expected: !, identifier, or 'end of string'"),
            ("app in (web", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("app=a b", "found 'b', expected: ',' or 'end of string'"),
            ("app===x", "unable to parse requirement: found '=', expected: identifier"),
            ("!app=web", "found '=', expected: ',' or 'end of string'"),
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("n=5,", "found '', expected: identifier after ','"),
            ("n>x", "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer"),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().message, message, "{text}");
        }
        let message = LabelSelector::parse("a=-x").unwrap_err().message;
        assert!(message.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-x\": a valid label must be"), "{message}");
    }

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse("metadata.name=a\\,b,status.phase!=Failed").unwrap();
        assert_eq!(selector.exact("metadata.name"), Some("a,b"));
        assert!(selector.matches(|f| (f == "metadata.name").then_some("a,b")));
        assert!(!selector.matches(|_| Some("Failed")));
        assert_eq!(selector.to_string(), "metadata.name=a\\,b,status.phase!=Failed");
        assert_eq!(FieldSelector::parse("a").unwrap_err().message, "invalid selector: 'a'; can't understand 'a'");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[a-z=!(),>< \\\\]{0,20}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
