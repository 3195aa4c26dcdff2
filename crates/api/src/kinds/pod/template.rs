//! Pod templates, as workloads carry them.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        values::{fill, list, made, map, member, shown, text, within},
        workload,
    },
    selector::LabelSelector,
};
use serde_json::{Value, json};

/// Fills the defaults of the template in `parent`.
pub fn default(parent: &mut Value) {
    let template = made(parent, "template");
    fill(template, "metadata", json!({}));
    super::defaults::spec(made(template, "spec"));
}

/// Takes what is not yet on by default out of the template at `spec.template` of a workload.
pub fn drop_disabled(object: &mut Value) {
    within(object, "spec", |spec| within(spec, "template", |template| within(template, "spec", super::defaults::drop_disabled)));
}

/// Checks a template: its labels and its pod spec.
pub fn validate(template: &Value, path: &Path, errors: &mut Errors) {
    let metadata = template.get("metadata").unwrap_or(&Value::Null);
    checks::labels(map(metadata, "labels"), &path.child("labels"), errors);
    checks::annotations(map(metadata, "annotations"), &path.child("annotations"), errors);
    let spec = template.get("spec").unwrap_or(&Value::Null);
    super::annotations::validate(metadata, spec, &path.child("annotations"), errors);
    let path = path.child("spec");
    super::spec::validate(spec, None, &path, errors);
    super::annotations::match_fields(metadata, spec, &path, errors);
    if !list(spec, "ephemeralContainers").is_empty() {
        errors.forbidden(path.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// Checks the template of a workload whose pods run for ever: `selector` matches it, pods are always restarted.
/// `owner` is the kind that errors name. Gives whether a template is there.
pub fn validate_running(owner: &Value, kind: &str, selector: Option<&Value>, path: &Path, errors: &mut Errors) {
    let Some(template) = member(owner, "template") else {
        errors.required(path.clone(), "");
        return;
    };
    if let Some(selector) = selector {
        matches(selector, template, path, errors);
    }
    validate(template, path, errors);
    let spec = template.get("spec").unwrap_or(&Value::Null);
    let policy = text(spec, "restartPolicy");
    if policy != "Always" {
        errors.not_supported(path.child("spec").child("restartPolicy"), policy, &["Always"]);
    }
    if member(spec, "activeDeadlineSeconds").is_some() {
        errors.forbidden(path.child("spec").child("activeDeadlineSeconds"), &format!("activeDeadlineSeconds in {kind} is not Supported"));
    }
}

/// A selector that selects something must select the template.
pub fn matches(selector: &Value, template: &Value, path: &Path, errors: &mut Errors) {
    let Some(selector) = LabelSelector::from_value(selector).ok().filter(|_| workload::is_selector(selector)) else { return };
    let metadata = template.get("metadata").unwrap_or(&Value::Null);
    if !selector.is_everything() && !selector.matches_map(map(metadata, "labels")) {
        errors.invalid(path.child("metadata").child("labels"), shown(metadata, "labels"), "`selector` does not match template `labels`");
    }
}

/// Names and images of the containers, for the wide columns of workloads.
pub fn containers_and_images(template: &Value) -> (String, String) {
    let spec = template.get("spec").unwrap_or(&Value::Null);
    let join = |key: &str| list(spec, "containers").iter().map(|c| text(c, key)).collect::<Vec<_>>().join(",");
    (join("name"), join("image"))
}
