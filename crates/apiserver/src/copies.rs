//! Copies of the only server's store on other nodes, kept up to date from here.
//!
//! `GET /regent/v1/store-copy` gives everything as of one revision, the cluster's keys too; `.../changes?after=REVISION`
//! gives what came after it, as soon as there is something, or says after a moment that there was nothing. By `after` the
//! copy says what it has on its disk: how far each one is behind follows from that alone, and is shown in `/metrics` and at
//! `.../status`.
//!
//! Who may read it is RBAC's to say (ClusterRole `regent:store-copy`): whoever has a copy has every Secret and the keys of
//! the cluster. `--store-copy-nodes` grants it to nodes by name.
//!
//! What must stay true: a copy is noted in the store before its first byte is given, for from then on its holder can take
//! over ([`Source::begin`]).

use crate::{Server, User, body, body::BoxError, connect::Answer, encode::respond};
use api::{
    Status,
    request::{Query, RequestInfo},
};
use futures::StreamExt;
use http::StatusCode;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use store::{Revision, Store, copy, snapshot};
use tokio::time::Instant;

/// Everything as of one revision.
pub const PATH: &str = "/regent/v1/store-copy";
/// What came after a revision.
pub const CHANGES_PATH: &str = "/regent/v1/store-copy/changes";
/// How far the copies are.
pub const STATUS_PATH: &str = "/regent/v1/store-copy/status";
/// How long is waited for a change. A copy is known to be there by asking again.
pub const WAIT: Duration = Duration::from_secs(2);
/// Copies whose state is kept; more are served and not shown.
const COPIES_MAX: usize = 64;

/// What the process around the server brings to its copies.
#[async_trait::async_trait]
pub trait Source: Send + Sync {
    /// The store itself, with values as they lie on the disk.
    fn store(&self) -> Arc<dyn Store>;
    /// What goes along with the objects. Whether the cluster's keys are others than before follows from it too.
    fn origin(&self) -> Result<snapshot::Origin, String>;
    /// Notes in the store that this node is given a copy; when it returns, that is on disk.
    async fn begin(&self, node: &str) -> Result<(), String>;
}

/// How far one copy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copied {
    pub node: String,
    /// Everything up to here is on its disk.
    pub revision: u64,
    /// Changes that are not.
    pub changes_behind: u64,
    /// For how long it has not had everything, in milliseconds.
    pub behind_ms: u64,
    /// When it last asked, in milliseconds before now.
    pub silent_ms: u64,
}

struct Seen {
    revision: Revision,
    /// When it last had everything that there was; before that, when it began.
    complete: Instant,
    asked: Instant,
}

/// The copies that this server knows of.
#[derive(Default)]
pub struct Copies(Mutex<BTreeMap<String, Seen>>);

impl Copies {
    fn note(&self, node: &str, revision: Revision, newest: Revision) {
        let now = Instant::now();
        let mut all = self.0.lock();
        if all.len() >= COPIES_MAX && !all.contains_key(node) {
            return;
        }
        let seen = all.entry(node.to_owned()).or_insert(Seen { revision, complete: now, asked: now });
        seen.revision = revision;
        seen.asked = now;
        if revision >= newest {
            seen.complete = now;
        }
    }

    /// How far each copy is behind a store that stands at `newest`.
    pub fn view(&self, newest: Revision) -> Vec<Copied> {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let all = self.0.lock();
        let copied = |(node, seen): (&String, &Seen)| {
            let changes_behind = newest.0.saturating_sub(seen.revision.0);
            let behind_ms = if changes_behind == 0 { 0 } else { ms(seen.complete.elapsed()) };
            Copied { node: node.clone(), revision: seen.revision.0, changes_behind, behind_ms, silent_ms: ms(seen.asked.elapsed()) }
        };
        all.iter().map(copied).collect()
    }

    /// The same for `/metrics`.
    pub fn expose(&self, newest: Revision, out: &mut String) {
        let all = self.view(newest);
        if all.is_empty() {
            return;
        }
        type Value = fn(&Copied) -> f64;
        let metrics: [(&str, &str, Value); 3] = [
            ("regent_store_copy_changes_behind", "Changes of the store that a copy does not have on its disk.", |c| c.changes_behind as f64),
            ("regent_store_copy_seconds_behind", "For how long a copy has not had everything.", |c| c.behind_ms as f64 / 1000.0),
            ("regent_store_copy_seconds_silent", "Time since a copy last asked.", |c| c.silent_ms as f64 / 1000.0),
        ];
        for (name, help, value) in metrics {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
            for copied in &all {
                let _ = writeln!(out, "{name}{{node={:?}}} {}", copied.node, value(copied));
            }
        }
    }
}

