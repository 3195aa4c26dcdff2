//! Literals that can be seen to be wrong: durations, times, patterns and arguments that a program would only fail on when it runs, and lists
//! whose items are of different types.

use super::{
    checker::{Checked, shown},
    library::{
        self,
        format::{Clause, Fault, fill},
    },
    syntax::{Expr, Kind, Literal, Problem},
    types::Type,
};
use crate::custom::{formats, pattern};

/// What is wrong with the literals of an expression that has been checked, in the order of their places.
pub fn wrong(tree: &Expr, checked: &Checked) -> Vec<Problem> {
    let mut search = Search { checked, problems: vec![] };
    search.walk(tree, false);
    search.problems.sort_by_key(|problem| problem.at);
    search.problems
}

struct Search<'a> {
    checked: &'a Checked,
    problems: Vec<Problem>,
}

impl Search<'_> {
    fn problem(&mut self, at: usize, message: String) {
        self.problems.push(Problem { at, message });
    }

    /// `is_mixed`: within what is formatted, where lists may hold anything.
    fn walk(&mut self, expr: &Expr, is_mixed: bool) {
        match &expr.kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => self.walk(operand, is_mixed),
            Kind::List(items) => {
                if !is_mixed {
                    self.alike(items.iter().map(|(item, optional)| (item, *optional)), true);
                }
                items.iter().for_each(|(item, _)| self.walk(item, is_mixed));
            }
            Kind::Map(entries) => {
                if !is_mixed {
                    self.alike(entries.iter().map(|(key, ..)| (key, false)), false);
                    self.alike(entries.iter().map(|(_, value, optional)| (value, *optional)), false);
                }
                for (key, value, _) in entries {
                    self.walk(key, is_mixed);
                    self.walk(value, is_mixed);
                }
            }
            Kind::Struct(_, fields) => fields.iter().for_each(|(_, value, _)| self.walk(value, is_mixed)),
            Kind::Macro(m) => [&m.range, &m.body].into_iter().chain(&m.filter).for_each(|expr| self.walk(expr, is_mixed)),
            Kind::Call { target, function, args } => {
                let is_mixed = is_mixed || function == "format";
                target.iter().for_each(|target| self.walk(target, is_mixed));
                args.iter().for_each(|arg| self.walk(arg, is_mixed));
                self.call(expr, target.as_deref(), function, args);
            }
        }
    }

    fn call(&mut self, call: &Expr, target: Option<&Expr>, function: &str, args: &[Expr]) {
        if let (Some(Kind::Literal(Literal::String(pattern))), "format", [Expr { kind: Kind::List(items), .. }]) =
            (target.map(|target| &target.kind), function, args)
        {
            let items: Vec<&Expr> = items.iter().map(|(item, _)| item).collect();
            let at = call.at;
            match fill(pattern, items.len(), |i, clause| self.argument(items[i], clause).map(|()| String::new())) {
                Err(Fault { place, message }) => self.problem(place.unwrap_or(at), message),
                Ok((_, taken)) if taken < items.len() => {
                    let got = items.len();
                    self.problem(at, format!("too many arguments supplied to string.format (expected {taken}, got {got})"));
                }
                Ok(_) => {}
            }
        }
        let Some((Expr { at, kind: Kind::Literal(Literal::String(text)), .. }, _)) = args.split_first() else { return };
        let is_wrong = match function {
            "duration" => formats::go_duration_ns(text).is_none(),
            "timestamp" => library::timestamp(text).is_none(),
            "matches" => pattern::compile(text).is_err(),
            _ => false,
        };
        if is_wrong {
            self.problem(*at, format!("invalid {function} argument"));
        }
    }

    /// Whether an argument can be written as a pattern wants it.
    fn argument(&self, arg: &Expr, clause: Clause) -> Result<(), Fault<usize>> {
        use Type::{Bool, Bytes, Double, Dyn, Int, Kind as TypeOf, List, Map, Null, String, Timestamp, Uint};
        let type_ = self.checked.type_of(arg);
        let fits = match clause {
            Clause::Text => {
                matches!(type_, List(_) | Map(..) | Int | Uint | Double | Bool | String | Timestamp | Bytes | Type::Duration | TypeOf(_) | Null)
            }
            Clause::Decimal | Clause::Octal => matches!(type_, Int | Uint),
            Clause::Fixed(_) | Clause::Scientific(_) => matches!(type_, Double | String),
            Clause::Binary => matches!(type_, Int | Uint | Bool),
            Clause::Hex { .. } => matches!(type_, Int | Uint | String | Bytes),
        };
        if !fits && !matches!(type_, Dyn | Type::Param(_)) {
            return Err(Fault { place: Some(arg.at), message: clause.refusal(&type_name(&type_)) });
        }
        match &arg.kind {
            Kind::List(items) if clause == Clause::Text => items.iter().try_for_each(|(item, _)| self.argument(item, clause)),
            Kind::Map(entries) if clause == Clause::Text => {
                entries.iter().flat_map(|(key, value, _)| [key, value]).try_for_each(|expr| self.argument(expr, clause))
            }
            _ => Ok(()),
        }
    }

    /// Items are of one type, and not just of types that go together.
    fn alike<'e>(&mut self, items: impl Iterator<Item = (&'e Expr, bool)>, once: bool) {
        let mut first: Option<Type> = None;
        for (item, optional) in items {
            let type_ = match self.checked.type_of(item) {
                Type::Optional(of) if optional => *of,
                other => other,
            };
            match &first {
                None => first = Some(type_),
                Some(known) if !is_same(known, &type_) => {
                    self.problem(item.at, format!("expected type '{}' but found '{}'", shown(known), shown(&type_)));
                    if once {
                        return;
                    }
                }
                Some(_) => {}
            }
        }
    }
}

