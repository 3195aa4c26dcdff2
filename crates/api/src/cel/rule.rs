//! `x-kubernetes-validations`: rules of a schema, checked when a definition is made and run when its objects change.

use super::{
    Program, Type, Val,
    estimate::{cardinality, estimate, over_budget},
    eval::{Error as Failure, Variables},
    limits,
    types::of_props,
};
use crate::{
    Value,
    custom::{
        check::Former,
        props::{Additional, Props},
    },
    field::{Error, Errors, Path, Reason},
};
use serde_json::{Map, json};
use std::{cell::OnceCell, sync::OnceLock};

/// One rule as it is written, and compiled when it is first used.
#[derive(Debug, Default)]
pub struct Rule {
    pub rule: String,
    pub message: Option<String>,
    pub message_expression: Option<String>,
    pub reason: Option<String>,
    pub field_path: String,
    pub optional_old: Option<bool>,
    compiled: OnceLock<Option<Compiled>>,
}

#[derive(Debug)]
struct Compiled {
    program: Program,
    message: Option<Program>,
    /// Whether it speaks of the former value.
    transition: bool,
}

impl Rule {
    pub fn read(raw: &Value) -> Rule {
        let text = |key: &str| raw.get(key).and_then(Value::as_str).map(String::from);
        Rule {
            rule: text("rule").unwrap_or_default(),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath").unwrap_or_default(),
            optional_old: raw.get("optionalOldSelf").and_then(Value::as_bool),
            compiled: OnceLock::new(),
        }
    }

    fn compile(&self, type_: &Type, source: &str) -> Result<Program, String> {
        let old = if self.optional_old == Some(true) { Type::Optional(Box::new(type_.clone())) } else { type_.clone() };
        Program::compile(source, &[("self", type_.clone()), ("oldSelf", old)])
    }

    fn compiled(&self, props: &Props, root: bool) -> Option<&Compiled> {
        let made = self.compiled.get_or_init(|| {
            let type_ = of_props(props, root)?;
            let program = self.compile(&type_, &self.rule).ok()?;
            let message = self.message_expression.as_ref().and_then(|source| self.compile(&type_, source).ok());
            let transition = program.mentions("oldSelf");
            Some(Compiled { program, message, transition })
        });
        made.as_ref()
    }

    /// How errors about the definition show the rule: as Go's struct in JSON.
    fn shown(&self) -> String {
        let text = |text: &str| {
            let escaped = json!(text).to_string();
            escaped.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
        };
        format!(
            r#"{{"Rule":{},"Message":{},"MessageExpression":{},"Reason":{},"FieldPath":{},"OptionalOldSelf":{}}}"#,
            text(&self.rule),
            text(self.message.as_deref().unwrap_or_default()),
            text(self.message_expression.as_deref().unwrap_or_default()),
            self.reason.as_deref().map_or("null".to_string(), text),
            text(&self.field_path),
            self.optional_old.map_or("null".to_string(), |flag| flag.to_string()),
        )
    }
}

/// What all rules of a schema cost, and which of them cost most.
#[derive(Default)]
pub struct Total {
    cost: u64,
    dearest: Vec<(u64, Path)>,
}

