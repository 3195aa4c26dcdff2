//! How one value is sealed and opened: providers with named keys, as Kubernetes' EncryptionConfiguration has them. Pure.
//!
//! A sealed value begins with `k8s:enc:PROVIDER:v1:KEY:`, so that whoever opens it knows with what. The store key is
//! authenticated along with it (AES-GCM): a value that was moved to another object's place is refused.

use aws_lc_rs::{
    aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    cipher::{AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey},
    iv::FixedLength,
};
use bytes::Bytes;

/// What every sealed value begins with.
pub const SEALED: &[u8] = b"k8s:enc:";
const IV_BYTES: usize = 16;

/// Why a value cannot be sealed or opened.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    #[error("it is sealed with {0}, and there is no such key here; bring that key back")]
    NoKey(String),
    #[error("the key {0} does not open it: another key has the same name, or the value was changed or moved in the store")]
    WrongKey(String),
    #[error("it is not encrypted, and the configuration does not allow that; add the provider `identity` as the last one")]
    Plain,
    #[error("the key {0} is not 16, 24 or 32 bytes long")]
    KeyLength(String),
    #[error("a key's name must not be empty and must have no colon: {0:?}")]
    Name(String),
    #[error("the cipher failed")]
    Cipher,
}

/// One way to seal.
pub enum Provider {
    AesGcm(Vec<GcmKey>),
    AesCbc(Vec<CbcKey>),
    /// As it is.
    Identity,
}

/// A named key for AES-GCM.
pub struct GcmKey {
    prefix: String,
    key: LessSafeKey,
}

/// A named key for AES-CBC, which Kubernetes no longer recommends.
pub struct CbcKey {
    prefix: String,
    secret: Vec<u8>,
}

fn checked(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.contains(':') { Err(Error::Name(name.into())) } else { Ok(()) }
}

impl GcmKey {
    pub fn new(name: &str, secret: &[u8]) -> Result<GcmKey, Error> {
        checked(name)?;
        let algorithm = match secret.len() {
            16 => &AES_128_GCM,
            24 => &AES_192_GCM,
            32 => &AES_256_GCM,
            _ => return Err(Error::KeyLength(name.into())),
        };
        let key = UnboundKey::new(algorithm, secret).map_err(|_| Error::Cipher)?;
        Ok(GcmKey { prefix: format!("k8s:enc:aesgcm:v1:{name}:"), key: LessSafeKey::new(key) })
    }

    fn seal(&self, place: &str, plain: &[u8]) -> Result<Bytes, Error> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Error::Cipher)?;
        let mut out = Vec::with_capacity(self.prefix.len() + NONCE_LEN + plain.len() + self.key.algorithm().tag_len());
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(&nonce);
        let begin = out.len();
        out.extend_from_slice(plain);
        let tag = self.key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place.as_bytes()), &mut out[begin..]);
        out.extend_from_slice(tag.map_err(|_| Error::Cipher)?.as_ref());
        Ok(out.into())
    }

    fn open(&self, place: &str, sealed: &[u8]) -> Result<Bytes, Error> {
        let wrong = || Error::WrongKey(label(self.prefix.as_bytes()));
        let (nonce, content) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        let mut content = content.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.key.open_in_place(nonce, Aad::from(place.as_bytes()), &mut content).map_err(|_| wrong())?.len();
        content.truncate(length);
        Ok(content.into())
    }
}

impl CbcKey {
    pub fn new(name: &str, secret: &[u8]) -> Result<CbcKey, Error> {
        checked(name)?;
        if !matches!(secret.len(), 16 | 24 | 32) {
            return Err(Error::KeyLength(name.into()));
        }
        Ok(CbcKey { prefix: format!("k8s:enc:aescbc:v1:{name}:"), secret: secret.into() })
    }

