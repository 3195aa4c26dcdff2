//! Leader election over a `coordination.k8s.io/v1` Lease, as Kubernetes has it: who holds the lease leads.
//!
//! A candidate takes a lease that is free, its own, or not renewed for its whole duration *as seen by this candidate's
//! own clock* since it last saw the record change: clocks of different machines are never compared. A leader renews every
//! retry period; when it has not managed to for the renew deadline (counted from the start of its last good renewal), it
//! cuts its work off there and then, so that what is already on its way to the API server still arrives before the lease
//! runs out. Of a candidate that is known to have ended only its last requests are waited for. On a clean stop the work ends first, then the lease is released; candidates watch it, so that the next leader
//! need not wait.
//!
//! What must stay true: the work of a loser has ended before a winner may start (duration > deadline > retry period).

use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::api::{ObjectMeta, PostParams, WatchEvent, WatchParams};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::error::ErrorExt;

/// Which lease, who, and how patient.
#[derive(Clone, Debug)]
pub struct ElectionConfig {
    /// The Lease's name, e.g. `kube-scheduler`.
    pub lease_name: String,
    /// The Lease's namespace.
    pub namespace: String,
    /// Who this candidate is; MUST be unique, also between two runs on one machine.
    pub identity: String,
    /// A candidate that MUST have ended: the last one here, if there can only be one at a time.
    pub predecessor: Option<String>,
    /// How long a lease lasts without renewal.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// The pause between attempts.
    pub retry_period: Duration,
    /// The time of day for the record.
    pub clock: Clock,
}

impl ElectionConfig {
    /// Kubernetes' defaults: 15 s, 10 s, 2 s, in `kube-system`.
    pub fn new(lease_name: impl Into<String>, identity: impl Into<String>) -> Self {
        ElectionConfig {
            lease_name: lease_name.into(),
            namespace: "kube-system".into(),
            identity: identity.into(),
            predecessor: None,
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            clock: Clock::system(),
        }
    }
}

/// Why an election cannot go on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The three durations do not leave a loser time to stop.
    #[error("leader election needs lease duration > renew deadline > retry period > 0")]
    Durations,
    /// The lease was lost; the work has been stopped. Run again to be a candidate again.
    #[error("leader election lost")]
    Lost,
}

/// A predecessor's last requests are through by then.
const PREDECESSOR_SILENT: Duration = Duration::from_secs(1);

/// The record as a candidate knows it, and when it last saw it change.
#[derive(Clone, Debug, Default)]
struct Observed {
    lease: Option<Lease>,
    at: Option<Instant>,
}

impl Observed {
    fn see(&mut self, lease: Lease, now: Instant) {
        if self.at.is_none() || self.lease.as_ref().and_then(|l| l.spec.as_ref()) != lease.spec.as_ref() {
            self.at = Some(now);
        }
        self.lease = Some(lease);
    }
}

/// What a candidate does next.
#[derive(Debug, PartialEq)]
enum Step {
    /// There is no lease: make it.
    Create,
    /// It is somebody else's and still good.
    Wait,
    /// It is ours, or free, or run out: write this.
    Write(LeaseSpec),
}

fn decide(observed: &Observed, config: &ElectionConfig, now: Instant) -> Step {
    let Some(lease) = &observed.lease else { return Step::Create };
    let time = config.clock.micro_time();
    let old = lease.spec.clone().unwrap_or_default();
    let holder = old.holder_identity.clone().unwrap_or_default();
    let ours = holder == config.identity;
    let has_ended = config.predecessor.as_ref() == Some(&holder);
    let lasts = Duration::from_secs(u64::try_from(old.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    let lasts = if has_ended { lasts.min(PREDECESSOR_SILENT) } else { lasts };
    if !ours && !holder.is_empty() && observed.at.is_some_and(|at| now < at + lasts) {
        return Step::Wait;
    }
    let transitions = old.lease_transitions.unwrap_or(0);
    Step::Write(LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: Some(seconds(config.lease_duration)),
        acquire_time: if ours { old.acquire_time } else { Some(time.clone()) },
        renew_time: Some(time),
        lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    })
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs().max(1)).unwrap_or(i32::MAX)
}