impl Total {
    fn add(&mut self, cost: u64, path: &Path) {
        self.cost = self.cost.saturating_add(cost);
        if cost < limits::ESTIMATED_SCHEMA_COST_MAX / 100 {
            return;
        }
        self.dearest.push((cost, path.clone()));
        self.dearest.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        self.dearest.truncate(4);
    }
    /// Complains if all together are too dear. `path` is that of the schema.
    pub fn complain(&self, path: &Path, errors: &mut Errors) {
        if self.cost <= limits::ESTIMATED_SCHEMA_COST_MAX {
            return;
        }
        for (_, path) in &self.dearest {
            errors.forbidden(path.clone(), "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema");
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(path.clone(), &over_budget(what, self.cost, limits::ESTIMATED_SCHEMA_COST_MAX));
    }
}

/// How many values of its parts there may be for each value of a schema; `None` for as many as there is room.
pub fn times(props: &Props) -> Option<u64> {
    let bound = |max: Option<i64>| max.map(|max| u64::try_from(max).unwrap_or(0));
    match (props.types.first().map(String::as_str), &props.additional) {
        (Some("array"), _) => bound(props.max_items),
        (Some("object"), Additional::Unsaid) => Some(1),
        (Some("object"), _) => bound(props.max_properties),
        _ => Some(1),
    }
}

/// What stands in a rule beside its expressions. `schema` is the one that it stands in, `form` the same read, made when first asked for.
pub fn validate_form(raw: &Value, schema: &Map<String, Value>, form: &OnceCell<Props>, path: &Path, errors: &mut Errors) {
    let rule = Rule::read(raw);
    let message = rule.message.as_deref().unwrap_or_default();
    let (has_breaks, empty, broken) = (|text: &str| text.contains(['\n', '\r']), "must be non-empty if specified", "must not contain line breaks");
    if rule.rule.trim().is_empty() {
        errors.required(path.child("rule"), "rule is not specified");
    } else if !message.is_empty() && message.trim().is_empty() {
        errors.invalid(path.child("message"), message, empty);
    } else if has_breaks(message.trim()) {
        errors.invalid(path.child("message"), message, broken);
    } else if has_breaks(rule.rule.trim()) && message.is_empty() {
        errors.required(path.child("message"), "message must be specified if rule contains line breaks");
    }
    if rule.message_expression.as_deref().is_some_and(|source| !source.is_empty() && source.trim().is_empty()) {
        errors.required(path.child("messageExpression"), "messageExpression must be non-empty if specified");
    }
    const REASONS: &[&str] = &["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    if let Some(reason) = rule.reason.as_deref().filter(|reason| !REASONS.contains(reason)) {
        errors.not_supported(path.child("reason"), reason, REASONS);
    }
    if rule.field_path.is_empty() {
        return;
    }
    let (at, given) = (path.child("fieldPath"), rule.field_path.as_str());
    if given.trim().is_empty() {
        errors.invalid(at.clone(), given, empty);
    }
    if has_breaks(given) {
        errors.invalid(at.clone(), given, broken);
    }
    if field_path(form.get_or_init(|| Props::read(&Value::Object(schema.clone()))), given).is_err() {
        errors.invalid(at, given, "must be a valid path");
    }
}

/// Where the rules of a schema stand.
pub struct Site<'a> {
    pub root: bool,
    /// How often there may be a value of it; `None` for as often as there is room.
    pub times: Option<u64>,
    /// The outermost list around it whose items have no former selves.
    pub unmatched: Option<&'a Path>,
    /// Whether the rules were accepted before: then none is too dear.
    pub settled: bool,
}

/// That the rules of a schema compile, and what they may cost. `path` is that of all of them.
pub fn validate_rules(props: &Props, site: &Site<'_>, path: &Path, total: &mut Total, errors: &mut Errors) {
    let root = site.root || props.embedded;
    let Some(type_) = of_props(props, root).filter(|_| root || props.is_seen) else {
        let why = "failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
        return errors.internal(path.clone(), &format!("internal error: {why}"));
    };
    for (i, rule) in props.rules.iter().enumerate() {
        one(rule, props, &type_, root, site, &path.index(i), total, errors);
    }
}

