//! Service account tokens for pods: asked for through TokenRequest, bound to the pod, renewed in time.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{Api, api::PostParams};
use parking_lot::Mutex;
use std::{collections::HashMap, time::Duration};

/// Old tokens are renewed after a day, however long they would last.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Slot {
    pod_uid: String,
    account: String,
    audience: String,
    seconds: i64,
}

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// Tokens of this node's pods.
pub struct Tokens {
    client: kube::Client,
    kept: Mutex<HashMap<Slot, Token>>,
}

/// When a token that lasts from `issued` to `expires` is to be renewed: after 80 % of its life.
pub fn renew_at(issued: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(issued);
    let wait = SignedDuration::from_secs(life.as_secs() * 8 / 10).min(AGE_MAX);
    issued.checked_add(wait).unwrap_or(expires)
}

impl Tokens {
    pub fn new(client: kube::Client) -> Tokens {
        Tokens { client, kept: Mutex::default() }
    }

    /// A token of the pod's service account that is good for a while yet.
    pub async fn get(&self, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<String, String> {
        let id = crate::spec::PodId::of(pod);
        let account = crate::spec::spec_of(pod).service_account_name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into());
        let slot = Slot { pod_uid: id.uid.clone(), account: account.clone(), audience: audience.unwrap_or_default().into(), seconds };
        let now = Timestamp::now();
        let known = {
            let mut kept = self.kept.lock();
            kept.retain(|_, token| token.expires_at > now);
            kept.get(&slot).cloned()
        };
        if let Some(token) = known.as_ref().filter(|token| token.renew_at > now) {
            return Ok(token.text.clone());
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|audience| vec![audience.to_owned()]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(id.name.clone()),
                    uid: Some(id.uid.clone()),
                }),
            }),
            ..Default::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &id.namespace);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, api.create_token_request(&account, &PostParams::default(), &request)).await;
        let failure = match answer {
            Ok(Ok(answer)) => match answer.status.and_then(|status| Some((status.token?, status.expiration_timestamp?.0))) {
                Some((text, expires_at)) => {
                    let token = Token { text, renew_at: renew_at(now, expires_at), expires_at };
                    self.kept.lock().insert(slot, token.clone());
                    return Ok(token.text);
                }
                None => "the answer holds no token".to_owned(),
            },
            Ok(Err(error)) => client::error::ErrorExt::short(&error),
            Err(_) => "the API server does not answer".to_owned(),
        };
        // Until it expires an old token is better than none.
        known.map(|token| token.text).ok_or_else(|| format!("failed to fetch token: {failure}"))
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, pod_uid: &str) {
        self.kept.lock().retain(|slot, _| slot.pod_uid != pod_uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_four_fifths_and_at_the_latest_after_a_day() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(renew_at(at(0), at(3600)), at(2880));
        assert_eq!(renew_at(at(0), at(10_000_000)), at(86_400));
    }
}
