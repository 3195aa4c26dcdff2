//! Of what type an expression is, and what is wrong with it, in cel-go's words.

use super::{
    Libraries,
    functions::{self, Signature},
    syntax::{Expr, Kind, Literal, Macro, MacroName, Problem, dotted},
    types::Type,
};
use std::collections::{HashMap, HashSet};

/// Complaints about one expression; more are left out.
const PROBLEMS_MAX: usize = 20;

/// What a check has found out about an expression.
#[derive(Debug, Default)]
pub struct Checked {
    /// The type of each node, by its number.
    types: Vec<Type>,
    /// The ways in which a function may be called, by the number of the call.
    calls: HashMap<usize, Vec<&'static Signature>>,
    /// The variables that it speaks of.
    variables: HashSet<String>,
}

impl Checked {
    pub fn type_of(&self, expr: &Expr) -> Type {
        self.types.get(expr.id).cloned().unwrap_or(Type::Dyn)
    }
    /// The ways in which the function of a call may be called. None for a call that is none of a function.
    pub fn signatures(&self, call: &Expr) -> &[&'static Signature] {
        self.calls.get(&call.id).map(Vec::as_slice).unwrap_or_default()
    }
    pub fn mentions(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }
}

/// Checks an expression that may use `variables`. Complaints come in the order of their places.
pub fn check(tree: &Expr, variables: &[(&str, Type)], libraries: Libraries) -> Result<Checked, Vec<Problem>> {
    let scope: Vec<(String, Type)> = variables.iter().map(|(name, type_)| (name.to_string(), type_.clone())).collect();
    let mut checker = Checker { given: scope.len(), scope, libraries, problems: vec![], found: Checked::default() };
    checker.type_of(tree);
    checker.problems.sort_by_key(|problem| problem.at);
    if checker.problems.is_empty() { Ok(checker.found) } else { Err(checker.problems) }
}

struct Checker {
    scope: Vec<(String, Type)>,
    /// How many of the names in scope are variables of the environment.
    given: usize,
    libraries: Libraries,
    problems: Vec<Problem>,
    found: Checked,
}

/// What parameters of a signature stand for in one call.
type Bound = HashMap<char, Type>;

fn is_dyn(type_: &Type) -> bool {
    matches!(type_, Type::Dyn | Type::Error | Type::Param(_))
}

/// Whether a value of type `is` may stand where `wanted` is; binds parameters.
fn fits(wanted: &Type, is: &Type, bound: &mut Bound) -> bool {
    match (wanted, is) {
        (Type::Param(name), _) => match bound.get(name).cloned() {
            None => {
                bound.insert(*name, is.clone());
                true
            }
            Some(known) if is_dyn(&known) => {
                bound.insert(*name, Type::Dyn);
                true
            }
            Some(known) => {
                if fits(&known, is, bound) {
                    return true;
                }
                // The wider of the two.
                let widened = fits(is, &known, bound);
                if widened {
                    bound.insert(*name, is.clone());
                }
                widened
            }
        },
        (wanted, is) if is_dyn(wanted) || is_dyn(is) => true,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => fits(a, b, bound),
        // Types are compared with types, whatever they are types of.
        (Type::Kind(_), Type::Kind(_)) => true,
        (Type::Map(a, b), Type::Map(c, d)) => fits(a, c, bound) && fits(b, d, bound),
        (Type::Object(_) | Type::Opaque(_) | Type::Timestamp | Type::Duration, Type::Null) => true,
        (Type::Null, Type::Object(_) | Type::Opaque(_) | Type::Timestamp | Type::Duration) => true,
        (wanted, is) => wanted == is,
    }
}

fn resolve(type_: &Type, bound: &Bound) -> Type {
    match type_ {
        Type::Param(name) => bound.get(name).cloned().unwrap_or(Type::Dyn),
        Type::List(items) => Type::List(Box::new(resolve(items, bound))),
        Type::Optional(of) => Type::Optional(Box::new(resolve(of, bound))),
        Type::Kind(of) => Type::Kind(Box::new(resolve(of, bound))),
        Type::Map(keys, values) => Type::Map(Box::new(resolve(keys, bound)), Box::new(resolve(values, bound))),
        other => other.clone(),
    }
}

/// The type of items that may be of both types; `None` if there is none: what is written in one list or map is of one type.
fn joined(a: &Type, b: &Type) -> Option<Type> {
    match (a, b) {
        (a, b) if a == b => Some(a.clone()),
        (Type::Param(_), other) | (other, Type::Param(_)) => Some(other.clone()),
        (a, b) if is_dyn(a) || is_dyn(b) => Some(Type::Dyn),
        (a, b) => fits(a, b, &mut Bound::new()).then(|| a.clone()),
    }
}