struct Candidate {
    api: kube::Api<Lease>,
    config: ElectionConfig,
    observed: Observed,
}

impl Candidate {
    /// One attempt to get or keep the lease. True if it is ours now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let seen = self.api.get_opt(&self.config.lease_name).await?;
        match seen {
            Some(lease) => self.observed.see(lease, Instant::now()),
            None => self.observed = Observed::default(),
        }
        let written = match decide(&self.observed, &self.config, Instant::now()) {
            Step::Wait => return Ok(false),
            Step::Create => {
                let time = self.config.clock.micro_time();
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.config.lease_name.clone()),
                        namespace: Some(self.config.namespace.clone()),
                        ..Default::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(self.config.identity.clone()),
                        lease_duration_seconds: Some(seconds(self.config.lease_duration)),
                        acquire_time: Some(time.clone()),
                        renew_time: Some(time),
                        lease_transitions: Some(0),
                        ..LeaseSpec::default()
                    }),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
            Step::Write(spec) => {
                let mut lease = self.observed.lease.clone().unwrap_or_default();
                lease.spec = Some(spec);
                // The resourceVersion of what we saw goes with it: of two candidates one gets a conflict.
                self.api.replace(&self.config.lease_name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.observed.see(lease, Instant::now());
                Ok(true)
            }
            Err(error) if error.is_conflict() || error.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until a watch shows that the holder has given the lease up; for ever if there is no watch to be had.
    async fn released(&self) {
        let holder = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        let Some(seen) = self.observed.lease.as_ref().filter(|lease| !holder(lease).is_empty()) else { return std::future::pending().await };
        let only = WatchParams::default().fields(&format!("metadata.name={}", self.config.lease_name)).disable_bookmarks();
        let version = seen.metadata.resource_version.clone().unwrap_or_default();
        if let Ok(changes) = self.api.watch(&only, &version).await {
            let mut changes = std::pin::pin!(changes);
            while let Some(Ok(change)) = changes.next().await {
                match change {
                    WatchEvent::Modified(lease) if holder(&lease).is_empty() => return,
                    WatchEvent::Deleted(_) => return,
                    WatchEvent::Error(_) => break,
                    _ => {}
                }
            }
        }
        std::future::pending().await
    }

    /// Gives the lease up, so that another need not wait for it to run out.
    async fn release(&self) {
        let lease = self.config.lease_name.as_str();
        match timeout(self.config.retry_period, self.let_go()).await {
            Ok(Ok(())) => info!(lease, "released"),
            Ok(Err(error)) => warn!(lease, error = %error.short(), "could not be released; it will run out"),
            Err(_) => warn!(lease, "could not be released in time; it will run out"),
        }
    }

    /// The stop may have cut off a renewal that the server still made or makes: the lease is read anew, as often as it takes.
    async fn let_go(&self) -> Result<(), kube::Error> {
        let name = self.config.lease_name.as_str();
        while let Some(mut lease) = self.api.get_opt(name).await? {
            let old = lease.spec.take().unwrap_or_default();
            if old.holder_identity.as_deref() != Some(&self.config.identity) {
                break;
            }
            let time = self.config.clock.micro_time();
            lease.spec = Some(LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(1),
                acquire_time: Some(time.clone()),
                renew_time: Some(time),
                lease_transitions: old.lease_transitions,
                ..LeaseSpec::default()
            });
            match self.api.replace(name, &PostParams::default(), &lease).await {
                Err(error) if error.is_conflict() => {}
                written => return written.map(drop),
            }
        }
        Ok(())
    }
}

/// Takes part in elections until the shutdown: whoever loses the lease stops its work and becomes a candidate again.
///
/// For work that ends with its future, as everything on tokio here does; so a process outlives a stalled API server.
pub async fn lead<W, F>(client: kube::Client, config: ElectionConfig, shutdown: CancellationToken, work: W) -> Result<(), Error>
where
    W: Fn(CancellationToken) -> F,
    F: Future<Output = ()>,
{
    loop {
        match elect(client.clone(), config.clone(), shutdown.clone(), &work).await {
            Err(Error::Lost) if !shutdown.is_cancelled() => {}
            outcome => return outcome,
        }
    }
}