    fn cipher(&self) -> Result<UnboundCipherKey, Error> {
        let algorithm = match self.secret.len() {
            16 => &AES_128,
            24 => &AES_192,
            _ => &AES_256,
        };
        UnboundCipherKey::new(algorithm, &self.secret).map_err(|_| Error::Cipher)
    }

    fn seal(&self, plain: &[u8]) -> Result<Bytes, Error> {
        let key = PaddedBlockEncryptingKey::cbc_pkcs7(self.cipher()?).map_err(|_| Error::Cipher)?;
        let mut content = plain.to_vec();
        let context = key.encrypt(&mut content).map_err(|_| Error::Cipher)?;
        let DecryptionContext::Iv128(iv) = context else { return Err(Error::Cipher) };
        Ok([self.prefix.as_bytes(), iv.as_ref(), &content].concat().into())
    }

    fn open(&self, sealed: &[u8]) -> Result<Bytes, Error> {
        let wrong = || Error::WrongKey(label(self.prefix.as_bytes()));
        let (iv, content) = sealed.split_first_chunk::<IV_BYTES>().ok_or_else(wrong)?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(self.cipher()?).map_err(|_| Error::Cipher)?;
        let mut content = content.to_vec();
        let context = DecryptionContext::Iv128(FixedLength::from(*iv));
        let length = key.decrypt(&mut content, context).map_err(|_| wrong())?.len();
        content.truncate(length);
        Ok(content.into())
    }
}

/// `aesgcm:KEY` of what a sealed value begins with; `identity` for one that is not sealed.
pub fn label(stored: &[u8]) -> String {
    let Some(rest) = stored.strip_prefix(SEALED) else { return "identity".into() };
    let mut parts = rest.splitn(4, |byte| *byte == b':').map(|part| String::from_utf8_lossy(&part[..part.len().min(256)]).into_owned());
    let (provider, _version, key) = (parts.next().unwrap_or_default(), parts.next(), parts.next().unwrap_or_default());
    format!("{provider}:{key}")
}

/// The providers of some resources: the first one's first key seals, all open.
pub struct Providers(pub Vec<Provider>);

impl Providers {
    /// Seals a value for its place.
    pub fn seal(&self, place: &str, plain: &Bytes) -> Result<Bytes, Error> {
        match self.0.first() {
            Some(Provider::AesGcm(keys)) => keys.first().ok_or(Error::Cipher)?.seal(place, plain),
            Some(Provider::AesCbc(keys)) => keys.first().ok_or(Error::Cipher)?.seal(plain),
            Some(Provider::Identity) | None => Ok(plain.clone()),
        }
    }

    /// What [`label`] says of values that are sealed now.
    pub fn writes(&self) -> String {
        match self.0.first() {
            Some(Provider::AesGcm(keys)) => keys.first().map(|key| label(key.prefix.as_bytes())).unwrap_or_default(),
            Some(Provider::AesCbc(keys)) => keys.first().map(|key| label(key.prefix.as_bytes())).unwrap_or_default(),
            Some(Provider::Identity) | None => label(b""),
        }
    }

    /// The names of all keys, as [`label`] says them.
    pub fn reads(&self) -> Vec<String> {
        let of = |provider: &Provider| match provider {
            Provider::AesGcm(keys) => keys.iter().map(|key| label(key.prefix.as_bytes())).collect(),
            Provider::AesCbc(keys) => keys.iter().map(|key| label(key.prefix.as_bytes())).collect(),
            Provider::Identity => vec![label(b"")],
        };
        self.0.iter().flat_map(of).collect::<Vec<_>>()
    }

