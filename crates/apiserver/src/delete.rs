//! delete and deletecollection: preconditions, grace, propagation and finalizers.
//!
//! [`decide`] is the whole rule: from the object, the options and the clock to what is to be done. An object goes at once
//! if nothing holds it; else it is marked, and goes when what holds it is gone (see [`crate::write::may_go`]).

use crate::{
    admission::{Operation, Options},
    connect::{Answer, Call},
    conversion, namespaces, read,
    write::{self, Writer, Written, timestamp},
};
use api::{
    Kind, Status, Value, limits,
    object::ObjectExt,
    request::{DeleteOptions, ListOptions, Propagation},
    structure::Encoding,
};
use http::{StatusCode, header};
use std::time::Duration;

/// Kinds whose deletion is answered with the object where others are answered with a Status.
const ANSWERED_WITH_THE_OBJECT: &[(&str, &str)] = &[
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "pods"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("", "namespaces"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
    ("storage.k8s.io", "volumeattributesclasses"),
    ("resource.k8s.io", "deviceclasses"),
    ("resource.k8s.io", "resourceclaims"),
    ("resource.k8s.io", "resourceclaimtemplates"),
    ("resource.k8s.io", "resourceslices"),
];

/// Kinds whose dependents are left behind unless the client says otherwise: an old promise.
const ORPHANED_BY_DEFAULT: &[(&str, &str)] = &[("batch", "jobs"), ("", "replicationcontrollers")];

/// Objects that deletecollection deletes at the same time.
const COLLECTION_WORKERS: usize = 16;

/// What came of a delete.
pub enum Deleted {
    /// It is gone; this is how it looked at the end.
    Gone(Value),
    /// It is marked, and something holds it.
    Marked(Written),
}

pub async fn delete(mut call: Call) -> Answer {
    let options = options(&mut call).await?;
    let writer = Writer::of(&call, options.dry_run, "");
    if call.kind.resource_pair() == ("batch", "jobs") && options.propagation.is_none() && options.orphan_dependents.is_none() {
        call.warnings.add("child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning");
    }
    let answered_with_object = ANSWERED_WITH_THE_OBJECT.contains(&call.resource());
    Ok(match delete_object(&writer, &options).await? {
        Deleted::Gone(last) if !answered_with_object => call.output.status(&Status::success(call.resource(), &call.info.name, last.uid())),
        Deleted::Gone(last) => write::respond_stored(&call, StatusCode::OK, Written::Unstored(last)).await?,
        Deleted::Marked(written) => write::respond_stored(&call, StatusCode::OK, written).await?,
    })
}

pub async fn delete_collection(mut call: Call) -> Answer {
    use futures::{StreamExt, TryStreamExt};
    let options = options(&mut call).await?;
    let mut which = ListOptions::parse(&call.query)?;
    which.send_initial_events = None;
    let (entries, metadata) = read::select(&call, &which).await?;
    let writer = Writer::of(&call, options.dry_run, "");
    let deletions = entries.iter().map(|entry| {
        let (writer, options) = (Writer { name: entry.name(), namespace: entry.namespace(), ..writer }, &options);
        async move {
            match delete_object(&writer, options).await {
                Err(status) if status.is_not_found() => Ok(()),
                other => other.map(drop),
            }
        }
    });
    futures::stream::iter(deletions.collect::<Vec<_>>()).buffer_unordered(COLLECTION_WORKERS).try_collect::<()>().await?;
    let entries = conversion::entries(&call.server, &call.view(), entries).await?;
    Ok(call.output.list(&call.view(), entries, &metadata))
}

async fn options(call: &mut Call) -> Result<DeleteOptions, Status> {
    let bytes = call.body().await?;
    if bytes.is_empty() {
        return DeleteOptions::parse(&call.query, &bytes, "");
    }
    let (encoding, bytes) = call.readable(bytes)?;
    let content_type = if encoding == Encoding::Json { "application/json" } else { call.header(header::CONTENT_TYPE) };
    DeleteOptions::parse(&call.query, &bytes, content_type)
}

/// Deletes one object.
pub async fn delete_object(writer: &Writer<'_>, options: &DeleteOptions) -> Result<Deleted, Status> {
    for _ in 0..limits::UPDATE_ATTEMPTS_MAX {
        let standing = writer.standing(writer.name).await?;
        let entry = standing.ok_or_else(|| Status::not_found(writer.kind.resource_pair(), writer.name))?;
        let old = entry.value();
        check_preconditions(writer.kind, &old, options)?;
        let asked = Writer { options: Options::Delete(options), ..*writer };
        asked.admit(Operation::Delete, &mut Value::Null, Some(&old)).await?;
        let mut old = old;
        if old.deletion_timestamp().is_none() {
            writer.kind.hooks.prepare_delete(&mut old, &write::now());
        }
        let done = match decide(writer.kind, old, options, jiff::Timestamp::now()) {
            Decision::Remove(last) => writer.remove(&entry, last).await?.map(|written| Deleted::Gone(written.into_value())),
            Decision::Mark(marked) => writer.mark(&entry, marked).await?.map(Deleted::Marked),
        };
        if let Some(done) = done {
            return Ok(done);
        }
    }
    Err(Status::modified(writer.kind.resource_pair(), writer.name))
}

/// 409 if the options ask for another object than this.
pub fn check_preconditions(kind: &Kind, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != old.uid() && namespaces::is_namespace(kind)) {
        let detail = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.uid());
        return Err(Status::conflict(kind.resource_pair(), old.name(), &detail));
    }
    let subject = (kind.group.as_str(), kind.kind.as_str());
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != old.uid()) {
        let detail = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            old.uid()
        );
        return Err(Status::conflict(subject, old.name(), &detail));
    }
    if let Some(version) = options.resource_version.as_deref().filter(|version| *version != old.resource_version()) {
        let detail = format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
            old.resource_version()
        );
        return Err(Status::conflict(subject, old.name(), &detail));
    }
    Ok(())
}

