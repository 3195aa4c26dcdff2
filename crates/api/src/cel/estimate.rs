//! What a rule may cost at most, by the bounds that its schema states: definitions whose rules could be too dear are refused.
//!
//! Texts and lists without bounds may be as large as a request. Costs are those of [`super::eval`], taken at their worst.

use super::syntax::{Expr, Kind, Literal, Macro, MacroName};
use crate::{custom::props::Props, limits::REQUEST_BODY_BYTES_MAX};

/// Of a value: how large it may be, and what is known of its parts.
#[derive(Clone, Copy)]
struct Known<'p> {
    /// Characters, items or entries; `u64::MAX` if nothing is known.
    size: u64,
    is_text: bool,
    props: Option<&'p Props>,
    /// Size of items that have no schema.
    item: u64,
}

const SCALAR: Known<'static> = Known { size: 1, is_text: false, props: None, item: 1 };

/// The smallest JSON of a value.
fn least_bytes(props: &Props, depth: usize) -> u64 {
    match props.types.first().map(String::as_str) {
        Some("string" | "array") => 2,
        Some("object") if depth < 20 => {
            2 + props
                .required
                .iter()
                .filter_map(|key| props.properties.get(key).map(|below| key.len() as u64 + 3 + least_bytes(below, depth + 1)))
                .sum::<u64>()
        }
        Some("object") => 2,
        Some("boolean") => 4,
        _ => 1,
    }
}

fn text_size(props: &Props) -> u64 {
    if let Some(max) = props.max_length {
        return u64::try_from(max).unwrap_or(0);
    }
    if !props.values.is_empty() {
        return props.values.iter().filter_map(|value| value.as_str()).map(|text| text.len() as u64).max().unwrap_or(0);
    }
    match props.format.as_str() {
        "duration" => 32,
        "date" => 10,
        "date-time" => 20,
        _ => REQUEST_BODY_BYTES_MAX as u64 - 2,
    }
}

/// How many items or entries a list or map may have.
fn count(props: &Props) -> u64 {
    let (max, below, extra) = match props.types.first().map(String::as_str) {
        Some("array") => (props.max_items, props.items.as_deref(), 1),
        _ => (props.max_properties, props.additional(), 6),
    };
    match max {
        Some(max) => u64::try_from(max).unwrap_or(0),
        None => (REQUEST_BODY_BYTES_MAX as u64 - 2) / (below.map_or(1, |below| least_bytes(below, 0)) + extra),
    }
}

fn known(props: Option<&Props>) -> Known<'_> {
    let Some(props) = props else { return Known { size: u64::MAX, is_text: false, props: None, item: u64::MAX } };
    match props.types.first().map(String::as_str) {
        Some("string") if matches!(props.format.as_str(), "date" | "date-time" | "duration") => Known { props: Some(props), ..SCALAR },
        Some("string") => Known { size: text_size(props), is_text: true, props: Some(props), item: 1 },
        Some("array") => Known { size: count(props), is_text: false, props: Some(props), item: 1 },
        Some("object") if props.additional().is_some() => Known { size: count(props), is_text: false, props: Some(props), item: 1 },
        Some("object") => Known { size: props.properties.len() as u64, is_text: false, props: Some(props), item: 1 },
        _ if props.int_or_string => Known { size: REQUEST_BODY_BYTES_MAX as u64 - 2, is_text: true, props: Some(props), item: 1 },
        _ => Known { props: Some(props), ..SCALAR },
    }
}

struct Estimator<'p> {
    scope: Vec<(String, Known<'p>)>,
    root: &'p Props,
}

/// What `tree` may cost on a value of `props`.
pub fn estimate(tree: &Expr, props: &Props) -> u64 {
    Estimator { scope: vec![], root: props }.of(tree).0
}

/// How many values of a schema one object may hold below `props`: what the cost of a rule there is multiplied by.
pub fn cardinality(props: &Props, above: u64) -> u64 {
    match props.types.first().map(String::as_str) {
        Some("array") => above.saturating_mul(count(props)),
        Some("object") if props.additional().is_some() => above.saturating_mul(count(props)),
        _ => above,
    }
}

fn tenth(size: u64) -> u64 {
    if size == u64::MAX { u64::MAX } else { size.div_ceil(10) }
}

