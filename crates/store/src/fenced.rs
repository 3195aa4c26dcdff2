//! A store that takes no more writes from the moment at which its server has stepped down.
//!
//! What must stay true: after [`Fence::close`] has returned, no write begins any more, whoever asks for it.

use crate::{Depth, Error, KeyValue, Outcome, Page, Result, Revision, Store, Watch, Write};
use parking_lot::RwLock;
use std::sync::Arc;

/// Whether writes are let through, and if not, why. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<RwLock<Option<String>>>);

impl Fence {
    /// No write from here on.
    pub fn close(&self, why: &str) {
        self.0.write().get_or_insert_with(|| why.to_owned());
    }

    /// Why there are no writes, if there are none.
    pub fn closed(&self) -> Option<String> {
        self.0.read().clone()
    }
}

/// A store behind a [`Fence`].
pub struct Fenced {
    pub inner: Arc<dyn Store>,
    pub fence: Fence,
}

#[async_trait::async_trait]
impl Store for Fenced {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
        self.inner.list(prefix, after, limit, at).await
    }
    async fn commit(&self, write: Write) -> Result<Outcome> {
        match self.fence.closed() {
            Some(why) => Err(Error::Unavailable(why)),
            None => self.inner.commit(write).await,
        }
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        self.inner.watch(prefix, from).await
    }
    async fn revision(&self) -> Result<Revision> {
        self.inner.revision().await
    }
    async fn compact(&self, at: Revision) -> Result<()> {
        self.inner.compact(at).await
    }
    fn trouble(&self) -> Option<Error> {
        self.inner.trouble()
    }
    fn is_being_restored(&self) -> bool {
        self.inner.is_being_restored()
    }
    async fn check(&self, depth: Depth) -> Result<()> {
        self.inner.check(depth).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[tokio::test]
    async fn a_closed_fence_lets_reads_through_and_no_write() {
        let fence = Fence::default();
        let store = Fenced { inner: Arc::new(Memory::default()), fence: fence.clone() };
        let write = |key: &str| Write::Create { key: key.into(), value: "v".into() };
        assert!(matches!(store.commit(write("/registry/a")).await, Ok(Outcome::Committed(_))));
        fence.close("another server has taken over");
        fence.close("again");
        let refused = store.commit(write("/registry/b")).await.unwrap_err().to_string();
        assert!(refused.contains("another server has taken over"), "{refused}");
        assert!(store.get("/registry/a").await.unwrap().is_some() && store.get("/registry/b").await.unwrap().is_none());
    }
}
