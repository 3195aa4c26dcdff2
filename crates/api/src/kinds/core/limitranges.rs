//! LimitRange.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind, MetadataAgain},
    kinds::{
        checks,
        pod::resources,
        values::{each, entries, has, list, made, map, put, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    quantity::Quantity,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "LimitRange", "limitranges")
        .short(&["limits"])
        .create_on_update()
        .metadata_again(MetadataAgain::AsCreate)
        .hooks(LimitRanges)
}

struct LimitRanges;

impl Hooks for LimitRanges {
    fn default(&self, range: &mut Value) {
        made(range, "spec");
        within(range, "spec", |spec| each(spec, "limits", default_limit));
    }
    /// Nobody needs to name a range.
    fn prepare_create(&self, range: &mut Value) {
        if range.name().is_empty() {
            let name = range.uid().to_string();
            range.set("metadata.name", name);
        }
    }
    fn validate(&self, range: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec").child("limits");
        for (i, limit, again) in checks::distinct(list(workload::spec(range), "limits"), |limit| text(limit, "type")) {
            validate_limit(limit, again, &path.index(i), errors);
        }
    }
}

/// Containers get their default limit from the maximum, their default request from the default limit, then the minimum.
fn default_limit(limit: &mut Value) {
    if text(limit, "type") != "Container" {
        return;
    }
    for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
        let source = map(limit, from).cloned().unwrap_or_default();
        if source.is_empty() && !has(limit, to) {
            continue;
        }
        let target = made(limit, to);
        for (name, value) in source {
            if !has(target, &name) {
                put(target, &name, value);
            }
        }
    }
}

fn validate_limit(limit: &Value, duplicate: bool, path: &Path, errors: &mut Errors) {
    let kind = text(limit, "type");
    let at = path.child("type");
    let problems = names::qualified_name(kind);
    if problems.is_empty() && !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
        errors.invalid(at.clone(), kind, "must be a standard limit type or fully qualified");
    }
    errors.invalid_all(&at, kind, problems);
    if duplicate {
        errors.duplicate(at, kind);
    }
    let read = |key: &str| -> BTreeMap<String, Quantity> {
        entries(limit, key).filter_map(|(name, value)| Some((name.clone(), Quantity::from_value(value).ok()?))).collect()
    };
    let (max, min, default, request, ratio) = (read("max"), read("min"), read("default"), read("defaultRequest"), read("maxLimitRequestRatio"));
    let names_of = |key: &str, errors: &mut Errors| {
        for (name, _) in entries(limit, key) {
            let problems = match kind {
                "Pod" | "Container" => resources::container_resource_name(name),
                _ => resources::resource_name(name),
            };
            errors.invalid_all(&path.child(key).key(name), name.as_str(), problems);
        }
    };
    for key in ["max", "min"] {
        names_of(key, errors);
    }
    for key in ["default", "defaultRequest"] {
        if kind != "Pod" {
            names_of(key, errors);
        } else if !read(key).is_empty() {
            errors.forbidden(path.child(key), "may not be specified when `type` is 'Pod'");
        }
    }
    if kind == "PersistentVolumeClaim" && !min.contains_key("storage") && !max.contains_key("storage") {
        errors.required(path.child("limits"), "either minimum or maximum storage value is required, but neither was provided");
    }
    names_of("maxLimitRequestRatio", errors);
    let names: BTreeSet<&String> = [&max, &min, &default, &request, &ratio].into_iter().flat_map(|m| m.keys()).collect();
    for name in names {
        let (max, min, default, request, ratio) = (max.get(name), min.get(name), default.get(name), request.get(name), ratio.get(name));
        let mut over = |key: &str, shown: &Quantity, detail: String| errors.invalid(path.child(key).key(name), shown.to_string(), &detail);
        if let (Some(max), Some(min)) = (max, min)
            && min > max
        {
            over("min", min, format!("min value {min} is greater than max value {max}"));
        }
        if kind != "Pod" {
            if let (Some(request), Some(min)) = (request, min)
                && min > request
            {
                over("defaultRequest", request, format!("min value {min} is greater than default request value {request}"));
            }
            if let (Some(request), Some(max)) = (request, max)
                && request > max
            {
                over("defaultRequest", request, format!("default request value {request} is greater than max value {max}"));
            }
            if let (Some(request), Some(default)) = (request, default)
                && request > default
            {
                over("defaultRequest", request, format!("default request value {request} is greater than default limit value {default}"));
            }
            if let (Some(default), Some(min)) = (default, min)
                && min > default
            {
                over("default", min, format!("min value {min} is greater than default value {default}"));
            }
            if let (Some(default), Some(max)) = (default, max)
                && default > max
            {
                over("default", max, format!("default value {default} is greater than max value {max}"));
            }
        }
        if let Some(ratio) = ratio
            && ratio.milli() < 1000
        {
            over("maxLimitRequestRatio", ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(ratio), Some(max), Some(min)) = (ratio, max, min) {
            let limit = max.milli() as f64 / min.milli() as f64;
            if ratio.milli() as f64 / 1000.0 > limit {
                over("maxLimitRequestRatio", ratio, format!("ratio {ratio} is greater than max/min = {limit:.6}"));
            }
        }
        if let (Some(default), Some(request)) = (default, request)
            && kind != "Pod"
            && default != request
            && !resources::overcommits(name)
        {
            over("defaultRequest", request, format!("default value {default} must equal to defaultRequest value {request} in {name}"));
        }
    }
}
