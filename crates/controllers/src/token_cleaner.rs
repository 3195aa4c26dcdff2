//! Bootstrap tokens that have expired go: the Secrets in `kube-system` with which machines join.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Clock, Deletion, ErrorExt, Informer, Key, Selection};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use crate::Context;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const EXPIRATION: &str = "expiration";

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    let selection = Selection { namespace: Some("kube-system".to_owned()), fields: Some(format!("type={TYPE}")), ..Selection::default() };
    Arc::new(TokenCleaner { secrets: context.informers.selected(selection), clock: context.clock.clone() })
}

struct TokenCleaner {
    secrets: Informer<Secret>,
    clock: Clock,
}

#[async_trait]
impl Controller for TokenCleaner {
    fn name(&self) -> &'static str {
        "token-cleaner-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.secrets);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(secret) = self.secrets.get(key).filter(|secret| secret.type_.as_deref() == Some(TYPE)) else { return Ok(Next::Done) };
        match time_left(&secret, self.clock.now()) {
            None => Ok(Next::Done),
            Some(left) if !left.is_zero() => Ok(Next::After(left)),
            Some(_) => match self.secrets.delete(key, &Deletion::of(&*secret)).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
                _ => Ok(Next::Done),
            },
        }
    }
}

/// How long the token is still good for: zero if no longer, `None` if for ever. A time that can't be read has passed.
fn time_left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let text = secret.data.as_ref()?.get(EXPIRATION).filter(|text| !text.0.is_empty())?;
    let expires: Option<Timestamp> = std::str::from_utf8(&text.0).ok().and_then(|text| text.parse().ok());
    Some(expires.and_then(|expires| Duration::try_from(expires.duration_since(now)).ok()).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::at;
    use k8s_openapi::ByteString;

    #[test]
    fn tokens_expire() {
        let check = |text: Option<&str>, expected: Option<u64>| {
            let data = text.map(|text| [(EXPIRATION.to_owned(), ByteString(text.as_bytes().to_vec()))].into());
            let secret = Secret { data, ..Secret::default() };
            assert_eq!(time_left(&secret, at(100)), expected.map(Duration::from_secs));
        };
        check(None, None);
        check(Some("1970-01-01T00:01:50Z"), Some(10));
        check(Some("1970-01-01T00:01:00Z"), Some(0));
        check(Some("soon"), Some(0));
    }
}
