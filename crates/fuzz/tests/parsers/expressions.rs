//! Programs that users write: CEL of definitions and policies, patterns of schemas, JSON paths of columns.

use crate::run;
use api::{
    cel::{Program, Type, Val, eval::Variables},
    custom::{formats, json_path::JsonPath, pattern},
};
use serde_json::json;

/// What one run may cost, as for one object.
const BUDGET: u64 = 10_000_000;

#[test]
fn cel() {
    let right: &[&[u8]] = &[
        b"self.spec.replicas <= 5 && has(self.metadata.labels) ? 'a' in self.metadata.labels : true",
        b"self.items.all(i, i.name.matches('^[a-z]+$')) || self.items.exists_one(x, x == 1u)",
        b"self.map(k, self.filter(j, j != k)).size() > 0",
        b"[1, 2, 3].map(x, [1, 2, 3].map(y, [1, 2, 3].map(z, x * y * z))).size() == 3",
        b"'%s %d'.format(['a', 1]) + 'x'.replace('x', 'y') == \"\\u00e4\" && r'\\' != b'\\xff'",
        b"quantity('1Gi').isGreaterThan(quantity('1M')) && ip('::1').isLoopback() && cidr('10.0.0.0/8').containsIP('10.1.1.1')",
        b"timestamp('2024-01-01T00:00:00Z') + duration('1h') > timestamp(0) || url('https://a/b?c=d').getHost() == 'a'",
        b"{'a': [1, 2.5, -3], 'b': {}}.b.?c.orValue(dyn(1)) == 1 || optional.none().hasValue()",
        b"variables.x.sortBy(e, e).isSorted() && sets.contains([1], [2]) && 'a,b'.split(',').join('-').lowerAscii() == ''",
    ];
    let object = json!({"spec": {"replicas": 3}, "metadata": {"labels": {"a": "b"}}, "items": [{"name": "abc"}, {"name": "d"}]});
    run(|choices| {
        let source = &choices.near_text(right);
        let Ok(program) = Program::compile(source, &[("self", Type::Dyn), ("variables", Type::Dyn)]) else { return };
        let variables = Variables::new().with("self", Val::json(&object, None)).with("variables", Val::json(&object, None));
        let mut budget = BUDGET;
        let _ = program.run(&variables, &mut budget).map(drop);
    });
}

#[test]
fn patterns() {
    let right: &[&[u8]] = &[b"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", b"^(a+)+$", b"(x{1,50}){1,50}", b"\\p{L}+|\\d{3,}", b"(?i)^a|b$", b"[[:alpha:]]*"];
    run(|choices| {
        let (pattern, length) = (&choices.near_text(right), choices.below(10_000));
        if let Ok(pattern) = pattern::compile(pattern) {
            let _ = pattern.is_match(&"a".repeat(length));
        }
    });
}

#[test]
fn json_paths() {
    let right: &[&[u8]] = &[b".spec.a", b".status.conditions[?(@.type==\"Ready\")].status", b".a['b.c'][0:2]", b"{.a}", b"..a[*]", b".a\\.b"];
    let object = json!({"spec": {"a": [1, {"b": 2}]}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}, "a": {"b.c": [1, 2, 3]}});
    run(|choices| {
        let text = &choices.near_text(right);
        if let Ok(path) = JsonPath::parse(text) {
            let _ = (path.find(&object).len(), path.fields());
        }
    });
}

#[test]
fn texts_of_a_format() {
    let right: &[&[u8]] =
        &[b"2024-01-01T00:00:00Z", b"1h30m5.5s", b"a@b.example", b"fe80::1%eth0", b"https://a/b", b"//8=", b"P1DT2H", b"978-3-16-148410-0"];
    let names = ["date-time", "date", "duration", "email", "ipv4", "ipv6", "cidr", "uri", "byte", "isbn", "mac", "uuid", "hostname", "creditcard"];
    run(|choices| {
        let text = &choices.near_text(right);
        for name in names {
            let _ = formats::matches(name, text);
        }
        let _ = (formats::duration_ns(text), formats::go_duration_ns(text), formats::base64(text));
    });
}
