//! Encryption at rest: a store that seals some keys' values before another store sees them, and opens them on the way back.
//!
//! Which keys, and with what, say the [`Rules`]. They come from a configuration of the user's, or from the cluster's own
//! [`ring`] of keys, which lies in the store itself, sealed with a key that lies beside it in a file: so all servers of a
//! cluster have the same keys, and a new one is in use everywhere as soon as it is in the store. When a value is met
//! that no known key opens, the rules are read anew once.
//!
//! What must stay true: what cannot be opened is an error ([`Error::Undecryptable`]), never left out of a list or a watch.

mod provider;
pub mod ring;

pub use provider::{CbcKey, Error as SealError, GcmKey, Provider, Providers, label};

use crate::{Depth, Error, Event, KeyValue, Outcome, Page, Result, Revision, Store, Watch, Watched, Write};
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// Keys that are read at once when all are looked at.
const PAGE_KEYS: usize = 500;
/// How often a value that others keep changing is tried to be sealed anew; whoever changed it has sealed it anew as well.
const REENCRYPT_ATTEMPTS: usize = 5;

/// What is sealed, and how.
#[derive(Default)]
pub struct Rules(pub Vec<Rule>);

/// One rule: the first whose prefix a key has counts for it.
pub struct Rule {
    /// What people call what lies there, as `secrets` or `configmaps`.
    pub name: String,
    pub prefix: String,
    /// Whether only what lies in a directory under the prefix is meant.
    pub deep: bool,
    pub providers: Arc<Providers>,
}

impl Rule {
    fn is_for(&self, key: &str) -> bool {
        key.strip_prefix(self.prefix.as_str()).is_some_and(|rest| !self.deep || rest.contains('/'))
    }
}

impl Rules {
    fn of(&self, key: &str) -> Option<&Providers> {
        self.0.iter().find(|rule| rule.is_for(key)).map(|rule| &*rule.providers)
    }

    fn open(&self, key: &str, stored: &Bytes) -> std::result::Result<Option<Bytes>, SealError> {
        match self.of(key) {
            Some(providers) => providers.open(key, stored).map(Some),
            // Sealed by a rule that is no more. No object begins like this.
            None if stored.starts_with(provider::SEALED) => Err(SealError::NoKey(label(stored))),
            None => Ok(None),
        }
    }
}

/// Where rules come from. Asked at the start, and again when there may be newer ones.
pub trait Source: Send + Sync + 'static {
    fn load(&self) -> BoxFuture<'_, Result<Rules>>;
    /// Puts a new key in the first place; answers with its name. `None` if the keys are somebody else's to change.
    fn rotate(&self) -> Option<BoxFuture<'_, Result<String>>>;
    /// The key of the store in which the rules lie, if they do: whenever it changes, they are read anew.
    fn key(&self) -> Option<&str> {
        None
    }
    /// Where that is, for people.
    fn describe(&self) -> String;
}

/// How many objects of a rule are sealed with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub name: String,
    /// What new values are sealed with.
    pub writes: String,
    /// What can be opened.
    pub reads: Vec<String>,
    /// Stored values by what they are sealed with.
    pub stored: BTreeMap<String, usize>,
}

/// What became of sealing everything anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reencrypted {
    pub rewritten: usize,
    /// Sealed with the newest key already.
    pub current: usize,
    /// Changed by others again and again; ask once more.
    pub left: usize,
}

/// A store whose values are sealed.
#[derive(Clone)]
pub struct Encrypted(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    rules: ArcSwap<Rules>,
    source: Box<dyn Source>,
    /// What could not be opened when it was last tried.
    trouble: Mutex<Option<Error>>,
}

impl Encrypted {
    /// Reads the rules.
    pub async fn open(store: Arc<dyn Store>, source: impl Source) -> Result<Encrypted> {
        let rules = source.load().await?;
        Ok(Encrypted(Arc::new(Inner { store, rules: ArcSwap::from_pointee(rules), source: Box::new(source), trouble: Mutex::default() })))
    }

