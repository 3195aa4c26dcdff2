//! The Common Expression Language, as Kubernetes uses it: rules of custom resources, admission policies, match conditions.
//!
//! `syntax` makes a tree of a text, `checker` says of what type it is and what is wrong with it (in cel-go's words), `eval`
//! computes it on JSON without copying it, and counts what that costs. `functions` is what can be called.
//!
//! What must stay true: no text and no value can panic, recurse without bound or run without end. Costs are counted in
//! Kubernetes' units, and evaluation stops at the budget.
//!
//! An own implementation, because what is at hand has neither a type checker (definitions are refused by it) nor a cost bound
//! (hostile rules are stopped by it).

pub mod checker;
pub mod estimate;
pub mod eval;
pub mod functions;
pub mod library;
mod literals;
pub mod openapi;
pub mod policy;
pub mod rule;
pub mod syntax;
pub mod types;
pub mod value;

pub use types::{Fields, Type};
pub use value::Val;

/// Every bound of the language, by name.
pub mod limits {
    /// Bytes of one expression.
    pub const SOURCE_BYTES_MAX: usize = 100_000;
    /// Brackets within brackets.
    pub const NESTING_MAX: usize = 60;
    /// Levels of a tree.
    pub const DEPTH_MAX: usize = 250;
    /// What one expression may cost at run time.
    pub const CALL_COST_MAX: u64 = 1_000_000;
    /// What all rules of one object may cost at run time.
    pub const OBJECT_COST_MAX: u64 = 10_000_000;
    /// What one rule of a definition may cost by estimate.
    pub const ESTIMATED_RULE_COST_MAX: u64 = 10_000_000;
    /// What all rules of a definition may cost by estimate.
    pub const ESTIMATED_SCHEMA_COST_MAX: u64 = 100_000_000;
    /// Bytes of what a rule tells users by an expression.
    pub const MESSAGE_BYTES_MAX: usize = 5 * 1024;
    /// Bytes of a value that an expression makes.
    pub const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;
}

/// What an environment has beside what all have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Libraries {
    /// `cel.bind`: selectors of devices.
    pub bindings: bool,
    /// `Object`, `JSONPatch` and `jsonpatch.escapeKey`: mutations.
    pub mutation: bool,
}

/// An expression that has been checked.
#[derive(Debug)]
pub struct Program {
    pub source: String,
    pub tree: syntax::Expr,
    pub type_: Type,
    pub(crate) checked: checker::Checked,
}

impl Program {
    /// Parses and checks. `variables` are the names that it may use and their types. The error is as cel-go shows it.
    pub fn compile(source: &str, variables: &[(&str, Type)]) -> Result<Program, String> {
        Program::compile_with(source, variables, Libraries::default())
    }
    /// The same in an environment that has more than all have.
    pub fn compile_with(source: &str, variables: &[(&str, Type)], libraries: Libraries) -> Result<Program, String> {
        let shown = |problems: Vec<syntax::Problem>| problems.iter().map(|problem| problem.shown(source)).collect::<Vec<_>>().join("\n");
        let tree = syntax::parse_with(source, libraries).map_err(shown)?;
        let checked = checker::check(&tree, variables, libraries).map_err(shown)?;
        let wrong = literals::wrong(&tree, &checked);
        if !wrong.is_empty() {
            return Err(shown(wrong));
        }
        Ok(Program { source: source.to_string(), type_: checked.type_of(&tree), tree, checked })
    }
    /// Whether it speaks of a variable.
    pub fn mentions(&self, variable: &str) -> bool {
        self.checked.mentions(variable)
    }
    /// Computes it. What it costs is taken from `budget`; an empty budget is an error.
    pub fn run<'a>(&'a self, variables: &eval::Variables<'a>, budget: &mut u64) -> Result<Val<'a>, eval::Error> {
        eval::run(&self.tree, variables, budget)
    }
}