/// A type without what it is made of.
fn type_name(type_: &Type) -> String {
    match type_ {
        Type::List(_) => "list".into(),
        Type::Map(..) => "map".into(),
        Type::Optional(_) => "optional_type".into(),
        Type::Kind(_) => "type".into(),
        Type::Null => "null_type".into(),
        other => other.to_string(),
    }
}

/// What is not known of one type is what the other says: what an empty list or nothing at all is made of.
fn is_same(a: &Type, b: &Type) -> bool {
    let inner = |a: &Type, b: &Type| matches!(a, Type::Dyn) || matches!(b, Type::Dyn) || is_same(a, b);
    match (a, b) {
        (Type::Param(_), _) | (_, Type::Param(_)) => true,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) | (Type::Kind(a), Type::Kind(b)) => inner(a, b),
        (Type::Map(a, b), Type::Map(c, d)) => inner(a, c) && inner(b, d),
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use crate::cel::{Program, Type};

    fn complaints(source: &str) -> Vec<String> {
        let variables = [("s", Type::String), ("n", Type::Int), ("d", Type::Dyn), ("l", Type::List(Box::new(Type::String)))];
        let told = Program::compile(source, &variables).err().unwrap_or_default();
        told.lines().filter_map(|line| line.strip_prefix("ERROR: <input>:")).map(str::to_string).collect()
    }

    #[test]
    fn literals_are_read_before_a_program_runs() {
        for (source, wanted) in [
            ("[duration('1x')].exists(x, timestamp('y') == d)", &["1:11: invalid duration argument", "1:38: invalid timestamp argument"] as &[&str]),
            ("s.matches('(') ? 1 : 2", &["1:11: invalid matches argument"]),
            ("duration('1h') == duration(s) && s.matches('a+') && timestamp('2020-01-01T00:00:00Z') != d", &[]),
        ] {
            let found = complaints(source);
            assert!(found == wanted, "{source}: {found:?}");
        }
    }

    #[test]
    fn arguments_are_checked_against_patterns() {
        for (source, wanted) in [
            ("'%s'.format([s])", None),
            ("'%s %d'.format([d, d])", None),
            ("'%s %d'.format([s, d])", None),
            ("'%d'.format([s])", Some("1:14: error during formatting: decimal clause can only be used on integers, was given string")),
            ("'%f'.format([n])", Some("1:14: error during formatting: fixed-point clause can only be used on doubles, was given int")),
            (
                "'%x'.format([l])",
                Some("1:14: error during formatting: only integers, byte buffers, and strings can be formatted as hex, was given list"),
            ),
            ("'%o'.format([null])", Some("1:14: error during formatting: octal clause can only be used on integers, was given null_type")),
            ("'%s'.format([s, s])", Some("1:12: too many arguments supplied to string.format (expected 1, got 2)")),
            ("'%s %s'.format([s])", Some("1:15: index 1 out of range")),
            ("'%E'.format([s])", Some("1:12: could not parse formatting clause: unrecognized formatting clause \"E\"")),
            ("'100%'.format([])", Some("1:14: unexpected end of string")),
            ("s.format([n])", None),
        ] {
            assert_eq!(complaints(source), Vec::from_iter(wanted.map(str::to_string)), "{source}");
        }
    }

    #[test]
    fn items_are_of_one_type() {
        for (source, wanted) in [
            ("[dyn(1), 2]", Some("1:10: expected type 'dyn' but found 'int'")),
            ("[[], [1]]", None),
            ("[optional.none(), optional.of(1)]", None),
            ("[d, d, 1, 's']", Some("1:8: expected type 'dyn' but found 'int'")),
            ("{'a': d, 'b': 1}", Some("1:15: expected type 'dyn' but found 'int'")),
            ("'%s %d'.format([d, 1])", None),
            ("[dyn([1]), [1]]", Some("1:12: expected type 'dyn' but found 'list(int)'")),
        ] {
            assert_eq!(complaints(source), Vec::from_iter(wanted.map(str::to_string)), "{source}");
        }
    }
}
