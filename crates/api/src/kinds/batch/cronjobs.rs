//! CronJob of batch.

use super::{jobs, schedule::Schedule};
use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        checks,
        pod::{template, warnings},
        values::{fill, flag, list, made, map, member, put, text},
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
        template::default(made(job_template, "spec"));
    }
    fn prepare_create(&self, job: &mut Value) {
        put(job, "status", json!({}));
    }
    fn validate(&self, job: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(job), Path::new("spec"));
        if old.is_none() && job.name().len() > NAME_CHARS_MAX {
            errors.invalid(Path::new("metadata").child("name"), job.name(), &format!("must be no more than {NAME_CHARS_MAX} characters"));
        }
        let schedule = text(spec, "schedule");
        if schedule.is_empty() {
            errors.required(path.child("schedule"), "");
        } else if schedule.contains("TZ") {
            errors.invalid(path.child("schedule"), schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        } else if let Err(problem) = Schedule::parse(schedule) {
            errors.invalid(path.child("schedule"), schedule, &problem);
        }
        if let Some(Value::String(zone)) = member(spec, "timeZone") {
            time_zone(zone, &path.child("timeZone"), errors);
        }
        checks::not_negatives(spec, &["startingDeadlineSeconds"], &path, errors);
        checks::required_one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path, errors);
        let nothing = Value::Null;
        let job_template = spec.get("jobTemplate").unwrap_or(&nothing);
        let at = path.child("jobTemplate");
        let metadata = job_template.get("metadata").unwrap_or(&nothing);
        checks::annotations(map(metadata, "annotations"), &at.child("annotations"), errors);
        checks::labels(map(metadata, "labels"), &at.child("labels"), errors);
        let job_spec = workload::spec(job_template);
        jobs::validate_spec(job_spec, &at.child("spec"), errors);
        if flag(job_spec, "manualSelector") {
            errors.not_supported(at.child("spec").child("manualSelector"), true, &["nil", "false"]);
        }
        checks::not_negatives(spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"], &path, errors);
    }
    fn warnings(&self, job: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some_and(|old| workload::spec(old) == workload::spec(job)) {
            return vec![];
        }
        let mut all: Vec<String> = match old {
            None => warnings::host_name(job.name(), "Pod names and hostnames").into_iter().collect(),
            Some(_) => vec![],
        };
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

fn time_zone(zone: &str, path: &Path, errors: &mut Errors) {
    if zone.is_empty() {
        errors.invalid(path.clone(), zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("Local") {
        errors.invalid(path.clone(), zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
    } else if jiff::tz::TimeZone::get(zone).ok().as_ref().and_then(|z| z.iana_name()) != Some(zone) {
        errors.invalid(path.clone(), zone, &format!("unknown time zone {zone}"));
    }
}
