//! Encryption of what must not be read off the disk: AES-256-GCM under a key that only root can read.
//!
//! The key is a file beside the checkpoint, made once per node and shared by its processes. A value is bound to its place
//! (shelf and key), so that rows cannot be exchanged. It keeps Secrets out of copies of the checkpoint and of what reads the
//! disk without being root; it does not keep them from root.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// The name of the key's file in the checkpoint's directory.
pub(crate) const KEY_FILE: &str = "key";
const KEY_BYTES: usize = 32;

/// Why a value cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the key {path}")]
    Key { path: PathBuf, source: io::Error },
    #[error("the cipher refused")]
    Cipher,
    #[error("the value was not sealed with this node's key for this place")]
    Foreign,
}

/// The node's key.
pub(crate) struct Seal {
    key: LessSafeKey,
}

fn place(shelf: &str, key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(shelf.len() + key.len() + 8);
    out.extend_from_slice(&(shelf.len() as u64).to_le_bytes());
    out.extend_from_slice(shelf.as_bytes());
    out.extend_from_slice(key.as_bytes());
    out
}

impl Seal {
    /// Reads the key of this directory, or makes it.
    pub(crate) fn open(directory: &Path) -> Result<Seal, Error> {
        let path = directory.join(KEY_FILE);
        let failed = |source| Error::Key { path: path.clone(), source };
        let bytes = match read(&path).map_err(failed)? {
            Some(bytes) => bytes,
            None => make(directory, &path).map_err(failed)?,
        };
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| Error::Cipher)?;
        Ok(Seal { key: LessSafeKey::new(key) })
    }

    /// The value, encrypted: nonce, ciphertext, tag.
    pub(crate) fn seal(&self, shelf: &str, key: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Error::Cipher)?;
        let mut body = value.to_vec();
        self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place(shelf, key)), &mut body).map_err(|_| Error::Cipher)?;
        Ok([&nonce[..], &body].concat())
    }

    /// The value that was sealed for this place.
    pub(crate) fn open_value(&self, shelf: &str, key: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(Error::Foreign)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Foreign)?;
        let mut body = body.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(place(shelf, key)), &mut body).map_err(|_| Error::Foreign)?;
        Ok(opened.to_vec())
    }
}

/// The key in the file; `None` if there is none, or none that can be used (it is then set aside).
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if bytes.len() != KEY_BYTES {
        tracing::error!(path = %path.display(), "the checkpoint's key is damaged; a new one is made, and Secrets kept under the old one are lost");
        fs::rename(path, path.with_extension("damaged"))?;
        return Ok(None);
    }
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the checkpoint's key could be read by others; now it cannot");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(Some(bytes))
}

/// Makes the key. Of several processes that make one at once the first wins, and all use its.
fn make(directory: &Path, path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("there is no randomness"))?;
    let mine = directory.join(format!("{KEY_FILE}.{}", std::process::id()));
    let _ = fs::remove_file(&mine);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&mine)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    let linked = fs::hard_link(&mine, path);
    fs::remove_file(&mine)?;
    match linked {
        Ok(()) => {
            fs::File::open(directory)?.sync_all()?;
            Ok(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path)?.ok_or_else(|| io::Error::other("it was made and damaged at once")),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_only_in_its_place_and_with_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let seal = Seal::open(directory.path()).unwrap();
        let sealed = seal.seal("s", "k", b"password").unwrap();
        assert!(!sealed.windows(8).any(|part| part == b"password"));
        assert_eq!(Seal::open(directory.path()).unwrap().open_value("s", "k", &sealed).unwrap(), b"password");
        assert!(seal.open_value("s", "other", &sealed).is_err());
        assert!(seal.open_value("s", "k", &sealed[..5]).is_err());
        let other = tempfile::tempdir().unwrap();
        assert!(Seal::open(other.path()).unwrap().open_value("s", "k", &sealed).is_err());
        let mode = fs::metadata(directory.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