#[allow(clippy::too_many_arguments)]
fn one(rule: &Rule, props: &Props, type_: &Type, root: bool, site: &Site<'_>, path: &Path, total: &mut Total, errors: &mut Errors) {
    let complain = |errors: &mut Errors, key: &str, why: String| {
        // Without a value the detail alone is shown: Go's form of the rule goes before it.
        errors.push(Reason::Invalid, path.child(key), None, format!("{}: {why}", rule.shown()));
    };
    let mut charge = |errors: &mut Errors, key: &str, what: &str, cost: u64| {
        if cost > limits::ESTIMATED_RULE_COST_MAX && !site.settled {
            errors.forbidden(path.child(key), &over_budget(what, cost, limits::ESTIMATED_RULE_COST_MAX));
        }
        total.add(cost, &path.child(key));
    };
    let mut uses_old = false;
    match rule.compile(type_, &rule.rule) {
        Err(why) => complain(errors, "rule", format!("compilation failed: {why}")),
        Ok(program) if program.type_ != Type::Bool => complain(errors, "rule", "cel expression must evaluate to a bool".into()),
        Ok(program) => {
            uses_old = program.mentions("oldSelf");
            let times = site.times.unwrap_or_else(|| cardinality(props));
            charge(errors, "rule", "estimated rule cost", estimate(&program, props, root).saturating_mul(times));
            if let Some(source) = rule.message_expression.as_ref().filter(|source| !source.is_empty()) {
                match rule.compile(type_, source) {
                    Err(why) => complain(errors, "messageExpression", format!("messageExpression compilation failed: {why}")),
                    Ok(message) if message.type_ != Type::String => {
                        complain(errors, "messageExpression", "messageExpression must evaluate to a string".into());
                    }
                    Ok(message) => charge(errors, "messageExpression", "estimated messageExpression cost", estimate(&message, props, root)),
                }
            }
        }
    }
    match (uses_old, site.unmatched, rule.optional_old) {
        (true, Some(list), _) => {
            let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
            errors.invalid(path.child("rule"), rule.rule.as_str(), &why);
        }
        (false, _, Some(flag)) => errors.invalid(path.child("optionalOldSelf"), flag, "may not be set if oldSelf is not used in rule"),
        _ => {}
    }
}

/// The pieces of a `fieldPath`: dots, brackets, and what stands between them or in single quotes.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = vec![];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '.' | '[' | ']' => 1,
            '\'' => (1..rest.len()).find(|i| rest.as_bytes()[*i] == b'\'' && rest.as_bytes()[i - 1] != b'\\').map_or(rest.len(), |end| end + 1),
            _ => rest.find(['.', '[', ']']).unwrap_or(rest.len()),
        };
        let (piece, after) = rest.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// A name in single quotes as it is meant.
fn unquoted(text: &str) -> Result<String, String> {
    let inner =
        (text.strip_prefix('\'').and_then(|text| text.strip_suffix('\''))).ok_or_else(|| format!("expected single quoted string but got {text}"))?;
    let mut name = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => name.push(match chars.next() {
                Some('a') => '\x07',
                Some('b') => '\x08',
                Some('f') => '\x0c',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('v') => '\x0b',
                Some(same @ ('\'' | '\\')) => same,
                other => return Err(format!("invalid string literal: invalid escape char \\{}", other.map(String::from).unwrap_or_default())),
            }),
            c => name.push(c),
        }
    }
    Ok(name)
}

/// Where a path of fields leads, and the schema there, if there is such a field: `.a.b`, and `['a'].b` where `brackets` are allowed.
fn follow<'p>(props: &'p Props, text: &str, brackets: bool) -> Result<(Path, &'p Props), String> {
    let end = || "unexpected end of JSON path".to_string();
    let (mut here, mut path) = (props, Path::root());
    let mut pieces = pieces(text).into_iter();
    while let Some(piece) = pieces.next() {
        let name = match piece {
            "." => pieces.next().ok_or_else(end)?.to_string(),
            "[" if !brackets => return Err("array notation is not allowed".into()),
            "[" => unquoted(pieces.next().ok_or_else(end)?)?,
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let below = if here.properties.is_empty() { here.additional() } else { here.properties.get(&name) };
        path = if here.properties.is_empty() { path.key(&name) } else { path.child(&name) };
        here = below.ok_or("does not refer to a valid field")?;
        if piece == "[" {
            let closing = pieces.next().ok_or_else(end)?;
            if closing != "]" {
                return Err(format!("expected ] but got {closing}"));
            }
        }
    }
    Ok((path, here))
}

/// Where a `fieldPath` leads.
fn field_path(props: &Props, text: &str) -> Result<Path, String> {
    follow(props, text, true).map(|(path, _)| path)
}

/// Where a selectable field is, and its schema.
pub fn selectable<'p>(props: &'p Props, text: &str) -> Result<(Path, &'p Props), String> {
    follow(props, text, false)
}

/// Which rules are run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those of values that have changed, and those that speak of the former value: what they find refuses the object.
    Changed,
    /// The others. What they find was accepted before, and is only warned about.
    Settled,
}