impl Checker {
    fn problem(&mut self, at: usize, message: String) -> Type {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { at, message });
        }
        Type::Error
    }
    fn no_overload(&mut self, at: usize, function: &str, member: bool, types: &[Type]) -> Type {
        let shown = |types: &[Type]| types.iter().map(shown).collect::<Vec<_>>().join(", ");
        let applied = match (member, types.split_first()) {
            (true, Some((receiver, rest))) => format!("{}.({})", self::shown(receiver), shown(rest)),
            _ => format!("({})", shown(types)),
        };
        self.problem(at, format!("found no matching overload for '{function}' applied to '{applied}'"))
    }
    fn undeclared(&mut self, at: usize, name: &str) -> Type {
        self.problem(at, format!("undeclared reference to '{name}' (in container '')"))
    }
    fn variable(&mut self, name: &str) -> Option<Type> {
        let place = self.scope.iter().rposition(|(known, _)| known == name)?;
        if place < self.given && !self.found.variables.contains(name) {
            self.found.variables.insert(name.to_string());
        }
        Some(self.scope[place].1.clone())
    }
    fn is_variable(&self, name: &str) -> bool {
        self.scope.iter().any(|(known, _)| known == name)
    }

    fn type_of(&mut self, expr: &Expr) -> Type {
        let type_ = self.infer(expr);
        if self.found.types.len() <= expr.id {
            self.found.types.resize(expr.id + 1, Type::Dyn);
        }
        self.found.types[expr.id] = type_.clone();
        type_
    }

    fn infer(&mut self, expr: &Expr) -> Type {
        match &expr.kind {
            Kind::Literal(literal) => match literal {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Kind::Ident(name) => self.ident(expr.at, name),
            Kind::Select { operand, field, test, optional } => self.select(expr, operand, field, *test, *optional),
            Kind::Call { target, function, args } => self.call(expr, target.as_deref(), function, args),
            Kind::List(items) => {
                let mut all = None;
                for (item, optional) in items {
                    let type_ = self.item(item, *optional);
                    all = Some(self.join(item.at, all, type_));
                }
                Type::List(Box::new(all.unwrap_or(Type::Param('A'))))
            }
            Kind::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for (key, value, optional) in entries {
                    let (of_key, of_value) = (self.type_of(key), self.item(value, *optional));
                    keys = Some(self.join(key.at, keys, of_key));
                    values = Some(self.join(value.at, values, of_value));
                }
                Type::Map(Box::new(keys.unwrap_or(Type::Param('A'))), Box::new(values.unwrap_or(Type::Param('B'))))
            }
            Kind::Struct(name, fields) => {
                let is_object = name == "Object" || name.starts_with("Object.");
                if !self.libraries.mutation || !(is_object || name == "JSONPatch") {
                    return self.undeclared(expr.at, name);
                }
                for (_, value, _) in fields {
                    self.type_of(value);
                }
                // Which fields an object has is checked where it is applied.
                match name.as_str() {
                    "Object" => Type::Opaque("Object"),
                    "JSONPatch" => Type::Opaque("JSONPatch"),
                    _ => Type::Dyn,
                }
            }
            Kind::Macro(m) => self.macro_(expr.at, m),
        }
    }

    /// The type of what an item adds to its list or map: an optional one what it holds.
    fn item(&mut self, item: &Expr, optional: bool) -> Type {
        match (self.type_of(item), optional) {
            (Type::Optional(of), true) => *of,
            (type_, _) => type_,
        }
    }

    fn join(&mut self, at: usize, known: Option<Type>, next: Type) -> Type {
        let Some(known) = known else { return next };
        joined(&known, &next).unwrap_or_else(|| self.problem(at, format!("expected type '{}' but found '{}'", shown(&known), shown(&next))))
    }

    fn ident(&mut self, at: usize, name: &str) -> Type {
        if let Some(type_) = self.variable(name) {
            return type_;
        }
        let of = match name {
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "null_type" => Type::Null,
            "list" => Type::List(Box::new(Type::Dyn)),
            "map" => Type::Map(Box::new(Type::Dyn), Box::new(Type::Dyn)),
            "type" => Type::Kind(Box::new(Type::Dyn)),
            "optional_type" => Type::Optional(Box::new(Type::Dyn)),
            _ => return self.undeclared(at, name),
        };
        Type::Kind(Box::new(of))
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &str, test: bool, optional: bool) -> Type {
        // Some variables have dots in their names.
        if let Some(name) = dotted(expr)
            && let Some(type_) = self.variable(&name)
        {
            return type_;
        }
        // A name of a type with dots.
        if let Some(name) = dotted(expr)
            && let Some(type_) = named_type(&name)
        {
            return Type::Kind(Box::new(type_));
        }
        let (mut of, mut wrapped) = (self.type_of(operand), optional);
        if let Type::Optional(inner) = of {
            of = *inner;
            wrapped = true;
        }
        let found = match &of {
            Type::Map(_, values) => (**values).clone(),
            Type::Object(fields) => match fields.fields.get(field) {
                Some(type_) => type_.clone(),
                None => return self.problem(expr.at, format!("undefined field '{field}'")),
            },
            other if is_dyn(other) => Type::Dyn,
            other => {
                let message = format!("type '{}' does not support field selection", shown(other));
                return self.problem(expr.at, message);
            }
        };
        match (test, wrapped) {
            (true, _) => Type::Bool,
            (false, true) => Type::Optional(Box::new(found)),
            (false, false) => found,
        }
    }

    fn call(&mut self, expr: &Expr, target: Option<&Expr>, function: &str, args: &[Expr]) -> Type {
        // `sets.contains(a, b)` is a function with a dot, unless `sets` is a variable.
        if let Some(target) = target
            && let Some(prefix) = dotted(target)
            && !self.is_variable(prefix.split('.').next().unwrap_or_default())
        {
            let qualified = format!("{prefix}.{function}");
            if functions::is_function(&qualified, self.libraries) {
                return self.overload(expr, &qualified, None, args);
            }
        }
        self.overload(expr, function, target, args)
    }

    fn overload(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Type {
        let member = target.is_some();
        let types: Vec<Type> = target.into_iter().chain(args).map(|arg| self.type_of(arg)).collect();
        let Some(signatures) = functions::signatures(function, self.libraries) else { return self.undeclared(expr.at, function) };
        let mut result: Option<Type> = None;
        let mut ways = vec![];
        for signature in signatures.iter().filter(|signature| signature.member == member && signature.args.len() == types.len()) {
            let mut bound = Bound::new();
            if signature.args.iter().zip(&types).all(|(wanted, is)| fits(wanted, is, &mut bound)) {
                let found = resolve(&signature.result, &bound);
                // Several ways to call with values of unknown types have results of unknown types, unless they agree.
                result = Some(match result {
                    None => found,
                    Some(known) if known == found => known,
                    Some(_) => Type::Dyn,
                });
                ways.push(signature);
            }
        }
        self.found.calls.insert(expr.id, ways);
        result.unwrap_or_else(|| self.no_overload(expr.at, function, member, &types))
    }

    fn macro_(&mut self, at: usize, m: &Macro) -> Type {
        let range = self.type_of(&m.range);
        let depth = self.scope.len();
        match m.name {
            MacroName::Bind => {
                self.scope.push((m.variable.clone(), range));
                let type_ = self.type_of(&m.body);
                self.scope.truncate(depth);
                return type_;
            }
            MacroName::OptMap | MacroName::OptFlatMap => {
                let inner = match range {
                    Type::Optional(inner) => *inner,
                    other if is_dyn(&other) => Type::Dyn,
                    other => {
                        self.no_overload(at, "hasValue", true, std::slice::from_ref(&other));
                        self.no_overload(at, "value", true, &[other])
                    }
                };
                self.scope.push((m.variable.clone(), inner));
                let type_ = self.type_of(&m.body);
                self.scope.truncate(depth);
                return match (m.name, type_) {
                    (MacroName::OptMap, type_) => Type::Optional(Box::new(type_)),
                    (_, type_ @ Type::Optional(_)) => type_,
                    (_, type_) if is_dyn(&type_) => type_,
                    (_, type_) => self.no_overload(at, "_?_:_", false, &[Type::Bool, type_, Type::Optional(Box::new(Type::Dyn))]),
                };
            }
            _ => {}
        }
        let (first, second) = match &range {
            Type::List(items) => ((**items).clone(), (**items).clone()),
            Type::Map(keys, values) => ((**keys).clone(), (**values).clone()),
            other if is_dyn(other) => (Type::Dyn, Type::Dyn),
            other => {
                let message = format!("expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)", shown(other));
                self.problem(m.range.at, message);
                (Type::Error, Type::Error)
            }
        };
        match &m.second {
            Some(name) => {
                let index = if matches!(range, Type::List(_)) { Type::Int } else { first };
                self.scope.push((m.variable.clone(), index));
                self.scope.push((name.clone(), second));
            }
            None => self.scope.push((m.variable.clone(), first.clone())),
        }
        let filter = m.filter.as_ref().map(|filter| self.type_of(filter));
        let body = self.type_of(&m.body);
        let variable = self.scope[depth].1.clone();
        self.scope.truncate(depth);
        self.folded(at, m.name, &range, variable, filter, body)
    }

    /// The type of what a loop makes, whose steps are calls that nobody wrote: who is told of them is told of the macro's place.
    fn folded(&mut self, at: usize, name: MacroName, range: &Type, variable: Type, filter: Option<Type>, body: Type) -> Type {
        let is_bool = |type_: &Type| *type_ == Type::Bool || is_dyn(type_);
        let list = |items: Type| Type::List(Box::new(items));
        let (condition, result) = match name {
            MacroName::All | MacroName::Exists => {
                if !is_bool(&body) {
                    self.no_overload(at, if name == MacroName::All { "_&&_" } else { "_||_" }, false, &[Type::Bool, body]);
                }
                return Type::Bool;
            }
            MacroName::ExistsOne => {
                if !is_bool(&body) {
                    self.no_overload(at, "_?_:_", false, &[body, Type::Int, Type::Int]);
                }
                return Type::Bool;
            }
            MacroName::SortBy => {
                let keyed = functions::has_order(&body) || is_dyn(&body);
                if !keyed || !(matches!(range, Type::List(_)) || is_dyn(range)) {
                    return self.no_overload(at, "@sortByAssociatedKeys", true, &[range.clone(), list(body)]);
                }
                return range.clone();
            }
            MacroName::Filter => (Some(body), list(variable)),
            MacroName::Map | MacroName::TransformList => (filter, list(body)),
            MacroName::TransformMap => (filter, Type::Map(Box::new(variable), Box::new(body))),
            _ => match body {
                Type::Map(..) => (filter, body),
                body if is_dyn(&body) => (filter, Type::Map(Box::new(Type::Dyn), Box::new(Type::Dyn))),
                body => {
                    let all = Type::Map(Box::new(Type::Dyn), Box::new(Type::Dyn));
                    return self.no_overload(at, "cel.@mapInsert", false, &[all, body]);
                }
            },
        };
        match condition.filter(|condition| !is_bool(condition)) {
            Some(condition) => self.no_overload(at, "_?_:_", false, &[condition, result.clone(), result]),
            None => result,
        }
    }
}

