//! A symmetric key in a file: 32 random bytes in hexadecimal, 0600.

use crate::{
    Error,
    files::{self, Access},
    hex,
};
use std::path::Path;

/// The length of such a key.
pub const KEY_BYTES: usize = 32;

/// Reads the key; `None` if there is no such file.
pub fn load(path: &Path) -> Result<Option<[u8; KEY_BYTES]>, Error> {
    let Some(text) = files::read(path)? else { return Ok(None) };
    let damaged = || Error::Damaged { path: path.into(), what: "key", detail: format!("it is not {KEY_BYTES} bytes in hexadecimal") };
    let text = text.trim();
    if text.len() != KEY_BYTES * 2 {
        return Err(damaged());
    }
    let mut key = [0; KEY_BYTES];
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = text.get(i * 2..i * 2 + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(damaged)?;
    }
    Ok(Some(key))
}

/// Reads the key; made if there is no such file.
pub fn load_or_create(path: &Path) -> Result<[u8; KEY_BYTES], Error> {
    if let Some(key) = load(path)? {
        return Ok(key);
    }
    if let Some(directory) = path.parent() {
        files::create_directory(directory)?;
    }
    // Another process may be first: its key counts.
    files::create(path, &format!("{}\n", hex(&rand::random::<[u8; KEY_BYTES]>())), Access::Private)?;
    load(path)?.ok_or_else(|| Error::Damaged { path: path.into(), what: "key", detail: "it vanished".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_a_damaged_one_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pki/encryption.key");
        assert_eq!(load(&path).unwrap(), None);
        let key = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap(), key);
        assert_eq!(load(&path).unwrap(), Some(key));
        std::fs::write(&path, "short").unwrap();
        assert!(load_or_create(&path).is_err());
    }
}
