//! CronJob of batch.

use super::{jobs, schedule::Schedule};
use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::{template, warnings},
        values::{fill, flag, has, list, made, member, put, text},
        workload,
    },
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("batch", "v1", "CronJob", "cronjobs").short(&["cj"]).categories(&["all"]).generation().status().hooks(CronJobs)
}

/// The longest name: eleven characters are left for what its Jobs' names add.
const NAME_CHARS_MAX: usize = 52;

struct CronJobs;

impl Hooks for CronJobs {
    fn default(&self, job: &mut Value) {
        let spec = made(job, "spec");
        fill(spec, "concurrencyPolicy", "Allow");
        fill(spec, "suspend", false);
        fill(spec, "successfulJobsHistoryLimit", 3);
        fill(spec, "failedJobsHistoryLimit", 1);
        let job_template = made(spec, "jobTemplate");
        made(job_template, "metadata");
        let job = made(job_template, "spec");
        jobs::default_failure_policy(job);
        template::default(job);
    }
    fn prepare_create(&self, job: &mut Value) {
        put(job, "status", json!({}));
    }
    fn validate(&self, job: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(job), Path::new("spec"));
        let schedule = text(spec, "schedule");
        if schedule.is_empty() {
            errors.required(path.child("schedule"), "");
        } else {
            let path = path.child("schedule");
            let old_zone = old.is_some_and(|old| text(workload::spec(old), "schedule").contains("TZ"));
            if let Err(problem) = Schedule::parse(without_zone(schedule)) {
                errors.invalid(path.clone(), schedule, &problem);
            }
            match schedule.contains("TZ") {
                true if !old_zone => errors.invalid(path, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"),
                true if has(spec, "timeZone") => errors.invalid(path, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule"),
                _ => {}
            }
        }
        checks::not_negatives(spec, &["startingDeadlineSeconds"], &path, errors);
        if let Some(Value::String(zone)) = member(spec, "timeZone")
            && old.is_none_or(|old| workload::spec(old).get("timeZone") != spec.get("timeZone"))
        {
            time_zone(zone, &path.child("timeZone"), errors);
        }
        checks::required_one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path, errors);
        let nothing = Value::Null;
        let job_template = spec.get("jobTemplate").unwrap_or(&nothing);
        let at = path.child("jobTemplate");
        let job_spec = workload::spec(job_template);
        jobs::validate_spec(job_spec, &at.child("spec"), errors);
        if let Some(selector) = member(job_spec, "selector") {
            let shown = internal::selector(Some(selector));
            errors.invalid_structure(at.child("spec").child("selector"), &shown, "`selector` will be auto-generated");
        }
        if flag(job_spec, "manualSelector") {
            errors.not_supported(at.child("spec").child("manualSelector"), true, &["nil", "false"]);
        }
        checks::not_negatives(spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"], &path, errors);
        if old.is_none() && job.name().len() > NAME_CHARS_MAX {
            errors.invalid(Path::new("metadata").child("name"), job.name(), &format!("must be no more than {NAME_CHARS_MAX} characters"));
        }
    }
    fn warnings(&self, job: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some_and(|old| workload::spec(old) == workload::spec(job)) {
            return vec![];
        }
        let mut all: Vec<String> = match old {
            None => warnings::host_name(job.name(), "Pod names and hostnames").into_iter().collect(),
            Some(_) => vec![],
        };
        all.extend(job.at("spec.jobTemplate.spec").and_then(|spec| jobs::too_many_indexes(spec, "spec.jobTemplate.spec")));
        let path = Path::new("spec.jobTemplate.spec.template");
        all.extend(job.at("spec.jobTemplate.spec.template").map(|pod| warnings::pod(pod, &path, true)).unwrap_or_default());
        all
    }
    fn cells(&self, job: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(job), workload::status(job));
        let last = match status.str_at("lastScheduleTime") {
            Some(at) => table::since(Some(at), now_unix_s),
            None => "<none>".into(),
        };
        let zone = match text(spec, "timeZone") {
            "" => "<none>",
            zone => zone,
        };
        let job_spec = spec.get("jobTemplate").map(workload::spec).unwrap_or(&Value::Null);
        let mut cells = vec![
            table::name(job),
            json!(text(spec, "schedule")),
            json!(zone),
            json!(if flag(spec, "suspend") { "True" } else { "False" }),
            json!(list(status, "active").len()),
            json!(last),
            table::age(job, now_unix_s),
        ];
        cells.extend(workload::wide(job_spec, table::selector_text(job_spec.get("selector"))));
        cells
    }
}

/// The schedule in a text that may begin with a time zone, `TZ=UTC `.
fn without_zone(schedule: &str) -> &str {
    let zoned = ["TZ=", "CRON_TZ="].iter().any(|prefix| schedule.starts_with(prefix));
    schedule.split_once(' ').filter(|_| zoned).map_or(schedule, |(_, rest)| rest.trim())
}

fn time_zone(zone: &str, path: &Path, errors: &mut Errors) {
    if zone.is_empty() {
        return errors.invalid(path.clone(), zone, "timeZone must be nil or non-empty string");
    }
    let unknown = format!("unknown time zone {zone}");
    if !zone.split('/').all(is_zone_part) {
        return errors.invalid(path.clone(), zone, &unknown);
    }
    if zone.eq_ignore_ascii_case("Local") {
        errors.invalid(path.clone(), zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
    }
    if zone != "Local" && jiff::tz::TimeZone::get(zone).ok().as_ref().and_then(|z| z.iana_name()) != Some(zone) {
        errors.invalid(path.clone(), zone, &unknown);
    }
}

/// Whether a text can be a part of a time zone's name.
fn is_zone_part(part: &str) -> bool {
    const CHARS_MAX: usize = 14;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
    (1..=CHARS_MAX).contains(&part.len()) && !matches!(part, "." | "..") && !part.starts_with('-') && part.bytes().all(good)
}