/// Takes part in one election, and runs the work while leading.
///
/// The work gets a token that is cancelled when it must stop at the shutdown; it MUST then stop soon, and is cut off (dropped)
/// before the lease runs out. When the lease is lost it is cut off at once. Ends with `Ok` at the shutdown or when the work ends by itself, with [`Error::Lost`] when the lease was lost.
pub async fn elect<W, F>(client: kube::Client, config: ElectionConfig, shutdown: CancellationToken, work: W) -> Result<(), Error>
where
    W: FnOnce(CancellationToken) -> F,
    F: Future<Output = ()>,
{
    let sound = config.lease_duration > config.renew_deadline && config.renew_deadline > config.retry_period && !config.retry_period.is_zero();
    if !sound {
        return Err(Error::Durations);
    }
    let api = kube::Api::namespaced(client, &config.namespace);
    let mut candidate = Candidate { api, config, observed: Observed::default() };
    let lease = candidate.config.lease_name.clone();

    let lead = |leads: i64| crate::metrics::set("leader_election_master_status", &[("name", &lease)], leads);
    lead(0);

    let mut renewed_at;
    loop {
        renewed_at = Instant::now();
        let attempt = timeout(candidate.config.renew_deadline, candidate.attempt());
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            outcome = attempt => outcome,
        };
        match outcome {
            Ok(Ok(true)) => break,
            Ok(Ok(false)) => {}
            Ok(Err(error)) => debug!(lease, error = %error.short(), "could not try for the lease"),
            Err(_) => debug!(lease, "no answer when trying for the lease"),
        }
        let pause = candidate.config.retry_period.mul_f64(rand::random_range(1.0..=1.2));
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = sleep(pause) => {}
            () = candidate.released() => {}
        }
    }

    info!(lease, identity = candidate.config.identity, "leading");
    lead(1);
    let leading = CancellationToken::new();
    let mut working = Box::pin(work(leading.clone()));
    let end = tokio::select! {
        () = &mut working => End::Finished,
        () = shutdown.cancelled() => End::Shutdown,
        () = keep(&mut candidate, &mut renewed_at) => End::Lost,
    };
    leading.cancel();
    lead(0);
    if end == End::Shutdown {
        // Cut off with a margin before anybody else could take the lease.
        let margin = (candidate.config.lease_duration - candidate.config.renew_deadline) / 5;
        let cut_off = renewed_at + candidate.config.lease_duration - margin;
        if timeout_at(cut_off, working).await.is_err() {
            warn!(lease, "the work did not stop in time and was cut off");
        }
    } else {
        // A write that a task has sent goes on at the API server; no further one may follow it.
        drop(working);
    }
    if end == End::Lost {
        warn!(lease, "lost");
        return Err(Error::Lost);
    }
    candidate.release().await;
    Ok(())
}

/// Why leading ended.
#[derive(PartialEq, Eq)]
enum End {
    Finished,
    Shutdown,
    Lost,
}

