//! Job of batch.

use crate::{
    field::{Errors, Path, Reason},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::template,
        values::{each, fill, flag, has, int, list, made, member, put, shown, text, within},
        workload,
    },
    object::ObjectExt,
    selector, table,
};
use serde_json::{Map, Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("batch", "v1", "Job", "jobs").categories(&["all"]).generation().selectable(&["status.successful"]).status().hooks(Jobs)
}

const BACKOFF_LIMIT_DEFAULT: i64 = 6;
const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const OLD_UID_LABEL: &str = "controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
const OLD_NAME_LABEL: &str = "job-name";
const INDEXED_PARALLELISM_MAX: i64 = 100_000;
const INDEXED_COMPLETIONS_WITHOUT_LIMITS_MAX: i64 = 100_000;
const SUCCEEDED_INDEXES_BYTES_MAX: usize = 64 * 1024;

struct Jobs;

impl Hooks for Jobs {
    fn default(&self, job: &mut Value) {
        let spec = made(job, "spec");
        if !has(spec, "completions") && !has(spec, "parallelism") {
            put(spec, "completions", 1);
        }
        fill(spec, "parallelism", 1);
        let limit = if has(spec, "backoffLimitPerIndex") { i64::from(i32::MAX) } else { BACKOFF_LIMIT_DEFAULT };
        fill(spec, "backoffLimit", limit);
        fill(spec, "completionMode", "NonIndexed");
        fill(spec, "suspend", false);
        fill(spec, "manualSelector", false);
        let replacement = if has(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        fill(spec, "podReplacementPolicy", replacement);
        within(spec, "podFailurePolicy", |policy| {
            each(policy, "rules", |rule| each(rule, "onPodConditions", |condition| fill(condition, "status", "True")))
        });
        template::default(spec);
        labels_from_template(job);
    }
    fn prepare_create(&self, job: &mut Value) {
        template::drop_disabled(job);
        put(job, "status", json!({}));
        generate_selector(job);
        labels_from_template(job);
    }
    fn prepare_update(&self, job: &mut Value, _old: &Value) {
        template::drop_disabled(job);
    }
    fn validate(&self, job: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(job), Path::new("spec"));
        validate_spec(spec, &path, errors);
        match member(spec, "selector") {
            None => errors.required(path.child("selector"), ""),
            Some(selector) => selector::validate(selector, &path.child("selector"), errors),
        }
        if !flag(spec, "manualSelector") {
            generated_selector(job, &path, errors);
        }
        if let (Some(selector), Some(pod)) = (member(spec, "selector"), member(spec, "template")) {
            template::matches(selector, pod, &path.child("template"), errors);
        }
        if let Some(old) = old {
            validate_update(spec, old, &path, errors);
        }
    }
    fn validate_status(&self, job: &Value, old: &Value, errors: &mut Errors) {
        validate_status(job, old, errors);
    }
    fn selectable_value(&self, job: &Value, _field: &str) -> String {
        job.i64_at("status.succeeded").unwrap_or(0).to_string()
    }
    fn warnings(&self, job: &Value, old: Option<&Value>) -> Vec<String> {
        crate::kinds::pod::warnings::workload(job, old, true)
    }
    fn cells(&self, job: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(job), workload::status(job));
        let succeeded = int(status, "succeeded").unwrap_or(0);
        let completions = match (int(spec, "completions"), int(spec, "parallelism").unwrap_or(0)) {
            (Some(completions), _) => format!("{succeeded}/{completions}"),
            (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let at = |key: &str| status.str_at(key).and_then(table::unix_s);
        let duration = match (at("startTime"), at("completionTime")) {
            (None, _) => String::new(),
            (Some(start), Some(end)) => table::human_duration(end.saturating_sub(start)),
            (Some(start), None) => table::human_duration(now_unix_s.saturating_sub(start)),
        };
        let is = |kind: &str| is_true(status, kind);
        let state = match () {
            () if is("Complete") => "Complete",
            () if is("Failed") => "Failed",
            () if job.deletion_timestamp().is_some() => "Terminating",
            () if is("Suspended") => "Suspended",
            () if is("FailureTarget") => "FailureTarget",
            () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
            () => "Running",
        };
        let mut cells = vec![table::name(job), json!(state), json!(completions), json!(duration), table::age(job, now_unix_s)];
        cells.extend(workload::wide(spec, workload::selector_text(spec)));
        cells
    }
}

fn is_true(status: &Value, kind: &str) -> bool {
    list(status, "conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
}

/// A Job without labels has those of its pods.
fn labels_from_template(job: &mut Value) {
    if job.labels().is_none_or(Map::is_empty)
        && let Some(labels) = job.at("spec.template.metadata.labels").filter(|l| l.as_object().is_some_and(|l| !l.is_empty())).cloned()
    {
        job.set("metadata.labels", labels);
    }
}

/// Selects the Job's own pods by its UID, unless the client says that it knows better.
fn generate_selector(job: &mut Value) {
    if job.bool_at("spec.manualSelector").unwrap_or_default() {
        return;
    }
    let (name, uid) = (job.name().to_string(), job.uid().to_string());
    let spec = made(job, "spec");
    let labels = made(made(made(spec, "template"), "metadata"), "labels");
    for (key, value) in [(OLD_UID_LABEL, &uid), (UID_LABEL, &uid), (OLD_NAME_LABEL, &name), (NAME_LABEL, &name)] {
        put(labels, key, value.as_str());
    }
    put(made(made(spec, "selector"), "matchLabels"), UID_LABEL, uid);
}

/// The generated labels and selector must be as they were made.
fn generated_selector(job: &Value, path: &Path, errors: &mut Errors) {
    let spec = workload::spec(job);
    let at = path.child("template").child("metadata").child("labels");
    let labels = spec.at("template.metadata.labels");
    for (key, want) in [(UID_LABEL, job.uid()), (NAME_LABEL, job.name())] {
        match labels.and_then(|l| l.get(key)).and_then(Value::as_str) {
            None => errors.required(at.key(key), &format!("must be '{want}'")),
            Some(value) if value != want => errors.invalid(at.key(key), value, &format!("must be '{want}'")),
            _ => {}
        }
    }
    let only_uid = [UID_LABEL, OLD_UID_LABEL].iter().any(|key| spec.get("selector") == Some(&json!({"matchLabels": {*key: job.uid()}})));
    if !only_uid && has(spec, "selector") {
        errors.invalid_structure(path.child("selector"), &internal::selector(spec.get("selector")), "`selector` not auto-generated");
        if let Some(pod) = member(spec, "template") {
            template::matches(&spec["selector"], pod, &path.child("template"), errors);
        }
    }
}

/// Rules for the spec of a Job, in a Job or in a CronJob's template.
pub fn validate_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    checks::not_negatives(
        spec,
        &["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished", "backoffLimitPerIndex"],
        path,
        errors,
    );
    let indexed = text(spec, "completionMode") == "Indexed";
    if let Some(failed) = int(spec, "maxFailedIndexes") {
        checks::not_negative(spec, "maxFailedIndexes", path, errors);
        if !has(spec, "backoffLimitPerIndex") {
            errors.required(path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
        }
        if int(spec, "completions").is_some_and(|c| failed > c) {
            errors.invalid(path.child("maxFailedIndexes"), failed, "must be less than or equal to completions");
        }
    }
    if has(spec, "completionMode") {
        checks::one_of(spec, "completionMode", &["Indexed", "NonIndexed"], path, errors);
        if indexed {
            match int(spec, "completions") {
                None => errors.required(path.child("completions"), "when completion mode is Indexed"),
                Some(completions)
                    if completions > INDEXED_COMPLETIONS_WITHOUT_LIMITS_MAX
                        && has(spec, "backoffLimitPerIndex")
                        && !has(spec, "maxFailedIndexes") =>
                {
                    errors.required(path.child("maxFailedIndexes"), "must be specified when completions is above 100000")
                }
                Some(_) => {}
            }
            if let Some(parallelism) = int(spec, "parallelism").filter(|p| *p > INDEXED_PARALLELISM_MAX) {
                errors.invalid(
                    path.child("parallelism"),
                    parallelism,
                    &format!("must be less than or equal to {INDEXED_PARALLELISM_MAX} when completion mode is Indexed"),
                );
            }
        }
    }
    if !indexed && has(spec, "backoffLimitPerIndex") {
        errors.invalid(path.child("backoffLimitPerIndex"), shown(spec, "backoffLimitPerIndex"), "requires indexed completion mode");
    }
    if let Some(manager) = member(spec, "managedBy").and_then(Value::as_str) {
        if manager.is_empty() {
            errors.required(path.child("managedBy"), "");
        } else {
            checks::domain_prefixed(manager, &path.child("managedBy"), errors);
        }
        if manager.len() > 63 {
            errors.too_long(path.child("managedBy"), "", 63);
        }
    }
    failure_policy(spec, path, errors);
    success_policy(spec, path, errors);
    checks::one_of(spec, "podReplacementPolicy", &["Failed", "TerminatingOrFailed"], path, errors);
    let at = path.child("template");
    match member(spec, "template") {
        None => errors.required(at, ""),
        Some(pod) => {
            template::validate(pod, &at, errors);
            let restart = text(workload::spec(pod), "restartPolicy");
            let at = at.child("spec").child("restartPolicy");
            match restart {
                "OnFailure" if has(spec, "podFailurePolicy") => {
                    errors.invalid(at, restart, "only \"Never\" is supported when podFailurePolicy is specified")
                }
                "OnFailure" | "Never" => {}
                "Always" => errors.required(at, "valid values: \"OnFailure\", \"Never\""),
                other => errors.not_supported(at, other, &["OnFailure", "Never"]),
            }
        }
    }
}

fn failure_policy(spec: &Value, path: &Path, errors: &mut Errors) {
    const RULES_MAX: usize = 20;
    const CODES_MAX: usize = 255;
    let Some(policy) = member(spec, "podFailurePolicy") else { return };
    let path = path.child("podFailurePolicy").child("rules");
    let rules = list(policy, "rules");
    if rules.len() > RULES_MAX {
        errors.too_many(path.clone(), rules.len(), RULES_MAX);
    }
    let containers: Vec<&str> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|key| spec.at("template.spec").map(|s| list(s, key)).unwrap_or_default())
        .map(|c| text(c, "name"))
        .collect();
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let at = path.child("action");
        match text(rule, "action") {
            "" => errors.required(at, "valid values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\""),
            "FailIndex" if !has(spec, "backoffLimitPerIndex") => errors.invalid(at, "FailIndex", "requires the backoffLimitPerIndex to be set"),
            "Count" | "FailIndex" | "FailJob" | "Ignore" => {}
            other => errors.not_supported(at, other, &["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let (codes, conditions) = (member(rule, "onExitCodes"), list(rule, "onPodConditions"));
        match (codes, conditions.is_empty()) {
            (Some(_), false) => errors.invalid(path.clone(), Value::Null, "specifying both OnExitCodes and OnPodConditions is not supported"),
            (None, true) => errors.invalid(path.clone(), Value::Null, "specifying one of OnExitCodes and OnPodConditions is required"),
            _ => {}
        }
        if let Some(codes) = codes {
            let path = path.child("onExitCodes");
            checks::required_one_of(codes, "operator", &["In", "NotIn"], &path, errors);
            if let Some(name) = member(codes, "containerName").and_then(Value::as_str)
                && !containers.contains(&name)
            {
                errors.invalid(path.child("containerName"), name, "must be one of the container or initContainer names in the pod template");
            }
            let values = list(codes, "values");
            if values.is_empty() {
                errors.invalid(path.child("values"), Value::from(values.to_vec()), "at least one value is required");
            } else if values.len() > CODES_MAX {
                errors.too_many(path.child("values"), values.len(), CODES_MAX);
            }
            for (i, value) in values.iter().enumerate() {
                let at = path.child("values").index(i);
                if text(codes, "operator") == "In" && value.as_i64() == Some(0) {
                    errors.invalid(at.clone(), 0, "must not be 0 for the In operator");
                }
                if values[..i].contains(value) {
                    errors.duplicate(at, value.clone());
                }
            }
        }
        for (i, condition) in conditions.iter().enumerate() {
            let path = path.child("onPodConditions").index(i);
            let kind = text(condition, "type");
            errors.invalid_all(&path.child("type"), kind, crate::names::qualified_name(kind));
            checks::required_one_of(condition, "status", super::super::conditions::STATUSES, &path, errors);
        }
    }
}

fn success_policy(spec: &Value, path: &Path, errors: &mut Errors) {
    const RULES_MAX: usize = 20;
    let Some(policy) = member(spec, "successPolicy") else { return };
    let path = path.child("successPolicy");
    if text(spec, "completionMode") != "Indexed" {
        errors.invalid_structure(path.clone(), &internal::show("batch.v1.SuccessPolicy", policy), "requires indexed completion mode");
        return;
    }
    let rules = list(policy, "rules");
    let path = path.child("rules");
    if rules.is_empty() {
        errors.required(path.clone(), "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > RULES_MAX {
        errors.too_many(path.clone(), rules.len(), RULES_MAX);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let (count, indexes) = (int(rule, "succeededCount"), text(rule, "succeededIndexes"));
        if count.is_none() && indexes.is_empty() {
            errors.required(path.clone(), "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut selected = None;
        if has(rule, "succeededIndexes") {
            let at = path.child("succeededIndexes");
            if indexes.len() > SUCCEEDED_INDEXES_BYTES_MAX {
                errors.too_long(at.clone(), indexes, SUCCEEDED_INDEXES_BYTES_MAX);
            }
            match count_indexes(indexes, int(spec, "completions").unwrap_or(0)) {
                Ok(number) => selected = Some(number),
                Err(why) => errors.invalid(at, indexes, &format!("error parsing succeededIndexes: {why}")),
            }
        }
        checks::not_negative(rule, "succeededCount", &path, errors);
        if let (Some(count), Some(selected)) = (count, selected)
            && count > selected
        {
            errors.invalid(
                path.child("succeededCount"),
                count,
                &format!("must be less than or equal to {selected} (the number of indexes in the specified succeededIndexes field)"),
            );
        }
        if let (Some(count), Some(completions)) = (count, int(spec, "completions"))
            && count > completions
        {
            errors.invalid(
                path.child("succeededCount"),
                count,
                &format!("must be less than or equal to {completions} (the number of specified completions)"),
            );
        }
    }
}

/// How many indexes a text such as `0,2-4` names, all of them below `completions` and each greater than the one before.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let number = |part: &str| match part.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {part:?}")),
        Ok(index) if index >= completions => Err(format!("too large index: {part:?}")),
        Ok(index) => Ok(index),
    };
    let (mut count, mut last) = (0, None);
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let parts: Vec<&str> = interval.split('-').collect();
        let (first, end) = match parts.as_slice() {
            [one] => (number(one)?, None),
            [first, end] => (number(first)?, Some(number(end)?)),
            _ => {
                return Err(format!(
                    "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        for (before, after) in [(last, Some(first)), (end.and(Some(first)), end)] {
            if let (Some(before), Some(after)) = (before, after)
                && before >= after
            {
                return Err(format!("non-increasing order, previous: {before}, current: {after}"));
            }
        }
        let end = end.unwrap_or(first);
        count += end - first + 1;
        last = Some(end);
    }
    Ok(count)
}

/// What may change in a Job that may have started.
fn validate_update(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let before = workload::spec(old);
    if text(spec, "completionMode") != "Indexed" {
        checks::immutable(spec.get("completions"), before.get("completions"), &path.child("completions"), errors);
    } else if let Some(completions) = int(spec, "completions")
        && int(before, "completions") != Some(completions)
        && int(spec, "parallelism") != Some(completions)
    {
        errors.invalid(path.child("completions"), completions, &format!("can only be modified in tandem with {path}.parallelism"));
    }
    checks::immutable_structure("meta.v1.LabelSelector", spec.get("selector"), before.get("selector"), &path.child("selector"), errors);
    let mut template = shown(spec, "template");
    let old_template = shown(before, "template");
    let not_started = !has(workload::status(old), "startTime");
    if flag(before, "suspend") && not_started || flag(before, "suspend") && flag(spec, "suspend") {
        allow_scheduling_changes(&mut template, &old_template);
    }
    if template != old_template {
        let shown = internal::show("core.v1.PodTemplateSpec", &shown(spec, "template"));
        errors.invalid_structure(path.child("template"), &shown, checks::IMMUTABLE);
    }
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        let (new, old, at) = (spec.get(key), before.get(key), path.child(key));
        match key {
            "podFailurePolicy" => checks::immutable_structure("batch.v1.PodFailurePolicy", new, old, &at, errors),
            "successPolicy" => checks::immutable_structure("batch.v1.SuccessPolicy", new, old, &at, errors),
            _ => checks::immutable(new, old, &at, errors),
        }
    }
}
/// While a Job is suspended, where its pods may run can still be changed.
fn allow_scheduling_changes(template: &mut Value, old: &Value) {
    fn copy(to: &mut Value, from: &Value, key: &str) {
        match from.get(key) {
            Some(value) => put(to, key, value.clone()),
            None => {
                crate::kinds::values::take(to, key);
            }
        }
    }
    let nothing = Value::Null;
    let (metadata, spec) = (old.get("metadata").unwrap_or(&nothing), old.get("spec").unwrap_or(&nothing));
    for key in ["labels", "annotations"] {
        copy(made(template, "metadata"), metadata, key);
    }
    for key in ["nodeSelector", "tolerations", "schedulingGates", "affinity"] {
        copy(made(template, "spec"), spec, key);
    }
}

fn validate_status(job: &Value, old: &Value, errors: &mut Errors) {
    let (spec, status, before) = (workload::spec(job), workload::status(job), workload::status(old));
    let path = Path::new("status");
    checks::not_negatives(status, &["active", "succeeded", "failed", "ready", "terminating"], &path, errors);
    let (complete, failed) = (is_true(status, "Complete"), is_true(status, "Failed"));
    let conditions = path.child("conditions");
    let refuse = |errors: &mut Errors, detail: &str| errors.push(Reason::Invalid, conditions.clone(), None, detail);
    let (start, end) = (status.str_at("startTime"), status.str_at("completionTime"));
    if complete && end.is_none() {
        errors.required(path.child("completionTime"), "completionTime is required for Complete jobs");
    }
    if !complete && let Some(end) = end {
        errors.invalid(path.child("completionTime"), end, "cannot set completionTime when there is no Complete=True condition");
    }
    if let (Some(start), Some(end)) = (start.and_then(table::unix_s), end.and_then(table::unix_s))
        && end < start
    {
        errors.invalid(path.child("completionTime"), status.str_at("completionTime").unwrap_or_default(), "must be equal to or after `startTime`");
    }
    if complete && failed {
        refuse(errors, "cannot set Complete=True and Failed=true conditions");
    }
    if complete && !is_true(status, "SuccessCriteriaMet") {
        refuse(errors, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition");
    }
    if failed && !is_true(status, "FailureTarget") {
        refuse(errors, "cannot set Failed=True condition without the FailureTarget=true condition");
    }
    let active = int(status, "active").unwrap_or(0);
    if (complete || failed) && active > 0 {
        errors.invalid(path.child("active"), active, "active>0 is invalid for finished job");
    }
    for kind in ["Complete", "Failed"] {
        if is_true(before, kind) && !is_true(status, kind) {
            refuse(errors, &format!("cannot disable the terminal {kind}=True condition"));
        }
    }
    for kind in ["SuccessCriteriaMet", "FailureTarget"] {
        if is_true(before, kind) && !is_true(status, kind) {
            refuse(errors, &format!("cannot disable the {kind}=True condition"));
        }
    }
    for (key, what) in [("failed", "failed"), ("succeeded", "succeeded")] {
        let (now, then) = (int(status, key).unwrap_or(0), int(before, key).unwrap_or(0));
        let indexed = text(spec, "completionMode") == "Indexed" && key == "succeeded";
        if now < then && !indexed {
            errors.invalid(path.child(key), now, &format!("cannot decrease the {what} counter"));
        }
    }
    if !flag(spec, "suspend") && has(before, "startTime") && status.get("startTime") != before.get("startTime") {
        errors.invalid(path.child("startTime"), shown(status, "startTime"), "field is immutable for unsuspended job once set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_grow_and_are_below_the_number_of_completions() {
        assert_eq!(count_indexes("", 5), Ok(0));
        assert_eq!(count_indexes("0,2-4", 5), Ok(4));
        for (text, problem) in [
            ("5", "too large index: \"5\""),
            ("1,a", "cannot convert string to integer for index: \"a\""),
            ("1,1", "non-increasing order, previous: 1, current: 1"),
            ("3-2", "non-increasing order, previous: 3, current: 2"),
            ("1-2-3", "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'"),
        ] {
            assert_eq!(count_indexes(text, 5), Err(problem.to_string()), "{text}");
        }
    }
}
