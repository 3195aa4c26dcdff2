//! The cluster's own keys: a ring of data keys in the store, sealed with one key that lies in a file beside it.
//!
//! The first key of the ring seals, the others open what was sealed before. The file's key never changes, so it can be copied when
//! a server joins and saved with a snapshot; whoever has the store alone has nothing. A new data key is a conditional write of
//! the ring: of two servers that rotate at the same time one wins and the other reads what it made.
//!
//! What must stay true: no ring is made where one is, and none is made anew for want of the file's key.

use super::{GcmKey, Provider, Providers, Rule, Rules, Source};
use crate::{Error, KeyValue, Outcome, Result, Store, Write};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Where the ring lies: under the root of all keys, so that snapshots have it, and no object's key.
pub const KEY: &str = "/registry/encryption-keys";
/// What a sealed ring begins with.
const SEALED: &[u8] = b"regent:ring:v1:";
/// The length of the file's key and of data keys.
pub const KEY_BYTES: usize = 32;
/// Data keys that are kept for reading. Before more are made, the oldest must be out of use.
const KEYS_MAX: usize = 64;
/// How often a rotation is tried again because another server was quicker.
const ATTEMPTS: usize = 5;

/// The content of the ring.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Ring {
    keys: Vec<DataKey>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct DataKey {
    name: String,
    /// In hexadecimal.
    secret: String,
}

/// The ring of a store.
pub struct RingSource {
    store: Arc<dyn Store>,
    key: LessSafeKey,
    /// Where the file's key is.
    file: PathBuf,
    /// Names and prefixes of what is sealed.
    sealed: Vec<(String, String)>,
}

/// Whether a store has a ring already: then its file's key must be here, and must not be made.
pub async fn exists(store: &dyn Store) -> Result<bool> {
    Ok(store.get(KEY).await?.is_some())
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

fn broken() -> Error {
    Error::Undecryptable("the cipher failed".into())
}

impl DataKey {
    fn generate(others: &[DataKey]) -> Result<DataKey> {
        let mut secret = [0; KEY_BYTES];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| broken())?;
        let mut number = now_s();
        while others.iter().any(|other| other.name == format!("key-{number}")) {
            number += 1;
        }
        Ok(DataKey { name: format!("key-{number}"), secret: crate::snapshot::hex(&secret) })
    }
}

impl RingSource {
    /// `sealed`: names and key prefixes of what is sealed. `file` is where `secret` was read.
    pub fn new(store: Arc<dyn Store>, secret: &[u8; KEY_BYTES], file: PathBuf, sealed: Vec<(String, String)>) -> Result<RingSource> {
        let key = UnboundKey::new(&AES_256_GCM, secret).map_err(|_| broken())?;
        Ok(RingSource { store, key: LessSafeKey::new(key), file, sealed })
    }

    fn close(&self, ring: &Ring) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| broken())?;
        let mut content = serde_json::to_vec(ring).map_err(|error| Error::Undecryptable(error.to_string()))?;
        self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(KEY.as_bytes()), &mut content).map_err(|_| broken())?;
        Ok([SEALED, &nonce, &content].concat())
    }

    fn read(&self, stored: &[u8]) -> Result<Ring> {
        let unreadable = || {
            Error::Undecryptable(format!(
                "the cluster's encryption keys ({KEY} in the store) are sealed with another key than that in {}; bring the cluster's own file back, \
                 from another server or from a snapshot (`regent snapshot restore`)",
                self.file.display()
            ))
        };
        let (nonce, content) = stored.strip_prefix(SEALED).and_then(|rest| rest.split_first_chunk::<NONCE_LEN>()).ok_or_else(unreadable)?;
        let mut content = content.to_vec();
        let plain =
            self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(KEY.as_bytes()), &mut content).map_err(|_| unreadable())?;
        serde_json::from_slice(plain).map_err(|_| unreadable())
    }

    /// The ring as it stands; made if there is none.
    async fn standing(&self) -> Result<(Ring, KeyValue)> {
        loop {
            if let Some(standing) = self.store.get(KEY).await? {
                return Ok((self.read(&standing.value)?, standing));
            }
            let ring = Ring { keys: vec![DataKey::generate(&[])?] };
            // Whether it was this server or another: what stands there now is read.
            self.store.commit(Write::Create { key: KEY.into(), value: self.close(&ring)?.into() }).await?;
        }
    }

    fn rules(&self, ring: &Ring) -> Result<Rules> {
        let mut keys = Vec::new();
        for key in &ring.keys {
            let secret = crate::snapshot::unhex(&key.secret).ok_or_else(broken)?;
            keys.push(GcmKey::new(&key.name, &secret).map_err(|error| Error::Undecryptable(error.to_string()))?);
        }
        let providers = Arc::new(Providers(vec![Provider::AesGcm(keys), Provider::Identity]));
        let rule = |(name, prefix): &(String, String)| Rule { name: name.clone(), prefix: prefix.clone(), deep: false, providers: providers.clone() };
        Ok(Rules(self.sealed.iter().map(rule).collect()))
    }

    async fn add(&self) -> Result<String> {
        for _ in 0..ATTEMPTS {
            let (mut ring, standing) = self.standing().await?;
            if ring.keys.len() >= KEYS_MAX {
                return Err(Error::Undecryptable(format!("there are {KEYS_MAX} keys already; a cluster needs no more")));
            }
            let key = DataKey::generate(&ring.keys)?;
            let name = key.name.clone();
            ring.keys.insert(0, key);
            let write = Write::Update { key: KEY.into(), value: self.close(&ring)?.into(), expected: standing.modified };
            if let Outcome::Committed(_) = self.store.commit(write).await? {
                return Ok(name);
            }
        }
        Err(Error::Unavailable("other servers keep changing the keys; try again".into()))
    }
}

impl Source for RingSource {
    fn load(&self) -> BoxFuture<'_, Result<Rules>> {
        Box::pin(async { self.rules(&self.standing().await?.0) })
    }
    fn rotate(&self) -> Option<BoxFuture<'_, Result<String>>> {
        Some(Box::pin(self.add()))
    }
    fn key(&self) -> Option<&str> {
        Some(KEY)
    }
    fn describe(&self) -> String {
        format!("the cluster's own keys, sealed with {}", self.file.display())
    }
}
