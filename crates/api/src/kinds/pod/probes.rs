//! Probes and lifecycle hooks of containers.

use crate::{
    field::{Errors, Path},
    kinds::{
        checks,
        values::{has, int, list, member, text},
    },
};
use serde_json::Value;

const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

/// Checks what a probe or hook does: exactly one of the handlers that `allowed` names.
fn handler(handler: &Value, allowed: &[&str], grace_s: Option<i64>, path: &Path, errors: &mut Errors) {
    let mut count = 0;
    for name in HANDLERS.iter().filter(|name| allowed.contains(*name)) {
        let Some(what) = member(handler, name) else { continue };
        let path = path.child(name);
        count += 1;
        if count > 1 {
            errors.forbidden(path, "may not specify more than 1 handler type");
            continue;
        }
        match *name {
            "exec" if list(what, "command").is_empty() => errors.required(path.child("command"), ""),
            "httpGet" => {
                checks::required(what, "path", &path, errors);
                checks::port_or_name(what, "port", &path, errors);
                checks::supported(what, "scheme", &["HTTP", "HTTPS"], &path, errors);
                for header in list(what, "httpHeaders") {
                    let name = text(header, "name");
                    errors.invalid_all(&path.child("httpHeaders"), name, checks::http_header(name));
                }
            }
            "tcpSocket" => checks::port_or_name(what, "port", &path, errors),
            "grpc" => checks::port_number(int(what, "port").unwrap_or(0), &path.child("port"), errors),
            "sleep" => {
                let seconds = int(what, "seconds").unwrap_or(0);
                if let Some(grace_s) = grace_s.filter(|grace_s| seconds < 0 || seconds > *grace_s) {
                    errors.invalid(path, seconds, &format!("must be non-negative and less than terminationGracePeriodSeconds ({grace_s})"));
                }
            }
            _ => {}
        }
    }
    if count == 0 {
        errors.required(path.clone(), "must specify a handler type");
    }
}

fn probe(probe: &Value, path: &Path, errors: &mut Errors) {
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], None, path, errors);
    checks::not_negatives(probe, &["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"], path, errors);
    if let Some(seconds) = int(probe, "terminationGracePeriodSeconds")
        && seconds <= 0
    {
        errors.invalid(path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

/// Probes and lifecycle of a container that runs as long as its pod.
pub fn validate(container: &Value, grace_s: Option<i64>, path: &Path, errors: &mut Errors) {
    if let Some(lifecycle) = member(container, "lifecycle") {
        let path = path.child("lifecycle");
        for hook in ["postStart", "preStop"] {
            if let Some(hook_value) = member(lifecycle, hook) {
                handler(hook_value, &["exec", "httpGet", "tcpSocket", "sleep"], grace_s, &path.child(hook), errors);
            }
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(value) = member(container, name) else { continue };
        let path = path.child(name);
        probe(value, &path, errors);
        if name == "readinessProbe" {
            if has(value, "terminationGracePeriodSeconds") {
                let seconds = int(value, "terminationGracePeriodSeconds").unwrap_or(0);
                errors.invalid(path.child("terminationGracePeriodSeconds"), seconds, "must not be set for readinessProbes");
            }
        } else if int(value, "successThreshold").is_some_and(|n| n != 1) {
            errors.invalid(path.child("successThreshold"), int(value, "successThreshold").unwrap_or(0), "must be 1");
        }
    }
}

/// An init container that ends has none of them.
pub fn forbid(container: &Value, path: &Path, errors: &mut Errors) {
    for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if has(container, name) {
            errors.forbidden(path.child(name), "may not be set for init containers without restartPolicy=Always");
        }
    }
}