/// Whether the path is one of copies.
pub fn serves(path: &str) -> bool {
    matches!(path.trim_end_matches('/'), PATH | CHANGES_PATH | STATUS_PATH)
}

/// Answers it.
pub async fn answer(server: &Arc<Server>, user: &User, info: &RequestInfo, query: &Query) -> Answer {
    if info.verb != "get" {
        return Err(Status::method_not_allowed());
    }
    let source = server.config.store_copy.as_ref().ok_or_else(Status::path_not_found)?;
    let node = user.name.strip_prefix("system:node:").unwrap_or(&user.name);
    match info.path.trim_end_matches('/') {
        STATUS_PATH => {
            let newest = server.store.revision().await.map_err(unavailable)?;
            let text = serde_json::to_string(&server.copies.view(newest)).map_err(Status::internal)?;
            Ok(respond(StatusCode::OK, "application/json", body::full(text)))
        }
        CHANGES_PATH => changes(server, &**source, node, query).await,
        _ => {
            source.begin(node).await.map_err(Status::service_unavailable)?;
            tracing::info!(node, "a copy of the store begins");
            let origin = source.origin().map_err(Status::service_unavailable)?;
            let pieces = snapshot::stream(source.store(), origin).map(|piece| piece.map_err(|error| Box::new(error) as BoxError));
            Ok(respond(StatusCode::OK, "application/octet-stream", body::stream(pieces)))
        }
    }
}

/// `after`: what the copy has; `keys`: by which it knows the cluster's keys.
async fn changes(server: &Arc<Server>, source: &dyn Source, node: &str, query: &Query) -> Answer {
    let after = query.get("after").and_then(|text| text.parse().ok()).map(Revision).ok_or_else(|| Status::bad_request("after is not a revision"))?;
    let origin = source.origin().map_err(Status::service_unavailable)?;
    if query.get("keys") != Some(keys_mark(&origin.files).as_str()) {
        return Err(Status::gone("the cluster's keys are others than in this copy; begin it anew"));
    }
    let newest = server.store.revision().await.map_err(unavailable)?;
    server.copies.note(node, after, newest);
    let now_ms = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    match copy::changes(&*source.store(), after, WAIT, now_ms).await {
        Ok(batch) => Ok(respond(StatusCode::OK, "application/octet-stream", body::full(batch.encode()))),
        Err(error @ (store::Error::Compacted { .. } | store::Error::Future { .. })) => Err(Status::gone(format!("{error}; begin the copy anew"))),
        Err(error) => Err(unavailable(error)),
    }
}

fn unavailable(error: store::Error) -> Status {
    Status::service_unavailable(error.to_string())
}

/// What tells one set of the cluster's keys from another, without telling anything of them.
pub fn keys_mark(files: &[snapshot::Blob]) -> String {
    let mut text = Vec::new();
    for file in files {
        text.extend_from_slice(pki::sha256(file.name.as_bytes()).as_bytes());
        text.extend_from_slice(pki::sha256(&file.content).as_bytes());
    }
    pki::sha256(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_copy_is_behind_from_when_it_last_had_everything() {
        let copies = Copies::default();
        copies.note("a", Revision(5), Revision(5));
        tokio::time::advance(Duration::from_secs(3)).await;
        let one = |newest: u64| copies.view(Revision(newest)).remove(0);
        assert_eq!((one(5).behind_ms, one(5).silent_ms, one(5).changes_behind), (0, 3000, 0));
        assert_eq!((one(9).behind_ms, one(9).changes_behind), (3000, 4));
        copies.note("a", Revision(7), Revision(9));
        assert_eq!((one(9).behind_ms, one(9).silent_ms, one(9).changes_behind), (3000, 0, 2));
        copies.note("a", Revision(9), Revision(9));
        assert_eq!(one(9).behind_ms, 0);
        let mut text = String::new();
        copies.expose(Revision(10), &mut text);
        assert!(text.contains("regent_store_copy_changes_behind{node=\"a\"} 1"), "{text}");
    }

    #[test]
    fn other_keys_have_another_mark() {
        let blob = |content: &str| snapshot::Blob { name: "ca.key".into(), mode: 0o600, content: content.into() };
        assert_ne!(keys_mark(&[blob("a")]), keys_mark(&[blob("b")]));
        assert_ne!(keys_mark(&[blob("a")]), keys_mark(&[]));
    }
}
