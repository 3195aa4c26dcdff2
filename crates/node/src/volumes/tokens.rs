//! Service account tokens for pods: asked for through TokenRequest, bound to the pod, renewed in time.
//!
//! They are kept encrypted in the node's checkpoint, so that a pod's volumes can be made again with no server alive. A token
//! that has expired meanwhile is still given (its file must be there for the container to start, and nobody could check it
//! anyway while there is no server), and is said to be expired: in the log, and as an event on the pod. Only a server can
//! sign another; the first refresh after one is back brings it.

use crate::contact::Contact;
use client::{
    checkpoint::{Secrecy, Shelf},
    events::{Recorder, Warning},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{Api, api::PostParams};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

/// Old tokens are renewed after a day, however long they would last.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take that does not seem to be there.
const AWAY_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Slot {
    pod_uid: String,
    account: String,
    audience: String,
    seconds: i64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Token {
    text: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// Tokens of this node's pods.
pub struct Tokens {
    client: kube::Client,
    contact: Contact,
    recorder: Recorder,
    kept: Mutex<HashMap<Slot, Token>>,
    /// Those that were said to be expired.
    said: Mutex<HashSet<Slot>>,
    disk: Option<Shelf>,
}

impl Slot {
    /// The key on disk.
    fn name(&self) -> String {
        format!("{} {} {} {}", self.pod_uid, self.account, self.audience, self.seconds)
    }
}

/// When a token that lasts from `issued` to `expires` is to be renewed: after 80 % of its life.
pub fn renew_at(issued: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(issued);
    let wait = SignedDuration::from_secs(life.as_secs() * 8 / 10).min(AGE_MAX);
    issued.checked_add(wait).unwrap_or(expires)
}

impl Tokens {
    pub fn new(client: kube::Client, contact: Contact, recorder: Recorder, checkpoint: Option<&client::Checkpoint>) -> Tokens {
        let disk = checkpoint.map(|checkpoint| checkpoint.shelf("tokens", Secrecy::Sealed));
        let kept = disk.iter().flat_map(Shelf::load_json::<(Slot, Token)>).map(|(_, kept)| kept).collect();
        Tokens { client, contact, recorder, kept: Mutex::new(kept), said: Mutex::default(), disk }
    }

    /// A token of the pod's service account that is good for a while yet.
    pub async fn get(&self, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<String, String> {
        let id = crate::spec::PodId::of(pod);
        let account = crate::spec::spec_of(pod).service_account_name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into());
        let slot = Slot { pod_uid: id.uid.clone(), account: account.clone(), audience: audience.unwrap_or_default().into(), seconds };
        let now = Timestamp::now();
        let known = self.kept.lock().get(&slot).cloned();
        if let Some(token) = known.as_ref().filter(|token| token.renew_at > now) {
            return Ok(token.text.clone());
        }
        let is_there = self.contact.is_there().await;
        if let (Some(token), false) = (&known, is_there) {
            self.tell_if_expired(pod, &slot, token, now);
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
        let answer = tokio::time::timeout(
            if is_there { ANSWER_TIMEOUT } else { AWAY_TIMEOUT },
            api.create_token_request(&account, &PostParams::default(), &request),
        )
        .await;
        let failure = match answer {
            Ok(Ok(answer)) => match answer.status.and_then(|status| Some((status.token?, status.expiration_timestamp?.0))) {
                Some((text, expires_at)) => {
                    let token = Token { text, renew_at: renew_at(now, expires_at), expires_at };
                    if let Some(disk) = &self.disk {
                        disk.put_json(&slot.name(), &(&slot, &token));
                    }
                    self.said.lock().remove(&slot);
                    self.kept.lock().insert(slot, token.clone());
                    return Ok(token.text);
                }
                None => "the answer holds no token".to_owned(),
            },
            Ok(Err(error)) => client::error::ErrorExt::short(&error),
            Err(_) => "the API server does not answer".to_owned(),
        };
        // An old token is better than none: the pod goes on, and it is said if nobody will take the token.
        let Some(token) = known else { return Err(format!("failed to fetch token: {failure}")) };
        self.tell_if_expired(pod, &slot, &token, now);
        Ok(token.text)
    }

    fn tell_if_expired(&self, pod: &Pod, slot: &Slot, token: &Token, now: Timestamp) {
        if token.expires_at > now || !self.said.lock().insert(slot.clone()) {
            return;
        }
        let message = format!(
            "The token of service account {} has expired at {} and no server can be asked for another; the pod keeps the old one until then",
            slot.account, token.expires_at
        );
        tracing::warn!(pod = %crate::spec::PodId::of(pod), "{message}");
        self.recorder.about(pod, Warning, "TokenExpired", message);
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, pod_uid: &str) {
        let mut kept = self.kept.lock();
        if let Some(disk) = &self.disk {
            kept.keys().filter(|slot| slot.pod_uid == pod_uid).for_each(|slot| disk.remove(&slot.name()));
        }
        kept.retain(|slot, _| slot.pod_uid != pod_uid);
        self.said.lock().retain(|slot| slot.pod_uid != pod_uid);
    }

    /// Forgets the tokens of pods that are not here.
    pub fn retain(&self, known: &HashSet<String>) {
        let gone: HashSet<String> = self.kept.lock().keys().map(|slot| slot.pod_uid.clone()).filter(|uid| !known.contains(uid)).collect();
        gone.iter().for_each(|uid| self.forget(uid));
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