/// A value and what it was before.
#[derive(Clone, Copy)]
struct Subject<'a> {
    value: &'a Value,
    old: Option<&'a Value>,
    /// Whether it, or where it has no former self the next around it that has, is as it was.
    same: bool,
    root: bool,
}

impl<'a> Subject<'a> {
    /// A part of this one.
    fn part(&self, value: &'a Value, old: Option<&'a Value>, root: bool) -> Subject<'a> {
        Subject { value, old, same: old.map_or(self.same, |old| old == value), root }
    }
}

/// Runs the rules of `props` and below on `value`. `old` is the former value of an update. Rules whose value has not changed
/// are not run again, unless they speak of the former value.
pub fn check_rules(props: &Props, value: &Value, old: Option<&Value>, root: bool, path: &Path, budget: &mut u64, errors: &mut Errors) {
    check_which(Which::Changed, props, value, old, root, path, budget, errors);
}

/// The same with a choice of rules.
#[allow(clippy::too_many_arguments)]
pub fn check_which(which: Which, props: &Props, value: &Value, old: Option<&Value>, root: bool, path: &Path, budget: &mut u64, errors: &mut Errors) {
    let subject = Subject { value, old, same: old == Some(value), root };
    let mut checker = Checker { which, budget, errors };
    checker.check(props, subject, path);
}

struct Checker<'c> {
    which: Which,
    budget: &'c mut u64,
    errors: &'c mut Errors,
}