/// What a delete does to an object.
#[derive(Debug, PartialEq)]
enum Decision {
    /// It goes now; this is how it looks at the end.
    Remove(Value),
    /// It stays, looking like this (which may be as before).
    Mark(Value),
}

fn decide(kind: &Kind, object: Value, options: &DeleteOptions, now: jiff::Timestamp) -> Decision {
    let mut new = object;
    let marked_before = new.deletion_timestamp().is_some();
    propagate(kind, &mut new, options);
    if let Some(grace_s) = grace_s(kind, &new, options) {
        match (marked_before, new.i64_at("metadata.deletionGracePeriodSeconds")) {
            (true, Some(before_s)) if grace_s >= before_s => {}
            (true, Some(before_s)) => {
                // The clock goes on from when it was first deleted.
                let first = new.deletion_timestamp().and_then(|text| text.parse::<jiff::Timestamp>().ok()).unwrap_or(now);
                new.set("metadata.deletionTimestamp", timestamp(shifted(first, grace_s - before_s)));
                new.set("metadata.deletionGracePeriodSeconds", grace_s);
            }
            _ => mark(&mut new, now, grace_s),
        }
    } else if !marked_before && kind_is_namespace(kind) {
        new.set("metadata.deletionTimestamp", timestamp(now));
        new.set("status.phase", "Terminating");
    } else if !marked_before && kind.resource_pair() == ("apiextensions.k8s.io", "customresourcedefinitions") {
        new.set("metadata.deletionTimestamp", timestamp(now));
    } else if !marked_before && !new.finalizers().is_empty() {
        mark(&mut new, now, 0);
    } else if !marked_before {
        return Decision::Remove(new);
    }
    if write::may_go(kind, &new) { Decision::Remove(new) } else { Decision::Mark(new) }
}

fn kind_is_namespace(kind: &Kind) -> bool {
    namespaces::is_namespace(kind)
}

fn shifted(time: jiff::Timestamp, seconds: i64) -> jiff::Timestamp {
    time.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(time)
}

fn mark(object: &mut Value, now: jiff::Timestamp, grace_s: i64) {
    object.set("metadata.deletionTimestamp", timestamp(shifted(now, grace_s)));
    object.set("metadata.deletionGracePeriodSeconds", grace_s);
    if object.generation() > 0 {
        object.set("metadata.generation", object.generation() + 1);
    }
}

/// How long an object of a graceful kind gets to end: `None` for other kinds. What has not begun or has ended gets none.
fn grace_s(kind: &Kind, object: &Value, options: &DeleteOptions) -> Option<i64> {
    if !kind.graceful {
        return None;
    }
    if object.deletion_timestamp().is_some() && options.grace_period_s.is_none() {
        return Some(i64::MAX);
    }
    let asked_s = options.grace_period_s.or_else(|| object.i64_at("spec.terminationGracePeriodSeconds")).unwrap_or(30);
    let never_ran = object.str_at("spec.nodeName").unwrap_or_default().is_empty();
    let ended = matches!(object.str_at("status.phase"), Some("Failed" | "Succeeded"));
    Some(match asked_s {
        _ if never_ran || ended => 0,
        asked_s if asked_s < 0 => 1,
        asked_s => asked_s.min(Duration::from_secs(u64::from(u32::MAX)).as_secs() as i64),
    })
}

