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
    custom::{check::Former, json_path::JsonPath, props::Props},
    field::{Error, Errors, Path, Reason},
};
use serde_json::json;
use std::sync::OnceLock;

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
            let transition = mentions_old(&self.rule);
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

fn mentions_old(rule: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    rule.match_indices("oldSelf")
        .any(|(at, found)| !rule[..at].ends_with(|c: char| is_word(c) || c == '.') && !rule[at + found.len()..].starts_with(is_word))
}

/// Rules of a definition that cost most, for the complaint about all of them.
#[derive(Default)]
struct Total {
    cost: u64,
    dearest: Vec<(u64, Path)>,
}

impl Total {
    fn add(&mut self, cost: u64, path: Path) {
        self.cost = self.cost.saturating_add(cost);
        if cost < limits::ESTIMATED_SCHEMA_COST_MAX / 100 {
            return;
        }
        self.dearest.push((cost, path));
        self.dearest.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        self.dearest.truncate(4);
    }
}

/// Checks all rules of a schema: that they compile, and what they may cost.
pub fn validate_schema(props: &Props, raw: &Value, path: &Path, errors: &mut Errors) {
    if !props.has_rules {
        return;
    }
    let mut total = Total::default();
    below(props, raw, path, true, 1, &mut total, errors);
    if total.cost > limits::ESTIMATED_SCHEMA_COST_MAX {
        for (_, path) in &total.dearest {
            errors.forbidden(path.clone(), "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema");
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(path.clone(), &over_budget(what, total.cost, limits::ESTIMATED_SCHEMA_COST_MAX));
    }
}

fn below(props: &Props, raw: &Value, path: &Path, root: bool, times: u64, total: &mut Total, errors: &mut Errors) {
    if !props.has_rules {
        return;
    }
    for (i, rule) in props.rules.iter().enumerate() {
        one(props, rule, &path.child("x-kubernetes-validations").index(i), root, times, total, errors);
    }
    let inner = cardinality(props, times);
    for (name, schema) in &props.properties {
        if let Some(raw) = raw.get("properties").and_then(|properties| properties.get(name)) {
            below(schema, raw, &path.child("properties").key(name), false, times, total, errors);
        }
    }
    if let (Some(schema), Some(raw)) = (props.additional(), raw.get("additionalProperties")) {
        below(schema, raw, &path.child("additionalProperties"), false, inner, total, errors);
    }
    if let (Some(schema), Some(raw)) = (&props.items, raw.get("items")) {
        below(schema, raw, &path.child("items"), false, inner, total, errors);
    }
}

fn one(props: &Props, rule: &Rule, path: &Path, root: bool, times: u64, total: &mut Total, errors: &mut Errors) {
    let at = path.child("rule");
    if rule.rule.trim().is_empty() {
        return errors.required(at, "rule is not specified");
    }
    match &rule.message {
        Some(message) if !message.is_empty() && message.trim().is_empty() => {
            errors.invalid(path.child("message"), message.as_str(), "must be non-empty if specified");
        }
        Some(message) if message.trim().contains(['\n', '\r']) => {
            errors.invalid(path.child("message"), message.as_str(), "must not contain line breaks");
        }
        None | Some(_) if rule.message.as_deref().unwrap_or_default().is_empty() && rule.rule.trim().contains(['\n', '\r']) => {
            errors.required(path.child("message"), "message must be specified if rule contains line breaks");
        }
        _ => {}
    }
    if let Some(source) = &rule.message_expression
        && source.trim().is_empty()
        && !source.is_empty()
    {
        errors.required(path.child("messageExpression"), "must be non-empty if specified");
    }
    const REASONS: &[&str] = &["FieldValueRequired", "FieldValueInvalid", "FieldValueForbidden", "FieldValueDuplicate"];
    if let Some(reason) = rule.reason.as_deref().filter(|reason| !REASONS.contains(reason)) {
        let mut sorted = REASONS.to_vec();
        sorted.sort_unstable();
        errors.not_supported(path.child("reason"), reason, &sorted);
    }
    if !rule.field_path.is_empty() {
        if rule.field_path.trim().is_empty() {
            errors.invalid(path.child("fieldPath"), rule.field_path.as_str(), "must be non-empty if specified");
        } else if let Err(why) = field_path(props, &rule.field_path) {
            errors.invalid(path.child("fieldPath"), rule.field_path.as_str(), &format!("fieldPath must be a valid path: {why}"));
        }
    }
    let Some(type_) = of_props(props, root) else { return };
    let complain = |errors: &mut Errors, at: Path, why: String| {
        // Without a value the detail alone is shown: Go's form of the rule goes before it.
        errors.push(Reason::Invalid, at, None, format!("{}: {why}", rule.shown()));
    };
    match rule.compile(&type_, &rule.rule) {
        Err(why) => complain(errors, at, format!("compilation failed: {why}")),
        Ok(program) if program.type_ != Type::Bool && !matches!(program.type_, Type::Dyn | Type::Param(_)) => {
            complain(errors, at, "cel expression must evaluate to a bool".into());
        }
        Ok(program) => {
            let transition = mentions_old(&rule.rule);
            if rule.optional_old.is_some() && !transition {
                errors.invalid(path.child("optionalOldSelf"), rule.optional_old.unwrap_or_default(), "may not be set if oldSelf is not used in rule");
            }
            charge("estimated rule cost", estimate(&program.tree, props), times, &at, total, errors);
        }
    }
    if let Some(source) = rule.message_expression.as_ref().filter(|source| !source.trim().is_empty()) {
        let at = path.child("messageExpression");
        match rule.compile(&type_, source) {
            Err(why) => complain(errors, at, format!("messageExpression compilation failed: {why}")),
            Ok(program) if program.type_ != Type::String && !matches!(program.type_, Type::Dyn | Type::Param(_)) => {
                complain(errors, at, "messageExpression must evaluate to a string".into());
            }
            Ok(program) => charge("estimated messageExpression cost", estimate(&program.tree, props), times, &at, total, errors),
        }
    }
}

fn charge(what: &str, cost: u64, times: u64, at: &Path, total: &mut Total, errors: &mut Errors) {
    let cost = cost.saturating_mul(times);
    if cost > limits::ESTIMATED_RULE_COST_MAX {
        errors.forbidden(at.clone(), &over_budget(what, cost, limits::ESTIMATED_RULE_COST_MAX));
    }
    total.add(cost, at.clone());
}

/// The fields of a `fieldPath`, if the schema has them.
fn field_path(props: &Props, text: &str) -> Result<Vec<String>, String> {
    let parsed = JsonPath::parse(text)?;
    let names: Vec<String> = parsed.fields().ok_or("only fields can be named")?.into_iter().map(String::from).collect();
    let mut here = props;
    for name in &names {
        here = here.properties.get(name).or_else(|| here.additional()).ok_or_else(|| format!("does not refer to a valid field: {name:?}"))?;
    }
    Ok(names)
}

/// Runs the rules of `props` and below on `value`. `old` is the former value of an update. Rules whose value has not changed
/// are not run again, unless they speak of the former value.
pub fn check_rules(props: &Props, value: &Value, old: Option<&Value>, root: bool, path: &Path, budget: &mut u64, errors: &mut Errors) {
    if !props.has_rules || value.is_null() || *budget == 0 {
        return;
    }
    for rule in &props.rules {
        if *budget == 0 {
            return;
        }
        run(rule, props, value, old, root, path, budget, errors);
    }
    let former = |key: &str| old.and_then(|old| old.get(key));
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                if let Some(schema) = props.properties.get(key) {
                    check_rules(schema, below, former(key), schema.embedded, &path.child(key), budget, errors);
                } else if let Some(schema) = props.additional() {
                    check_rules(schema, below, former(key), schema.embedded, &path.key(key), budget, errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &props.items {
                let former = Former::of(props, old);
                for (i, item) in items.iter().enumerate() {
                    check_rules(schema, item, former.item(item), schema.embedded, &path.index(i), budget, errors);
                }
            }
        }
        _ => {}
    }
}

fn run(rule: &Rule, props: &Props, value: &Value, old: Option<&Value>, root: bool, path: &Path, budget: &mut u64, errors: &mut Errors) {
    let Some(compiled) = rule.compiled(props, root) else { return };
    let optional = rule.optional_old == Some(true);
    if compiled.transition && !optional && old.is_none() {
        return;
    }
    if !compiled.transition && old == Some(value) {
        return;
    }
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
    let about = message.unwrap_or(rule.rule.trim());
    let mut complain = |detail: String| {
        let reason = match rule.reason.as_deref() {
            Some("FieldValueRequired") => Reason::Required,
            Some("FieldValueForbidden") => Reason::Forbidden,
            Some("FieldValueDuplicate") => Reason::Duplicate,
            _ => Reason::Invalid,
        };
        let names = if rule.field_path.is_empty() { None } else { field_path(props, &rule.field_path).ok() };
        let field = names.iter().flatten().fold(path.clone(), |path, name| path.child(name));
        let shown = if value.is_object() || value.is_array() || names.is_some() { None } else { Some(value.clone()) };
        errors.0.push(Error { reason, field, value: shown, structure: None, detail });
    };
    match outcome {
        Ok(Val::Bool(true)) => {}
        Ok(Val::Bool(false)) => {
            // The message sees the former value as it is, not as an option.
            let mut seen = Variables::new().with("self", Val::json(value, Some(props)));
            seen = seen.with("oldSelf", former.unwrap_or(Val::Null));
            let mut message_budget = limits::CALL_COST_MAX.min((*budget).max(1));
            let computed = compiled.message.as_ref().and_then(|program| match program.run(&seen, &mut message_budget) {
                Ok(Val::String(text)) if !text.trim().is_empty() && !text.contains(['\n', '\r']) && text.len() <= 5 * 1024 => {
                    Some(text.trim().to_string())
                }
                _ => None,
            });
            let default = || message.map_or_else(|| format!("failed rule: {}", rule.rule.trim()), |message| message.trim().to_string());
            complain(computed.unwrap_or_else(default));
        }
        Ok(_) => complain(format!("internal error: rule did not evaluate to a bool: {about}")),
        Err(Failure::OutOfBudget) => {
            complain(format!("'{}': no further validation rules will be run due to call cost exceeds limit for rule: {about}", Failure::OutOfBudget));
            *budget = 0;
        }
        Err(Failure::Failed(why)) if why.starts_with("no such overload") => {
            complain(format!("'no such overload': call arguments did not match a supported operator, function or macro signature for rule: {about}"));
        }
        Err(Failure::Failed(why)) => complain(format!("{why} evaluating rule: {about}")),
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
        assert_eq!(complaints(schema.clone(), json!({"o": {"x": 0}}), None), ["o.x: Invalid value: failed rule: self.x > 0"]);
        assert_eq!(complaints(schema, json!({"o": {}}), None), ["o.x: Invalid value: no such key: x evaluating rule: self.x > 0"]);
    }

    #[test]
    fn bad_rules_are_named() {
        let mut errors = Errors::default();
        let raw = json!({"type": "object", "properties": {"a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 'a'"}]}}});
        validate_schema(&Props::read(&raw), &raw, &Path::new("s"), &mut errors);
        assert_eq!(
            errors.to_string(),
            "s.properties[a].x-kubernetes-validations[0].rule: Invalid value: {\"Rule\":\"self \\u003e 'a'\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: compilation failed: ERROR: <input>:1:6: found no matching overload for '_>_' applied to '(int, string)'\n | self > 'a'\n | .....^"
        );
    }
}
