//! CustomResourceDefinitions: their names are accepted or not, their kinds join the catalogue, and when they go their objects
//! go first.
//!
//! [`accept`] is the rule about names, a function of all definitions. The rest is one task that looks at all definitions
//! whenever one changes. Every server does this for itself; what several write to a definition's status is the same.
//!
//! What must stay true: a kind is in the catalogue and its cache is there before its definition says `Established`'s readers
//! can see it; a definition that did not change costs nothing.

use crate::{
    Error, Server,
    cache::{From, Selection},
    write::{self, Part},
};
use api::{
    Catalogue, Kind, Status, Value,
    custom::{self, CLEANUP_FINALIZER},
    kinds::{apiextensions::customresourcedefinitions::set_condition, metrics},
    object::ObjectExt,
};
use parking_lot::Mutex;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

const GROUP: &str = "apiextensions.k8s.io";
const RESOURCE: &str = "customresourcedefinitions";
/// The pause before another attempt at what could not be done.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of the definitions: the kinds that were made of them, by name, under what they were made from.
#[derive(Default)]
pub struct Definitions {
    made: Mutex<BTreeMap<String, (Value, Arc<Kind>)>>,
    /// Definitions whose objects are being deleted.
    cleaning: Mutex<BTreeSet<String>>,
}

/// Makes the catalogue of what is established, and follows the definitions from then on.
pub fn start(server: &Arc<Server>) -> Result<(), Error> {
    let cache = server.cache.resource(GROUP, RESOURCE);
    let watch = cache.watch(Selection::default(), From::Now, server.cache.reached());
    let mut watch = watch.map_err(|_| Error::Configuration("the definitions cannot be watched".into()))?;
    join(server);
    let server = Arc::downgrade(server);
    tokio::spawn(async move {
        loop {
            let Some(strong) = server.upgrade() else { return };
            let shutdown = strong.config.shutdown.clone();
            look(&strong).await;
            let cache = strong.cache.resource(GROUP, RESOURCE);
            drop(strong);
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = watch.live.recv() => event,
            };
            if event.is_none() {
                // The cache was rebuilt, or we were too slow: begin anew.
                let Some(strong) = server.upgrade() else { return };
                match cache.watch(Selection::default(), From::Now, strong.cache.reached()) {
                    Ok(anew) => watch = anew,
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
            while watch.live.take().is_some() {}
        }
    });
    Ok(())
}

fn all(server: &Server) -> Vec<Value> {
    server.cache.resource(GROUP, RESOURCE).snapshot().entries(None).map(|entry| entry.value()).collect()
}

fn condition<'a>(definition: &'a Value, type_: &str) -> Option<&'a str> {
    let found = definition.list_at("status.conditions").iter().find(|condition| condition.str_at("type") == Some(type_))?;
    found.str_at("status")
}

fn is_established(definition: &Value) -> bool {
    condition(definition, "Established") == Some("True")
}

/// Brings the catalogue into line with the definitions.
pub fn join(server: &Arc<Server>) {
    join_as(server, &all(server));
}

