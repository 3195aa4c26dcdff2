//! Static pods: pods that a node runs because a file in a directory of its own says so (`--pod-manifest-path`), or a page that it
//! is told of ([`page`]).
//!
//! ```text
//! files --every second--> manifest::pod --> a worker each, as for any other pod (no server is asked)
//!                              |
//!                              +--> its mirror in the API: made, kept, taken away with it
//! ```
//!
//! What must stay true: what is done to a mirror is not done to its pod (a mirror that is deleted is made again); a file that
//! has become unreadable ends nothing, one that is gone ends its pod; of two pods of one name the second starts when the
//! first has gone; nothing that runs is taken for an orphan before the directory was read.
//!
//! How it can still go wrong: two files may name the same pod; the first by name has it, and the other one waits.

pub mod manifest;
pub mod page;

use crate::{
    agent::{self, Context},
    spec::PodId,
};
use client::{Api, Informer, Key, error::ErrorExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Preconditions};
use manifest::{is_mirror, is_static, shows};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often the directory is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often mirrors are compared with what they show.
const MIRROR_EVERY: Duration = Duration::from_secs(2);
/// When what the API refused is tried again.
const REFUSED_RETRY: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A manifest that is larger is refused.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Files that are looked at, in the order of their names; more are left alone.
const FILES_MAX: usize = 500;

/// By which a change of a file is seen.
type Stamp = (SystemTime, u64);

/// The pods of the files as they were read last.
#[derive(Default)]
struct Files {
    /// By name: the stamp, and the last pod that the file gave.
    files: BTreeMap<String, (Stamp, Option<Arc<Pod>>)>,
}

impl Files {
    /// Reads what has changed. A directory that is not there is an empty one.
    fn read(&mut self, directory: &Path, node: &str) -> io::Result<()> {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.clear();
                return Ok(());
            }
            other => other?,
        };
        let mut found = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Links are followed; what goes away meanwhile is gone.
            let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
            if metadata.is_file() && !name.starts_with('.') {
                found.insert(name, (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len()));
            }
        }
        self.files.retain(|name, _| found.contains_key(name));
        for (name, stamp) in found.into_iter().take(FILES_MAX) {
            if self.files.get(&name).is_some_and(|(known, _)| *known == stamp) {
                continue;
            }
            let content = match stamp.1 > MANIFEST_BYTES_MAX {
                true => Err(format!("it is larger than {MANIFEST_BYTES_MAX} bytes")),
                false => std::fs::read(directory.join(&name)).map_err(|error| error.to_string()),
            };
            let read = content.and_then(|content| manifest::pod(&name, &content, node).map_err(|error| error.to_string()));
            let before = self.files.remove(&name).and_then(|(_, pod)| pod);
            let pod = match read {
                Ok(pod) => Some(Arc::new(pod)),
                Err(error) => {
                    tracing::error!(file = name, error, "a manifest gives no pod; what it gave before goes on");
                    before
                }
            };
            self.files.insert(name, (stamp, pod));
        }
        Ok(())
    }

    /// The pods by UID. Of several of one name only the first.
    fn pods(&self) -> BTreeMap<String, Arc<Pod>> {
        let mut names = HashMap::new();
        let all = self.files.values().filter_map(|(_, pod)| pod.as_ref());
        let first = all.filter(|pod| names.insert((pod.metadata.namespace.clone(), pod.metadata.name.clone()), ()).is_none());
        first.map(|pod| (pod.metadata.uid.clone().unwrap_or_default(), pod.clone())).collect()
    }
}

/// The static pods that there are to be. Shared.
#[derive(Default)]
pub struct StaticPods {
    /// None as long as the directory could not be read.
    wanted: Mutex<Option<BTreeMap<String, Arc<Pod>>>>,
    /// What the page gave last. None as long as it could not be had.
    page: Mutex<Option<BTreeMap<String, Arc<Pod>>>>,
}

impl StaticPods {
    /// Whether it is known which static pods there are to be.
    pub fn are_known(&self) -> bool {
        self.wanted.lock().is_some()
    }

    fn list(&self) -> Vec<Arc<Pod>> {
        self.wanted.lock().iter().flat_map(|pods| pods.values().cloned()).collect()
    }
}

