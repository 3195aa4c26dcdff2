//! Service account tokens: JSON Web Tokens with Kubernetes' claims, signed with the cluster's ES256 key.
//!
//! A token says which account it is for, for whom (audiences), until when, and which object it dies with. This module checks
//! signature, issuer and times; whether account and object still exist is the API server's question.

use crate::files::{self, Access};
use crate::{Error, malformed};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

/// An object that a token names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Kubernetes' own claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    /// When a client should have fetched a new one (tokens whose life the server has extended).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// All claims of a service account token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    pub nbf: i64,
    pub sub: String,
}

/// The key that signs service account tokens.
pub struct ServiceAccountKeys {
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
    point: Vec<u8>,
}

impl ServiceAccountKeys {
    /// The key in `directory` (`sa.key`, and `sa.pub` for others to check with); made if it is not there.
    pub fn load_or_create(directory: &Path) -> Result<ServiceAccountKeys, Error> {
        files::create_directory(directory)?;
        let path = directory.join("sa.key");
        if files::read(&path)?.is_none() {
            files::create(&path, &KeyPair::generate()?.serialize_pem(), Access::Private)?;
        }
        let key_pem = files::read(&path)?.ok_or_else(|| malformed("service account key", "it vanished"))?;
        let keys = ServiceAccountKeys::from_pem(&key_pem).map_err(|error| Error::Damaged {
            path: path.clone(),
            what: "ECDSA P-256 key",
            detail: error.to_string(),
        })?;
        let public_pem = KeyPair::from_pem(&key_pem)?.public_key_pem();
        if files::read(&directory.join("sa.pub"))?.as_deref() != Some(public_pem.as_str()) {
            files::replace(&directory.join("sa.pub"), &public_pem, Access::Public)?;
        }
        Ok(keys)
    }

    /// A new key, in memory only.
    pub fn generate() -> Result<ServiceAccountKeys, Error> {
        ServiceAccountKeys::from_pem(&KeyPair::generate()?.serialize_pem())
    }

    /// From the PEM of an ECDSA P-256 key (PKCS #8).
    pub fn from_pem(key_pem: &str) -> Result<ServiceAccountKeys, Error> {
        let key = KeyPair::from_pem(key_pem)?;
        if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(malformed("service account key", "it is not an ECDSA P-256 key"));
        }
        Ok(ServiceAccountKeys {
            signing: EncodingKey::from_ec_pem(key_pem.as_bytes())?,
            verifying: DecodingKey::from_ec_pem(key.public_key_pem().as_bytes())?,
            key_id: URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info())),
            point: key.public_key_raw().to_vec(),
        })
    }

    /// Signs a token.
    pub fn sign(&self, claims: &Claims) -> Result<String, Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        Ok(jsonwebtoken::encode(&header, claims, &self.signing)?)
    }

    /// Checks signature, issuer and times. `None` if the token is not of this issuer at all (another authenticator's matter).
    pub fn verify(&self, token: &str, issuer: &str, now_unix_s: i64) -> Option<Result<Claims, Error>> {
        let unverified: Value = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
        if unverified.get("iss").and_then(Value::as_str) != Some(issuer) {
            return None;
        }
        Some(self.check(token, now_unix_s))
    }

    fn check(&self, token: &str, now_unix_s: i64) -> Result<Claims, Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        // Times are checked below against the caller's clock; audiences are the caller's.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.set_required_spec_claims::<&str>(&[]);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)?.claims;
        if now_unix_s >= claims.exp {
            return Err(malformed("token", "it has expired"));
        }
        if now_unix_s < claims.nbf {
            return Err(malformed("token", "it is not valid yet"));
        }
        Ok(claims)
    }

    /// The JSON Web Key Set, served at `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        let (x, y) = self.point.get(1..65).map(|xy| xy.split_at(32)).unwrap_or_default();
        json!({"keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

/// The OpenID Connect discovery document, served at `/.well-known/openid-configuration`.
pub fn openid_configuration(issuer: &str, jwks_uri: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": jwks_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    fn claims(now: i64) -> Claims {
        Claims {
            aud: vec![ISSUER.into()],
            exp: now + 3600,
            iat: now,
            iss: ISSUER.into(),
            jti: "1".into(),
            kubernetes: KubernetesClaims {
                namespace: "default".into(),
                node: None,
                pod: Some(Reference { name: "p".into(), uid: "u".into() }),
                secret: None,
                serviceaccount: Reference { name: "default".into(), uid: "v".into() },
                warnafter: None,
            },
            nbf: now,
            sub: "system:serviceaccount:default:default".into(),
        }
    }

    #[test]
    fn a_token_is_good_for_its_time_and_its_key() {
        let keys = ServiceAccountKeys::generate().unwrap();
        let now = 1_800_000_000;
        let token = keys.sign(&claims(now)).unwrap();
        assert_eq!(keys.verify(&token, ISSUER, now).unwrap().unwrap(), claims(now));
        assert!(keys.verify(&token, ISSUER, now + 3600).unwrap().is_err(), "expired");
        assert!(keys.verify(&token, ISSUER, now - 1).unwrap().is_err(), "not yet");
        assert!(keys.verify(&token, "https://elsewhere", now).is_none(), "another issuer's");
        assert!(keys.verify("aaa.bbb.ccc", ISSUER, now).is_none(), "no token at all");
        let other = ServiceAccountKeys::generate().unwrap();
        assert!(other.verify(&token, ISSUER, now).unwrap().is_err(), "another key's");
        let (head, _) = token.rsplit_once('.').unwrap();
        assert!(keys.verify(&format!("{head}."), ISSUER, now).is_none_or(|r| r.is_err()), "without signature");
    }

    #[test]
    fn the_key_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let first = ServiceAccountKeys::load_or_create(directory.path()).unwrap();
        let token = first.sign(&claims(1_800_000_000)).unwrap();
        let again = ServiceAccountKeys::load_or_create(directory.path()).unwrap();
        assert!(again.verify(&token, ISSUER, 1_800_000_000).unwrap().is_ok());
        let set = again.jwks();
        assert_eq!(set["keys"][0]["kid"], first.key_id.as_str());
        assert_eq!(set["keys"][0]["x"].as_str().unwrap().len(), 43);
    }
}