/// A type in complaints. What is not known yet has no name there.
pub(super) fn shown(type_: &Type) -> String {
    match type_ {
        Type::Param(_) => "dyn".into(),
        Type::Timestamp => "timestamp".into(),
        Type::Duration => "duration".into(),
        Type::Optional(of) => format!("optional_type({})", shown(of)),
        Type::Kind(of) => format!("type({})", shown(of)),
        Type::List(items) => format!("list({})", shown(items)),
        Type::Map(keys, values) => format!("map({}, {})", shown(keys), shown(values)),
        other => other.to_string(),
    }
}

/// Types whose names have dots.
pub fn named_type(name: &str) -> Option<Type> {
    Some(match name {
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        "kubernetes.Quantity" => Type::Opaque("kubernetes.Quantity"),
        "kubernetes.URL" => Type::Opaque("kubernetes.URL"),
        "kubernetes.Semver" => Type::Opaque("kubernetes.Semver"),
        "net.IP" => Type::Opaque("net.IP"),
        "net.CIDR" => Type::Opaque("net.CIDR"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::{syntax, types::Fields};
    use std::sync::Arc;

    fn complaint(source: &str) -> Result<String, String> {
        let fields = [("s", Type::String), ("n", Type::Int), ("l", Type::List(Box::new(Type::String))), ("d", Type::Dyn)];
        let object = Type::Object(Arc::new(Fields { name: "object".into(), fields: fields.map(|(name, type_)| (name.to_string(), type_)).into() }));
        let tree = syntax::parse(source).unwrap();
        let checked = check(&tree, &[("self", object)], Libraries::default());
        checked.map(|checked| checked.type_of(&tree).to_string()).map_err(|problems| problems[0].message.clone())
    }

    #[test]
    fn types_are_found() {
        for (source, type_) in [
            ("self.n + 1", "int"),
            ("self.l.map(x, x.size())", "list(int)"),
            ("self.l.all(i, x, i > 0 && x != '')", "bool"),
            ("self.d.whatever == 1", "bool"),
            ("quantity('1').add(quantity('2')).isGreaterThan(quantity('1'))", "bool"),
            ("self.?s.orValue('x')", "string"),
            ("{'a': 1}['a']", "int"),
            ("type(self.d) == int ? 'a' : 'b'", "string"),
            ("sets.contains(self.l, ['a'])", "bool"),
            ("[] == self.l", "bool"),
            ("has(self.s)", "bool"),
            ("self.d + 1 > 2", "bool"),
            ("optional.none().hasValue()", "bool"),
        ] {
            assert_eq!(complaint(source), Ok(type_.to_string()), "{source}");
        }
    }

    #[test]
    fn what_an_environment_does_not_have_is_unknown() {
        let found = |source: &str, libraries: Libraries| {
            let tree = syntax::parse_with(source, libraries).unwrap();
            let problems = check(&tree, &[("self", Type::String)], libraries).err().unwrap_or_default();
            problems.into_iter().map(|problem| problem.message.split('\'').nth(1).unwrap_or_default().to_string()).collect::<Vec<_>>()
        };
        let common = Libraries::default();
        for (source, unknown) in [
            ("base64.encode(b'x') == 'x'", vec!["base64", "encode"]),
            ("math.greatest(1, 2) > 1", vec!["math", "greatest"]),
            ("math.abs(-1) == 1", vec!["math", "abs"]),
            ("cel.bind(x, 1, x > 0)", vec!["cel", "bind", "x", "x"]),
            ("jsonpatch.escapeKey('a/b') == 'a'", vec!["jsonpatch", "escapeKey"]),
            ("Object{a: 1} != null", vec!["Object"]),
            ("optional.of(1).orOptional(optional.none()).hasValue()", vec!["orOptional"]),
        ] {
            assert_eq!(found(source, common), unknown, "{source}");
        }
        assert_eq!(found("self.reverse() == ''", common), ["reverse"]);
        assert_eq!(found("cel.bind(x, 1, x > 0)", Libraries { bindings: true, ..common }), [] as [&str; 0]);
        assert_eq!(found("Object{a: jsonpatch.escapeKey('a/b')} != null", Libraries { mutation: true, ..common }), [] as [&str; 0]);
        for source in [
            "[3, 1].sort() == [1, 3] && [1, 1].distinct() == [1] && lists.range(3).reverse().slice(0, 1) == [2]",
            "[[1], [2]].flatten() == [1, 2] && [1].first().value() == 1 && optional.unwrap([optional.of(1)]) == [1]",
            "'%s'.format([self]) == strings.quote(self) && self.charAt(0).lowerAscii() == ''",
            "isSemver(self, true) && semver('v1', true).major() == 1",
            "authorizer == null || true",
        ] {
            assert_eq!(found(source, common), if source.starts_with("auth") { vec!["authorizer"] } else { vec![] }, "{source}");
        }
    }

    #[test]
    fn complaints_are_those_of_cel_go() {
        for (source, message) in [
            ("this", "undeclared reference to 'this' (in container '')"),
            ("self.z", "undefined field 'z'"),
            ("self.n == 'a'", "found no matching overload for '_==_' applied to '(int, string)'"),
            ("foo(self)", "undeclared reference to 'foo' (in container '')"),
            ("[1, 'a']", "expected type 'int' but found 'string'"),
            ("{'a': 1, 'b': ['c']}", "expected type 'int' but found 'list(string)'"),
            ("self.s.startsWith(1)", "found no matching overload for 'startsWith' applied to 'string.(int)'"),
            ("self.n.x", "type 'int' does not support field selection"),
            ("self.n.all(x, true)", "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)"),
            ("self.l.all(x, x)", "found no matching overload for '_&&_' applied to '(bool, string)'"),
            ("self.l.exists(x, size(x))", "found no matching overload for '_||_' applied to '(bool, int)'"),
            ("self.l.exists_one(x, x)", "found no matching overload for '_?_:_' applied to '(string, int, int)'"),
            ("self.l.filter(x, x)", "found no matching overload for '_?_:_' applied to '(string, list(string), list(string))'"),
            ("self.l.map(x, x, size(x))", "found no matching overload for '_?_:_' applied to '(string, list(int), list(int))'"),
            ("self.l.sortBy(x, [x])", "found no matching overload for '@sortByAssociatedKeys' applied to 'list(string).(list(list(string)))'"),
            ("self.s.optMap(x, x)", "found no matching overload for 'hasValue' applied to 'string.()'"),
            ("duration('1s') + 1", "found no matching overload for '_+_' applied to '(duration, int)'"),
            ("nobody.startsWith(1)", "undeclared reference to 'nobody' (in container '')"),
        ] {
            assert_eq!(complaint(source), Err(message.to_string()), "{source}");
        }
    }
}