impl<'p> Estimator<'p> {
    fn of(&mut self, expr: &Expr) -> (u64, Known<'p>) {
        match &expr.kind {
            Kind::Literal(Literal::String(text)) => (0, Known { size: text.chars().count() as u64, is_text: true, ..SCALAR }),
            Kind::Literal(Literal::Bytes(bytes)) => (0, Known { size: bytes.len() as u64, ..SCALAR }),
            Kind::Literal(_) => (0, SCALAR),
            Kind::Ident(name) => {
                let found = self.scope.iter().rev().find(|(known, _)| known == name).map(|(_, known)| *known);
                (1, found.unwrap_or_else(|| if matches!(name.as_str(), "self" | "oldSelf") { known(Some(self.root)) } else { SCALAR }))
            }
            Kind::Select { operand, field, test, .. } => {
                let (cost, of) = self.of(operand);
                let below = of.props.and_then(|props| props.properties.get(&super::types::unescape(field)).or_else(|| props.additional()));
                let meta = matches!(field.as_str(), "name" | "generateName" | "apiVersion" | "kind");
                let found = match (test, below) {
                    (true, _) => SCALAR,
                    (false, Some(below)) => known(Some(below)),
                    (false, None) if meta => Known { size: 253, is_text: true, ..SCALAR },
                    (false, None) => known(None),
                };
                (cost.saturating_add(1), found)
            }
            Kind::List(items) => {
                let mut cost = 10u64;
                let mut largest = 1;
                for (item, _) in items {
                    let (more, known) = self.of(item);
                    cost = cost.saturating_add(more);
                    largest = largest.max(known.size);
                }
                (cost, Known { size: items.len() as u64, is_text: false, props: None, item: largest })
            }
            Kind::Map(entries) => {
                let mut cost = 30u64;
                let mut largest = 1;
                for (key, value, _) in entries {
                    let (more, known) = self.of(value);
                    cost = cost.saturating_add(self.of(key).0).saturating_add(more);
                    largest = largest.max(known.size);
                }
                (cost, Known { size: entries.len() as u64, is_text: false, props: None, item: largest })
            }
            Kind::Struct(_, fields) => (fields.iter().fold(40u64, |cost, (_, value, _)| cost.saturating_add(self.of(value).0)), known(None)),
            Kind::Call { target, function, args } => self.call(target.as_deref(), function, args),
            Kind::Macro(m) => self.macro_(m),
        }
    }

    fn call(&mut self, target: Option<&Expr>, function: &str, args: &[Expr]) -> (u64, Known<'p>) {
        let all: Vec<(u64, Known<'p>)> = target.into_iter().chain(args).map(|arg| self.of(arg)).collect();
        let spent = all.iter().fold(0u64, |sum, (cost, _)| sum.saturating_add(*cost));
        let known: Vec<Known<'p>> = all.iter().map(|(_, known)| *known).collect();
        let size = |i: usize| known.get(i).map_or(1, |known| known.size);
        let first = known.first().copied().unwrap_or(SCALAR);
        let text = |size: u64| Known { size, is_text: true, ..SCALAR };
        let (own, result) = match function {
            "_&&_" | "_||_" => return (spent, SCALAR),
            "_?_:_" => {
                let branch = all.iter().skip(1).map(|(cost, _)| *cost).max().unwrap_or(0);
                let larger = if size(1) >= size(2) { known.get(1) } else { known.get(2) };
                return (all.first().map_or(0, |(cost, _)| *cost).saturating_add(branch), larger.copied().unwrap_or(SCALAR));
            }
            "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => {
                let smaller = size(0).min(size(1));
                (1u64.saturating_add(if smaller <= 1 { 0 } else { tenth(smaller) }), SCALAR)
            }
            "_+_" if known.iter().any(|known| known.is_text) => {
                (1u64.saturating_add(tenth(size(0).saturating_add(size(1)))), text(size(0).saturating_add(size(1))))
            }
            "_+_" if size(0) > 1 || size(1) > 1 => (1, Known { size: size(0).saturating_add(size(1)), ..first }),
            "@in" => (1u64.saturating_add(size(1)), SCALAR),
            "_[_]" | "_[?_]" => {
                let below = first.props.and_then(|props| props.items.as_deref().or_else(|| props.additional()));
                (1, below.map_or(Known { size: first.item, ..SCALAR }, |below| self::known(Some(below))))
            }
            "contains" => (1u64.saturating_add(tenth(size(0)).saturating_mul(tenth(size(1)).max(1))), SCALAR),
            "startsWith" | "endsWith" => (1u64.saturating_add(tenth(size(1))), SCALAR),
            "matches" | "find" | "findAll" => (1u64.saturating_add(tenth(size(0)).max(1).saturating_mul(size(1).div_ceil(4).max(1))), text(size(0))),
            "string" if first.is_text => (1u64.saturating_add(tenth(size(0))), text(size(0))),
            // How long the text of a number is, is not known.
            "string" => (1, text(u64::MAX)),
            "lowerAscii" | "upperAscii" | "trim" | "substring" | "charAt" | "strings.quote" | "quote" | "reverse" if first.is_text => {
                (1u64.saturating_add(tenth(size(0))), text(size(0)))
            }
            "replace" => {
                let grown = size(0).saturating_mul(size(2).max(1));
                (1u64.saturating_add(tenth(size(0))), text(grown))
            }
            "split" => (1u64.saturating_add(tenth(size(0))), Known { size: size(0), is_text: false, props: None, item: size(0) }),
            "join" => (1u64.saturating_add(tenth(size(0).saturating_mul(first.item))), text(size(0).saturating_mul(first.item.max(1)))),
            "indexOf" | "lastIndexOf" | "isSorted" | "sum" | "min" | "max" | "sort" | "distinct" => (1u64.saturating_add(size(0)), first),
            "isURL" | "url" | "isIP" | "ip" | "isCIDR" | "cidr" | "isQuantity" | "quantity" | "isSemver" | "semver" | "timestamp" | "duration"
            | "int" | "double" | "bytes" => (1u64.saturating_add(if first.is_text { tenth(size(0)) } else { 0 }), SCALAR),
            "contains_all" | "equivalent" | "intersects" => (1u64.saturating_add(size(0).saturating_mul(size(1))), SCALAR),
            "format" => (1u64.saturating_add(tenth(size(0))), text(u64::MAX)),
            "check" => (350_000, SCALAR),
            _ => (1, Known { size: first.size, ..SCALAR }),
        };
        (spent.saturating_add(own), result)
    }

