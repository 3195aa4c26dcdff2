//! What a signature check found, remembered by the SHA-256 of what was checked: asymmetric cryptography once per
//! credential, not once per request.

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{collections::HashMap, sync::Arc};

/// Credentials remembered per authenticator. When there are more, all are forgotten and checked anew.
const CREDENTIALS_MAX: usize = 4096;

pub(super) type Fingerprint = [u8; 32];

pub(super) fn fingerprint(bytes: &[u8]) -> Fingerprint {
    Sha256::digest(bytes).into()
}

/// A bounded memory of good credentials. Bad ones are not remembered, so that nobody can fill it with them.
pub(super) struct Remembered<T> {
    found: Mutex<HashMap<Fingerprint, Arc<T>>>,
}

impl<T> Default for Remembered<T> {
    fn default() -> Remembered<T> {
        Remembered { found: Mutex::default() }
    }
}

impl<T> Remembered<T> {
    pub(super) fn get(&self, fingerprint: &Fingerprint) -> Option<Arc<T>> {
        self.found.lock().get(fingerprint).cloned()
    }
    pub(super) fn put(&self, fingerprint: Fingerprint, value: T) -> Arc<T> {
        let value = Arc::new(value);
        let mut found = self.found.lock();
        if found.len() >= CREDENTIALS_MAX {
            found.clear();
        }
        found.insert(fingerprint, value.clone());
        value
    }
}