/// The same, as if the definitions were these.
fn join_as(server: &Arc<Server>, definitions: &[Value]) {
    let mut made = server.definitions.made.lock();
    let mut now: BTreeMap<String, (Value, Arc<Kind>)> = BTreeMap::new();
    for definition in definitions.iter().filter(|definition| is_established(definition)) {
        let from =
            json!([definition.get("spec"), definition.at("status.acceptedNames"), definition.uid(), definition.deletion_timestamp().is_some(),]);
        let known = made.get(definition.name()).filter(|(known, _)| *known == from).map(|(_, kind)| kind.clone());
        if let Some(kind) = known.or_else(|| custom::kind(definition).map(Arc::new)) {
            now.insert(definition.name().to_string(), (from, kind));
        }
    }
    let same = made.len() == now.len() && made.iter().zip(&now).all(|((a, (_, x)), (b, (_, y)))| a == b && Arc::ptr_eq(x, y));
    let measured = server.resource_metrics.is_served();
    if same && measured == server.catalogue.load().resource(metrics::GROUP, "nodes").is_some_and(|kind| kind.custom.is_none()) {
        return;
    }
    let mut catalogue = Catalogue::clone(&server.built_in);
    for (_, kind) in now.values() {
        // A definition never takes the place of a built-in kind.
        if catalogue.resource(&kind.group, &kind.resource).is_none() {
            catalogue.insert_shared(kind.clone());
        }
    }
    if measured {
        Catalogue::measured().into_iter().for_each(|kind| catalogue.insert_shared(kind));
    }
    *made = now;
    let catalogue = Arc::new(catalogue);
    server.cache.set_catalogue(catalogue.clone());
    server.catalogue.store(catalogue);
}

/// One look at all definitions.
async fn look(server: &Arc<Server>) {
    for definition in all(server) {
        let name = definition.name().to_string();
        if definition.deletion_timestamp().is_some() {
            if definition.has_finalizer(CLEANUP_FINALIZER) && server.definitions.cleaning.lock().insert(name.clone()) {
                let server = server.clone();
                tokio::spawn(async move {
                    clean_up(&server, &name).await;
                    server.definitions.cleaning.lock().remove(&name);
                });
            }
            continue;
        }
        let now = write::now();
        let (mut accepted, others) = (definition.clone(), all(server));
        if accept(&mut accepted, &others, &now) {
            if is_established(&accepted) && !is_established(&definition) {
                // Who reads that it is established may use it at once: so it is served before that is written.
                let replaced = others.into_iter().map(|other| if other.name() == name { accepted.clone() } else { other });
                join_as(server, &replaced.collect::<Vec<_>>());
            }
            let change = |current: &mut Value| Ok(accept(current, &all(server), &now));
            if let Err(status) = server.change_internal(GROUP, RESOURCE, "", &name, Part::Status, change).await
                && !status.is_not_found()
            {
                tracing::warn!(definition = name, error = %status.message, "the status of a definition could not be written");
            }
        }
    }
    join(server);
}

/// Decides which of a definition's names are accepted, beside all others of its group. Answers whether that changes it.
fn accept(definition: &mut Value, all: &[Value], now: &str) -> bool {
    let group = definition.str_at("spec.group").unwrap_or_default().to_string();
    let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for other in all.iter().filter(|other| other.str_at("spec.group") == Some(&group) && other.name() != definition.name()) {
        let Some(names) = other.at("status.acceptedNames") else { continue };
        resources.extend(["plural", "singular"].iter().filter_map(|key| names.str_at(key)).map(String::from));
        resources.extend(names.list_at("shortNames").iter().filter_map(Value::as_str).map(String::from));
        kinds.extend(["kind", "listKind"].iter().filter_map(|key| names.str_at(key)).map(String::from));
    }
    let wanted = definition.at("spec.names").cloned().unwrap_or_default();
    let before = definition.at("status.acceptedNames").cloned().unwrap_or_default();
    let mut names = before.clone();
    let mut conflict: Option<(&str, String)> = None;
    let taken = |name: &str| format!("{name:?} is already in use");
    for (key, reason, used) in [
        ("plural", "PluralConflict", &resources),
        ("singular", "SingularConflict", &resources),
        ("shortNames", "ShortNamesConflict", &resources),
        ("kind", "KindConflict", &kinds),
        ("listKind", "ListKindConflict", &kinds),
    ] {
        let value = wanted.get(key).cloned();
        let complaint = match &value {
            Some(Value::String(name)) if before.str_at(key) != Some(name) && used.contains(name) => Some(taken(name)),
            Some(Value::Array(list)) => {
                let ours = before.list_at(key);
                let bad: Vec<String> = list
                    .iter()
                    .filter(|name| !ours.contains(name))
                    .filter_map(Value::as_str)
                    .filter(|name| used.contains(*name))
                    .map(taken)
                    .collect();
                match bad.as_slice() {
                    [] => None,
                    [one] => Some(one.clone()),
                    several => Some(format!("[{}]", several.join(", "))),
                }
            }
            _ => None,
        };
        match (complaint, value) {
            (Some(complaint), _) => conflict = Some((reason, complaint)),
            (None, Some(value)) => names.set(key, value),
            (None, None) => drop(names.remove(key)),
        }
    }
    match wanted.get("categories") {
        Some(categories) => names.set("categories", categories.clone()),
        None => drop(names.remove("categories")),
    }
    let mut changed = names != before;
    definition.set("status.acceptedNames", names);
    changed |= match &conflict {
        None => set_condition(definition, "NamesAccepted", true, "NoConflicts", "no conflicts found", now),
        Some((reason, message)) => set_condition(definition, "NamesAccepted", false, reason, message, now),
    };
    match (is_established(definition), conflict) {
        // What was served once goes on being served.
        (true, _) => {}
        (false, None) => {
            changed |= set_condition(definition, "Established", true, "InitialNamesAccepted", "the initial names have been accepted", now);
        }
        (false, Some(_)) => changed |= set_condition(definition, "Established", false, "NotAccepted", "not all names are accepted", now),
    }
    changed
}