/// Sets the finalizers by which the garbage collector is told what to do with dependents.
fn propagate(kind: &Kind, object: &mut Value, options: &DeleteOptions) {
    const ORPHAN: &str = "orphan";
    const FOREGROUND: &str = "foregroundDeletion";
    let wanted = match (options.propagation, options.orphan_dependents) {
        (Some(propagation), _) => propagation,
        (None, Some(true)) => Propagation::Orphan,
        (None, Some(false)) => Propagation::Background,
        (None, None) if !ORPHANED_BY_DEFAULT.contains(&kind.resource_pair()) || object.has_finalizer(ORPHAN) || object.has_finalizer(FOREGROUND) => {
            return;
        }
        (None, None) => Propagation::Orphan,
    };
    let (add, drop): (Option<&str>, &[&str]) = match wanted {
        Propagation::Orphan => (Some(ORPHAN), &[FOREGROUND]),
        Propagation::Foreground => (Some(FOREGROUND), &[ORPHAN]),
        Propagation::Background => (None, &[ORPHAN, FOREGROUND]),
    };
    drop.iter().for_each(|finalizer| object.remove_finalizer(finalizer));
    if let Some(finalizer) = add {
        object.add_finalizer(finalizer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> jiff::Timestamp {
        "2026-11-22T10:00:00Z".parse().unwrap()
    }
    fn graceful() -> Kind {
        Kind { graceful: true, ..Kind::namespaced("", "v1", "Pod", "pods") }
    }
    fn running() -> Value {
        json!({"metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 20}, "status": {"phase": "Running"}})
    }
    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions { grace_period_s: Some(seconds), ..DeleteOptions::default() }
    }
    fn marked(decision: Decision) -> Value {
        match decision {
            Decision::Mark(value) => value,
            Decision::Remove(value) => panic!("removed: {value}"),
        }
    }

    #[test]
    fn a_plain_object_goes_at_once_and_a_held_one_is_marked() {
        let kind = Kind::namespaced("", "v1", "ConfigMap", "configmaps");
        let plain = json!({"metadata": {"name": "a"}});
        assert_eq!(decide(&kind, plain.clone(), &DeleteOptions::default(), now()), Decision::Remove(plain.clone()));
        let foreground = DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
        let held = marked(decide(&kind, plain.clone(), &foreground, now()));
        assert_eq!(held["metadata"]["finalizers"], json!(["foregroundDeletion"]));
        assert_eq!(held["metadata"]["deletionTimestamp"], "2026-11-22T10:00:00Z");
        assert_eq!(held["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(marked(decide(&kind, held.clone(), &foreground, now())), held);
        let background = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        assert!(matches!(decide(&kind, held.clone(), &background, now()), Decision::Remove(_)));
    }

    #[test]
    fn a_running_pod_gets_its_time_which_can_only_be_shortened() {
        let first = marked(decide(&graceful(), running(), &DeleteOptions::default(), now()));
        assert_eq!(first["metadata"]["deletionTimestamp"], "2026-11-22T10:00:20Z");
        assert_eq!(first["metadata"]["deletionGracePeriodSeconds"], 20);
        assert_eq!(first["metadata"]["generation"], 2);
        assert_eq!(marked(decide(&graceful(), first.clone(), &grace(60), now())), first);
        assert_eq!(marked(decide(&graceful(), first.clone(), &DeleteOptions::default(), now())), first);
        let shorter = marked(decide(&graceful(), first.clone(), &grace(5), now()));
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "2026-11-22T10:00:05Z");
        assert_eq!(shorter["metadata"]["generation"], 2);
        assert!(matches!(decide(&graceful(), shorter.clone(), &grace(0), now()), Decision::Remove(_)));
    }

    #[test]
    fn a_pod_that_never_ran_or_has_ended_goes_at_once() {
        let mut waiting = running();
        waiting["spec"]["nodeName"] = json!("");
        assert!(matches!(decide(&graceful(), waiting.clone(), &grace(30), now()), Decision::Remove(_)));
        let mut ended = running();
        ended["status"]["phase"] = json!("Succeeded");
        assert!(matches!(decide(&graceful(), ended.clone(), &DeleteOptions::default(), now()), Decision::Remove(_)));
    }
}
