//! Checking tokens that others have signed: their key sets (JWKS), and the claims of a token that one of the keys has signed.
//! Pure: who fetches the keys, and what the claims mean, is decided elsewhere.

use crate::{Error, malformed};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::Jwk};
use serde_json::Value;

/// Keys taken from one set; more are left out.
const KEYS_MAX: usize = 64;
/// How far clocks may differ for a token that is not valid yet.
const NOT_BEFORE_LEEWAY_S: i64 = 300;

/// What a token says of itself; nothing of it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    pub issuer: String,
    /// The id of the key; empty if it does not say.
    pub key_id: String,
}

/// Reads what a token says of itself; `None` if it is no JSON Web Token.
pub fn peek(token: &str) -> Option<Unverified> {
    let header = jsonwebtoken::decode_header(token).ok()?;
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
    Some(Unverified { issuer: claims.get("iss")?.as_str()?.into(), key_id: header.kid.unwrap_or_default() })
}

/// An issuer's public keys.
pub struct Keys {
    keys: Vec<(String, Algorithms, DecodingKey)>,
}

/// What a key may be used with: the algorithm that its set names, or all.
type Algorithms = Option<Algorithm>;

impl Keys {
    /// Reads a key set. Keys of unknown types, and those not for signatures, are left out.
    pub fn parse(text: &str) -> Result<Keys, Error> {
        let set: Value = serde_json::from_str(text).map_err(|error| malformed("key set", error))?;
        let listed = set.get("keys").and_then(Value::as_array).ok_or_else(|| malformed("key set", "it has no keys"))?;
        let mut keys = Vec::new();
        for key in listed.iter().take(KEYS_MAX) {
            if key.get("use").and_then(Value::as_str).is_some_and(|purpose| purpose != "sig") {
                continue;
            }
            let Ok(jwk) = serde_json::from_value::<Jwk>(key.clone()) else { continue };
            let Ok(decoding) = DecodingKey::from_jwk(&jwk) else { continue };
            let algorithm = key.get("alg").and_then(Value::as_str).and_then(|name| name.parse().ok());
            keys.push((jwk.common.key_id.unwrap_or_default(), algorithm, decoding));
        }
        Ok(Keys { keys })
    }

    /// Whether a token's key may be here.
    pub fn has(&self, key_id: &str) -> bool {
        key_id.is_empty() && !self.keys.is_empty() || self.keys.iter().any(|(id, ..)| id == key_id)
    }