/// Keeps the pods of the directory running until shutdown.
pub async fn follow(cx: Arc<Context>, tasks: TaskTracker, shutdown: CancellationToken) {
    let directory = cx.config.static_pods.clone();
    match cx.config.static_pods_page.clone() {
        Some(address) => drop(tasks.spawn(page::follow(cx.clone(), address, shutdown.clone()))),
        None => *cx.static_pods.page.lock() = Some(BTreeMap::new()),
    }
    if directory.is_none() && cx.config.static_pods_page.is_none() {
        *cx.static_pods.wanted.lock() = Some(BTreeMap::new());
        return;
    }
    let mut files = Files::default();
    let mut told = false;
    loop {
        match directory.as_deref().map_or(Ok(()), |directory| files.read(directory, &cx.config.node_name)) {
            Ok(()) => {
                told = false;
                let page = cx.static_pods.page.lock().clone();
                let pods = together(files.pods(), page.clone().unwrap_or_default());
                if page.is_some() {
                    *cx.static_pods.wanted.lock() = Some(pods.clone());
                }
                settle(&cx, &pods, &tasks, &shutdown);
            }
            Err(error) if !told => {
                told = true;
                tracing::error!(?directory, %error, "static pods cannot be read; those that run go on");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// The pods of both sources. Of two of one name that of the files is meant.
fn together(files: BTreeMap<String, Arc<Pod>>, page: BTreeMap<String, Arc<Pod>>) -> BTreeMap<String, Arc<Pod>> {
    let names: Vec<Key> = files.values().map(|pod| key_of(pod)).collect();
    let mut all = files;
    all.extend(page.into_iter().filter(|(_, pod)| !names.contains(&key_of(pod))));
    all
}

/// Ends what is no longer wanted and begins what is, each name once.
fn settle(cx: &Arc<Context>, wanted: &BTreeMap<String, Arc<Pod>>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let running = cx.pods();
    let uid_of = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
    for pod in running.iter().filter(|pod| is_static(pod) && !wanted.contains_key(&uid_of(pod))) {
        cx.end_static(&uid_of(pod));
    }
    for pod in wanted.values() {
        let same_name = |other: &&Arc<Pod>| other.metadata.namespace == pod.metadata.namespace && other.metadata.name == pod.metadata.name;
        if !running.iter().any(|other| same_name(&other)) {
            tracing::info!(pod = %PodId::of(pod), "a static pod begins");
            agent::begin(cx, pod.clone(), None, tasks, shutdown);
        }
    }
}

/// The API's pod that shows this static one, if it is there.
pub fn mirror_of(pods: &Informer<Pod>, pod: &Pod) -> Option<Arc<Pod>> {
    pods.get(&key_of(pod)).filter(|mirror| shows(mirror, pod))
}

fn key_of(pod: &Pod) -> Key {
    Key::new(pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default())
}

/// What is to be done about mirrors.
#[derive(Clone, Debug, PartialEq)]
enum Tend {
    Create(Arc<Pod>),
    Delete(Arc<Pod>),
}

impl Tend {
    fn pod(&self) -> &Pod {
        match self {
            Tend::Create(pod) | Tend::Delete(pod) => pod,
        }
    }
}

/// Compares the static pods with the API's pods on this node. Pure.
fn tend(wanted: &[Arc<Pod>], held: &[Arc<Pod>]) -> Vec<Tend> {
    let mut out = Vec::new();
    for mirror in held.iter().filter(|pod| is_mirror(pod)) {
        let shown = wanted.iter().any(|pod| key_of(pod) == key_of(mirror) && shows(mirror, pod));
        // One that is being deleted goes at once, and is made again.
        if !shown || mirror.metadata.deletion_timestamp.is_some() {
            out.push(Tend::Delete(mirror.clone()));
        }
    }
    out.extend(wanted.iter().filter(|pod| !held.iter().any(|other| key_of(other) == key_of(pod))).cloned().map(Tend::Create));
    out
}

/// Keeps a mirror in the API of every static pod, and none of any other, until shutdown.
pub async fn mirror(cx: Arc<Context>, shutdown: CancellationToken) {
    let mut node_uid = String::new();
    loop {
        let mut wait = MIRROR_EVERY;
        if cx.static_pods.are_known() && cx.api_pods.is_connected() {
            for action in tend(&cx.static_pods.list(), &cx.api_pods.list()) {
                let done = tokio::select! {
                    done = tokio::time::timeout(ANSWER_TIMEOUT, carry_out(&cx, &mut node_uid, &action)) => done,
                    () = shutdown.cancelled() => return,
                };
                match done {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(pod = %PodId::of(action.pod()), %error, "a mirror pod cannot be brought up to date");
                        wait = REFUSED_RETRY;
                    }
                    Err(_) => break,
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn carry_out(cx: &Context, node_uid: &mut String, action: &Tend) -> Result<(), kube::Error> {
    let api = |pod: &Pod| Api::<Pod>::namespaced(cx.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
    match action {
        Tend::Create(pod) => {
            if node_uid.is_empty() {
                let node = Api::<Node>::all(cx.client.clone()).get(&cx.config.node_name).await?;
                *node_uid = node.metadata.uid.unwrap_or_default();
            }
            match api(pod).create(&manifest::mirror(pod, node_uid)).await {
                Ok(_) => Ok(()),
                // The watch has not shown it yet.
                Err(error) if error.is_already_exists() => Ok(()),
                Err(error) => {
                    // The node may have been registered anew.
                    node_uid.clear();
                    Err(error)
                }
            }
        }
        Tend::Delete(mirror) => {
            let preconditions = Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..Default::default() };
            match api(mirror).delete(mirror.metadata.name.as_deref().unwrap_or_default(), &params).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
                _ => Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest_of(name: &str, image: &str) -> String {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: a, image: \"{image}\"}}]}}\n")
    }

    fn write(directory: &Path, name: &str, text: &str) {
        std::fs::write(directory.join(name), text).unwrap();
    }

    #[test]
    fn files_come_change_break_and_go() {
        let place = tempfile::tempdir().unwrap();
        let mut files = Files::default();
        let uids = |files: &mut Files| {
            files.read(place.path(), "n").unwrap();
            files.pods().into_iter().map(|(uid, pod)| (pod.metadata.name.clone().unwrap(), uid)).collect::<Vec<_>>()
        };
        assert!(uids(&mut files).is_empty());
        write(place.path(), "web.yaml", &manifest_of("web", "nginx"));
        write(place.path(), ".hidden", &manifest_of("hidden", "nginx"));
        write(place.path(), "z.yaml", &manifest_of("web", "other"));
        let first = uids(&mut files);
        assert_eq!((first.len(), first[0].0.as_str()), (1, "web-n"), "a name is given once");
        write(place.path(), "web.yaml", &manifest_of("web", "nginx:1.25"));
        let second = uids(&mut files);
        assert_ne!(first, second);
        write(place.path(), "web.yaml", "kind: Pod\nnonsense");
        assert_eq!(uids(&mut files), second, "a broken file ends nothing");
        std::fs::remove_file(place.path().join("web.yaml")).unwrap();
        let third = uids(&mut files);
        assert!(third.len() == 1 && third != second, "the other file of that name has its turn");
        assert!(Files::default().read(&place.path().join("none"), "n").is_ok());
    }

    #[test]
    fn mirrors_follow_their_pods() {
        let pod = |image: &str| Arc::new(manifest::pod("web.yaml", manifest_of("web", image).as_bytes(), "n").unwrap());
        let mirror = |pod: &Pod| Arc::new(manifest::mirror(pod, "u"));
        let (old, new) = (pod("nginx:1"), pod("nginx:2"));
        assert_eq!(tend(std::slice::from_ref(&old), &[]), [Tend::Create(old.clone())]);
        assert!(tend(std::slice::from_ref(&old), &[mirror(&old)]).is_empty());
        assert_eq!(tend(std::slice::from_ref(&new), &[mirror(&old)]), [Tend::Delete(mirror(&old))], "and it is made when the old one has gone");
        let mut deleted = manifest::mirror(&new, "u");
        deleted.metadata.deletion_timestamp = Some(crate::status::time(jiff::Timestamp::UNIX_EPOCH));
        let deleted = Arc::new(deleted);
        assert_eq!(tend(std::slice::from_ref(&new), std::slice::from_ref(&deleted)), [Tend::Delete(deleted)]);
        // A pod of the API that has the name is left alone.
        let plain = Arc::new(Pod { metadata: old.metadata.clone(), ..Default::default() });
        assert!(tend(&[new], &[plain]).is_empty());
        assert_eq!(tend(&[], &[mirror(&old)]), [Tend::Delete(mirror(&old))]);
    }
}
