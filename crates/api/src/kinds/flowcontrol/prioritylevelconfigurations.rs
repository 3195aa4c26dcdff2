//! PriorityLevelConfiguration of flowcontrol.apiserver.k8s.io.

use super::flowschemas::{MANDATORY, validate_conditions};
use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        values::{fill, fill_zero, has, int, made, member, put, text, within},
        workload,
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration", "prioritylevelconfigurations")
        .generation()
        .status_alone()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(PriorityLevelConfigurations)
}

const EXEMPT: &str = "exempt";
const SHARES_DEFAULT: i64 = 30;
const QUEUES_MAX: i64 = 10_000_000;
const HASH_BITS_MAX: f64 = 60.0;

struct PriorityLevelConfigurations;

impl Hooks for PriorityLevelConfigurations {
    fn default(&self, level: &mut Value) {
        let spec = made(level, "spec");
        if text(spec, "type") == "Exempt" && !has(spec, "exempt") {
            put(spec, "exempt", json!({}));
        }
        within(spec, "exempt", |exempt| {
            fill(exempt, "nominalConcurrencyShares", 0);
            fill(exempt, "lendablePercent", 0);
        });
        within(spec, "limited", |limited| {
            fill(limited, "nominalConcurrencyShares", SHARES_DEFAULT);
            fill(limited, "lendablePercent", 0);
            let response = made(limited, "limitResponse");
            within(response, "queuing", |queuing| {
                fill_zero(queuing, "queues", 64);
                fill_zero(queuing, "handSize", 8);
                fill_zero(queuing, "queueLengthLimit", 50);
            });
        });
    }
    fn prepare_create(&self, level: &mut Value) {
        put(level, "status", json!({}));
    }
    fn validate(&self, level: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(level), Path::new("spec"));
        let kind = text(spec, "type");
        if (kind == "Exempt") != (level.name() == EXEMPT) {
            errors.invalid(path.child("type"), kind, "must be 'Exempt' if and only if `name` is 'exempt'");
        }
        match kind {
            "Exempt" => {
                if has(spec, "limited") {
                    errors.forbidden(path.child("limited"), "must be nil if the type is not Limited");
                }
            }
            "Limited" => {
                if has(spec, "exempt") {
                    errors.forbidden(path.child("exempt"), "must be nil if the type is Limited");
                }
                match member(spec, "limited") {
                    None => errors.required(path.child("limited"), "must not be empty when type is Limited"),
                    Some(limited) => validate_limited(limited, &path.child("limited"), errors),
                }
            }
            other => errors.not_supported(path.child("type"), other, &["Exempt", "Limited"]),
        }
        if let Some(old) = old
            && level.name() != EXEMPT
            && MANDATORY.contains(&level.name())
            && workload::spec(old) != spec
        {
            let shown = internal::show("flowcontrol.v1.PriorityLevelConfigurationSpec", spec);
            errors.invalid_structure(path.clone(), &shown, &format!("spec of '{}' must equal the fixed value", level.name()));
        }
        // Of the level that no limit applies to, only how it counts for others can be changed.
        if level.name() == EXEMPT && (kind != "Exempt" || has(spec, "limited")) {
            let shown = internal::show("flowcontrol.v1.PriorityLevelConfigurationSpec", spec);
            errors.invalid_structure(path, &shown, "spec of 'exempt' except the 'spec.exempt' field must equal the fixed value");
        }
    }
    fn validate_status(&self, level: &Value, _old: &Value, errors: &mut Errors) {
        validate_conditions(level, errors);
    }
    fn cells(&self, level: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(level);
        let unset = || json!("<none>");
        let part = |path: &str| spec.i64_at(path).map_or_else(unset, |n| json!(n));
        vec![
            table::name(level),
            json!(text(spec, "type")),
            part("limited.nominalConcurrencyShares"),
            part("limited.limitResponse.queuing.queues"),
            part("limited.limitResponse.queuing.handSize"),
            part("limited.limitResponse.queuing.queueLengthLimit"),
            table::age(level, now_unix_s),
        ]
    }
}

fn validate_limited(limited: &Value, path: &Path, errors: &mut Errors) {
    let number = |key: &str| int(limited, key);
    if let Some(n) = number("nominalConcurrencyShares").filter(|n| *n < 0) {
        errors.invalid(path.child("nominalConcurrencyShares"), n, "must be a non-negative integer");
    }
    let response = limited.get("limitResponse").unwrap_or(&Value::Null);
    let at = path.child("limitResponse");
    match text(response, "type") {
        "Reject" if has(response, "queuing") => errors.forbidden(at.child("queuing"), "must be nil if limited.limitResponse.type is not Limited"),
        "Reject" => {}
        "Queue" if !has(response, "queuing") => {
            errors.required(at.child("queuing"), "must not be empty if limited.limitResponse.type is Limited");
        }
        "Queue" => {
            let queuing = response.get("queuing").unwrap_or(&Value::Null);
            let at = at.child("queuing");
            let (queues, hand) = (int(queuing, "queues").unwrap_or(0), int(queuing, "handSize").unwrap_or(0));
            for key in ["queueLengthLimit", "queues", "handSize"] {
                if let Some(n) = int(queuing, key).filter(|n| *n <= 0) {
                    errors.invalid(at.child(key), n, "must be positive");
                }
                if key == "queues" && queues > QUEUES_MAX {
                    errors.invalid(at.child(key), queues, &format!("must not be greater than {QUEUES_MAX}"));
                }
            }
            if hand <= 0 {
                // Said above.
            } else if hand > queues {
                errors.invalid(at.child("handSize"), hand, &format!("should not be greater than queues ({queues})"));
            } else {
                // Hands are dealt from the bits of one hash.
                let bits: f64 = (0..hand).map(|dealt| ((queues - dealt) as f64).log2()).sum();
                if bits.ceil() > HASH_BITS_MAX {
                    let detail = format!("required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS_MAX}");
                    errors.invalid(at.child("handSize"), hand, &detail);
                }
            }
        }
        other => errors.not_supported(at.child("type"), other, &["Queue", "Reject"]),
    }
    if let Some(n) = number("lendablePercent").filter(|n| !(0..=100).contains(n)) {
        errors.invalid(path.child("lendablePercent"), n, "must be between 0 and 100, inclusive");
    }
    if let Some(n) = number("borrowingLimitPercent").filter(|n| *n < 0) {
        errors.invalid(path.child("borrowingLimitPercent"), n, "if specified, must be a non-negative integer");
    }
}
