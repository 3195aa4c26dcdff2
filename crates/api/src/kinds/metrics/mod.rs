//! The kinds of `metrics.k8s.io`: what nodes and pods use at the moment. Measured when somebody asks, never stored.

pub mod nodes;
pub mod pods;

use crate::{kind::Kind, object::ObjectExt, quantity::Quantity, table::Column};
use serde_json::{Value, json};

/// The group and the version in which it is served.
pub const GROUP: &str = "metrics.k8s.io";
pub const VERSION: &str = "v1beta1";
/// What is measured, as a list of resources names it.
const RESOURCES: [&str; 2] = ["cpu", "memory"];

/// What both kinds have in common.
fn measured(kind: Kind) -> Kind {
    let mut columns = vec![Column::new("Name", "string", "name", 0)];
    columns.extend(RESOURCES.map(|name| Column::new(name, "string", "quantity", 0)));
    columns.push(Column::new("Window", "string", "duration", 0));
    Kind { columns, ..kind.singular("").verbs(&["get", "list"]) }
}

/// What errors call one of these: not the resource, which is that of what is measured, but the kind, in small letters.
pub fn measured_name(kind: &Kind) -> String {
    kind.kind.to_lowercase()
}

/// The cells of a row: what all the usages together are.
fn cells(object: &Value, usages: &[&Value]) -> Vec<Value> {
    let sum = |name: &str| {
        let parts = usages.iter().filter_map(|usage| Quantity::from_value(usage.get(name)?).ok());
        json!(parts.fold(Quantity::ZERO, |sum, part| sum.add(&part)).to_string())
    };
    let mut cells = vec![json!(object.name())];
    cells.extend(RESOURCES.map(sum));
    cells.push(json!(object.str_at("window").unwrap_or_default()));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_what_was_measured_not_what_it_was_measured_of() {
        assert_eq!([nodes::kind(), pods::kind()].map(|kind| measured_name(&kind)), ["nodemetrics", "podmetrics"]);
    }
}