    /// Reads the rules anew.
    pub async fn reload(&self) -> Result<()> {
        let rules = self.0.source.load().await?;
        self.0.rules.store(Arc::new(rules));
        Ok(())
    }

    /// Where the keys are.
    pub fn describe(&self) -> String {
        self.0.source.describe()
    }

    /// Makes a new key and seals with it from now on; `None` if the keys are somebody else's to change.
    pub async fn rotate(&self) -> Result<Option<String>> {
        let Some(rotated) = self.0.source.rotate() else { return Ok(None) };
        let name = rotated.await?;
        self.reload().await?;
        Ok(Some(name))
    }

    /// What everything is sealed with.
    pub async fn usage(&self) -> Result<Vec<Usage>> {
        self.reload().await?;
        let rules = self.0.rules.load_full();
        let mut all = Vec::new();
        for (i, rule) in rules.0.iter().enumerate() {
            let mut usage =
                Usage { name: rule.name.clone(), writes: rule.providers.writes(), reads: rule.providers.reads(), stored: BTreeMap::new() };
            let mut after: Option<String> = None;
            loop {
                let page = self.0.store.list(&rule.prefix, after.as_deref(), PAGE_KEYS, None).await?;
                for item in page.items.iter().filter(|item| is_ruled_by(&rules, i, &item.key)) {
                    *usage.stored.entry(label(&item.value)).or_default() += 1;
                }
                after = page.items.last().map(|item| item.key.clone());
                if !page.more {
                    break;
                }
            }
            all.push(usage);
        }
        Ok(all)
    }

    /// Seals anew what is not sealed with the key that new values are sealed with.
    pub async fn reencrypt(&self) -> Result<Reencrypted> {
        self.reload().await?;
        let rules = self.0.rules.load_full();
        let mut done = Reencrypted::default();
        for (i, rule) in rules.0.iter().enumerate() {
            let wanted = rule.providers.writes();
            let mut after: Option<String> = None;
            loop {
                let page = self.0.store.list(&rule.prefix, after.as_deref(), PAGE_KEYS, None).await?;
                after = page.items.last().map(|item| item.key.clone());
                for item in page.items.into_iter().filter(|item| is_ruled_by(&rules, i, &item.key)) {
                    self.reencrypt_one(item, &wanted, &mut done).await?;
                }
                if !page.more {
                    break;
                }
            }
        }
        Ok(done)
    }

    async fn reencrypt_one(&self, item: KeyValue, wanted: &str, done: &mut Reencrypted) -> Result<()> {
        let mut standing = Some(item);
        for _ in 0..REENCRYPT_ATTEMPTS {
            // Deleted meanwhile.
            let Some(item) = standing else { return Ok(()) };
            if label(&item.value) == wanted {
                done.current += 1;
                return Ok(());
            }
            let expected = item.modified;
            let plain = self.opened(&item.key, item.value).await?;
            match self.0.store.commit(self.seal(Write::Update { key: item.key, value: plain, expected })?).await? {
                Outcome::Committed(_) => {
                    done.rewritten += 1;
                    return Ok(());
                }
                Outcome::Conflict(other) => standing = other,
            }
        }
        done.left += 1;
        Ok(())
    }

    fn seal(&self, write: Write) -> Result<Write> {
        let rules = self.0.rules.load();
        let sealed = |key: &str, value: Bytes| match rules.of(key) {
            Some(providers) => providers.seal(key, &value).map_err(|why| undecryptable(key, &why)),
            None => Ok(value),
        };
        Ok(match write {
            Write::Create { key, value } => {
                let value = sealed(&key, value)?;
                Write::Create { key, value }
            }
            Write::Update { key, value, expected } => {
                let value = sealed(&key, value)?;
                Write::Update { key, value, expected }
            }
            delete => delete,
        })
    }