impl Checker<'_> {
    fn check(&mut self, props: &Props, subject: Subject<'_>, path: &Path) {
        if !props.has_rules || subject.value.is_null() || *self.budget == 0 {
            return;
        }
        for rule in &props.rules {
            if *self.budget == 0 {
                return;
            }
            self.run(rule, props, subject, path);
        }
        let former = |key: &str| subject.old.and_then(|old| old.get(key));
        match subject.value {
            Value::Object(map) => {
                for (key, below) in map {
                    if let Some(schema) = props.properties.get(key) {
                        self.check(schema, subject.part(below, former(key), schema.embedded), &path.child(key));
                    } else if let Some(schema) = props.additional() {
                        self.check(schema, subject.part(below, former(key), schema.embedded), &path.key(key));
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &props.items {
                    let former = Former::of(props, subject.old);
                    for (i, item) in items.iter().enumerate() {
                        self.check(schema, subject.part(item, former.item(item), schema.embedded), &path.index(i));
                    }
                }
            }
            _ => {}
        }
    }

    fn run(&mut self, rule: &Rule, props: &Props, subject: Subject<'_>, path: &Path) {
        let Some(compiled) = rule.compiled(props, subject.root) else { return };
        let optional = rule.optional_old == Some(true);
        if compiled.transition && !optional && subject.old.is_none() {
            return;
        }
        let settled = !compiled.transition && subject.same;
        if settled == (self.which == Which::Settled) {
            run(rule, compiled, props, subject, path, self.budget, self.errors);
        }
    }
}

fn run(rule: &Rule, compiled: &Compiled, props: &Props, subject: Subject<'_>, path: &Path, budget: &mut u64, errors: &mut Errors) {
    let Subject { value, old, .. } = subject;
    let optional = rule.optional_old == Some(true);
    let mut variables = Variables::new().with("self", Val::json(value, Some(props)));
    let former = old.map(|old| Val::json(old, Some(props)));
    variables = match (optional, former.clone()) {
        (true, former) => variables.with("oldSelf", Val::Optional(former.map(std::rc::Rc::new))),
        (false, Some(former)) => variables.with("oldSelf", former),
        (false, None) => variables,
    };
    let given = limits::CALL_COST_MAX.min(*budget);
    let mut call_budget = given;
    let outcome = compiled.program.run(&variables, &mut call_budget);
    let spent = given - call_budget;
    *budget = budget.saturating_sub(spent);
    let message = rule.message.as_deref().filter(|message| !message.is_empty());
    let about = message.unwrap_or(&rule.rule).trim();
    // What goes wrong with a rule names the type, not the value.
    let type_name = if props.int_or_string { "" } else { props.types.first().map(String::as_str).unwrap_or_default() };
    let mut fail = |detail: String| errors.invalid(path.clone(), type_name, &detail);
    match &outcome {
        Ok(Val::Bool(_)) => {}
        Ok(_) => return fail(format!("internal error: rule did not evaluate to a bool: {about}")),
        Err(Failure::OutOfBudget) => {
            *budget = 0;
            return fail(if given < limits::CALL_COST_MAX {
                "validation failed due to running out of cost budget, no further validation rules will be run".to_string()
            } else {
                format!("'{}': no further validation rules will be run due to call cost exceeds limit for rule: {about}", Failure::OutOfBudget)
            });
        }
        Err(Failure::Failed(why)) if why.starts_with("no such overload") => {
            return fail(format!(
                "'no such overload': call arguments did not match a supported operator, function or macro signature for rule: {about}"
            ));
        }
        Err(Failure::Failed(why)) => return fail(format!("{why} evaluating rule: {about}")),
    }
    if !matches!(outcome, Ok(Val::Bool(false))) {
        return;
    }
    let below = if rule.field_path.is_empty() { None } else { field_path(props, &rule.field_path).ok() };
    let field = below.map_or_else(|| path.clone(), |below| path.child(&below.to_string()));
    // The message sees the former value as it is, not as an option.
    let seen = Variables::new().with("self", Val::json(value, Some(props))).with("oldSelf", former.unwrap_or(Val::Null));
    let computed = match compiled.message.as_ref().map(|program| told(program, &seen, budget)) {
        None => None,
        Some(Ok(told)) => told,
        Some(Err(why)) => return errors.invalid(field, type_name, &why),
    };
    let default = || message.map_or_else(|| format!("failed rule: {}", rule.rule.trim()), |message| message.trim().to_string());
    let (reason, detail) = match rule.reason.as_deref() {
        Some("FieldValueRequired") => (Reason::Required, computed.unwrap_or_else(default)),
        Some("FieldValueForbidden") => (Reason::Forbidden, computed.unwrap_or_else(default)),
        // What is there twice is shown, and nothing said of it.
        Some("FieldValueDuplicate") => (Reason::Duplicate, String::new()),
        _ => (Reason::Invalid, computed.unwrap_or_else(default)),
    };
    let shown = if matches!(type_name, "object" | "array") { None } else { Some(value.clone()) };
    errors.0.push(Error { reason, field, value: shown, structure: None, detail });
}

/// What a message expression says, if it can be said in one line. The error ends all rules.
fn told(program: &Program, seen: &Variables<'_>, budget: &mut u64) -> Result<Option<String>, String> {
    let given = limits::CALL_COST_MAX.min(*budget);
    let mut call_budget = given;
    let outcome = program.run(seen, &mut call_budget);
    *budget = budget.saturating_sub(given - call_budget);
    match outcome {
        Ok(Val::String(text)) => {
            let text = text.trim();
            let fits = !text.is_empty() && !text.contains(['\n', '\r']) && text.len() <= limits::MESSAGE_BYTES_MAX;
            Ok(fits.then(|| text.to_string()))
        }
        Err(Failure::OutOfBudget) => {
            *budget = 0;
            Err(if given < limits::CALL_COST_MAX {
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".into()
            } else {
                let source = crate::field::quoted(&program.source);
                format!("no further validation rules will be run due to call cost exceeds limit for messageExpression: {source}")
            })
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(schema: Value, value: Value, old: Option<Value>) -> Vec<String> {
        let (mut errors, mut budget) = (Errors::default(), limits::OBJECT_COST_MAX);
        let props = Props::read(&schema);
        check_rules(&props, &value, old.as_ref(), true, &Path::root(), &mut budget, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_are_run_and_ratchet() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 1", "messageExpression": "'is ' + string(self)"}]},
            "b": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "immutable", "reason": "FieldValueForbidden"}]},
            "o": {"type": "object", "properties": {"x": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": "self.x > 0", "fieldPath": ".x"}]}}});
        assert_eq!(complaints(schema.clone(), json!({"a": 1, "b": "x"}), None), ["a: Invalid value: 1: is 1"]);
        assert_eq!(complaints(schema.clone(), json!({"a": 1, "b": "y"}), Some(json!({"a": 1, "b": "x"}))), ["b: Forbidden: immutable"]);
        let twice = json!({"type": "string", "x-kubernetes-validations": [{"rule": "self == ''", "message": "m", "reason": "FieldValueDuplicate"}]});
        assert_eq!(complaints(twice, json!("x"), None), ["<nil>: Duplicate value: \"x\""]);
        assert_eq!(complaints(schema.clone(), json!({"o": {"x": 0}}), None), ["o.x: Invalid value: failed rule: self.x > 0"]);
        assert_eq!(complaints(schema, json!({"o": {}}), None), ["o: Invalid value: \"object\": no such key: x evaluating rule: self.x > 0"]);
    }

    #[test]
    fn what_was_accepted_is_only_warned_about() {
        let props = Props::read(&json!({"type": "object", "properties": {"l": {"type": "array", "items":
            {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 1"}]}}, "n": {"type": "integer"}}}));
        let found = |which, value: Value, old: Value| {
            let (mut errors, mut budget) = (Errors::default(), limits::OBJECT_COST_MAX);
            check_which(which, &props, &value, Some(&old), true, &Path::root(), &mut budget, &mut errors);
            errors.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let (old, same, other) = (json!({"l": [0], "n": 1}), json!({"l": [0], "n": 2}), json!({"l": [0, 2], "n": 1}));
        let complaint = ["l[0]: Invalid value: 0: failed rule: self > 1"];
        assert_eq!(found(Which::Changed, same.clone(), old.clone()), [] as [&str; 0]);
        assert_eq!(found(Which::Settled, same, old.clone()), complaint);
        assert_eq!(found(Which::Changed, other, old), complaint);
    }

    #[test]
    fn field_paths_lead_to_fields() {
        let props =
            Props::read(&json!({"type": "object", "properties": {"a": {"type": "string"}, "l": {"type": "array", "items": {"type": "string"}},
            "m": {"type": "object", "additionalProperties": {"type": "string"}}}}));
        for (text, found) in [
            (".a", "a"),
            (".m.x", "m[x]"),
            (".m['x.y\\'z']", "m[x.y'z]"),
            ("['m']['x']", "m[x]"),
            (".b", "does not refer to a valid field"),
            (".a.b", "does not refer to a valid field"),
            ("a", "expected [ or . but got: a"),
            (".l[0]", "expected single quoted string but got 0"),
            (".", "unexpected end of JSON path"),
            (".m['x'", "unexpected end of JSON path"),
            (".m['x'.", "expected ] but got ."),
            (".m['\\q']", "invalid string literal: invalid escape char \\q"),
        ] {
            assert_eq!(field_path(&props, text).map_or_else(|why| why, |path| path.to_string()), found, "{text}");
        }
    }

    fn refused(schema: Value) -> Vec<String> {
        let mut errors = Errors::default();
        crate::custom::structural::validate(&schema, false, &Path::new("s"), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }
    fn about(rule: &str) -> String {
        format!(
            r#"Invalid value: {{"Rule":{},"Message":"","MessageExpression":"","Reason":null,"FieldPath":"","OptionalOldSelf":null}}"#,
            crate::field::escaped(&json!(rule).to_string())
        )
    }

    #[test]
    fn former_selves_are_only_spoken_of_where_there_are_some() {
        let list = |rule: &str| {
            json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 3, "items":
            {"type": "string", "maxLength": 3, "x-kubernetes-validations": [{"rule": rule}]}}}})
        };
        let why = "oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]";
        assert_eq!(
            refused(list("self == oldSelf")),
            [format!("s.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": {why}")]
        );
        assert_eq!(refused(list("['a'].all(oldSelf, oldSelf != self) && self != 'oldSelf'")), [] as [&str; 0]);
    }

    #[test]
    fn what_stands_beside_a_rule_is_checked() {
        let with = |more: Value| {
            let mut rule = json!({"rule": "self.a > 1"});
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}, "m": {"type": "object", "additionalProperties":
                {"type": "string"}}}, "x-kubernetes-validations": [rule]});
            refused(schema).into_iter().map(|found| found.replace("s.x-kubernetes-validations[0].", "")).collect::<Vec<_>>()
        };
        for (more, found) in [
            (json!({"message": " \r "}), "message: Invalid value: \" \\r \": must be non-empty if specified"),
            (json!({"message": "a\rb"}), "message: Invalid value: \"a\\rb\": must not contain line breaks"),
            (json!({"rule": "self.a >\n1"}), "message: Required value: message must be specified if rule contains line breaks"),
            (json!({"messageExpression": " "}), "messageExpression: Required value: messageExpression must be non-empty if specified"),
            (
                json!({"reason": "FieldValueOdd"}),
                "reason: Unsupported value: \"FieldValueOdd\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"",
            ),
            (json!({"fieldPath": ".b"}), "fieldPath: Invalid value: \".b\": must be a valid path"),
            (json!({"optionalOldSelf": true}), "optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"),
        ] {
            assert_eq!(with(more), [found]);
        }
        assert_eq!(with(json!({"fieldPath": ".m['x']"})), [] as [&str; 0]);
        assert_eq!(
            with(json!({"fieldPath": "\n"})),
            [
                "fieldPath: Invalid value: \"\\n\": must be non-empty if specified",
                "fieldPath: Invalid value: \"\\n\": must not contain line breaks",
                "fieldPath: Invalid value: \"\\n\": must be a valid path",
            ]
        );
    }

    #[test]
    fn rules_are_true_or_false_and_messages_texts() {
        let of = |field: Value| refused(json!({"type": "object", "properties": {"a": field}}));
        let any = json!({"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [{"rule": "self"}]});
        assert_eq!(of(any), [format!("s.properties[a].x-kubernetes-validations[0].rule: {}: cel expression must evaluate to a bool", about("self"))]);
        let message = json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self > 1", "messageExpression": "self"}]});
        let found = of(message);
        assert!(found.len() == 1 && found[0].ends_with(": messageExpression must evaluate to a string"), "{found:?}");
        // A message is only looked at where the rule is right.
        let both = json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self", "messageExpression": "self"}]});
        assert_eq!(of(both).len(), 1);
        let unseen = json!({"x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-validations": [{"rule": "true"}]});
        assert_eq!(
            of(unseen),
            [
                "s.properties[a].x-kubernetes-validations: Internal error: internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations"
            ]
        );
    }

    #[test]
    fn dear_rules_are_refused_each_and_together() {
        let list = |bound: Value| {
            json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": bound, "items": {"type": "string", "maxLength": 30,
            "x-kubernetes-validations": [{"rule": "self.contains('a')"}]}, "x-kubernetes-validations": [{"rule": "self.all(x, self.all(y, x == y))"}]}}})
        };
        let hint = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
        assert_eq!(refused(list(json!(10))), [] as [&str; 0]);
        let at = "s.properties[l].x-kubernetes-validations[0].rule: Forbidden:";
        assert_eq!(
            refused(list(Value::Null)),
            [
                format!("s.properties[l].items.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of 1.363149x {hint}"),
                format!("{at} estimated rule cost exceeds budget by factor of more than 100x {hint}"),
                format!("{at} contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"),
                "s.properties[l].items.x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema".to_string(),
                format!(
                    "s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x {hint}"
                ),
            ]
        );
        let mut errors = Errors::default();
        let schema = list(json!(1000));
        crate::custom::structural::validate(&schema, false, &Path::new("s"), &mut errors);
        assert_eq!(errors.to_string(), format!("{at} estimated rule cost exceeds budget by factor of 1.7x {hint}"));
        let mut settled = Errors::default();
        crate::custom::structural::validate(&schema, true, &Path::new("s"), &mut settled);
        assert_eq!(settled.0, []);
    }

    #[test]
    fn bad_rules_are_named() {
        let raw = json!({"type": "object", "properties": {"a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 'a'"}]}}});
        assert_eq!(
            refused(raw),
            [
                "s.properties[a].x-kubernetes-validations[0].rule: Invalid value: {\"Rule\":\"self \\u003e 'a'\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: compilation failed: ERROR: <input>:1:6: found no matching overload for '_>_' applied to '(int, string)'\n | self > 'a'\n | .....^"
            ]
        );
    }
}
