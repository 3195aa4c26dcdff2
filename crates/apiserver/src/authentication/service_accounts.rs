//! Service account tokens: made for TokenRequests, checked on every use against the account and the object they die with.

use super::remembered::{Remembered, fingerprint};
use crate::{Server, User};
use api::object::ObjectExt;
use pki::jwt::{Claims, KubernetesClaims, Reference};
use pki::{Error, ServiceAccountKeys};
use std::{collections::BTreeMap, sync::Arc};

/// The prefix of every service account's user name.
pub const USER_PREFIX: &str = "system:serviceaccount:";
/// For how long an object that is being deleted still vouches for its tokens.
const DELETION_LEEWAY_S: i64 = 60;

/// The user name of a service account.
pub fn user_name(namespace: &str, name: &str) -> String {
    format!("{USER_PREFIX}{namespace}:{name}")
}

/// The groups of every service account of a namespace.
pub fn groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
}

/// Namespace and name of a service account by its user name.
pub fn split_user_name(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(USER_PREFIX)?.split_once(':')?;
    let namespace_good = api::names::dns1123_label(namespace).is_empty() && !namespace.is_empty();
    let name_good = api::names::dns1123_subdomain(name).is_empty() && !name.is_empty();
    (namespace_good && name_good).then_some((namespace, name))
}

/// Signs and checks.
pub struct ServiceAccounts {
    keys: Arc<ServiceAccountKeys>,
    issuer: String,
    audiences: Vec<String>,
    verified: Remembered<Claims>,
}

impl ServiceAccounts {
    pub(super) fn new(keys: Arc<ServiceAccountKeys>, issuer: &str, audiences: &[String]) -> ServiceAccounts {
        let audiences = if audiences.is_empty() { vec![issuer.to_string()] } else { audiences.to_vec() };
        ServiceAccounts { keys, issuer: issuer.into(), audiences, verified: Remembered::default() }
    }

    /// What makes a token one for this API server.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub fn keys(&self) -> &ServiceAccountKeys {
        &self.keys
    }

    /// Signs a token for an account.
    pub fn issue(&self, kubernetes: KubernetesClaims, audiences: Vec<String>, now_unix_s: i64, life_s: i64) -> Result<String, Error> {
        let claims = Claims {
            aud: audiences,
            exp: now_unix_s.saturating_add(life_s),
            iat: now_unix_s,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: user_name(&kubernetes.namespace, &kubernetes.serviceaccount.name),
            kubernetes,
            nbf: now_unix_s,
        };
        self.keys.sign(&claims)
    }

    /// Who holds a token, and for which of the wanted audiences. `None` if it is not a token of this issuer.
    pub(super) fn authenticate(
        &self,
        server: &Server,
        token: &str,
        wanted: &[String],
        now_unix_s: i64,
    ) -> Option<Result<(User, Vec<String>), String>> {
        let claims = match self.claims(token, now_unix_s)? {
            Ok(claims) => claims,
            Err(error) => return Some(Err(error.to_string())),
        };
        let audiences: Vec<String> = wanted.iter().filter(|audience| claims.aud.contains(audience)).cloned().collect();
        if audiences.is_empty() {
            return Some(Err(format!("token audiences {} is invalid for the target audiences {}", go_list(&claims.aud), go_list(wanted))));
        }
        Some(alive(server, &claims.kubernetes, now_unix_s).map(|()| (user(&claims), audiences)))
    }

    fn claims(&self, token: &str, now_unix_s: i64) -> Option<Result<Arc<Claims>, Error>> {
        let key = fingerprint(token.as_bytes());
        if let Some(known) = self.verified.get(&key)
            && (known.nbf..known.exp).contains(&now_unix_s)
        {
            return Some(Ok(known));
        }
        let checked = self.keys.verify(token, &self.issuer, now_unix_s)?;
        Some(checked.map(|claims| self.verified.put(key, claims)))
    }
}

/// A list of strings as Go's `%q` prints it.
fn go_list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" "))
}

fn user(claims: &Claims) -> User {
    let kubernetes = &claims.kubernetes;
    let mut extra = BTreeMap::new();
    let mut put = |key: &str, value: String| extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
    put("credential-id", format!("JTI={}", claims.jti));
    if let Some(pod) = &kubernetes.pod {
        put("pod-name", pod.name.clone());
        put("pod-uid", pod.uid.clone());
    }
    if let Some(node) = &kubernetes.node {
        put("node-name", node.name.clone());
        put("node-uid", node.uid.clone());
    }
    User {
        name: user_name(&kubernetes.namespace, &kubernetes.serviceaccount.name),
        uid: kubernetes.serviceaccount.uid.clone(),
        groups: groups(&kubernetes.namespace),
        extra,
    }
}

/// Whether the account and the object that a token is bound to are still the ones it was made for.
fn alive(server: &Server, claims: &KubernetesClaims, now_unix_s: i64) -> Result<(), String> {
    let find = |resource: &str, namespace: &str, reference: &Reference| {
        let entry = server.lookup("", resource, namespace, &reference.name).map_err(|status| status.message)?;
        entry.map(|entry| entry.value()).ok_or_else(|| format!("{resource} {:?} not found", reference.name))
    };
    let vouches = |object: &api::Value, reference: &Reference| {
        let dying = object.deletion_timestamp().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        let gone = dying.is_some_and(|time| time.as_second() + DELETION_LEEWAY_S < now_unix_s);
        object.uid() == reference.uid && !gone
    };
    const INVALIDATED: &str = "service account token has been invalidated";

    let account = find("serviceaccounts", &claims.namespace, &claims.serviceaccount)?;
    if account.uid() != claims.serviceaccount.uid {
        return Err(format!("service account UID ({}) does not match claim ({})", account.uid(), claims.serviceaccount.uid));
    }
    if !vouches(&account, &claims.serviceaccount) {
        return Err(INVALIDATED.into());
    }
    // A node beside a pod only says where the pod ran when the token was made.
    let bound = [("secrets", &claims.secret), ("pods", &claims.pod), ("nodes", if claims.pod.is_some() { &None } else { &claims.node })];
    for (resource, reference) in bound {
        let Some(reference) = reference else { continue };
        let namespace = if resource == "nodes" { "" } else { claims.namespace.as_str() };
        match find(resource, namespace, reference) {
            Ok(object) if vouches(&object, reference) => {}
            _ => return Err(INVALIDATED.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        assert_eq!(split_user_name(&user_name("default", "builder")), Some(("default", "builder")));
        assert_eq!(split_user_name("system:serviceaccount:onlyone"), None);
        assert_eq!(split_user_name("jane"), None);
    }
}
