//! Computing an expression on values, and counting what that costs.
//!
//! Errors are values on the way: `false && error` is false, as cel says. Costs are those of Kubernetes: one unit per step,
//! and for what looks at strings and lists one tenth of a unit per character, one per item.

use super::{
    Libraries, functions, library,
    syntax::{Expr, Kind, Literal, Macro, MacroName, dotted},
    types,
    value::{Val, compare, equal},
};
use std::{borrow::Cow, rc::Rc};

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Failed(String),
    /// The budget is used up. No operator hides it.
    #[error("operation cancelled: actual cost limit exceeded")]
    OutOfBudget,
}

impl Error {
    pub fn failed(text: impl Into<String>) -> Error {
        Error::Failed(text.into())
    }
}

pub type Outcome<'a> = Result<Val<'a>, Error>;

/// The names that an expression may use.
#[derive(Clone, Default)]
pub struct Variables<'a>(Vec<(&'a str, Val<'a>)>);

impl<'a> Variables<'a> {
    pub fn new() -> Variables<'a> {
        Variables(Vec::new())
    }
    pub fn with(mut self, name: &'a str, value: Val<'a>) -> Variables<'a> {
        self.0.push((name, value));
        self
    }
    fn find(&self, name: &str) -> Option<&Val<'a>> {
        self.0.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

/// Computes `tree`; see [`super::Program::run`].
pub fn run<'a>(tree: &'a Expr, variables: &Variables<'a>, budget: &mut u64) -> Outcome<'a> {
    let mut machine = Machine { variables: variables.clone(), budget };
    machine.value(tree)
}

struct Machine<'a, 'b> {
    variables: Variables<'a>,
    budget: &'b mut u64,
}

/// What a look at a text or list costs.
pub fn tenth(weight: u64) -> u64 {
    weight.div_ceil(10)
}