    /// Opens a value; if no key fits, the rules are read anew once, for another server may have made a key.
    async fn opened(&self, key: &str, stored: Bytes) -> Result<Bytes> {
        let first = self.0.rules.load().open(key, &stored);
        let failure = match first {
            Ok(None) => return Ok(stored),
            Ok(Some(plain)) => return Ok(plain),
            Err(failure) => failure,
        };
        tracing::info!(key, %failure, "a value cannot be opened; the keys are read anew");
        self.reload().await?;
        match self.0.rules.load().open(key, &stored) {
            Ok(plain) => Ok(plain.unwrap_or(stored)),
            Err(why) => {
                let error = undecryptable(key, &why);
                *self.0.trouble.lock() = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Whether a value passes as it is, which most do.
    fn passes(&self, rules: &Rules, key: &str, value: &Bytes) -> bool {
        !value.starts_with(provider::SEALED) && rules.of(key).is_none()
    }

    async fn opened_item(&self, mut item: KeyValue) -> Result<KeyValue> {
        item.value = self.opened(&item.key, item.value).await?;
        Ok(item)
    }

    async fn opened_events(&self, mut events: Vec<Event>) -> Result<Vec<Event>> {
        if events.iter().any(|event| self.0.source.key() == Some(event.key.as_str())) {
            self.reload().await?;
        }
        let all_pass = {
            let rules = self.0.rules.load();
            events.iter().all(|event| event.value.as_ref().is_none_or(|value| self.passes(&rules, &event.key, value)))
        };
        if !all_pass {
            for event in &mut events {
                if let Some(stored) = event.value.take() {
                    event.value = Some(self.opened(&event.key, stored).await?);
                }
            }
        }
        Ok(events)
    }
}

fn is_ruled_by(rules: &Rules, rule: usize, key: &str) -> bool {
    rules.0.iter().position(|rule| rule.is_for(key)) == Some(rule)
}

fn undecryptable(key: &str, why: &SealError) -> Error {
    Error::Undecryptable(format!("{key}: {why}"))
}

#[async_trait::async_trait]
impl Store for Encrypted {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        match self.0.store.get(key).await? {
            Some(item) => self.opened_item(item).await.map(Some),
            None => Ok(None),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
        let mut page = self.0.store.list(prefix, after, limit, at).await?;
        if page.items.iter().any(|item| self.0.source.key() == Some(item.key.as_str())) {
            self.reload().await?;
        }
        for item in &mut page.items {
            if !self.passes(&self.0.rules.load(), &item.key, &item.value) {
                item.value = self.opened(&item.key, std::mem::take(&mut item.value)).await?;
            }
        }
        // Everything that was asked for could be opened.
        *self.0.trouble.lock() = None;
        Ok(page)
    }

    async fn commit(&self, write: Write) -> Result<Outcome> {
        match self.0.store.commit(self.seal(write)?).await? {
            Outcome::Conflict(Some(item)) => Ok(Outcome::Conflict(Some(self.opened_item(item).await?))),
            other => Ok(other),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        // Whatever happened before this watch, as a restore, the rules are those that stand there now.
        if self.0.source.key().is_some_and(|key| key.starts_with(prefix)) {
            self.reload().await?;
        }
        let (inner, this) = (self.0.store.watch(prefix, from).await?, self.clone());
        let opened = inner.then(move |watched| {
            let this = this.clone();
            async move {
                match watched? {
                    Watched::Events(events) => this.opened_events(events).await.map(Watched::Events),
                    progress => Ok(progress),
                }
            }
        });
        Ok(opened.boxed())
    }

    async fn revision(&self) -> Result<Revision> {
        self.0.store.revision().await
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        self.0.store.compact(at).await
    }

    fn trouble(&self) -> Option<Error> {
        self.0.store.trouble().or_else(|| self.0.trouble.lock().clone())
    }

    fn is_being_restored(&self) -> bool {
        self.0.store.is_being_restored()
    }

    async fn check(&self, depth: Depth) -> Result<()> {
        self.0.store.check(depth).await
    }
}