    /// The claims of a token that one of the keys has signed with one of the algorithms, and that is valid now.
    pub fn verify(&self, token: &str, algorithms: &SigningAlgorithms, now_unix_s: i64) -> Result<Value, Error> {
        let header = jsonwebtoken::decode_header(token)?;
        if !algorithms.0.contains(&header.alg) {
            return Err(malformed("token", "it is signed with an algorithm that is not allowed"));
        }
        let mut validation = Validation::new(header.alg);
        // Times and audiences are checked by the caller's clock and rules.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.set_required_spec_claims::<&str>(&[]);
        let wanted = header.kid.as_deref().unwrap_or_default();
        let fits = |(id, algorithm, _): &&(String, Algorithms, DecodingKey)| {
            (wanted.is_empty() || id == wanted) && algorithm.is_none_or(|algorithm| algorithm == header.alg)
        };
        let mut failure = malformed("token", "no key of the issuer has signed it");
        for (.., key) in self.keys.iter().filter(fits) {
            match jsonwebtoken::decode::<Value>(token, key, &validation) {
                Ok(data) => return in_time(data.claims, now_unix_s),
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }
}

fn in_time(claims: Value, now_unix_s: i64) -> Result<Value, Error> {
    let time = |name: &str| claims.get(name).and_then(Value::as_f64).map(|time| time as i64);
    let expires = time("exp").ok_or_else(|| malformed("token", "it says no time at which it expires"))?;
    if now_unix_s >= expires {
        return Err(malformed("token", "it has expired"));
    }
    if time("nbf").is_some_and(|from| now_unix_s + NOT_BEFORE_LEEWAY_S < from) {
        return Err(malformed("token", "it is not valid yet"));
    }
    Ok(claims)
}

/// Algorithms that tokens may be signed with: those with a public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningAlgorithms(Vec<Algorithm>);

impl SigningAlgorithms {
    /// Reads their names, as `RS256`. The error is the one that is not known.
    pub fn parse(names: &[String]) -> Result<SigningAlgorithms, String> {
        const KNOWN: [&str; 8] = ["RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512"];
        let read = |name: &String| Some(name).filter(|name| KNOWN.contains(&name.as_str())).and_then(|name| name.parse().ok()).ok_or(name.clone());
        names.iter().map(read).collect::<Result<_, _>>().map(SigningAlgorithms)
    }
    /// All of them.
    pub fn all() -> SigningAlgorithms {
        use Algorithm::{ES256, ES384, PS256, PS384, PS512, RS256, RS384, RS512};
        SigningAlgorithms(vec![RS256, RS384, RS512, ES256, ES384, PS256, PS384, PS512])
    }
}

/// An issuer's key, for tests of whoever checks its tokens.
pub struct TestIssuer {
    signing: jsonwebtoken::EncodingKey,
    key_id: String,
    jwk: Value,
}

impl TestIssuer {
    /// A new key under this id.
    pub fn generate(key_id: &str) -> Result<TestIssuer, Error> {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let key = rcgen::KeyPair::generate()?;
        let point = key.public_key_raw();
        let (x, y) = point.get(1..65).map(|both| both.split_at(32)).ok_or_else(|| malformed("key", "it has no point"))?;
        let jwk = serde_json::json!({
            "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": key_id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        });
        Ok(TestIssuer { signing: jsonwebtoken::EncodingKey::from_ec_pem(key.serialize_pem().as_bytes())?, key_id: key_id.into(), jwk })
    }
    /// Its key as a set lists it.
    pub fn jwk(&self) -> Value {
        self.jwk.clone()
    }
    /// Signs claims.
    pub fn sign(&self, claims: &Value) -> Result<String, Error> {
        let mut header = jsonwebtoken::Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        Ok(jsonwebtoken::encode(&header, claims, &self.signing)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_are_good_if_a_known_key_signed_them_in_time() {
        let (issuer, other) = (TestIssuer::generate("a").unwrap(), TestIssuer::generate("a").unwrap());
        let now = 1_800_000_000;
        let claims = json!({"iss": "https://issuer", "exp": now + 60, "nbf": now, "sub": "jane"});
        let token = issuer.sign(&claims).unwrap();
        assert_eq!(peek(&token), Some(Unverified { issuer: "https://issuer".into(), key_id: "a".into() }));
        assert_eq!(peek("no.jwt.this"), None);
        let keys = Keys::parse(&json!({"keys": [{"kty": "odd"}, issuer.jwk()]}).to_string()).unwrap();
        assert!(keys.has("a") && keys.has("") && !keys.has("b"));
        let all = SigningAlgorithms::all();
        assert_eq!(keys.verify(&token, &all, now).unwrap(), claims);
        assert!(keys.verify(&token, &all, now + 60).is_err(), "expired");
        assert!(keys.verify(&token, &all, now - 301).is_err(), "not yet");
        assert!(keys.verify(&other.sign(&claims).unwrap(), &all, now).is_err(), "another key under the same name");
        assert!(keys.verify(&token, &SigningAlgorithms::parse(&["RS256".into()]).unwrap(), now).is_err());
        assert_eq!(SigningAlgorithms::parse(&["HS256".into()]), Err("HS256".into()), "a secret that both sides know is no signature");
        assert!(Keys::parse("{}").is_err());
    }
}
