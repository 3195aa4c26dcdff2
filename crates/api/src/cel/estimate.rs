//! What a rule may cost at most, by the bounds that its schema states: definitions whose rules could be too dear are refused.
//!
//! The figures are Kubernetes' own (cel-go's estimate with the functions of Kubernetes), oddities included, for a definition that is
//! accepted there must be accepted here: numbers and objects have no size, so that comparing them is free; what is not reached by a
//! path from `self` has the size of `self`; a macro costs what the loop costs that cel-go makes of it.

use super::{
    Program,
    checker::Checked,
    functions::Signature,
    syntax::{Expr, Kind, Literal, Macro, MacroName},
    types::{self, Type},
};
use crate::custom::props::{Additional, Props};

/// The largest request, in bytes, as rules are reckoned.
const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;
/// What text is at most in quotes.
const TEXT_MAX: u64 = REQUEST_BYTES_MAX - 2;
const PER_CHARACTER: f64 = 0.1;
const PER_PATTERN_CHARACTER: f64 = 0.25;
const LIST: u64 = 10;
const MAP: u64 = 30;
const STRUCT: u64 = 40;
/// What an authorizer's answer costs.
const CHECK: u64 = 350_000;
/// The longest pattern of a named format.
const FORMAT_PATTERN_MAX: f64 = 128.0;
const FORMAT_NAME_MAX: u64 = 64;

/// The least and the most of something: a cost, or characters, items or entries.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    min: u64,
    max: u64,
}

const UNKNOWN: Span = Span { min: 0, max: u64::MAX };

const fn just(size: u64) -> Span {
    Span { min: size, max: size }
}

fn scaled(size: u64, factor: f64) -> u64 {
    let product = (size as f64 * factor).ceil();
    if product >= u64::MAX as f64 { u64::MAX } else { product as u64 }
}

