//! The sealing of a snapshot's frames: from a passphrase or a key file to AES-256-GCM.
//!
//! A passphrase goes through PBKDF2-HMAC-SHA-256 with many rounds, a key file (random already) through HKDF; both with a
//! salt of the file's own, so no two files share a key and the frame's number can be its nonce.

use super::{Error, Result};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest, hkdf, pbkdf2,
};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

/// Rounds for a passphrase; what OWASP asked of this function when it was chosen.
const ROUNDS: u32 = 600_000;
/// Rounds that a file may ask for: a hostile one shall not keep a reader busy for hours.
const ROUNDS_MAX: u32 = 10_000_000;
const SALT_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
/// A shorter key file could be guessed.
const KEY_FILE_BYTES_MIN: usize = 32;

/// What opens a sealed snapshot.
#[derive(Clone)]
pub enum Secret {
    Passphrase(String),
    KeyFile(Vec<u8>),
}

/// How a snapshot is sealed; stands in its header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub cipher: String,
    pub derivation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u32>,
    /// In hexadecimal.
    pub salt: String,
}

const CIPHER: &str = "aes-256-gcm";
const FROM_PASSPHRASE: &str = "pbkdf2-hmac-sha256";
const FROM_KEY_FILE: &str = "hkdf-sha256";

impl Secret {
    /// The content of a key file.
    pub fn key_file(content: Vec<u8>) -> Result<Secret> {
        if content.len() < KEY_FILE_BYTES_MIN {
            return Err(Error::WeakSecret(format!(
                "a key file needs at least {KEY_FILE_BYTES_MIN} random bytes; make one with `head -c {KEY_FILE_BYTES_MIN} /dev/urandom > FILE`"
            )));
        }
        Ok(Secret::KeyFile(content))
    }

    /// A passphrase that a person remembers.
    pub fn passphrase(text: &str) -> Result<Secret> {
        if text.is_empty() {
            return Err(Error::WeakSecret("the passphrase is empty".into()));
        }
        Ok(Secret::Passphrase(text.to_string()))
    }

    /// How a new file is sealed with this secret: with a fresh salt.
    pub(super) fn describe(&self) -> Result<Description> {
        let mut salt = [0; SALT_BYTES];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| Error::Cipher)?;
        let (derivation, rounds) = match self {
            Secret::Passphrase(_) => (FROM_PASSPHRASE, Some(ROUNDS)),
            Secret::KeyFile(_) => (FROM_KEY_FILE, None),
        };
        Ok(Description { cipher: CIPHER.into(), derivation: derivation.into(), rounds, salt: super::hex(&salt) })
    }

    fn key(&self, description: &Description) -> Result<[u8; KEY_BYTES]> {
        let salt = super::unhex(&description.salt).ok_or_else(|| Error::Damaged("its salt cannot be read".into()))?;
        let mut key = [0; KEY_BYTES];
        match (self, description.derivation.as_str()) {
            (Secret::Passphrase(text), FROM_PASSPHRASE) => {
                let rounds = description.rounds.filter(|rounds| *rounds <= ROUNDS_MAX).and_then(NonZeroU32::new);
                let rounds = rounds.ok_or_else(|| Error::Damaged("its seal asks for no sensible number of rounds".into()))?;
                pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, text.as_bytes(), &mut key);
            }
            (Secret::KeyFile(content), FROM_KEY_FILE) => {
                let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &salt).extract(content);
                let material = secret.expand(&[b"regent snapshot"], hkdf::HKDF_SHA256).map_err(|_| Error::Cipher)?;
                material.fill(&mut key).map_err(|_| Error::Cipher)?;
            }
            (Secret::KeyFile(_), FROM_PASSPHRASE) => return Err(Error::WeakSecret("it is sealed with a passphrase, not with a key file".into())),
            (Secret::Passphrase(_), FROM_KEY_FILE) => return Err(Error::WeakSecret("it is sealed with a key file, not with a passphrase".into())),
            (_, other) => return Err(Error::Damaged(format!("it is sealed in a way that this version does not know ({other})"))),
        }
        Ok(key)
    }
}

/// Closes and opens the frames of one file.
pub(super) struct Seal {
    key: LessSafeKey,
    /// The SHA-256 of the header, bound to every frame.
    bound: [u8; 32],
}

impl Seal {
    pub(super) fn new(secret: &Secret, description: &Description, header: &[u8]) -> Result<Seal> {
        if description.cipher != CIPHER {
            return Err(Error::Damaged(format!("it is sealed in a way that this version does not know ({})", description.cipher)));
        }
        let key = UnboundKey::new(&AES_256_GCM, &secret.key(description)?).map_err(|_| Error::Cipher)?;
        let mut bound = [0; 32];
        bound.copy_from_slice(digest::digest(&digest::SHA256, header).as_ref());
        Ok(Seal { key: LessSafeKey::new(key), bound })
    }

    fn nonce(number: u64, last: bool) -> Nonce {
        let mut bytes = [0; NONCE_LEN];
        bytes[0] = u8::from(last);
        bytes[4..].copy_from_slice(&number.to_be_bytes());
        Nonce::assume_unique_for_key(bytes)
    }

    pub(super) fn close(&self, number: u64, last: bool, frame: &mut Vec<u8>) -> Result<()> {
        self.key.seal_in_place_append_tag(Seal::nonce(number, last), Aad::from(self.bound), frame).map_err(|_| Error::Cipher)
    }

    pub(super) fn open(&self, number: u64, last: bool, frame: &mut Vec<u8>) -> Result<()> {
        let length = self.key.open_in_place(Seal::nonce(number, last), Aad::from(self.bound), frame).map_err(|_| Error::SecretWrong)?.len();
        frame.truncate(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_seals_and_opens() {
        let secret = Secret::passphrase("correct horse").unwrap();
        let mut description = secret.describe().unwrap();
        description.rounds = Some(10);
        let seal = Seal::new(&secret, &description, b"header").unwrap();
        let mut frame = b"content".to_vec();
        seal.close(3, false, &mut frame).unwrap();
        let mut moved = frame.clone();
        assert!(seal.open(4, false, &mut moved).is_err(), "a moved frame is refused");
        assert!(seal.open(3, true, &mut frame.clone()).is_err(), "a frame that was not the last is not the last");
        assert!(Seal::new(&secret, &description, b"other").unwrap().open(3, false, &mut frame.clone()).is_err(), "another header is refused");
        seal.open(3, false, &mut frame).unwrap();
        assert_eq!(frame, b"content");
        let key_file = Secret::key_file(vec![1; 32]).unwrap();
        assert!(matches!(Seal::new(&key_file, &description, b"header"), Err(Error::WeakSecret(_))));
        description.rounds = Some(u32::MAX);
        assert!(matches!(Seal::new(&secret, &description, b"header"), Err(Error::Damaged(_))));
        assert!(Secret::key_file(vec![1; 8]).is_err() && Secret::passphrase("").is_err());
    }
}
