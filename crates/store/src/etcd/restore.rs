//! The fence around a restore: while a snapshot is brought back, nobody sees half of it and nobody else writes.
//!
//! The fence is a key among the objects' ([`KEY`]). Each write is on the condition that it is not there; reads of the newest
//! state and lists look for it; and a watch meets its creation among the changes, before any that the restore makes, and ends.
//! What comes after it is compacted away before it falls, so every watch begins anew with a list of the whole.
//! It stays when a restore dies, until the same restore is run to its end: half a cluster is never served.

use super::{Etcd, Shared};
use crate::{Error, KeyValue, Outcome, Result, Revision, Store, Write, snapshot};
use etcd_client::GetOptions;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Where the fence stands: under the root of all objects, so that every watch of them meets it.
pub const KEY: &str = "/registry/restore";
/// Writes under way while revisions are used up.
const BURNERS: usize = 256;

pub(super) fn standing() -> Error {
    Error::Unavailable(
        "a snapshot is being restored; it goes on when that is done (if it was interrupted, run `regent snapshot restore` again)".into(),
    )
}

impl Etcd {
    /// Raises the fence, or finds it raised by a restore that died. From here on only this store may write.
    pub async fn begin_restore(&self) -> Result<()> {
        self.shared.restoring.store(true, SeqCst);
        match self.commit(Write::Create { key: KEY.into(), value: "a snapshot is being restored".into() }).await? {
            Outcome::Committed(_) | Outcome::Conflict(Some(_)) => Ok(()),
            Outcome::Conflict(None) => Err(Error::Unknown("whether the fence of the restore stands".into())),
        }
    }

    /// Takes the fence down: the store is whole.
    pub async fn end_restore(&self) -> Result<()> {
        while let Some(KeyValue { modified, .. }) = self.get(KEY).await? {
            self.commit(Write::Delete { key: KEY.into(), expected: modified }).await?;
        }
        self.shared.restoring.store(false, SeqCst);
        Ok(())
    }

    /// Uses up revisions until the store stands at `wanted` at least. Only under the fence. `progress` hears where it stands.
    pub async fn advance(&self, wanted: Revision, progress: impl Fn(Revision)) -> Result<()> {
        let reached = AtomicU64::new(self.revision().await?.0);
        let burn = async |number: usize| -> Result<()> {
            let key = format!("{KEY}/{number}");
            let mut standing = None;
            while reached.load(SeqCst) < wanted.0 {
                let write = match standing {
                    None => Write::Create { key: key.clone(), value: "".into() },
                    Some(expected) => Write::Update { key: key.clone(), value: "".into(), expected },
                };
                match self.commit(write).await {
                    Ok(Outcome::Committed(revision)) => {
                        standing = Some(revision);
                        reached.fetch_max(revision.0, SeqCst);
                    }
                    Ok(Outcome::Conflict(found)) => standing = found.map(|kv| kv.modified),
                    // Whether or not it was done, the next look at the key tells.
                    Err(Error::Unknown(_)) => standing = self.get(&key).await?.map(|kv| kv.modified),
                    Err(error) => return Err(error),
                }
                if number == 0 {
                    progress(Revision(reached.load(SeqCst)));
                }
            }
            Ok(())
        };
        futures::future::try_join_all((0..BURNERS).map(burn)).await.map(drop)
    }

    /// Makes the objects equal to the snapshot's, at a revision beyond `floor`, behind the fence. The file MUST have been verified.
    pub async fn restore(
        &self,
        file: &std::path::Path,
        secret: Option<&snapshot::Secret>,
        floor: Revision,
        progress: impl Fn(Revision),
    ) -> snapshot::Result<snapshot::Restored> {
        self.begin_restore().await?;
        self.advance(floor, progress).await?;
        // What `advance` wrote is no object of the snapshot, and goes.
        let restored = snapshot::restore_into(self, file, secret).await?;
        self.end_restore().await?;
        Ok(restored)
    }
}

impl Shared {
    /// Fails if the fence stands and is not our own.
    pub(super) async fn unfenced(&self) -> Result<Revision> {
        let answer = self.range(self.stored_key(KEY), GetOptions::new().with_keys_only(), Revision(0)).await?;
        let fenced = !answer.kvs.is_empty() && !self.restoring.load(SeqCst);
        self.fenced.store(fenced, SeqCst);
        if fenced {
            return Err(standing());
        }
        Ok(answer.header.map_or(Revision(0), |header| super::revision(header.revision)))
    }
}