impl<'a> Machine<'a, '_> {
    fn pay(&mut self, cost: u64) -> Result<(), Error> {
        match self.budget.checked_sub(cost) {
            Some(rest) => {
                *self.budget = rest;
                Ok(())
            }
            None => {
                *self.budget = 0;
                Err(Error::OutOfBudget)
            }
        }
    }

    fn value(&mut self, expr: &'a Expr) -> Outcome<'a> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(match literal {
                Literal::Null => Val::Null,
                Literal::Bool(flag) => Val::Bool(*flag),
                Literal::Int(number) => Val::Int(*number),
                Literal::Uint(number) => Val::Uint(*number),
                Literal::Double(number) => Val::Double(*number),
                Literal::String(text) => Val::string(text.as_str()),
                Literal::Bytes(bytes) => Val::Bytes(bytes.as_slice().into()),
            }),
            Kind::Ident(name) => {
                self.pay(1)?;
                match self.variables.find(name) {
                    Some(value) => Ok(value.clone()),
                    None => type_value(name).ok_or_else(|| Error::failed(format!("no such attribute(s): {name}"))),
                }
            }
            Kind::Select { operand, field, test, optional } => self.select(expr, operand, field, *test, *optional),
            Kind::Call { target, function, args } => self.call(target.as_deref(), function, args),
            Kind::List(items) => {
                self.pay(10)?;
                let mut list = Vec::with_capacity(items.len());
                for (item, optional) in items {
                    match (self.value(item)?, optional) {
                        (Val::Optional(None), true) => {}
                        (Val::Optional(Some(value)), true) => list.push((*value).clone()),
                        (value, _) => list.push(value),
                    }
                }
                Ok(Val::list(list))
            }
            Kind::Map(entries) => {
                self.pay(30)?;
                let mut map: Vec<(Val<'a>, Val<'a>)> = Vec::with_capacity(entries.len());
                for (key, value, optional) in entries {
                    let key = self.value(key)?;
                    let value = match (self.value(value)?, optional) {
                        (Val::Optional(None), true) => continue,
                        (Val::Optional(Some(value)), true) => (*value).clone(),
                        (value, _) => value,
                    };
                    if map.iter().any(|(known, _)| equal(known, &key)) {
                        return Err(Error::failed("Failed with repeated key"));
                    }
                    map.push((key, value));
                }
                Ok(Val::Map(Rc::new(map)))
            }
            Kind::Struct(_, fields) => {
                self.pay(40)?;
                let mut map = Vec::with_capacity(fields.len());
                for (name, value, optional) in fields {
                    let value = match (self.value(value)?, optional) {
                        (Val::Optional(None), true) => continue,
                        (Val::Optional(Some(value)), true) => (*value).clone(),
                        (value, _) => value,
                    };
                    map.push((Val::String(Cow::Owned(types::unescape(name))), value));
                }
                Ok(Val::Map(Rc::new(map)))
            }
            Kind::Macro(m) => self.macro_(m),
        }
    }

    fn select(&mut self, expr: &'a Expr, operand: &'a Expr, field: &'a str, test: bool, optional: bool) -> Outcome<'a> {
        self.pay(1)?;
        if let Some(name) = dotted(expr)
            && let Some(value) = self.variables.find(&name)
        {
            return Ok(value.clone());
        }
        if let Some(name) = dotted(expr)
            && super::checker::named_type(&name).is_some()
            && self.variables.find(name.split('.').next().unwrap_or_default()).is_none()
        {
            return Ok(Val::Type(Cow::Owned(name)));
        }
        let value = self.value(operand)?;
        let (value, wrapped) = match value {
            Val::Optional(None) if test => return Ok(Val::Bool(false)),
            Val::Optional(None) => return Ok(Val::Optional(None)),
            Val::Optional(Some(value)) => ((*value).clone(), true),
            value => (value, optional),
        };
        let found = match &value {
            Val::Map(_) | Val::JsonMap(..) => {
                let name = types::unescape(field);
                value.entry(&Val::string(name.as_str())).or_else(|| (name != *field).then(|| value.entry(&Val::string(field))).flatten())
            }
            Val::List(_) | Val::JsonList(..) => return Err(Error::failed("unsupported index type 'string' in list")),
            // What has no members has not this one.
            _ => None,
        };
        if let (Some(Val::Failed(why)), false) = (&found, test) {
            return Err(Error::failed(why.to_string()));
        }
        match (found, test, wrapped) {
            (found, true, _) => Ok(Val::Bool(found.is_some())),
            (Some(found), false, true) => Ok(Val::some(found)),
            (None, false, true) => Ok(Val::Optional(None)),
            (Some(found), false, false) => Ok(found),
            (None, false, false) => Err(Error::failed(format!("no such key: {field}"))),
        }
    }

    fn bool(&mut self, expr: &'a Expr) -> Result<bool, Error> {
        match self.value(expr)? {
            Val::Bool(flag) => Ok(flag),
            other => Err(Error::failed(format!("no such overload: {} is no bool", other.type_name()))),
        }
    }

    fn call(&mut self, target: Option<&'a Expr>, function: &'a str, args: &'a [Expr]) -> Outcome<'a> {
        match (function, args) {
            ("_&&_" | "_||_", [left, right]) => {
                let decides = function == "_||_";
                self.pay(1)?;
                return match self.bool(left) {
                    Ok(flag) if flag == decides => Ok(Val::Bool(decides)),
                    Ok(_) => self.bool(right).map(Val::Bool),
                    Err(Error::OutOfBudget) => Err(Error::OutOfBudget),
                    Err(error) => match self.bool(right) {
                        Ok(flag) if flag == decides => Ok(Val::Bool(decides)),
                        Err(Error::OutOfBudget) => Err(Error::OutOfBudget),
                        _ => Err(error),
                    },
                };
            }
            ("_?_:_", [condition, yes, no]) => {
                self.pay(1)?;
                return if self.bool(condition)? { self.value(yes) } else { self.value(no) };
            }
            _ => {}
        }
        let qualified = target
            .and_then(dotted)
            .filter(|prefix| self.variables.find(prefix.split('.').next().unwrap_or_default()).is_none())
            .map(|prefix| format!("{prefix}.{function}"))
            .filter(|name| functions::is_function(name, Libraries { mutation: true, ..Libraries::default() }));
        let mut values = Vec::with_capacity(args.len() + 1);
        if let (Some(target), None) = (target, &qualified) {
            values.push(self.value(target)?);
        }
        for arg in args {
            values.push(self.value(arg)?);
        }
        let name = qualified.as_deref().unwrap_or(function);
        self.pay(1 + library::cost(name, &values))?;
        let result = library::call(name, values)?;
        // What was made is paid by its size, so that nothing can grow without bound.
        self.pay(library::cost_of_result(name, &result))?;
        Ok(result)
    }

    fn macro_(&mut self, m: &'a Macro) -> Outcome<'a> {
        let depth = self.variables.0.len();
        match m.name {
            MacroName::Bind => {
                let bound = self.value(&m.range)?;
                self.pay(1)?;
                self.variables.0.push((&m.variable, bound));
                let result = self.value(&m.body);
                self.variables.0.truncate(depth);
                return result;
            }
            MacroName::OptMap | MacroName::OptFlatMap => {
                let Val::Optional(inner) = self.value(&m.range)? else { return Err(Error::failed("no such overload: optMap")) };
                let Some(inner) = inner else { return Ok(Val::Optional(None)) };
                self.variables.0.push((&m.variable, (*inner).clone()));
                let result = self.value(&m.body);
                self.variables.0.truncate(depth);
                return if m.name == MacroName::OptMap { result.map(Val::some) } else { result };
            }
            _ => {}
        }
        let range = self.value(&m.range)?;
        let result = self.fold(m, &range);
        self.variables.0.truncate(depth);
        result
    }

    fn fold(&mut self, m: &'a Macro, range: &Val<'a>) -> Outcome<'a> {
        let pairs: Box<dyn Iterator<Item = (Val<'a>, Val<'a>)>> = match range {
            Val::List(_) | Val::JsonList(..) => {
                let (range, size) = (range.clone(), range.size().unwrap_or(0));
                Box::new((0..size).filter_map(move |i| Some((Val::Int(i as i64), range.item(i)?))))
            }
            Val::Map(_) | Val::JsonMap(..) => Box::new(range.entries().unwrap_or_default().into_iter()),
            other => return Err(Error::failed(format!("no such overload: range of {}", other.type_name()))),
        };
        let is_map = matches!(range, Val::Map(_) | Val::JsonMap(..));
        let depth = self.variables.0.len();
        let (mut list, mut map, mut found, mut error) = (vec![], vec![], 0, None);
        for (first, second) in pairs {
            // A step of the loop: the condition, and its accumulator.
            self.pay(2)?;
            self.variables.0.truncate(depth);
            let key = first.clone();
            match &m.second {
                Some(name) => {
                    self.variables.0.push((&m.variable, first.clone()));
                    self.variables.0.push((name, second.clone()));
                }
                None => self.variables.0.push((&m.variable, if is_map { first.clone() } else { second.clone() })),
            }
            if let Some(filter) = &m.filter
                && !self.bool(filter)?
            {
                continue;
            }
            match m.name {
                MacroName::All | MacroName::Exists => {
                    let decides = m.name == MacroName::Exists;
                    match self.bool(&m.body) {
                        Ok(flag) if flag == decides => return Ok(Val::Bool(decides)),
                        Ok(_) => {}
                        Err(Error::OutOfBudget) => return Err(Error::OutOfBudget),
                        Err(why) => error = Some(error.unwrap_or(why)),
                    }
                }
                MacroName::ExistsOne => found += usize::from(self.bool(&m.body)?),
                MacroName::Filter => {
                    if self.bool(&m.body)? {
                        self.pay(1)?;
                        list.push(if is_map { first } else { second });
                    }
                }
                MacroName::Map | MacroName::TransformList => {
                    let item = self.value(&m.body)?;
                    self.pay(11)?;
                    list.push(item);
                }
                MacroName::SortBy => {
                    let by = self.value(&m.body)?;
                    self.pay(11)?;
                    map.push((by, second));
                }
                MacroName::TransformMap => {
                    let value = self.value(&m.body)?;
                    self.pay(31)?;
                    map.push((key, value));
                }
                MacroName::TransformMapEntry => {
                    let entry = self.value(&m.body)?;
                    self.pay(31)?;
                    map.extend(entry.entries().ok_or_else(|| Error::failed("no such overload: transformMapEntry"))?);
                }
                MacroName::Bind | MacroName::OptMap | MacroName::OptFlatMap => {}
            }
        }
        match (m.name, error) {
            (_, Some(error)) => Err(error),
            (MacroName::All, None) => Ok(Val::Bool(true)),
            (MacroName::Exists, None) => Ok(Val::Bool(false)),
            (MacroName::ExistsOne, None) => Ok(Val::Bool(found == 1)),
            (MacroName::SortBy, None) => sorted_by(map),
            (MacroName::TransformMap | MacroName::TransformMapEntry, None) => Ok(Val::Map(Rc::new(map))),
            _ => Ok(Val::list(list)),
        }
    }
}

/// Values in the order of what they are sorted by, which must be of one type that has an order.
fn sorted_by<'a>(mut pairs: Vec<(Val<'a>, Val<'a>)>) -> Outcome<'a> {
    if let Some((first, _)) = pairs.first() {
        let type_name = first.type_name().into_owned();
        if pairs.iter().any(|(by, _)| by.type_name() != type_name.as_str() || compare(by, by).is_none()) {
            return Err(Error::failed("list elements must be comparable and of the same type"));
        }
    }
    pairs.sort_by(|(a, _), (b, _)| compare(a, b).unwrap_or(std::cmp::Ordering::Equal));
    Ok(Val::list(pairs.into_iter().map(|(_, value)| value).collect()))
}

/// The value of a type's name.
fn type_value<'a>(name: &str) -> Option<Val<'a>> {
    let known = ["bool", "int", "uint", "double", "string", "bytes", "null_type", "list", "map", "type", "optional_type"];
    known.iter().find(|known| **known == name).map(|known| Val::Type(Cow::Borrowed(known)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Value,
        cel::{Program, Type},
    };
    use serde_json::json;

    fn compute(source: &str, this: &Value) -> Result<Value, String> {
        let program = Program::compile(source, &[("self", Type::Dyn)])?;
        let mut budget = 100_000;
        let variables = Variables::new().with("self", Val::json(this, None));
        let found = program.run(&variables, &mut budget).map_err(|error| error.to_string())?;
        found.to_json().ok_or_else(|| found.type_name().into_owned())
    }

    #[test]
    fn expressions_are_computed() {
        let this = json!({"s": "abc", "n": 3, "l": ["x", "y"], "m": {"a": 1, "b": 2}, "f": 1.5, "a.b": 1, "z": null});
        for (source, wanted) in [
            ("self.n + 1 == 4 && self.s.startsWith('a')", json!(true)),
            ("self.l.map(x, x + '!')", json!(["x!", "y!"])),
            ("self.l.filter(x, x != 'x')", json!(["y"])),
            ("self.m.all(k, self.m[k] > 0)", json!(true)),
            ("self.m.exists(k, v, k == 'b' && v == 2)", json!(true)),
            ("self.l.exists_one(x, x == 'x')", json!(true)),
            ("has(self.q) || self.a__dot__b == 1", json!(true)),
            ("self.?q.orValue('none')", json!("none")),
            ("self.l[?5].hasValue()", json!(false)),
            ("[1, 2, 3].sum() + size(self.l)", json!(8)),
            ("'a,b,c'.split(',').size()", json!(3)),
            ("'%s is %d'.format([self.s, self.n])", json!("abc is 3")),
            ("type(self.f) == double", json!(true)),
            ("duration('90s').getMinutes()", json!(1)),
            ("timestamp('2024-02-03T04:05:06Z').getFullYear()", json!(2024)),
            ("quantity('1Gi').isGreaterThan(quantity('500Mi'))", json!(true)),
            ("url('https://h:8/p?q=1').getPort()", json!("8")),
            ("isIP('::1') && ip('::1').isLoopback()", json!(true)),
            ("cidr('10.0.0.0/8').containsIP('10.1.2.3')", json!(true)),
            ("[{'a': 2}, {'a': 1}].sortBy(e, e.a).map(e, e.a)", json!([1, 2])),
            ("false && self.q > 1", json!(false)),
            ("self.q > 1 || true", json!(true)),
            ("int('5') + int(2.9)", json!(7)),
            ("string(5) + string(true) + string(1.5)", json!("5true1.5")),
            ("{'a': 1}.a", json!(1)),
            ("self.s.matches('^[a-c]+$')", json!(true)),
            ("semver('1.2.3').isLessThan(semver('1.10.0'))", json!(true)),
            ("format.dns1123Label().validate('A').hasValue()", json!(true)),
            ("optional.unwrap([optional.of(1), optional.none()]) == [optional.of(1)].unwrapOpt()", json!(true)),
            ("[[1], [2, 3]].flatten().size()", json!(3)),
            ("self.l.transformList(i, v, string(i) + v)", json!(["0x", "1y"])),
            ("1 == 1.0 && 1u == 1", json!(true)),
        ] {
            if source == "1 == 1.0 && 1u == 1" {
                // The checker refuses what is surely of different types.
                assert!(compute(source, &this).is_err());
                continue;
            }
            assert_eq!(compute(source, &this), Ok(wanted), "{source}");
        }
    }

    #[test]
    fn errors_are_values() {
        for (source, why) in [
            ("self.q", "no such key: q"),
            ("1 / 0", "division by zero"),
            ("9223372036854775807 + 1", "integer overflow"),
            ("[1][5]", "index out of bounds: 5"),
            ("int('x')", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ] {
            assert_eq!(compute(source, &json!({})), Err(why.to_string()), "{source}");
        }
    }

    #[test]
    fn the_budget_ends_everything() {
        let this = json!({"l": (0..200).collect::<Vec<_>>()});
        let heavy = "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c >= 0)))";
        assert_eq!(compute(heavy, &this), Err(Error::OutOfBudget.to_string()));
        let wide = "[1, 2].map(x, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'.replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa').size())";
        assert!(compute(wide, &this).is_err());
    }
}
