//! Removes requests that are done with: issued, denied or failed an hour ago, left pending for a day.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::controller::{Controller, Error, Inputs, Next};
use client::{Clock, Deletion, ErrorExt, Informer, Key};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::{conditions, is_issued};
use crate::Context;

/// How long a request stays that has been settled.
const SETTLED: Duration = Duration::from_secs(3600);
/// How long a request stays that nobody has settled.
const PENDING: Duration = Duration::from_secs(24 * 3600);

/// Makes the controller.
pub fn new(context: &Context) -> Arc<dyn Controller> {
    Arc::new(Cleaner { requests: context.informers.all(), clock: context.clock.clone() })
}

struct Cleaner {
    requests: Informer<CertificateSigningRequest>,
    clock: Clock,
}

#[async_trait]
impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        "certificatesigningrequest-cleaner-controller"
    }

    fn inputs(&self, inputs: &mut Inputs) {
        inputs.primary(&self.requests);
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(csr) = self.requests.get(key) else { return Ok(Next::Done) };
        if let Some(left) = time_left(&csr, self.clock.now()) {
            return Ok(Next::After(left));
        }
        match self.requests.delete(key, &Deletion::of(&*csr)).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(Next::Done),
        }
    }
}

/// How long the request may stay; `None`: no longer.
fn time_left(csr: &CertificateSigningRequest, now: Timestamp) -> Option<Duration> {
    let created = csr.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let settled = conditions(csr).iter().filter(|condition| condition.type_ != "Approved" || is_issued(csr));
    let settled = settled.filter_map(|condition| condition.last_update_time.as_ref()).map(|time| time.0).min();
    let (since, stays) = match settled {
        Some(since) => (Some(since), SETTLED),
        None => (created, PENDING),
    };
    let age = Duration::try_from(now.duration_since(since.unwrap_or(now))).unwrap_or(Duration::ZERO);
    stays.checked_sub(age).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::at;
    use serde_json::json;

    #[test]
    fn settled_requests_go_sooner() {
        let check = |condition: Option<&str>, now: i64, expected_s: Option<u64>| {
            let conditions = condition.map(|type_| json!([{"type": type_, "status": "True", "lastUpdateTime": "1970-01-01T00:01:40Z"}]));
            let status = json!({"conditions": conditions});
            let csr =
                json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"}, "spec": {"request": "", "signerName": "s"}, "status": status});
            let csr = serde_json::from_value(csr).expect("a request");
            assert_eq!(time_left(&csr, at(now)), expected_s.map(Duration::from_secs));
        };
        check(None, 100, Some(24 * 3600 - 100));
        check(None, 24 * 3600, None);
        check(Some("Denied"), 200, Some(3500));
        check(Some("Denied"), 3700, None);
        check(Some("Approved"), 3700, Some(24 * 3600 - 3700));
    }
}