impl Span {
    fn plus(self, other: Span) -> Span {
        Span { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }
    fn times(self, other: Span) -> Span {
        Span { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }
    fn by(self, factor: f64) -> Span {
        Span { min: scaled(self.min, factor), max: scaled(self.max, factor) }
    }
    /// Both.
    fn or(self, other: Span) -> Span {
        Span { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// Sizes of the items of a list, or of keys and values of a map.
#[derive(Clone, Copy)]
struct Entries {
    is_list: bool,
    key: Span,
    value: Span,
}

fn either(a: Option<Entries>, b: Option<Entries>) -> Option<Entries> {
    let (a, b) = (a?, b?);
    Some(Entries { is_list: a.is_list, key: a.key.or(b.key), value: a.value.or(b.value) })
}

/// Steps from a variable: names of fields, [`ITEMS`], [`KEYS`]. The first is the variable itself, whatever it is.
type Steps = Vec<String>;
const ITEMS: &str = "@items";
const VALUES: &str = "@values";
const KEYS: &str = "@keys";
const INDICES: &str = "@indices";

/// What is known of an expression.
struct Node {
    cost: Span,
    size: Option<Span>,
    entries: Option<Entries>,
    steps: Steps,
    type_: Type,
    /// The number that it is, if it is written as one.
    whole: Option<i64>,
}

impl Node {
    fn size(&self) -> Span {
        self.size.unwrap_or(UNKNOWN)
    }
    /// The number that is written, or what is taken for one that is not.
    fn whole(&self, otherwise: u64) -> u64 {
        self.whole.map_or(otherwise, |whole| u64::try_from(whole).unwrap_or(0))
    }
}

struct Local {
    name: String,
    steps: Steps,
    size: Option<Span>,
    entries: Option<Entries>,
}

struct Estimator<'p> {
    checked: &'p Checked,
    props: &'p Props,
    root: bool,
    locals: Vec<Local>,
}

/// What `program` may cost on a value of `props`; `root` says that it is a whole object.
pub fn estimate(program: &Program, props: &Props, root: bool) -> u64 {
    Estimator { checked: &program.checked, props, root, locals: vec![] }.of(&program.tree).cost.max
}

/// How many values of a schema there may be in one request.
pub fn cardinality(props: &Props) -> u64 {
    REQUEST_BYTES_MAX / (props.least_bytes + 1)
}

/// How large a value of a schema may be.
fn elements(props: &Props) -> u64 {
    let count = |bound: Option<i64>, otherwise: u64| bound.map_or(otherwise, |bound| u64::try_from(bound).unwrap_or(0));
    // A character may be four bytes.
    let of_text = |otherwise: u64| props.max_length.map_or(otherwise, |max| u64::try_from(max).unwrap_or(0).saturating_mul(4));
    if props.int_or_string {
        return of_text(TEXT_MAX);
    }
    match (props.types.first().map(String::as_str), props.additional(), props.items.as_deref()) {
        (Some("array"), _, Some(items)) => count(props.max_items, TEXT_MAX / (items.least_bytes + 1)),
        (Some("object"), Some(values), _) => count(props.max_properties, TEXT_MAX / (values.least_bytes + 6)),
        (Some("string"), ..) => match props.format.as_str() {
            "byte" => count(props.max_length, TEXT_MAX),
            "duration" | "date-time" => 32,
            "date" => 12,
            _ if props.values.is_empty() => of_text(TEXT_MAX),
            _ => of_text(props.values.iter().filter_map(|value| value.as_str()).map(|text| text.len() as u64).max().unwrap_or(0)),
        },
        _ => 0,
    }
}

/// The fewest bytes of JSON that a value of a schema takes, from those of its parts. `None` for one that rules cannot see.
pub fn least_bytes(props: &Props) -> Option<u64> {
    if props.int_or_string {
        return Some(1);
    }
    match (props.types.first().map(String::as_str), props.format.as_str()) {
        (Some("array"), _) => props.items.as_deref().filter(|items| items.is_seen).map(|_| 2),
        (Some("object"), _) => match &props.additional {
            Additional::Values(values) => values.is_seen.then_some(2),
            _ => {
                let needed = |(name, below): &(&String, &Props)| below.is_seen && below.default.is_none() && props.required.contains(name);
                Some(2 + props.properties.iter().filter(needed).map(|(name, below)| name.len() as u64 + below.least_bytes + 4).sum::<u64>())
            }
        },
        (Some("string"), "duration") => Some(3),
        (Some("string"), "date") => Some(12),
        (Some("string"), "date-time") => Some(21),
        (Some("string"), _) => Some(2),
        (Some("boolean"), _) => Some(4),
        (Some("number" | "integer"), _) => Some(1),
        _ => None,
    }
}

impl Estimator<'_> {
    /// How large what a path leads to may be, if it leads anywhere.
    fn reached(&self, steps: &[String]) -> Option<Span> {
        let (_, steps) = steps.split_first()?;
        let (mut here, mut root) = (self.props, self.root);
        for (i, step) in steps.iter().enumerate() {
            let is_last = i + 1 == steps.len();
            let below = match step.as_str() {
                ITEMS | VALUES => here.items.as_deref().or(here.additional()),
                // Keys are of a type without bounds, which is to say of none.
                KEYS => return (is_last && here.additional().is_some()).then_some(just(0)),
                name => {
                    if root && matches!(name, "apiVersion" | "kind" | "metadata") {
                        return match (name, &steps[i + 1..]) {
                            ("metadata", []) => Some(just(0)),
                            ("metadata", [name]) if matches!(name.as_str(), "name" | "generateName") => Some(Span { min: 0, max: TEXT_MAX }),
                            ("metadata", _) => None,
                            (_, rest) => rest.is_empty().then_some(Span { min: 0, max: TEXT_MAX }),
                        };
                    }
                    here.properties.get(&types::unescape(name))
                }
            };
            here = below.filter(|below| below.is_seen)?;
            root = here.embedded;
        }
        Some(Span { min: 0, max: elements(here) })
    }

    /// A node whose size follows, where nothing better is known, from its path and type.
    fn node(&self, cost: Span, known: Option<Span>, entries: Option<Entries>, steps: Steps, type_: Type) -> Node {
        let size = known.or_else(|| self.reached(&steps)).or_else(|| is_scalar(&type_).then_some(just(1)));
        Node { cost, size, entries, steps, type_, whole: None }
    }

    fn of(&mut self, expr: &Expr) -> Node {
        let type_ = self.checked.type_of(expr);
        match &expr.kind {
            Kind::Literal(literal) => {
                let size = match literal {
                    Literal::String(text) => text.chars().count(),
                    Literal::Bytes(bytes) => bytes.len(),
                    _ => 1,
                };
                let whole = if let Literal::Int(whole) = literal { Some(*whole) } else { None };
                Node { whole, ..self.node(just(0), Some(just(size as u64)), None, vec![], type_) }
            }
            Kind::Ident(name) => {
                let Some(local) = self.locals.iter().rev().find(|local| local.name == *name) else {
                    return self.node(just(1), None, None, vec![name.clone()], type_);
                };
                let (size, entries) = (local.size, local.entries);
                let node = self.node(just(1), None, entries, local.steps.clone(), type_);
                Node { size: node.size.or(size), ..node }
            }
            Kind::Select { operand, field, test, optional } => self.select(operand, field, *test, *optional, type_),
            Kind::Call { target, function, args } => self.call(expr, target.as_deref(), function, args, type_),
            Kind::List(items) => {
                let (mut cost, mut value) = (just(LIST), if items.is_empty() { just(0) } else { Span { min: u64::MAX, max: 0 } });
                for (item, _) in items {
                    let item = self.of(item);
                    (cost, value) = (cost.plus(item.cost), value.or(item.size()));
                }
                self.node(cost, Some(just(items.len() as u64)), Some(Entries { is_list: true, key: just(1), value }), vec![], type_)
            }
            Kind::Map(entries) => {
                let none = if entries.is_empty() { just(0) } else { Span { min: u64::MAX, max: 0 } };
                let (mut cost, mut key, mut value) = (just(MAP), none, none);
                for (of_key, of_value, _) in entries {
                    let (of_key, of_value) = (self.of(of_key), self.of(of_value));
                    cost = cost.plus(of_key.cost).plus(of_value.cost);
                    (key, value) = (key.or(of_key.size()), value.or(of_value.size()));
                }
                self.node(cost, Some(just(entries.len() as u64)), Some(Entries { is_list: false, key, value }), vec![], type_)
            }
            Kind::Struct(_, fields) => {
                let cost = fields.iter().fold(just(STRUCT), |cost, (_, value, _)| cost.plus(self.of(value).cost));
                self.node(cost, None, None, vec![], type_)
            }
            Kind::Macro(m) => self.macro_(m, type_),
        }
    }

    fn select(&mut self, operand: &Expr, field: &str, test: bool, optional: bool, type_: Type) -> Node {
        let of = self.of(operand);
        // Whether something is there costs nothing more; what may be there is a call.
        if test || optional {
            return self.node(of.cost.plus(just(u64::from(optional))), None, None, vec![], type_);
        }
        let own = just(u64::from(matches!(of.type_, Type::Map(..) | Type::Object(_) | Type::Param(_))));
        let steps = of.steps.into_iter().chain([field.to_string()]).collect();
        self.node(of.cost.plus(own), None, None, steps, type_)
    }

    fn call(&mut self, expr: &Expr, target: Option<&Expr>, function: &str, args: &[Expr], type_: Type) -> Node {
        let arg_nodes: Vec<Node> = args.iter().map(|arg| self.of(arg)).collect();
        if let ("dyn", [only]) = (function, arg_nodes.as_slice()) {
            return self.node(only.cost.plus(just(1)), only.size, only.entries, vec![], type_);
        }
        let signatures = self.checked.signatures(expr);
        if signatures.is_empty() {
            return self.node(just(0), None, None, vec![], type_);
        }
        // `ip.isCanonical(x)` has no target, though it is written so.
        let target = target.filter(|_| signatures[0].member).map(|target| self.of(target));
        let arg_cost = arg_nodes.iter().fold(just(0), |cost, arg| cost.plus(arg.cost));
        let mut cost: Option<Span> = None;
        let (mut size, mut entries, mut steps): (Option<Span>, Option<Entries>, Steps) = (None, None, vec![]);
        for signature in signatures {
            let own = self.way(function, signature, target.as_ref(), &arg_nodes);
            let total = if own.with_args { own.cost } else { own.cost.plus(arg_cost) };
            cost = Some(cost.map_or(total, |cost| cost.or(total)));
            size = match (size, own.size) {
                (Some(known), Some(more)) => Some(known.or(more)),
                (known, more) => known.or(more),
            };
            entries = own.entries.or(entries);
            let step = match (function, signature.args.first()) {
                ("_[_]", Some(Type::List(_))) => Some(ITEMS),
                ("_[_]", Some(Type::Map(..))) => Some(VALUES),
                _ => None,
            };
            if let (Some(step), [of, ..]) = (step, arg_nodes.as_slice()) {
                size = of.entries.map(|entries| entries.value);
                steps = of.steps.iter().cloned().chain([step.to_string()]).collect();
            }
            size = size.or_else(|| self.node(just(0), None, None, steps.clone(), type_.clone()).size);
        }
        let cost = target.map_or(just(0), |target| target.cost).plus(cost.unwrap_or(just(0)));
        self.node(cost, size, entries, steps, type_)
    }

    /// What one way to call a function costs and makes.
    fn way(&self, function: &str, signature: &Signature, target: Option<&Node>, args: &[Node]) -> Way {
        let of = signature.args.first();
        match (function, target, args) {
            ("check", ..) => Way::cost(just(CHECK)),
            ("fieldSelector" | "labelSelector", _, [selector]) => {
                let size = selector.size();
                Way::cost(just(LIST).plus(size.by(PER_CHARACTER)).plus(size.by(0.5).by((LIST + STRUCT) as f64)))
            }
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(target), _) => Way::cost(match &target.type_ {
                Type::List(items) => {
                    let mut each = just(1);
                    if matches!(**items, Type::String | Type::Bytes) {
                        each = each.plus(self.item_size(target).by(PER_CHARACTER));
                    }
                    target.size().times(each)
                }
                _ => target.size().by(PER_CHARACTER),
            }),
            ("url" | "escapeKey", None, [text]) => Way { size: Some(text.size()), ..Way::cost(text.size().by(PER_CHARACTER)) },
            ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(text), _) => {
                Way { size: Some(text.size()), ..Way::cost(text.size().by(PER_CHARACTER)) }
            }
            ("replace", Some(text), [from, to, ..]) => {
                Way { size: Some(replaced(text.size(), from.size(), to.size())), ..Way::cost(text.size().by(2.0 * PER_CHARACTER)) }
            }
            ("split", Some(text), rest) => {
                let most = rest.get(1).and_then(|limit| limit.whole).map_or(text.size().max, |limit| limit as u64);
                Way { size: Some(Span { min: 0, max: most }), ..Way::cost(text.size().by(2.0 * PER_CHARACTER)) }
            }
            ("join", Some(list), rest) => {
                let mut size = if matches!(list.type_, Type::List(_)) { list.size().times(self.item_size(list)) } else { just(0) };
                if let Some(separator) = rest.first() {
                    let separators = Span { min: list.size().min.saturating_sub(1), max: list.size().max.saturating_sub(1) };
                    size = size.plus(separator.size().times(separators));
                }
                Way { size: Some(size), ..Way::cost(size.by(PER_CHARACTER)) }
            }
            ("find" | "findAll", Some(text), [pattern, ..]) => {
                let cost = text.size().plus(just(1)).by(PER_CHARACTER).times(pattern.size().by(PER_PATTERN_CHARACTER));
                Way { size: Some(Span { min: 0, max: text.size().max }), ..Way::cost(cost) }
            }
            ("containsIP" | "containsCIDR", Some(_), [other]) => {
                let address = Span { min: 4, max: 16 };
                let mut cost = address.plus(address).by(PER_CHARACTER);
                if function == "containsCIDR" {
                    cost = cost.plus(address.by(PER_CHARACTER)).plus(just(1));
                }
                if matches!(signature.args.get(1), Some(Type::String)) {
                    cost = cost.plus(other.size().by(PER_CHARACTER));
                }
                Way::cost(cost)
            }
            ("validate", Some(_), [text]) => Way::cost(text.size().by(PER_CHARACTER).by(FORMAT_PATTERN_MAX * PER_PATTERN_CHARACTER)),
            ("_==_", None, [a, b]) if a.type_ == b.type_ && matches!(a.type_, Type::Opaque(_)) => Way::cost(match &a.type_ {
                Type::Opaque("kubernetes.NamedFormat") => Span { min: 1, max: FORMAT_NAME_MAX }.by(PER_CHARACTER),
                Type::Opaque("kubernetes.URL") => Span { min: 1, max: b.size.map_or(1, |size| size.max) }.by(PER_CHARACTER),
                _ => just(1),
            }),
            ("format", Some(text), _) => Way::cost(text.size().by(PER_CHARACTER)),
            ("bytes", None, [text]) if of == Some(&Type::String) => {
                let size = Span { min: text.size().min, max: text.size().max.wrapping_mul(4) };
                Way { size: Some(size), ..Way::cost(text.size().by(PER_CHARACTER)) }
            }
            ("string", None, [bytes]) if of == Some(&Type::Bytes) => {
                let size = Span { min: bytes.size().min / 4, max: bytes.size().max };
                Way { size: Some(size), ..Way::cost(bytes.size().by(PER_CHARACTER)) }
            }
            ("quote", None, [text]) => {
                let size = Span { min: text.size().min.wrapping_add(2), max: text.size().max.wrapping_mul(2).wrapping_add(2) };
                Way { size: Some(size), ..Way::cost(text.size().by(PER_CHARACTER)) }
            }
            ("startsWith" | "endsWith", Some(_), [part]) => Way::cost(part.size().by(PER_CHARACTER)),
            ("@in", None, [_, list]) if matches!(signature.args.get(1), Some(Type::List(_))) => Way::cost(list.size()),
            ("matches", Some(text), [pattern]) => {
                Way::cost(text.size().plus(just(1)).by(PER_CHARACTER).times(pattern.size().by(PER_PATTERN_CHARACTER)))
            }
            ("contains" | "intersects" | "equivalent", None, [a, b]) => {
                let factor = if function == "equivalent" { 2.0 } else { 1.0 };
                Way::cost(a.size().times(b.size()).by(factor).plus(just(1)))
            }
            ("contains", Some(text), [part]) => Way::cost(text.size().by(PER_CHARACTER).times(part.size().by(PER_CHARACTER))),
            ("_&&_" | "_||_", None, [left, right]) => Way::all(Span { min: left.cost.min, max: left.cost.max.saturating_add(right.cost.max) }),
            ("_?_:_", None, [condition, yes, no]) => Way {
                size: Some(yes.size().or(no.size())),
                entries: either(yes.entries, no.entries),
                ..Way::all(condition.cost.plus(yes.cost.or(no.cost)))
            },
            ("_+_", None, [a, b]) if matches!(of, Some(Type::String | Type::Bytes | Type::List(_))) => {
                let size = a.size().plus(b.size());
                let cost = if matches!(of, Some(Type::List(_))) { just(1) } else { size.by(PER_CHARACTER) };
                Way { size: Some(size), entries: either(a.entries, b.entries), ..Way::cost(cost) }
            }
            ("_==_" | "_!=_", None, [a, b]) => Way::cost(compared(a, b)),
            ("_<_" | "_<=_" | "_>_" | "_>=_", None, [a, b]) if matches!(of, Some(Type::String | Type::Bytes)) => Way::cost(compared(a, b)),
            ("slice", Some(list), [start, end]) => Way::list(1.0, just(end.whole(list.size().max).wrapping_sub(start.whole(0)))),
            ("range", None, [count]) => Way::list(1.0, just(count.whole(u64::MAX))),
            ("reverse", Some(list), []) => Way::list(1.0, list.size()),
            ("flatten", Some(list), rest) => Way::list(rest.first().map_or(1, |depth| depth.whole(u64::MAX)) as f64, list.size()),
            ("distinct", Some(list), []) => Way::list(2.0, list.size().times(list.size())),
            ("sort", Some(list), []) => Way::list(sorting(of), list.size().times(list.size())),
            _ => Way::cost(just(1)),
        }
    }

    /// How large the items of a list may be.
    fn item_size(&self, list: &Node) -> Span {
        let steps: Steps = list.steps.iter().cloned().chain([ITEMS.to_string()]).collect();
        self.reached(&steps).filter(|_| !list.steps.is_empty()).unwrap_or(UNKNOWN)
    }

    fn bind(&mut self, name: &str, steps: Steps, size: Option<Span>, entries: Option<Entries>) {
        self.locals.push(Local { name: name.to_string(), steps, size, entries });
    }

    fn macro_(&mut self, m: &Macro, type_: Type) -> Node {
        let range = self.of(&m.range);
        let depth = self.locals.len();
        match m.name {
            MacroName::Bind => {
                self.bind(&m.variable, range.steps.clone(), range.size, range.entries);
                let body = self.of(&m.body);
                self.locals.truncate(depth);
                return self.node(just(LIST).plus(range.cost).plus(body.cost), body.size, body.entries, vec![], type_);
            }
            MacroName::OptMap | MacroName::OptFlatMap => {
                self.bind(&m.variable, vec![], None, None);
                let body = self.of(&m.body);
                self.locals.truncate(depth);
                let asked = range.cost.plus(just(1));
                let mut made = just(LIST).plus(asked).plus(body.cost);
                if m.name == MacroName::OptMap {
                    made = made.plus(just(1));
                }
                return self.node(asked.plus(made.or(just(1))), Some(UNKNOWN), None, vec![], type_);
            }
            _ => {}
        }
        let is_list = range.entries.map_or(matches!(range.type_, Type::List(_)), |entries| entries.is_list);
        let step = |step: &str| range.steps.iter().cloned().chain([step.to_string()]).collect::<Steps>();
        let (key, value) = (range.entries.map(|entries| entries.key), range.entries.map(|entries| entries.value));
        match &m.second {
            Some(second) => {
                self.bind(&m.variable, step(if is_list { INDICES } else { KEYS }), key, None);
                self.bind(second, step(if is_list { ITEMS } else { VALUES }), value, None);
            }
            None if is_list => self.bind(&m.variable, step(ITEMS), value, None),
            None => self.bind(&m.variable, step(KEYS), key, None),
        }
        let filter = m.filter.as_ref().map(|filter| self.of(filter).cost);
        let body = self.of(&m.body);
        let variable = (m.name == MacroName::Filter).then(|| self.variable(&m.variable, &range));
        self.locals.truncate(depth);
        self.loop_(m.name, &range, filter, &body, variable.flatten(), type_)
    }

    /// The size of a loop's variable.
    fn variable(&self, name: &str, range: &Node) -> Option<Span> {
        let local = self.locals.iter().rev().find(|local| local.name == name)?;
        let type_ = match &range.type_ {
            Type::List(items) => (**items).clone(),
            Type::Map(keys, _) => (**keys).clone(),
            _ => Type::Dyn,
        };
        self.node(just(1), None, None, local.steps.clone(), type_).size.or(local.size)
    }

    /// A loop: what it starts with, what each turn asks and does, and its result.
    fn loop_(&self, name: MacroName, range: &Node, filter: Option<Span>, body: &Node, variable: Option<Span>, type_: Type) -> Node {
        // A turn that may be left out is one of two.
        let chosen = |step: Span| filter.map_or(step, |filter| filter.plus(step.or(just(1))));
        let whole = |start: u64, turn: Span, result: u64| range.cost.plus(just(start)).plus(just(result)).plus(range.size().times(turn));
        let both = |asked: u64| Span { min: asked, max: asked.saturating_add(body.cost.max) };
        let grown = |item: Span| Some(Entries { is_list: true, key: just(1), value: just(0).or(item) });
        match name {
            MacroName::All => self.node(whole(0, both(3), 1), Some(just(1)), None, vec![], type_),
            MacroName::Exists => self.node(whole(0, both(4), 1), Some(just(1)), None, vec![], type_),
            MacroName::ExistsOne => self.node(whole(0, body.cost.plus(Span { min: 1, max: 2 }), 2), Some(just(1)), None, vec![], type_),
            MacroName::Filter => {
                let turn = body.cost.plus(Span { min: 1, max: LIST + 3 });
                self.node(whole(LIST, turn, 1), Some(range.size()), grown(variable.unwrap_or(UNKNOWN)), vec![], type_)
            }
            MacroName::Map | MacroName::TransformList => {
                let turn = chosen(just(LIST + 2).plus(body.cost));
                self.node(whole(LIST, turn, 1), Some(range.size()), grown(body.size()), vec![], type_)
            }
            MacroName::TransformMap => {
                let turn = chosen(just(3).plus(body.cost));
                self.node(whole(MAP, turn, 1), Some(range.size()), None, vec![], type_)
            }
            MacroName::TransformMapEntry => {
                let turn = chosen(just(2).plus(body.cost));
                self.node(whole(MAP, turn, 1), Some(range.size()), None, vec![], type_)
            }
            _ => {
                // Sorting by keys binds the list, makes the list of keys, and sorts by it.
                let turns = range.size().times(just(LIST + 2).plus(body.cost));
                let keys = just(1).plus(just(LIST)).plus(just(1)).plus(turns);
                let sorted = Way::list(sorting(Some(&Type::List(Box::new(body.type_.clone())))), range.size().times(range.size()));
                let cost = just(LIST).plus(range.cost).plus(just(1)).plus(keys).plus(sorted.cost);
                self.node(cost, sorted.size, None, vec![], type_)
            }
        }
    }
}

/// What a way to call a function costs, and what is known of what it makes.
struct Way {
    cost: Span,
    /// Whether the cost has that of the arguments in it.
    with_args: bool,
    size: Option<Span>,
    entries: Option<Entries>,
}

impl Way {
    fn cost(cost: Span) -> Way {
        Way { cost, with_args: false, size: None, entries: None }
    }
    fn all(cost: Span) -> Way {
        Way { with_args: true, ..Way::cost(cost) }
    }
    /// One that makes a list.
    fn list(factor: f64, size: Span) -> Way {
        Way { size: Some(size), ..Way::cost(size.by(factor).plus(just(1 + LIST))) }
    }
}

fn is_scalar(type_: &Type) -> bool {
    match type_ {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Optional(of) => is_scalar(of),
        _ => false,
    }
}

fn compared(a: &Node, b: &Node) -> Span {
    let most = a.size().max.min(b.size().max);
    Span { min: u64::from(most > 0), max: most }.by(PER_CHARACTER)
}

/// How dear it is to sort a list, by the square of its length.
fn sorting(list: Option<&Type>) -> f64 {
    match list {
        Some(Type::List(items)) if matches!(**items, Type::String | Type::Bytes) => 2.0 + PER_CHARACTER,
        _ => 2.0,
    }
}

/// How long a text is in which something was replaced.
fn replaced(text: Span, from: Span, to: Span) -> Span {
    let (mut count, mut kept) = (just(0), just(0));
    if from.min == 0 {
        (count.max, kept.max) = (text.max.saturating_add(1), text.max);
    } else if to.max <= from.min {
        kept.max = text.max;
    } else {
        count.max = (text.max as f64 / from.min as f64).ceil() as u64;
    }
    if from.max == 0 {
        (count.min, kept.min) = (text.min.saturating_add(1), text.min);
    } else if from.max <= to.min {
        kept.min = text.min;
    } else {
        count.min = (text.min as f64 / from.max as f64).ceil() as u64;
    }
    count.times(to).plus(kept)
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
    use crate::cel::limits;
    use serde_json::{Value, json};

    fn cost(rule: &str, schema: Value) -> u64 {
        let props = Props::read(&schema);
        let type_ = types::of_props(&props, false).unwrap();
        let program = Program::compile(rule, &[("self", type_.clone()), ("oldSelf", type_)]).unwrap();
        estimate(&program, &props, false)
    }

    #[test]
    fn bounds_make_rules_cheap() {
        let list = |max: Option<u64>| json!({"type": "array", "maxItems": max, "items": {"type": "string", "maxLength": 10}});
        assert!(cost("self.all(x, self.all(y, x != y))", list(Some(10))) < limits::ESTIMATED_RULE_COST_MAX);
        assert!(cost("self.all(x, self.all(y, x != y))", list(None)) > limits::ESTIMATED_RULE_COST_MAX);
        assert!(over_budget("estimated rule cost", u64::MAX, 10).contains("more than 100x"));
    }

    #[test]
    fn costs_are_those_of_kubernetes() {
        let text = json!({"type": "string", "maxLength": 10});
        let list = |items: &Value| json!({"type": "array", "items": items});
        let bounded = |items: &Value, max: u64| json!({"type": "array", "maxItems": max, "items": items});
        let whole = json!({"type": "integer"});
        for (rule, schema, wanted) in [
            // Numbers have no size.
            ("self == 1", whole.clone(), 1),
            ("self.a == self.b", json!({"type": "object", "properties": {"a": whole, "b": whole}}), 4),
            ("self.startsWith('abc')", text.clone(), 2),
            ("self.contains('abc')", text.clone(), 1 + 4),
            ("self == 'abcdefghijk'", text.clone(), 1 + 2),
            ("self.matches('^[a-z]+$')", text.clone(), 1 + 5 * 2),
            ("self + self == 'a'", text.clone(), 2 + 8 + 1),
            ("self.all(x, true)", list(&text), 2 + 3 * ((TEXT_MAX) / 3)),
            ("self.all(x, true)", list(&whole), 2 + 3 * (TEXT_MAX / 2)),
            ("self.all(x, x == 1)", bounded(&whole, 5), 2 + 5 * 4),
            ("self.exists(x, x == 1)", bounded(&whole, 5), 2 + 5 * 5),
            ("self.exists_one(x, x == 1)", bounded(&whole, 5), 3 + 5 * 3),
            ("self.filter(x, x == 1).size() == 1", bounded(&whole, 5), 1 + 10 + 1 + 5 * (1 + 13) + 1 + 1),
            ("self.map(x, x * 2).size() == 1", bounded(&whole, 5), 1 + 10 + 1 + 5 * (12 + 2) + 1 + 1),
            ("1 in self", bounded(&whole, 5), 1 + 5),
            ("self.isSorted()", bounded(&whole, 5), 1 + 5),
            ("self.isSorted()", bounded(&text, 5), 1 + 5 * 5),
            ("self.sort() == self", bounded(&whole, 5), 1 + 61 + 1 + 1),
            ("sets.contains(self, [1, 2])", bounded(&whole, 5), 1 + 10 + 11),
            ("[1, 2].all(x, x > 1)", whole.clone(), 10 + 1 + 2 * (3 + 2)),
            ("self in ['a', 'b']", text.clone(), 1 + 10 + 2),
            ("quantity(self).isGreaterThan(quantity('1Gi'))", text.clone(), 1 + 1 + 1 + 1),
            ("self.replace('a', 'bbb').size() == 1", text.clone(), 1 + 8 + 1 + 1),
            ("self == oldSelf", json!({"type": "object", "properties": {"a": text}}), 2),
            ("duration(self) < duration('1h')", text.clone(), 1 + 1 + 1 + 1),
        ] {
            assert_eq!(cost(rule, schema), wanted, "{rule}");
        }
    }

    /// The figures of Kubernetes' own tests, without a bound and with one.
    #[test]
    fn figures_are_those_of_kubernetes() {
        let of = |type_: &str| match type_ {
            "int-or-string" => json!({"x-kubernetes-int-or-string": true}),
            "duration" | "date" | "date-time" => json!({"type": "string", "format": type_}),
            "object" => json!({"type": "object", "required": ["required"], "properties": {"required": {"type": "string"}}}),
            "list" => json!({"type": "array", "items": {"type": "number"}}),
            "map" => json!({"type": "object", "additionalProperties": {"type": "number"}}),
            other => json!({"type": other}),
        };
        let list = |type_: &str, max: Option<u64>| json!({"type": "array", "items": of(type_), "maxItems": max});
        let map = |type_: &str, max: Option<u64>| json!({"type": "object", "additionalProperties": of(type_), "maxProperties": max});
        let text = |format: &str, max: Option<u64>| json!({"type": "string", "format": format, "maxLength": max});
        for (rule, type_, free, (max, bounded)) in [
            ("self.all(x, true)", "number", 4718591, (10, 32)),
            ("self.all(x, true)", "string", 3145727, (20, 62)),
            ("self.all(x, true)", "boolean", 1887437, (5, 17)),
            ("self.all(x, true)", "list", 3145727, (100, 302)),
            ("self.all(x, true)", "object", 555128, (50, 152)),
            ("self[1] == 0.0", "number", 2, (5000, 2)),
            ("self[1] == self[1]", "string", 314577, (8, 314577)),
            ("self.all(x, x == 0.0)", "number", 6291454, (3 * 1024 * 2048, 25165826)),
            ("self.all(x, true)", "int-or-string", 4718591, (10, 32)),
            ("self[0] == 5", "int-or-string", 3, (10, 3)),
            ("self[0] == false", "boolean", 2, (25, 2)),
            ("self[0] == null", "object", 2, (422, 2)),
            ("self[0][0] == -1.0", "list", 3, (51, 3)),
            ("self.all(x, x.y == 25.2)", "map", 6291452, (12, 74)),
            ("self[0].x > 2.0", "map", 4, (3000, 4)),
            ("self.all(x, true)", "duration", 2359295, (5, 17)),
            ("self[0].getHours() == 2", "duration", 4, (525, 4)),
            ("self.all(x, true)", "date", 725936, (15, 47)),
            ("self[2].getDayOfMonth() == 13", "date", 4, (42, 4)),
            ("self.all(x, true)", "date-time", 428963, (25, 77)),
            ("self[2].getMinutes() == 45", "date-time", 4, (99, 4)),
        ] {
            assert_eq!((cost(rule, list(type_, None)), cost(rule, list(type_, Some(max)))), (free, bounded), "{rule} of {type_}");
        }
        for (rule, type_, free, (max, bounded)) in [
            ("self.all(x, true)", "number", 1348169, (10, 32)),
            ("self.all(x, true)", "string", 1179647, (3, 11)),
            ("self.all(x, true)", "boolean", 943718, (100, 302)),
            ("self[\"x\"] == 0.0", "number", 2, (0, 2)),
            ("self.all(x, true)", "int-or-string", 1348169, (15, 47)),
            ("self.all(x, true)", "object", 428963, (20, 62)),
            ("self.all(x, true)", "map", 1179647, (10, 32)),
            ("self.all(x, true)", "list", 1179647, (25, 77)),
            ("self.all(x, true)", "duration", 1048577, (5, 17)),
            ("self.all(x, true)", "date", 524288, (10, 32)),
            ("self.all(x, true)", "date-time", 349526, (25, 77)),
            ("oldSelf.size() == self.size()", "integer", 5, (10, 5)),
            ("self[\"a\"] == self[\"b\"]", "date-time", 8, (7, 8)),
            ("self[\"c\"] == self[\"d\"]", "duration", 8, (42, 8)),
        ] {
            assert_eq!((cost(rule, map(type_, None)), cost(rule, map(type_, Some(max)))), (free, bounded), "{rule} of {type_}");
        }
        for (rule, free, (max, bounded)) in [
            ("self.contains('test')", 314574, (10, 5)),
            ("self.startsWith('test')", 2, (15, 2)),
            ("self.endsWith('test')", 2, (30, 2)),
            ("size(self + \"hello\") > size(\"hello\")", 314578, (4, 7)),
            ("self.matches(\"x\")", 314574, (50, 22)),
            ("\"\".matches(\"(((((((((())))))))))[0-9]\")", 7, (10, 7)),
            ("self.matches(\"\")", 1, (100, 1)),
            ("self == \"x\"", 2, (0, 1)),
            ("self.find('[0-9]+') == ''", 629147, (10, 11)),
            ("self.lowerAscii() == 'lower!'", 314575, (10, 6)),
        ] {
            assert_eq!((cost(rule, text("", None)), cost(rule, text("", Some(max)))), (free, bounded), "{rule}");
        }
        assert_eq!((cost("self == b\"x\"", text("byte", None)), cost("self == b\"x\"", text("byte", Some(0)))), (2, 1));
        let texts = |max: Option<u64>| json!({"type": "array", "maxItems": max, "items": {"type": "string", "maxLength": max}});
        assert_eq!((cost("self.join(' ') == 'aa bb'", texts(None)), cost("self.join(' ') == 'aa bb'", texts(Some(10)))), (329853068905, 43));
        assert_eq!((cost("self.isSorted() == true", texts(None)), cost("self.isSorted() == true", texts(Some(10)))), (329854432052, 52));
        let fields = |max: Option<u64>| {
            let text = |max: Option<u64>| json!({"type": "string", "maxLength": max});
            json!({"type": "object", "properties": {"str": text(max), "separator": text(max), "before": text(Some(2)), "after": text(Some(4))}})
        };
        let replace = "self.str.replace(self.before, self.after) == 'does not matter'";
        assert_eq!((cost(replace, fields(None)), cost(replace, fields(Some(4)))), (629154, 12));
        let split = "self.str.split(self.separator) == []";
        assert_eq!((cost(split, fields(None)), cost(split, fields(Some(10)))), (629160, 22));
        let values = |max: Option<u64>| json!({"type": "string", "enum": ["A", "B", "C", "LongValue"], "maxLength": max});
        assert_eq!((cost("self.contains('A')", values(None)), cost("self.contains('A')", values(Some(1000)))), (2, 401));
    }
}