    /// Opens what stands at a place.
    pub fn open(&self, place: &str, stored: &Bytes) -> Result<Bytes, Error> {
        if !stored.starts_with(SEALED) {
            return if self.0.iter().any(|provider| matches!(provider, Provider::Identity)) { Ok(stored.clone()) } else { Err(Error::Plain) };
        }
        // Two keys may have one name while one replaces the other: each is tried.
        let mut failure = Error::NoKey(label(stored));
        for provider in &self.0 {
            let tried: Vec<Result<Bytes, Error>> = match provider {
                Provider::AesGcm(keys) => keys.iter().filter_map(|key| Some(key.open(place, stored.strip_prefix(key.prefix.as_bytes())?))).collect(),
                Provider::AesCbc(keys) => keys.iter().filter_map(|key| Some(key.open(stored.strip_prefix(key.prefix.as_bytes())?))).collect(),
                Provider::Identity => vec![],
            };
            for outcome in tried {
                match outcome {
                    Ok(plain) => return Ok(plain),
                    Err(error) => failure = error,
                }
            }
        }
        Err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gcm(name: &str, byte: u8) -> GcmKey {
        GcmKey::new(name, &[byte; 32]).unwrap()
    }

    const PLACE: &str = "/registry/core/secrets/a/b";

    #[test]
    fn what_is_sealed_is_opened_at_its_place_by_its_key() {
        let plain = Bytes::from_static(b"{\"data\":{\"password\":\"c2VjcmV0\"}}");
        let old = Providers(vec![Provider::AesGcm(vec![gcm("one", 1)]), Provider::Identity]);
        let sealed = old.seal(PLACE, &plain).unwrap();
        assert!(sealed.starts_with(b"k8s:enc:aesgcm:v1:one:") && !sealed.windows(8).any(|part| part == b"c2VjcmV0"));
        assert_ne!(sealed, old.seal(PLACE, &plain).unwrap(), "no two look the same");
        assert_eq!(old.open(PLACE, &sealed).unwrap(), plain);
        assert_eq!(old.open(PLACE, &plain).unwrap(), plain, "what was stored before");
        assert_eq!(old.open("/registry/core/secrets/a/other", &sealed), Err(Error::WrongKey("aesgcm:one".into())));
        let rotated = Providers(vec![Provider::AesGcm(vec![gcm("two", 2), gcm("one", 1)])]);
        assert_eq!(rotated.open(PLACE, &sealed).unwrap(), plain);
        assert_eq!((rotated.writes().as_str(), rotated.reads().len()), ("aesgcm:two", 2));
        assert_eq!(rotated.open(PLACE, &plain), Err(Error::Plain));
        assert_eq!(Providers(vec![Provider::AesGcm(vec![gcm("two", 2)])]).open(PLACE, &sealed), Err(Error::NoKey("aesgcm:one".into())));
        assert_eq!(Providers(vec![Provider::AesGcm(vec![gcm("one", 3)])]).open(PLACE, &sealed), Err(Error::WrongKey("aesgcm:one".into())));
        let mut changed = sealed.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        assert!(old.open(PLACE, &changed.into()).is_err());
        assert!(old.open(PLACE, &Bytes::from_static(b"k8s:enc:aesgcm:v1:one:short")).is_err());
    }

    #[test]
    fn the_older_cipher_is_read_and_written_too() {
        let plain = Bytes::from_static(b"a value of any length");
        for length in [16, 24, 32] {
            let providers = Providers(vec![Provider::AesCbc(vec![CbcKey::new("k", &vec![7; length]).unwrap()])]);
            let sealed = providers.seal(PLACE, &plain).unwrap();
            assert!(sealed.starts_with(b"k8s:enc:aescbc:v1:k:"));
            assert_eq!(providers.open(PLACE, &sealed).unwrap(), plain);
        }
        assert!(CbcKey::new("k", &[0; 5]).is_err() && GcmKey::new("k", &[0; 5]).is_err() && GcmKey::new("a:b", &[0; 32]).is_err());
    }

    #[test]
    fn labels_say_provider_and_key() {
        assert_eq!(label(b"k8s:enc:aesgcm:v1:one:\xff\x00:rest"), "aesgcm:one");
        assert_eq!(label(b"{\"a\":1}"), "identity");
        assert_eq!(label(b"k8s:enc:"), ":");
    }
}
