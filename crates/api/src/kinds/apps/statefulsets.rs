//! StatefulSet of apps.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind, NameRule},
    kinds::{
        checks,
        pod::{defaults, template, volumes},
        values::{each, fill, has, int, list, made, map, member, put, take, text, within},
        workload,
    },
    names, selector, table,
};
use serde_json::{Value, json};
use std::collections::HashSet;

pub fn kind() -> Kind {
    Kind::namespaced("apps", "v1", "StatefulSet", "statefulsets")
        .short(&["sts"])
        .categories(&["all"])
        .generation()
        .names(NameRule::Label)
        .scale("spec.replicas", "status.replicas", "spec.selector")
        .status()
        .hooks(StatefulSets)
}

struct StatefulSets;

impl Hooks for StatefulSets {
    fn default(&self, set: &mut Value) {
        let spec = made(set, "spec");
        fill(spec, "replicas", 1);
        fill(spec, "revisionHistoryLimit", 10);
        fill(spec, "podManagementPolicy", "OrderedReady");
        let strategy = made(spec, "updateStrategy");
        // A type that is said is the whole strategy, if there is no more of it.
        if text(strategy, "type").is_empty() {
            put(strategy, "type", "RollingUpdate");
            made(strategy, "rollingUpdate");
        }
        if text(strategy, "type") == "RollingUpdate" {
            within(strategy, "rollingUpdate", |rolling| fill(rolling, "partition", 0));
        }
        let retention = made(spec, "persistentVolumeClaimRetentionPolicy");
        fill(retention, "whenDeleted", "Retain");
        fill(retention, "whenScaled", "Retain");
        template::default(spec);
        each(spec, "volumeClaimTemplates", |claim| {
            fill(claim, "kind", "PersistentVolumeClaim");
            fill(claim, "apiVersion", "v1");
            fill(claim, "metadata", json!({}));
            defaults::claim_spec(made(claim, "spec"));
            fill(made(claim, "status"), "phase", "Pending");
        });
    }
    fn prepare_create(&self, set: &mut Value) {
        template::drop_disabled(set);
        drop_disabled(set);
        put(set, "status", json!({"replicas": 0, "availableReplicas": 0}));
    }
    fn prepare_update(&self, set: &mut Value, _old: &Value) {
        template::drop_disabled(set);
        drop_disabled(set);
    }
    fn validate(&self, set: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(set), Path::new("spec"));
        match text(spec, "podManagementPolicy") {
            "" => errors.required(path.child("podManagementPolicy"), ""),
            "OrderedReady" | "Parallel" => {}
            other => errors.invalid(path.child("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'"),
        }
        strategy(spec, &path, errors);
        retention(spec, &path, errors);
        checks::not_negatives(spec, &["replicas", "minReadySeconds"], &path, errors);
        if let Some(ordinals) = member(spec, "ordinals") {
            checks::not_negative(ordinals, "start", &path.child("ordinals"), errors);
        }
        match member(spec, "selector") {
            None => errors.required(path.child("selector"), ""),
            Some(selector) => {
                selector::validate(selector, &path.child("selector"), errors);
                if workload::is_everything(selector) {
                    errors.invalid_structure(
                        path.child("selector"),
                        &internal::selector(Some(selector)),
                        "empty selector is invalid for statefulset",
                    );
                }
            }
        }
        checks::checked(spec, "serviceName", &path, names::dns1123_label, errors);
        if old.is_none() {
            for (i, claim) in list(spec, "volumeClaimTemplates").iter().enumerate() {
                volumes::claim_spec(workload::spec(claim), &path.child("volumeClaimTemplates").index(i).child("spec"), errors);
            }
        }
        match member(spec, "selector") {
            Some(selector) if !workload::is_selector(selector) => {
                errors.invalid_structure(path.child("selector"), &internal::selector(Some(selector)), "");
            }
            _ => validate_template(spec, &path.child("template"), errors),
        }
        run_for_ever(spec, &path.child("template").child("spec"), errors);
        if let Some(old) = old {
            const MAY_CHANGE: &[&str] = &[
                "replicas",
                "template",
                "updateStrategy",
                "persistentVolumeClaimRetentionPolicy",
                "minReadySeconds",
                "ordinals",
                "revisionHistoryLimit",
            ];
            let fixed = |spec: &Value| {
                let mut spec = spec.as_object().cloned().unwrap_or_default();
                spec.retain(|key, value| !MAY_CHANGE.contains(&key.as_str()) && !crate::kinds::values::is_empty(value));
                spec
            };
            if fixed(spec) != fixed(workload::spec(old)) {
                errors.forbidden(path, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
            }
        }
    }
    fn validate_status(&self, set: &Value, old: &Value, errors: &mut Errors) {
        let (status, path) = (workload::status(set), Path::new("status"));
        let keys = ["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas", "observedGeneration", "collisionCount"];
        workload::counters(status, &keys, &path, errors);
        workload::available_within_ready(status, &path, "cannot be greater than status.readyReplicas", errors);
        workload::collision_count(status, workload::status(old), &path, errors);
    }
    fn warnings(&self, set: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = crate::kinds::pod::warnings::workload(set, old, false);
        let spec = workload::spec(set);
        let path = Path::new("spec").child("volumeClaimTemplates");
        for (i, claim) in list(spec, "volumeClaimTemplates").iter().enumerate() {
            warnings.extend(crate::kinds::pod::warnings::claim_spec(workload::spec(claim), &path.index(i)));
        }
        if int(spec, "revisionHistoryLimit").is_some_and(|limit| limit < 0) {
            warnings.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".to_string());
        }
        warnings
    }
    fn cells(&self, set: &Value, now_unix_s: i64) -> Vec<Value> {
        let (spec, status) = (workload::spec(set), workload::status(set));
        let mut cells = vec![table::name(set), workload::ready_of(int(status, "readyReplicas"), int(spec, "replicas")), table::age(set, now_unix_s)];
        cells.extend(workload::wide(spec, String::new()));
        cells.truncate(5);
        cells
    }
}

/// What is not yet on by default.
fn drop_disabled(set: &mut Value) {
    within(set, "spec", |spec| {
        within(spec, "updateStrategy", |strategy| within(strategy, "rollingUpdate", |rolling| drop(take(rolling, "maxUnavailable"))))
    });
}

/// The template may mount the volumes that the claim templates make.
fn validate_template(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(mut with_claims) = member(spec, "template").cloned() else {
        return errors.required(path.clone(), "");
    };
    template::matches(spec.get("selector").unwrap_or(&Value::Null), &with_claims, path, errors);
    let name = |claim: &Value| claim.get("metadata").map(|m| text(m, "name").to_string()).unwrap_or_default();
    let mut volumes: Vec<Value> = list(spec, "volumeClaimTemplates")
        .iter()
        .map(|claim| json!({"name": name(claim), "persistentVolumeClaim": {"claimName": name(claim)}}))
        .collect();
    let claimed: HashSet<&str> = volumes.iter().map(|claim| text(claim, "name")).collect();
    let pod = made(&mut with_claims, "spec");
    let own = list(pod, "volumes").iter().filter(|volume| !claimed.contains(text(volume, "name"))).cloned().collect::<Vec<_>>();
    volumes.extend(own);
    if !volumes.is_empty() {
        put(pod, "volumes", volumes);
    }
    // Kubernetes checks them for a StatefulSet, and once more for any template.
    let metadata = with_claims.get("metadata").unwrap_or(&Value::Null);
    checks::labels(map(metadata, "labels"), &path.child("labels"), errors);
    checks::annotations(map(metadata, "annotations"), &path.child("annotations"), errors);
    template::validate(&with_claims, path, errors);
}

/// Pods do not end on their own.
fn run_for_ever(spec: &Value, path: &Path, errors: &mut Errors) {
    let pod = spec.get("template").map_or(&Value::Null, workload::spec);
    if text(pod, "restartPolicy") != "Always" {
        errors.not_supported(path.child("restartPolicy"), text(pod, "restartPolicy"), &["Always"]);
    }
    if has(pod, "activeDeadlineSeconds") {
        errors.forbidden(path.child("activeDeadlineSeconds"), "activeDeadlineSeconds in StatefulSet is not Supported");
    }
}

fn strategy(spec: &Value, path: &Path, errors: &mut Errors) {
    let nothing = Value::Null;
    let strategy = spec.get("updateStrategy").unwrap_or(&nothing);
    let path = path.child("updateStrategy");
    let rolling = member(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "" => errors.required(path, ""),
        "OnDelete" => {
            if let Some(rolling) = rolling {
                let shown = internal::show("apps.v1.RollingUpdateStatefulSetStrategy", rolling);
                errors.invalid_structure(path.child("rollingUpdate"), &shown, "only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "RollingUpdate" => {
            if let Some(rolling) = rolling {
                let path = path.child("rollingUpdate");
                checks::not_negative(rolling, "partition", &path, errors);
            }
        }
        _ => {
            errors.invalid_structure(path, &internal::show("apps.v1.StatefulSetUpdateStrategy", strategy), "must be 'RollingUpdate' or 'OnDelete'");
        }
    }
}

fn retention(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(policy) = member(spec, "persistentVolumeClaimRetentionPolicy") else { return };
    for key in ["whenDeleted", "whenScaled"] {
        checks::one_of(policy, key, &["Retain", "Delete"], &path.child("persistentVolumeClaimRetentionPolicy"), errors);
    }
}