/// Renews until that has not worked for the renew deadline, or somebody else holds the lease.
async fn keep(candidate: &mut Candidate, renewed_at: &mut Instant) {
    let mut next = *renewed_at + candidate.config.retry_period;
    loop {
        let deadline = *renewed_at + candidate.config.renew_deadline;
        if timeout_at(deadline, tokio::time::sleep_until(next)).await.is_err() {
            return;
        }
        let started = Instant::now();
        // Half of the time at most for one attempt, so that a dead connection leaves time for another one.
        let patience = deadline.min(started + candidate.config.renew_deadline / 2);
        match timeout_at(patience, candidate.attempt()).await {
            Ok(Ok(true)) => *renewed_at = started,
            // Ours was not renewed: either a conflict (tried again at once below), or another holds it and decide() says so.
            Ok(Ok(false)) => {
                let holder = candidate.observed.lease.as_ref().and_then(|l| l.spec.as_ref()).and_then(|s| s.holder_identity.as_deref());
                if holder.is_some_and(|holder| holder != candidate.config.identity) {
                    return;
                }
            }
            Ok(Err(error)) => debug!(lease = candidate.config.lease_name, error = %error.short(), "could not renew"),
            Err(_) => debug!(lease = candidate.config.lease_name, "no answer when renewing"),
        }
        next = started + candidate.config.retry_period;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, transitions: i32) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            ..Default::default()
        };
        Lease { spec: Some(spec), ..Default::default() }
    }

    /// What "me" does, having seen this holder's record change so long ago.
    fn check(holder: Option<&str>, seen_s_ago: u64, expected: &str) {
        let config = ElectionConfig { predecessor: Some("me before".into()), ..ElectionConfig::new("l", "me") };
        let start = Instant::now();
        let mut observed = Observed::default();
        if let Some(holder) = holder {
            observed.see(lease(holder, 4), start);
        }
        let got = match decide(&observed, &config, start + Duration::from_secs(seen_s_ago)) {
            Step::Create => "create".into(),
            Step::Wait => "wait".into(),
            Step::Write(spec) => format!("take {}", spec.lease_transitions.unwrap()),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn decisions() {
        check(None, 0, "create");
        check(Some("me"), 3, "take 4");
        check(Some("other"), 14, "wait");
        check(Some("other"), 15, "take 5");
        check(Some("me before"), 0, "wait");
        check(Some("me before"), 1, "take 5");
        check(Some(""), 0, "take 5");
    }

    #[test]
    fn only_a_change_of_the_record_counts_as_a_sign_of_life() {
        let start = Instant::now();
        let mut observed = Observed::default();
        observed.see(lease("other", 1), start);
        observed.see(lease("other", 1), start + Duration::from_secs(9));
        assert_eq!(observed.at, Some(start));
        observed.see(lease("other", 2), start + Duration::from_secs(10));
        assert_eq!(observed.at, Some(start + Duration::from_secs(10)));
    }

    /// An API with one Lease, which can be made to hang for one of its users.
    #[derive(Clone, Default)]
    struct LeaseApi(std::sync::Arc<parking_lot::Mutex<(Option<serde_json::Value>, u64, Option<String>)>>);

    impl LeaseApi {
        fn client(&self, user: &str) -> kube::Client {
            let (api, user) = (self.clone(), user.to_owned());
            crate::transport::in_process(tower::service_fn(move |request: http::Request<kube::client::Body>| {
                let (api, user) = (api.clone(), user.clone());
                async move {
                    use http_body_util::BodyExt;
                    if api.0.lock().2.as_ref() == Some(&user) {
                        std::future::pending::<()>().await;
                    }
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    if parts.uri.query().is_some_and(|query| query.contains("watch=")) {
                        let event = api.emptied().await;
                        let line = http_body_util::Full::new(bytes::Bytes::from(format!("{event}\n")));
                        return http::Response::builder().status(200).body(line);
                    }
                    let (code, answer) = api.answer(&parts.method, &body);
                    let answer = http_body_util::Full::new(bytes::Bytes::from(answer.to_string()));
                    http::Response::builder().status(code).body(answer)
                }
            }))
        }

        /// Waits until nobody holds the Lease; the watch event that says so.
        async fn emptied(&self) -> serde_json::Value {
            loop {
                let lease = self.0.lock().0.clone().unwrap_or_default();
                if lease["spec"]["holderIdentity"] == "" {
                    return serde_json::json!({"type": "MODIFIED", "object": lease});
                }
                sleep(Duration::from_millis(10)).await;
            }
        }

        fn answer(&self, method: &http::Method, body: &[u8]) -> (u16, serde_json::Value) {
            let failure = |code: u16, reason: &str| {
                (code, serde_json::json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}))
            };
            let (lease, version, _) = &mut *self.0.lock();
            let known = lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
            if method == http::Method::GET {
                return lease.clone().map_or_else(|| failure(404, "NotFound"), |lease| (200, lease));
            }
            let mut new: serde_json::Value = serde_json::from_slice(body).unwrap();
            if method == http::Method::POST && known.is_some() {
                return failure(409, "AlreadyExists");
            }
            if method == http::Method::PUT && known.as_ref() != Some(&new["metadata"]["resourceVersion"]) {
                return failure(409, "Conflict");
            }
            *version += 1;
            new["metadata"]["resourceVersion"] = version.to_string().into();
            *lease = Some(new.clone());
            (200, new)
        }
    }

    type Log = std::sync::Arc<parking_lot::Mutex<Vec<(String, &'static str, u64)>>>;

    /// A candidate whose work notes when it starts and when it has ended; stubborn work does not heed its token.
    fn stand(
        api: &LeaseApi,
        name: &'static str,
        stubborn: bool,
        log: &Log,
        begin: Instant,
    ) -> (CancellationToken, tokio::task::JoinHandle<Result<(), Error>>) {
        struct Note(Log, &'static str, Instant);
        impl Drop for Note {
            fn drop(&mut self) {
                self.0.lock().push((self.1.into(), "ends", self.2.elapsed().as_secs()));
            }
        }
        let stop = CancellationToken::new();
        let (client, log, shutdown) = (api.client(name), log.clone(), stop.clone());
        let task = tokio::spawn(async move {
            lead(client, ElectionConfig::new("l", name), shutdown, |leading| {
                let log = log.clone();
                async move {
                    log.lock().push((name.into(), "starts", begin.elapsed().as_secs()));
                    let _note = Note(log, name, begin);
                    if stubborn {
                        std::future::pending::<()>().await;
                    }
                    leading.cancelled().await;
                }
            })
            .await
        });
        (stop, task)
    }

    fn told(log: &Log) -> String {
        log.lock().iter().map(|(who, what, at)| format!("{who} {what} {at}")).collect::<Vec<_>>().join(", ")
    }

    #[tokio::test(start_paused = true)]
    async fn a_clean_stop_hands_over_at_once() {
        let (api, log, begin) = (LeaseApi::default(), Log::default(), Instant::now());
        let (stop_a, a) = stand(&api, "a", false, &log, begin);
        sleep(Duration::from_secs(1)).await;
        let (stop_b, b) = stand(&api, "b", false, &log, begin);
        sleep(Duration::from_secs(60)).await;
        stop_a.cancel();
        assert_eq!(a.await.unwrap(), Ok(()));
        sleep(Duration::from_secs(3)).await;
        assert_eq!(told(&log), "a starts 0, a ends 61, b starts 61", "at once, not at b's next attempt");
        stop_b.cancel();
        b.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_was_cut_off_does_not_keep_the_lease() {
        let api = LeaseApi::default();
        let leases = || kube::Api::namespaced(api.client("a"), "kube-system");
        let mut candidate = Candidate { api: leases(), config: ElectionConfig::new("l", "a"), observed: Observed::default() };
        assert!(candidate.attempt().await.unwrap());
        // The server has made a renewal whose answer nobody waited for.
        let mut cut_off = Candidate { api: leases(), config: ElectionConfig::new("l", "a"), observed: Observed::default() };
        assert!(cut_off.attempt().await.unwrap());
        candidate.release().await;
        assert_eq!(leases().get("l").await.unwrap().spec.unwrap().holder_identity.as_deref(), Some(""));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loser_has_stopped_before_the_winner_starts() {
        for stubborn in [false, true] {
            let (api, log, begin) = (LeaseApi::default(), Log::default(), Instant::now());
            let (_stop_a, _a) = stand(&api, "a", stubborn, &log, begin);
            sleep(Duration::from_secs(1)).await;
            let (_stop_b, _b) = stand(&api, "b", false, &log, begin);
            sleep(Duration::from_secs(60)).await;
            api.0.lock().2 = Some("a".into()); // From here on, the API does not answer a.
            sleep(Duration::from_secs(40)).await;
            let seen: Vec<(String, &str)> = log.lock().iter().map(|(who, what, _)| (who.clone(), *what)).collect();
            assert_eq!(seen, [("a".into(), "starts"), ("a".into(), "ends"), ("b".into(), "starts")], "{}", told(&log));
        }
    }
}