/// Deletes all objects of a definition that is being deleted, waits until they are gone, and lets the definition go.
async fn clean_up(server: &Arc<Server>, name: &str) {
    loop {
        if server.config.shutdown.is_cancelled() {
            return;
        }
        match try_clean_up(server, name).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(status) if status.is_not_found() => return,
            Err(status) => tracing::warn!(definition = name, error = %status.message, "the objects of a definition could not be deleted yet"),
        }
        tokio::select! {
            () = server.config.shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// One attempt. Answers whether all is done.
async fn try_clean_up(server: &Arc<Server>, name: &str) -> Result<bool, Status> {
    let Some(entry) = server.lookup(GROUP, RESOURCE, "", name)? else { return Ok(true) };
    let definition = entry.value();
    let (group, plural) = (definition.str_at("spec.group").unwrap_or_default(), definition.str_at("spec.names.plural").unwrap_or_default());
    if is_established(&definition) {
        for entry in server.entries(group, plural, None)?.iter().filter(|entry| !entry.deleting) {
            match server.delete_internal(group, plural, entry.namespace(), entry.name()).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
        if !server.cache.resource(group, plural).is_empty() {
            return Ok(false);
        }
    }
    let done = |current: &mut Value| {
        set_condition(current, "Terminating", false, "InstanceDeletionCompleted", "removed all instances", &write::now());
        current.remove_finalizer(CLEANUP_FINALIZER);
        Ok(true)
    };
    server.change_internal(GROUP, RESOURCE, "", name, Part::Trusted, done).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({"metadata": {"name": format!("{plural}.example.com")}, "spec": {"group": "example.com",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": short}}})
    }

    #[test]
    fn who_comes_first_has_the_name() {
        let mut first = definition("things", "Thing", &["th"]);
        assert!(accept(&mut first, &[], "t"));
        assert!(is_established(&first) && !accept(&mut first.clone(), &[], "u"));
        let mut second = definition("others", "Thing", &["th"]);
        assert!(accept(&mut second, std::slice::from_ref(&first), "t"));
        assert!(!is_established(&second));
        assert_eq!(second["status"]["acceptedNames"], json!({"plural": "others"}));
        assert_eq!(second["status"]["conditions"][0]["reason"], "ListKindConflict");
        assert_eq!(second["status"]["conditions"][0]["message"], "\"ThingList\" is already in use");
        // When the first is gone, the second gets what it wanted.
        assert!(accept(&mut second, &[], "t") && is_established(&second));
    }
}
