//! Regular expressions that users write: `pattern` of a schema, `matches` and its like in CEL.
//!
//! Kubernetes compiles them with Go's engine, RE2; this is Rust's, which takes more and takes it as it comes. What Go refuses is refused here,
//! in Go's words (<https://pkg.go.dev/regexp/syntax#ErrorCode>).
//!
//! What must stay true: a pattern of any length compiles, or is refused, within [`PATTERN_BYTES_MAX`] and a small stack, since whoever may
//! create a definition or a policy chooses it.

use regex::Regex;
use regex_syntax::ast::{self, Ast, RepetitionKind, RepetitionRange};
use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
};

/// The most bytes that a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// The most groups, repetitions and classes that stand in each other. The engine compiles them by recursion.
const DEPTH_MAX: u32 = 100;
/// The highest count of a repetition (RE2).
const REPEAT_MAX: u32 = 1_000;
/// Patterns that stay compiled for those who come with the text alone.
const COMPILED_MAX: usize = 32;

static COMPILED: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);

/// Compiles a pattern. The error is text in Go's words where ours and Go's engine agree on what is wrong.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let complaint = |what: String| format!("error parsing regexp: {what}");
    let parsed = ast::parse::ParserBuilder::new().nest_limit(DEPTH_MAX).build().parse(pattern);
    let tree = parsed.map_err(|error| complaint(syntax(pattern, error.kind())))?;
    ast::visit(&tree, Repetitions { pattern }).map_err(complaint)?;
    regex::RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).nest_limit(DEPTH_MAX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => complaint("expression too large".to_string()),
        _ => complaint(format!("invalid regular expression: `{pattern}`")),
    })
}

/// The same for who has only the text, each time again: a program that looks at each item of a list.
pub fn compiled(pattern: &str) -> Result<Regex, String> {
    let kept = || COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(regex) = kept().get(pattern) {
        return Ok(regex.clone());
    }
    let regex = compile(pattern)?;
    let mut kept = kept();
    if kept.len() >= COMPILED_MAX {
        kept.clear();
    }
    kept.insert(pattern.to_string(), regex.clone());
    Ok(regex)
}

fn syntax(pattern: &str, kind: &ast::ErrorKind) -> String {
    use ast::ErrorKind;
    let rest_from = |c: char| pattern.rfind(c).map_or(pattern, |at| &pattern[at..]);
    match kind {
        ErrorKind::ClassUnclosed => format!("missing closing ]: `{}`", rest_from('[')),
        ErrorKind::GroupUnclosed => format!("missing closing ): `{pattern}`"),
        ErrorKind::GroupUnopened => format!("unexpected ): `{pattern}`"),
        ErrorKind::RepetitionMissing => {
            let operator = pattern.chars().find(|c| matches!(c, '*' | '+' | '?')).unwrap_or('*');
            format!("missing argument to repetition operator: `{operator}`")
        }
        ErrorKind::UnsupportedLookAround => {
            let at = ["(?=", "(?!", "(?<"].iter().filter_map(|start| pattern.find(start)).min().unwrap_or(0);
            format!("invalid or unsupported Perl syntax: `{}`", pattern[at..].chars().take(3).collect::<String>())
        }
        ErrorKind::NestLimitExceeded(_) => "expression nests too deeply".to_string(),
        _ => format!("invalid regular expression: `{pattern}`"),
    }
}

/// Refuses repetitions that Go refuses: one of a repetition without a group between, and one of too many.
struct Repetitions<'a> {
    pattern: &'a str,
}

impl ast::Visitor for Repetitions<'_> {
    type Output = ();
    type Err = String;

    fn finish(self) -> Result<(), String> {
        Ok(())
    }

    fn visit_post(&mut self, tree: &Ast) -> Result<(), String> {
        let Ast::Repetition(repetition) = tree else { return Ok(()) };
        let text = |from: usize, to: usize| self.pattern.get(from..to).unwrap_or(self.pattern);
        let operator = repetition.op.span;
        if let Ast::Repetition(inner) = &*repetition.ast {
            return Err(format!("invalid nested repetition operator: `{}`", text(inner.op.span.start.offset, operator.end.offset)));
        }
        let most = match &repetition.op.kind {
            RepetitionKind::Range(RepetitionRange::Exactly(count) | RepetitionRange::AtLeast(count)) => *count,
            RepetitionKind::Range(RepetitionRange::Bounded(least, most)) => *least.max(most),
            _ => 0,
        };
        if most > REPEAT_MAX {
            return Err(format!("invalid repeat count: `{}`", text(operator.start.offset, operator.end.offset)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_refuses_is_refused_in_its_words() {
        for (pattern, what) in [
            ("a[", "missing closing ]: `[`"),
            ("(a", "missing closing ): `(a`"),
            ("a)", "unexpected ): `a)`"),
            ("*a", "missing argument to repetition operator: `*`"),
            ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a+?{2}b", "invalid nested repetition operator: `+?{2}`"),
            ("a{1001}", "invalid repeat count: `{1001}`"),
            ("a{1,1001}", "invalid repeat count: `{1,1001}`"),
            ("((a{100}){100}){100}", "expression too large"),
        ] {
            assert_eq!(compile(pattern).unwrap_err(), format!("error parsing regexp: {what}"), "{pattern}");
        }
        for pattern in ["^[a-z]{1,9}$", "(a*)*", "a{1000}", "", "(?i)^a|b$", "\\p{L}+?"] {
            assert!(compile(pattern).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn what_is_deep_needs_a_small_stack() {
        let deep = |depth: usize| format!("{}a{}", "(".repeat(depth), ")*".repeat(depth));
        let compiled = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
            assert!(compile(&deep(DEPTH_MAX as usize / 2 - 1)).is_ok());
            for pattern in [deep(10_000), format!("a{}", "*".repeat(10_000))] {
                assert_eq!(compile(&pattern).unwrap_err(), "error parsing regexp: expression nests too deeply");
            }
            assert!(compile(&"[".repeat(10_000)).is_err());
        });
        compiled.unwrap().join().unwrap();
    }
}
