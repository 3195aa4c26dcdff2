//! Job of batch.

use crate::{
    field::{Errors, Path, Reason},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks, conditions,
        pod::{template, warnings},
        values::{each, fill, fill_absent, flag, has, int, list, made, member, put, shown, strings, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    selector::{self, LabelSelector},
    table,
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashSet};

pub fn kind() -> Kind {
    Kind::namespaced("batch", "v1", "Job", "jobs").categories(&["all"]).generation().selectable(&["status.successful"]).status().hooks(Jobs)
}

const BACKOFF_LIMIT_DEFAULT: i64 = 6;
const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const OLD_UID_LABEL: &str = "controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
const OLD_NAME_LABEL: &str = "job-name";
const MANAGER_BYTES_MAX: usize = 63;
/// Indexes that may run or fail, and completions without further limits.
const INDEXES_MAX: i64 = 100_000;
/// The same with more completions than that.
const MANY_INDEXES_MAX: i64 = 10_000;
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
        fill_absent(spec, "completionMode", "NonIndexed");
        fill(spec, "suspend", false);
        fill(spec, "manualSelector", false);
        let replacement = if has(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        fill_absent(spec, "podReplacementPolicy", replacement);
        default_failure_policy(spec);
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
        generated_selector(job, old, errors);
        validate_selecting_spec(spec, &path, errors);
        index_names(job, errors);
        if let Some(old) = old {
            validate_selecting_spec(spec, &path, errors);
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
        let spec = workload::spec(job);
        let mut all: Vec<String> = match old {
            Some(old) if workload::spec(old) == spec => return vec![],
            Some(_) => vec![],
            None => warnings::host_name(job.name(), "Pod names and hostnames").into_iter().collect(),
        };
        all.extend(too_many_indexes(spec, "spec"));
        all.extend(warnings::workload(job, old, false));
        all
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

/// What is said of a Job at `path` that may lose sight of which indexes are done.
pub fn too_many_indexes(spec: &Value, path: &str) -> Option<String> {
    let above = |key: &str, limit: i64| int(spec, key).unwrap_or(0) > limit;
    let many = text(spec, "completionMode") == "Indexed" && above("completions", INDEXES_MAX) && above("parallelism", MANY_INDEXES_MAX);
    many.then(|| format!("{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"))
}

/// A condition that a rule for failed pods names is one that is true.
pub fn default_failure_policy(spec: &mut Value) {
    within(spec, "podFailurePolicy", |policy| {
        each(policy, "rules", |rule| each(rule, "onPodConditions", |condition| fill(condition, "status", "True")))
    });
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
    for (key, old_key, value) in [(NAME_LABEL, OLD_NAME_LABEL, &name), (UID_LABEL, OLD_UID_LABEL, &uid)] {
        if !has(labels, key) {
            put(labels, key, value.as_str());
            put(labels, old_key, value.as_str());
        }
    }
    let selected = made(made(spec, "selector"), "matchLabels");
    if !has(selected, UID_LABEL) {
        put(selected, UID_LABEL, uid);
    }
}

/// The generated labels and selector must be as they were made. Jobs from before the prefixed labels do without them.
fn generated_selector(job: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = workload::spec(job);
    let Some(selector) = member(spec, "selector").filter(|_| !flag(spec, "manualSelector")) else { return };
    let labels = |job: &Value| job.at("spec.template.metadata.labels").cloned().unwrap_or_default();
    let prefixed = old.is_none_or(|old| [NAME_LABEL, UID_LABEL].iter().all(|key| has(&labels(old), key)));
    let mut wanted = vec![(OLD_UID_LABEL, job.uid()), (OLD_NAME_LABEL, job.name())];
    if prefixed {
        wanted.extend([(UID_LABEL, job.uid()), (NAME_LABEL, job.name())]);
    }
    let (at, labels) = (Path::new("spec").child("template").child("metadata").child("labels"), labels(job));
    for (key, want) in &wanted {
        let detail = format!("must be '{want}'");
        match labels.get(key).and_then(Value::as_str) {
            None => errors.required(at.key(key), &detail),
            Some(value) if value != *want => errors.invalid(at.key(key), labels.clone(), &detail),
            Some(_) => {}
        }
    }
    let selects = LabelSelector::from_value(selector).map(|s| s.matches(|key| wanted.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)));
    if selects == Ok(false) {
        errors.invalid_structure(Path::new("spec").child("selector"), &internal::selector(Some(selector)), "`selector` not auto-generated");
    }
}

/// Rules for the spec of a Job that has its selector.
fn validate_selecting_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    validate_spec(spec, path, errors);
    match member(spec, "selector") {
        None => errors.required(path.child("selector"), ""),
        Some(selector) => {
            selector::validate(selector, &path.child("selector"), errors);
            if let Some(pod) = member(spec, "template") {
                template::matches(selector, pod, &path.child("template"), errors);
            }
        }
    }
}

/// Pods of an indexed Job are named after it and their index.
fn index_names(job: &Value, errors: &mut Errors) {
    let spec = workload::spec(job);
    let Some(completions) = int(spec, "completions").filter(|c| *c > 0 && text(spec, "completionMode") == "Indexed") else { return };
    let longest = format!("{}-{}", job.name(), completions - 1);
    if !names::dns1123_label(&longest).is_empty() {
        let detail = format!("will not able to create pod with invalid DNS label: {longest}");
        errors.invalid(Path::new("metadata").child("name"), job.name(), &detail);
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
    checks::not_negative(spec, "maxFailedIndexes", path, errors);
    if has(spec, "maxFailedIndexes") && !has(spec, "backoffLimitPerIndex") {
        errors.required(path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = member(spec, "managedBy").and_then(Value::as_str) {
        if manager.is_empty() {
            errors.required(path.child("managedBy"), "");
        } else {
            checks::domain_prefixed(manager, &path.child("managedBy"), errors);
        }
        if manager.len() > MANAGER_BYTES_MAX {
            errors.too_long(path.child("managedBy"), "", MANAGER_BYTES_MAX);
        }
    }
    checks::one_of(spec, "completionMode", &["Indexed", "NonIndexed"], path, errors);
    match member(spec, "completionMode").and_then(Value::as_str) {
        Some("Indexed") => indexed_limits(spec, path, errors),
        Some("NonIndexed") | None => {
            for key in ["backoffLimitPerIndex", "maxFailedIndexes"].into_iter().filter(|key| has(spec, key)) {
                errors.invalid(path.child(key), shown(spec, key), "requires indexed completion mode");
            }
        }
        _ => {}
    }
    failure_policy(spec, path, errors);
    success_policy(spec, path, errors);
    let replacements: &[&str] = if has(spec, "podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    checks::one_of(spec, "podReplacementPolicy", replacements, path, errors);
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

/// What an indexed Job may ask for.
fn indexed_limits(spec: &Value, path: &Path, errors: &mut Errors) {
    let (completions, parallelism, failed) = (int(spec, "completions"), int(spec, "parallelism"), int(spec, "maxFailedIndexes"));
    let refuse_above = |errors: &mut Errors, key: &str, value: Option<i64>, max: i64, when: &str| {
        if let Some(value) = value.filter(|v| *v > max) {
            errors.invalid(path.child(key), value, &format!("must be less than or equal to {max}{when}"));
        }
    };
    if completions.is_none() {
        errors.required(path.child("completions"), "when completion mode is Indexed");
    }
    refuse_above(errors, "parallelism", parallelism, INDEXES_MAX, " when completion mode is Indexed");
    if let (Some(failed), Some(completions)) = (failed, completions)
        && failed > completions
    {
        errors.invalid(path.child("maxFailedIndexes"), failed, "must be less than or equal to completions");
    }
    refuse_above(errors, "maxFailedIndexes", failed, INDEXES_MAX, "");
    if completions.is_some_and(|c| c > INDEXES_MAX) && has(spec, "backoffLimitPerIndex") {
        let when = format!(" when completions are above {INDEXES_MAX} and used with backoff limit per index");
        if failed.is_none() {
            errors.required(path.child("maxFailedIndexes"), &format!("must be specified when completions is above {INDEXES_MAX}"));
        }
        refuse_above(errors, "parallelism", parallelism, MANY_INDEXES_MAX, &when);
        refuse_above(errors, "maxFailedIndexes", failed, MANY_INDEXES_MAX, &when);
    }
}

fn failure_policy(spec: &Value, path: &Path, errors: &mut Errors) {
    const RULES_MAX: usize = 20;
    const CODES_MAX: usize = 255;
    const CONDITIONS_MAX: usize = 20;
    let Some(policy) = member(spec, "podFailurePolicy") else { return };
    let path = path.child("podFailurePolicy").child("rules");
    let rules = list(policy, "rules");
    if rules.len() > RULES_MAX {
        errors.too_many(path.clone(), rules.len(), RULES_MAX);
    }
    let containers: HashSet<&str> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|key| spec.at("template.spec").map(|s| list(s, key)).unwrap_or_default())
        .map(|c| text(c, "name"))
        .collect();
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let at = path.child("action");
        match text(rule, "action") {
            "" => errors.required(at, "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
            "FailIndex" if !has(spec, "backoffLimitPerIndex") => errors.invalid(at, "FailIndex", "requires the backoffLimitPerIndex to be set"),
            "Count" | "FailIndex" | "FailJob" | "Ignore" => {}
            other => errors.not_supported(at, other, &["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let (codes, patterns) = (member(rule, "onExitCodes"), list(rule, "onPodConditions"));
        if let Some(codes) = codes {
            let path = path.child("onExitCodes");
            match text(codes, "operator") {
                "" => errors.required(path.child("operator"), "valid values: [\"In\" \"NotIn\"]"),
                _ => checks::one_of(codes, "operator", &["In", "NotIn"], &path, errors),
            }
            if let Some(name) = member(codes, "containerName").and_then(Value::as_str)
                && !containers.contains(name)
            {
                errors.invalid(path.child("containerName"), name, "must be one of the container or initContainer names in the pod template");
            }
            let values = list(codes, "values");
            if values.is_empty() {
                errors.invalid(path.child("values"), Value::from(values.to_vec()), "at least one value is required");
            } else if values.len() > CODES_MAX {
                errors.too_many(path.child("values"), values.len(), CODES_MAX);
            }
            for (i, value, again) in checks::distinct(values, |value| value) {
                let at = path.child("values").index(i);
                if text(codes, "operator") == "In" && value.as_i64() == Some(0) {
                    errors.invalid(at.clone(), 0, "must not be 0 for the In operator");
                }
                if again {
                    errors.duplicate(at, value.clone());
                }
            }
            if !values.is_sorted_by_key(Value::as_i64) {
                errors.invalid(path.child("values"), Value::from(values.to_vec()), "must be ordered");
            }
        }
        if patterns.len() > CONDITIONS_MAX {
            errors.too_many(path.child("onPodConditions"), patterns.len(), CONDITIONS_MAX);
        }
        for (i, condition) in patterns.iter().enumerate() {
            let path = path.child("onPodConditions").index(i);
            let kind = text(condition, "type");
            errors.invalid_all(&path.child("type"), kind, names::qualified_name(kind));
            match text(condition, "status") {
                "" => errors.required(path.child("status"), "valid values: [\"False\" \"True\" \"Unknown\"]"),
                _ => checks::one_of(condition, "status", conditions::STATUSES, &path, errors),
            }
        }
        let omit = |errors: &mut Errors, detail: &str| errors.push(Reason::Invalid, path.clone(), None, detail);
        match (codes, patterns.is_empty()) {
            (Some(_), false) => omit(errors, "specifying both OnExitCodes and OnPodConditions is not supported"),
            (None, true) => omit(errors, "specifying one of OnExitCodes and OnPodConditions is required"),
            _ => {}
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
        if count.is_none() && !has(rule, "succeededIndexes") {
            errors.required(path.clone(), "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut selected = 0;
        if has(rule, "succeededIndexes") {
            let at = path.child("succeededIndexes");
            if indexes.len() > SUCCEEDED_INDEXES_BYTES_MAX {
                errors.too_long(at.clone(), indexes, SUCCEEDED_INDEXES_BYTES_MAX);
            }
            match count_indexes(indexes, int(spec, "completions").unwrap_or(0)) {
                Ok(number) => selected = number,
                Err(why) => errors.invalid(at, indexes, &format!("error parsing succeededIndexes: {why}")),
            }
        }
        checks::not_negative(rule, "succeededCount", &path, errors);
        if let (Some(count), Some(completions)) = (count, int(spec, "completions"))
            && count > completions
        {
            errors.invalid(
                path.child("succeededCount"),
                count,
                &format!("must be less than or equal to {completions} (the number of specified completions)"),
            );
        }
        if let Some(count) = count.filter(|count| has(rule, "succeededIndexes") && *count > selected) {
            errors.invalid(
                path.child("succeededCount"),
                count,
                &format!("must be less than or equal to {selected} (the number of indexes in the specified succeededIndexes field)"),
            );
        }
    }
}

/// The first and last index of an interval such as `2-4`, both of them below `completions`.
fn interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let number = |part: &str| match part.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {part:?}")),
        Ok(index) if index >= completions => Err(format!("too large index: {part:?}")),
        Ok(index) => Ok(index),
    };
    match text.split('-').collect::<Vec<_>>().as_slice() {
        [one] => number(one).map(|one| (one, one)),
        [first, last] => match (number(first)?, number(last)?) {
            (first, last) if first >= last => Err(format!("non-increasing order, previous: {first}, current: {last}")),
            both => Ok(both),
        },
        _ => Err(format!("the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'")),
    }
}

/// How many indexes a text such as `0,2-4` names, each greater than the one before.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut count, mut previous) = (0, None);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = interval(part, completions)?;
        if let Some(previous) = previous.filter(|previous| *previous >= first) {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        count += last - first + 1;
        previous = Some(last);
    }
    Ok(count)
}

/// The first index that two such texts have in common.
fn overlap(completed: &str, failed: &str, completions: i64) -> Option<i64> {
    let intervals = |text| str::split(text, ',').filter_map(|part| interval(part, completions).ok()).peekable();
    let (mut completed, mut failed) = (intervals(completed), intervals(failed));
    // Both grow: of two that do not meet, the lower one meets none of those that follow.
    while let (Some((first, last)), Some((f, l))) = (completed.peek(), failed.peek()) {
        if first <= l && f <= last {
            return Some(*first.max(f));
        }
        if first <= f {
            completed.next()
        } else {
            failed.next()
        };
    }
    None
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
    if may_change_template(old) {
        allow_scheduling_changes(&mut template, &old_template);
        allow_resource_changes(&mut template, &old_template);
        if workload::spec(&template) != workload::spec(&old_template) {
            let shown = internal::show("core.v1.PodSpec", &shown(&shown(spec, "template"), "spec"));
            errors.invalid_structure(path.child("template").child("spec"), &shown, checks::IMMUTABLE);
        }
    } else if template != old_template {
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
/// Whether a Job is suspended and has no pods, and none to come from before.
fn may_change_template(job: &Value) -> bool {
    let status = workload::status(job);
    let waits = !has(status, "startTime") || is_true(status, "Suspended");
    flag(workload::spec(job), "suspend") && waits && int(status, "active").unwrap_or(0) == 0
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
    for key in ["nodeSelector", "tolerations", "schedulingGates"] {
        copy(made(template, "spec"), spec, key);
    }
    let affinity = spec.get("affinity").unwrap_or(&nothing);
    copy(made(made(template, "spec"), "affinity"), affinity, "nodeAffinity");
    if !has(spec, "affinity") && template["spec"]["affinity"] == json!({}) {
        copy(made(template, "spec"), spec, "affinity");
    }
}

/// And what they ask for, as long as they are the same.
fn allow_resource_changes(template: &mut Value, old: &Value) {
    let (spec, before) = (made(template, "spec"), workload::spec(old));
    for key in ["initContainers", "containers"] {
        let old = list(before, key);
        if list(spec, key).len() != old.len() {
            continue;
        }
        let mut old = old.iter();
        each(spec, key, |container| {
            if let Some(old) = old.next().filter(|old| text(old, "name") == text(container, "name")) {
                put(container, "resources", shown(old, "resources"));
            }
        });
    }
}

/// A status is checked where it changes: one that is wrong for another reason can still be written.
fn validate_status(job: &Value, old: &Value, errors: &mut Errors) {
    let (spec, status, before) = (workload::spec(job), workload::status(job), workload::status(old));
    let path = Path::new("status");
    checks::not_negatives(status, &["active", "succeeded", "failed", "ready", "terminating"], &path, errors);
    let pods = status.get("uncountedTerminatedPods").unwrap_or(&Value::Null);
    uncounted(pods, &path.child("uncountedTerminatedPods"), errors);
    let changed = |key: &str| shown(status, key) != shown(before, key);
    let turned = |kind: &str| is_true(status, kind) != is_true(before, kind);
    let refuse = |errors: &mut Errors, detail: &str| errors.push(Reason::Invalid, path.child("conditions"), None, detail);
    let (complete, failed) = (is_true(status, "Complete"), is_true(status, "Failed"));
    let (succeeding, failing) = (is_true(status, "SuccessCriteriaMet"), is_true(status, "FailureTarget"));
    let finished = complete || failed;
    let turned_finished = finished != (is_true(before, "Complete") || is_true(before, "Failed"));
    if (turned("Complete") || turned("Failed")) && complete && failed {
        refuse(errors, "cannot set Complete=True and Failed=true conditions");
    }
    if (turned("Complete") || turned("FailureTarget")) && complete && failing {
        refuse(errors, "cannot set Complete=True and FailureTarget=true conditions");
    }
    let (start, end) = (status.str_at("startTime"), status.str_at("completionTime"));
    if turned("Complete") || changed("completionTime") {
        match end {
            Some(end) if !complete => {
                errors.invalid(path.child("completionTime"), end, "cannot set completionTime when there is no Complete=True condition")
            }
            None if complete => errors.required(path.child("completionTime"), "completionTime is required for Complete jobs"),
            _ => {}
        }
    }
    if (changed("startTime") || changed("completionTime"))
        && let (Some(start), Some(end)) = (start, end)
        && table::unix_s(end) < table::unix_s(start)
    {
        errors.invalid(path.child("completionTime"), end, "must be equal to or after `startTime`");
    }
    if (turned("Failed") || changed("failedIndexes")) && failed && !failing {
        refuse(errors, "cannot set Failed=True condition without the FailureTarget=true condition");
    }
    if (turned("Complete") || turned("SuccessCriteriaMet")) && complete && !succeeding {
        refuse(errors, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition");
    }
    let active = int(status, "active").unwrap_or(0);
    if (turned_finished || changed("active")) && finished && active > 0 {
        errors.invalid(path.child("active"), active, "active>0 is invalid for finished job");
    }
    let never_ran = flag(spec, "suspend") && int(spec, "completions") == Some(0);
    if (turned_finished || changed("startTime")) && finished && start.is_none() && !never_ran {
        errors.required(path.child("startTime"), "startTime is required for finished job");
    }
    let none_uncounted = ["succeeded", "failed"].iter().all(|key| list(pods, key).is_empty());
    if (turned_finished || changed("uncountedTerminatedPods")) && finished && !none_uncounted {
        errors.invalid(path.child("uncountedTerminatedPods"), pods.clone(), "must be empty for finished job");
    }
    validate_indexes(spec, status, &changed, &path, errors);
    let terminating = int(status, "terminating").unwrap_or(0);
    if (turned_finished || changed("terminating")) && finished && terminating > 0 {
        errors.invalid(path.child("terminating"), terminating, "terminating>0 is invalid for finished job");
    }
    let ready = int(status, "ready").unwrap_or(0);
    if (changed("ready") || changed("active")) && has(status, "ready") && ready > active {
        errors.invalid(path.child("ready"), ready, "cannot set more ready pods than active");
    }
    if succeeding && failed {
        refuse(errors, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    }
    if succeeding && failing {
        refuse(errors, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    }
    if has(spec, "successPolicy") && complete && !succeeding {
        refuse(errors, "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True");
    }
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is_true(before, kind) && !is_true(status, kind) {
            refuse(errors, &format!("cannot disable the terminal {kind}=True condition"));
        }
    }
    let elastic = text(spec, "completionMode") == "Indexed" && int(spec, "completions") == int(spec, "parallelism");
    for key in ["failed", "succeeded"] {
        let now = int(status, key).unwrap_or(0);
        if now < int(before, key).unwrap_or(0) && !(key == "succeeded" && elastic) {
            errors.invalid(path.child(key), now, &format!("cannot decrease the {key} counter"));
        }
    }
    if let Some(end) = end.filter(|_| has(before, "completionTime") && changed("completionTime")) {
        errors.invalid(path.child("completionTime"), end, checks::IMMUTABLE);
    }
    if !flag(spec, "suspend") && has(before, "startTime") && changed("startTime") {
        errors.invalid(path.child("startTime"), shown(status, "startTime"), "field is immutable for unsuspended job once set");
    }
    if is_true(before, "SuccessCriteriaMet") && !succeeding {
        refuse(errors, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if is_true(before, "Complete") && !is_true(before, "SuccessCriteriaMet") && succeeding {
        refuse(errors, "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions");
    }
}

/// UIDs of pods that ended and are not yet counted: each one once.
fn uncounted(pods: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for key in ["succeeded", "failed"] {
        for (i, uid) in strings(pods, key).enumerate() {
            let at = path.child(key).index(i);
            if uid.is_empty() {
                errors.invalid(at, uid, "must not be empty");
            } else if !seen.insert(uid) {
                errors.duplicate(at, uid);
            }
        }
    }
}

/// Which indexes are done and which failed.
fn validate_indexes(spec: &Value, status: &Value, changed: &impl Fn(&str) -> bool, path: &Path, errors: &mut Errors) {
    let (completed, failed) = (text(status, "completedIndexes"), member(status, "failedIndexes").and_then(Value::as_str));
    let (completions, limited) = (int(spec, "completions"), has(spec, "backoffLimitPerIndex"));
    let at = |key: &str| path.child(key);
    let check = |errors: &mut Errors, key: &str, text: &str| {
        if let Some(Err(problem)) = completions.map(|completions| count_indexes(text, completions)) {
            errors.invalid(at(key), text, &format!("error parsing {key}: {problem}"));
        }
    };
    let (changed_completed, changed_failed) = (changed("completedIndexes"), changed("failedIndexes"));
    if changed_completed {
        check(errors, "completedIndexes", completed);
    }
    if let Some(failed) = failed.filter(|_| changed_failed && limited) {
        check(errors, "failedIndexes", failed);
    }
    if changed_completed && !completed.is_empty() && text(spec, "completionMode") != "Indexed" {
        errors.invalid(at("completedIndexes"), completed, "cannot set non-empty completedIndexes when non-indexed completion mode");
    }
    if let Some(failed) = failed.filter(|_| changed_failed && !limited) {
        errors.invalid(at("failedIndexes"), failed, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    if let (true, Some(failed), Some(completions)) = (changed_completed || changed_failed, failed, completions)
        && let Some(index) = overlap(completed, failed, completions)
    {
        errors.invalid(at("failedIndexes"), failed, &format!("failedIndexes and completedIndexes overlap at index: {index}"));
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
        for (completed, failed, index) in [("0-2", "3,4", None), ("0,2-4", "1,3", Some(3)), ("", "1", None), ("a,4", "4", Some(4))] {
            assert_eq!(overlap(completed, failed, 5), index, "{completed} {failed}");
        }
    }
}