    fn macro_(&mut self, m: &Macro) -> (u64, Known<'p>) {
        let (range_cost, range) = self.of(&m.range);
        let depth = self.scope.len();
        if matches!(m.name, MacroName::Bind | MacroName::OptMap | MacroName::OptFlatMap) {
            self.scope.push((m.variable.clone(), range));
            let (cost, known) = self.of(&m.body);
            self.scope.truncate(depth);
            return (range_cost.saturating_add(cost).saturating_add(1), known);
        }
        let is_map = range.props.is_some_and(|props| props.additional().is_some());
        let below = range.props.and_then(|props| props.items.as_deref().or_else(|| props.additional()));
        let value = below.map_or(Known { size: range.item, is_text: true, ..SCALAR }, |below| known(Some(below)));
        let key = Known { size: REQUEST_BODY_BYTES_MAX as u64 - 2, is_text: true, ..SCALAR };
        match &m.second {
            Some(second) => {
                self.scope.push((m.variable.clone(), if is_map { key } else { SCALAR }));
                self.scope.push((second.clone(), value));
            }
            None => self.scope.push((m.variable.clone(), if is_map { key } else { value })),
        }
        let filter = m.filter.as_ref().map_or(0, |filter| self.of(filter).0);
        let (body, made) = self.of(&m.body);
        self.scope.truncate(depth);
        let step = match m.name {
            MacroName::All | MacroName::Exists => 3,
            MacroName::Map | MacroName::TransformList | MacroName::SortBy => 13,
            MacroName::TransformMap | MacroName::TransformMapEntry => 33,
            _ => 12,
        };
        let each = body.saturating_add(filter).saturating_add(step);
        let cost = range_cost.saturating_add(range.size.saturating_mul(each)).saturating_add(1);
        let result = match m.name {
            MacroName::Filter | MacroName::SortBy => range,
            MacroName::Map | MacroName::TransformList => Known { size: range.size, is_text: false, props: None, item: made.size },
            _ => SCALAR,
        };
        (cost, result)
    }
}

/// `budget by factor of ...`, in Kubernetes' words.
pub fn over_budget(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let shown = if factor > 100.0 {
        "more than 100x".to_string()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::{limits, syntax::parse};
    use serde_json::json;

    fn cost(rule: &str, schema: serde_json::Value) -> u64 {
        estimate(&parse(rule).unwrap(), &Props::read(&schema))
    }

    #[test]
    fn bounds_make_rules_cheap() {
        let list = |max: Option<u64>| json!({"type": "array", "maxItems": max, "items": {"type": "string", "maxLength": 10}});
        assert!(cost("self.all(x, self.all(y, x != y))", list(Some(10))) < limits::ESTIMATED_RULE_COST_MAX);
        assert!(cost("self.all(x, self.all(y, x != y))", list(None)) > limits::ESTIMATED_RULE_COST_MAX);
        assert!(cost("string(self) != '1'", json!({"type": "integer"})) < 10);
        assert_eq!(cost("'is ' + string(self)", json!({"type": "integer"})), u64::MAX);
        assert!(over_budget("estimated rule cost", u64::MAX, 10).contains("more than 100x"));
    }
}
