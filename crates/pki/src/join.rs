//! The token with which a machine joins: the authority's fingerprint, and a bootstrap token as Kubernetes has them.
//!
//! `<sha-256 of the CA certificate>::<id>.<secret>`. The fingerprint lets the machine trust the server before it knows the
//! cluster; the rest lets the server trust the machine just far enough to ask for a certificate. On the server's side a token
//! is the Secret `kube-system/bootstrap-token-<id>`.

use crate::{Error, malformed};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use serde_json::{Value, json};
use std::fmt;

/// Kubernetes' form of both halves.
pub const ID_LENGTH: usize = 6;
pub const SECRET_LENGTH: usize = 16;
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// The group that every bootstrap token belongs to.
pub const BOOTSTRAPPERS_GROUP: &str = "system:bootstrappers";
/// The additional group of tokens for joining nodes, as kubeadm names it.
pub const NODE_BOOTSTRAPPERS_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
/// The additional group of tokens for joining servers: whoever has one is given the cluster's keys.
pub const SERVER_BOOTSTRAPPERS_GROUP: &str = "system:bootstrappers:regent:server";

/// A bootstrap token, with the fingerprint of the authority that it is good for if known.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub fingerprint: Option<String>,
    pub id: String,
    pub secret: String,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl JoinToken {
    /// A new token for the authority with this fingerprint.
    pub fn generate(fingerprint: &str) -> JoinToken {
        let mut random = rand::rng();
        let mut text = |length| (0..length).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect::<String>();
        JoinToken { fingerprint: Some(fingerprint.into()), id: text(ID_LENGTH), secret: text(SECRET_LENGTH) }
    }

    /// Reads `<fingerprint>::<id>.<secret>` or `<id>.<secret>`.
    pub fn parse(text: &str) -> Result<JoinToken, Error> {
        let (fingerprint, rest) = match text.trim().split_once("::") {
            Some((fingerprint, rest)) => {
                if fingerprint.len() != 64 || !fingerprint.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(malformed("join token", "the part before :: is not the fingerprint of a certificate"));
                }
                (Some(fingerprint.to_lowercase()), rest)
            }
            None => (None, text.trim()),
        };
        let well_formed = |part: &str, length| part.len() == length && part.bytes().all(|b| ALPHABET.contains(&b));
        match rest.split_once('.') {
            Some((id, secret)) if well_formed(id, ID_LENGTH) && well_formed(secret, SECRET_LENGTH) => {
                Ok(JoinToken { fingerprint, id: id.into(), secret: secret.into() })
            }
            _ => Err(malformed("join token", "it must look like abcdef.0123456789abcdef")),
        }
    }

    /// The bearer token that the API server knows: `<id>.<secret>`.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// The name of its Secret in kube-system.
    pub fn secret_name(&self) -> String {
        format!("bootstrap-token-{}", self.id)
    }

    /// Its Secret. `expiration` is RFC 3339; without, the token lives until it is deleted.
    pub fn to_secret(&self, description: &str, expiration: Option<&str>) -> Value {
        self.to_secret_for(NODE_BOOTSTRAPPERS_GROUP, description, expiration)
    }

    /// The same for a token whose holder belongs to another group.
    pub fn to_secret_for(&self, group: &str, description: &str, expiration: Option<&str>) -> Value {
        let mut data = serde_json::Map::new();
        let mut put = |key: &str, value: &str| data.insert(key.into(), STANDARD.encode(value).into());
        put("token-id", &self.id);
        put("token-secret", &self.secret);
        put("usage-bootstrap-authentication", "true");
        put("usage-bootstrap-signing", "true");
        put("auth-extra-groups", group);
        put("description", description);
        if let Some(expiration) = expiration {
            put("expiration", expiration);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self.secret_name(), "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "data": data,
        })
    }
}

/// The whole text, as `regent token create` prints it.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fingerprint) = &self.fingerprint {
            write!(f, "{fingerprint}::")?;
        }
        write!(f, "{}.{}", self.id, self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_is_parsed() {
        let token = JoinToken::generate(&"ab".repeat(32));
        assert_eq!(JoinToken::parse(&token.to_string()).unwrap(), token);
        assert_eq!(JoinToken::parse(&token.bearer()).unwrap().secret, token.secret);
        for bad in ["", "x::abcdef.0123456789abcdef", "abcdef.short", "ABCDEF.0123456789abcdef", "abcdef0123456789abcdef"] {
            assert!(JoinToken::parse(bad).is_err(), "{bad}");
        }
    }
}
