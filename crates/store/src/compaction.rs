//! Compaction by exactly one of all servers that share a store, on any back end.
//!
//! **The rule.** The key [`KEY`] holds the revision that was the newest at the last turn. Each server remembers which change of that key
//! it saw last. Every period it looks: if nobody has changed it since, the server tries to, on the condition that it is still so; the one
//! that succeeds compacts up to the revision that the key held *before*, which is at least one period old. A server that finds the key
//! changed has been relieved of this turn and remembers the change. So one server goes on as long as it lives, another takes over
//! within two periods, and every revision can be read for at least one period.
//!
//! A store that takes no more writes for want of space ([`Error::Unwritable`]) is compacted without a turn, by every server, up to what was
//! the newest at that server's own last look: otherwise it would never have space again.
//!
//! What must stay true: nothing younger than one period is forgotten.

use crate::{Error, KeyValue, Outcome, Result, Revision, Store, Write};
use std::{sync::Arc, time::Duration};

/// Where the turn is kept: under the root of all keys, so that who watches all objects sees every revision.
pub const KEY: &str = "/registry/compaction";
/// Kubernetes' own period.
pub const PERIOD: Duration = Duration::from_secs(300);

/// What became of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Another server has taken it, or it is not due yet.
    Others,
    /// Ours, but nothing is old enough yet.
    Begun,
    /// Ours: what was before this revision is forgotten.
    Compacted(Revision),
}

/// One server's part.
pub struct Compactor {
    store: Arc<dyn Store>,
    seen: Option<KeyValue>,
    /// The newest revision at the last look.
    before: Option<Revision>,
}

impl Compactor {
    pub fn new(store: Arc<dyn Store>) -> Compactor {
        Compactor { store, seen: None, before: None }
    }

    /// Called once a period.
    pub async fn turn(&mut self) -> Result<Turn> {
        let newest = self.store.revision().await?;
        let period_ago = self.before.replace(newest);
        let value = newest.0.to_string().into();
        let write = match &self.seen {
            None => match self.store.get(KEY).await? {
                None => Write::Create { key: KEY.into(), value },
                standing => {
                    self.seen = standing;
                    return Ok(Turn::Others);
                }
            },
            Some(seen) => Write::Update { key: KEY.into(), value, expected: seen.modified },
        };
        match self.store.commit(write).await {
            Err(Error::Unwritable(_)) => self.compact(period_ago).await,
            Err(error) => Err(error),
            Ok(Outcome::Conflict(standing)) => {
                self.seen = standing;
                Ok(Turn::Others)
            }
            Ok(Outcome::Committed(_)) => {
                let before = self.seen.take().and_then(|kv| std::str::from_utf8(&kv.value).ok()?.parse().ok().map(Revision));
                self.seen = self.store.get(KEY).await?;
                self.compact(before).await
            }
        }
    }

    async fn compact(&self, at: Option<Revision>) -> Result<Turn> {
        let Some(at) = at.filter(|at| *at > Revision(1)) else { return Ok(Turn::Begun) };
        match self.store.compact(at).await {
            Ok(()) | Err(Error::Compacted { .. }) => Ok(Turn::Compacted(at)),
            // A store that was restored to an older state.
            Err(Error::Future { .. }) => Ok(Turn::Begun),
            Err(error) => Err(error),
        }
    }
}

/// Takes part until `shutdown` is done. A turn that fails is tried again in the next period.
pub async fn run(store: Arc<dyn Store>, period: Duration, shutdown: impl Future<Output = ()>) {
    let mut compactor = Compactor::new(store);
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = timer.tick() => match compactor.turn().await {
                Ok(Turn::Compacted(at)) => tracing::info!(at = at.0, "the store was compacted"),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the store could not be compacted; it is tried again"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[tokio::test]
    async fn one_server_compacts_and_another_takes_over() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let (mut first, mut second) = (Compactor::new(store.clone()), Compactor::new(store.clone()));
        let write = |i: u32| store.commit(Write::Create { key: format!("/registry/x/{i}"), value: "".into() });
        write(1).await.unwrap();
        assert_eq!(first.turn().await.unwrap(), Turn::Begun);
        assert_eq!(second.turn().await.unwrap(), Turn::Others);
        write(2).await.unwrap();
        // The newest at the first turn was 2.
        assert_eq!(first.turn().await.unwrap(), Turn::Compacted(Revision(2)));
        assert_eq!(second.turn().await.unwrap(), Turn::Others);
        write(3).await.unwrap();
        assert_eq!(first.turn().await.unwrap(), Turn::Compacted(Revision(4)));
        // The first server dies; the second finds the key unchanged once it has seen the last change.
        assert_eq!(second.turn().await.unwrap(), Turn::Others);
        assert_eq!(second.turn().await.unwrap(), Turn::Compacted(Revision(6)));
        assert!(matches!(store.list("/", None, 0, Some(Revision(5))).await, Err(Error::Compacted { .. })));
        assert!(store.list("/", None, 0, Some(Revision(6))).await.is_ok());
    }

    /// A store without space for another byte.
    struct Full(Memory);

    #[async_trait::async_trait]
    impl Store for Full {
        async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
            self.0.get(key).await
        }
        async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<crate::Page> {
            self.0.list(prefix, after, limit, at).await
        }
        async fn commit(&self, write: Write) -> Result<Outcome> {
            if write.key() == KEY { Err(Error::Unwritable("full".into())) } else { self.0.commit(write).await }
        }
        async fn watch(&self, prefix: &str, from: Revision) -> Result<crate::Watch> {
            self.0.watch(prefix, from).await
        }
        async fn revision(&self) -> Result<Revision> {
            self.0.revision().await
        }
        async fn compact(&self, at: Revision) -> Result<()> {
            self.0.compact(at).await
        }
    }

    #[tokio::test]
    async fn a_full_store_is_compacted_without_a_turn() {
        let store: Arc<dyn Store> = Arc::new(Full(Memory::default()));
        let mut server = Compactor::new(store.clone());
        let write = |i: u32| store.commit(Write::Create { key: format!("/registry/x/{i}"), value: "".into() });
        write(1).await.unwrap();
        assert_eq!(server.turn().await.unwrap(), Turn::Begun);
        write(2).await.unwrap();
        assert_eq!(server.turn().await.unwrap(), Turn::Compacted(Revision(2)));
        assert_eq!(server.turn().await.unwrap(), Turn::Compacted(Revision(3)));
    }

    #[tokio::test]
    async fn of_two_at_once_one_wins() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let mut servers: Vec<Compactor> = (0..3).map(|_| Compactor::new(store.clone())).collect();
        let mut won = 0;
        for server in &mut servers {
            won += usize::from(server.turn().await.unwrap() == Turn::Begun);
        }
        assert_eq!(won, 1);
    }
}
