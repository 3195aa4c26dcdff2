//! The connections to the members, which of them is asked first, and the way of one call: bounded, and never bound to one member.
//!
//! **A call** ([`Members::race`]) goes to the member that answered last. If that refuses, the next is asked at once; if it keeps silent
//! for [`SILENT_MEMBER_MS`], the next is asked too, and the first answer counts. After [`CALL_MS`] the call fails, with a sentence that
//! holds what each member said. Once a call has failed so, further calls get one round of refusals or [`CALL_WHILE_LOST_MS`], until
//! one succeeds.
//!
//! What must stay true: a connection is never waited for without bound; whoever judges an answer is told whether another attempt at
//! the same call may have had an effect.

use super::{
    Config,
    fault::Fault,
    limits::{ANSWER_BYTES_MAX, ATTEMPTS_AT_ONCE_MAX, CALL_MS, CALL_WHILE_LOST_MS, CONNECT_MS, KEEP_ALIVE_S, ROUND_PAUSE_MS, SILENT_MEMBER_MS},
};
use crate::{Error, Result};
use etcd_client::{Channel, Client, ConnectOptions, KvClient, WatchClient};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::RwLock;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// One endpoint.
pub struct Member {
    pub url: String,
    /// Asks that the member has a leader: a member that is cut off refuses at once instead of waiting.
    guarded: Client,
    /// Answers without a leader too: status, alarms, members.
    plain: Client,
}

impl Member {
    /// A connection to `url`, made when it is first used.
    pub fn dial(url: &str, config: &Config) -> Result<Member> {
        let unusable = |error: &dyn std::fmt::Display| Error::Unavailable(format!("the etcd endpoint {url} cannot be used: {error}"));
        let ms = Duration::from_millis;
        let mut endpoint = Endpoint::from_shared(url.to_string())
            .map_err(|error| unusable(&error))?
            .connect_timeout(ms(CONNECT_MS))
            .tcp_nodelay(true)
            // Fixed, not adaptive: h2 takes half of the connection's window for how much overhead small answers may have before it
            // ends the connection as hostile, and hundreds of writes at once are nothing but small answers.
            .initial_connection_window_size(super::limits::CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(super::limits::STREAM_WINDOW_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(KEEP_ALIVE_S.0))
            .keep_alive_timeout(Duration::from_secs(KEEP_ALIVE_S.1));
        match url.split_once("://").map(|(scheme, _)| scheme) {
            Some("https") => endpoint = endpoint.tls_config(tls(config)).map_err(|error| unusable(&error))?,
            Some("http") => {}
            _ => return Err(unusable(&"it must begin with https:// or http://")),
        }
        let client = |options| Client::from_channel(Channel::Tonic(endpoint.connect_lazy()), Some(options));
        let ready = |client: BoxFuture<'_, std::result::Result<Client, etcd_client::Error>>| {
            // Without a user to log in as there is nothing to wait for.
            client.now_or_never().ok_or_else(|| unusable(&"the client is not ready"))?.map_err(|error| unusable(&error))
        };
        let guarded = ready(client(ConnectOptions::new().with_require_leader(true)).boxed())?;
        let plain = ready(client(ConnectOptions::new()).boxed())?;
        Ok(Member { url: url.to_string(), guarded, plain })
    }

    pub fn kv(&self) -> KvClient {
        self.guarded.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub fn watch(&self) -> WatchClient {
        self.guarded.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub fn plain(&self) -> Client {
        self.plain.clone()
    }
}

fn tls(config: &Config) -> ClientTlsConfig {
    let mut tls = ClientTlsConfig::new().timeout(Duration::from_millis(CONNECT_MS));
    if let Some(authority) = &config.ca_pem {
        tls = tls.ca_certificate(Certificate::from_pem(authority));
    }
    if let (Some(certificate), Some(key)) = (&config.certificate_pem, &config.key_pem) {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    tls
}

/// All endpoints.
pub struct Members {
    config: RwLock<Arc<Config>>,
    members: RwLock<Arc<Vec<Arc<Member>>>>,
    preferred: AtomicUsize,
    lost: AtomicBool,
}

/// What one attempt is told and gives back.
pub type Attempt<R> = BoxFuture<'static, std::result::Result<R, Fault>>;

/// How a call failed.
pub struct Failure {
    /// Whether an attempt may have had an effect.
    pub uncertain: bool,
    pub fault: Fault,
}

impl Members {
    pub fn new(config: Config) -> Result<Members> {
        let members = dial_all(&config)?;
        Ok(Members {
            config: RwLock::new(Arc::new(config)),
            members: RwLock::new(Arc::new(members)),
            preferred: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        })
    }

    /// New endpoints or credentials. Calls that run end on the old connections.
    pub fn reconfigure(&self, config: Config) -> Result<()> {
        let members = dial_all(&config)?;
        *self.members.write() = Arc::new(members);
        *self.config.write() = Arc::new(config);
        Ok(())
    }

    pub fn config(&self) -> Arc<Config> {
        self.config.read().clone()
    }

    pub fn all(&self) -> Arc<Vec<Arc<Member>>> {
        self.members.read().clone()
    }

    /// The member to ask after `tried` others, and its number.
    pub fn pick(&self, tried: usize) -> (usize, Arc<Member>) {
        let members = self.all();
        let index = (self.preferred.load(Relaxed) + tried) % members.len();
        (index, members[index].clone())
    }

    /// Turns to another member first, if this one was.
    pub fn avoid(&self, index: usize) {
        let count = self.all().len();
        let _ = self.preferred.compare_exchange(index, (index + 1) % count, Relaxed, Relaxed);
    }

    pub fn prefer(&self, index: usize) {
        self.preferred.store(index, Relaxed);
    }

    /// Whether the last call failed because no member could answer.
    pub fn lost(&self) -> bool {
        self.lost.load(Relaxed)
    }

    pub fn set_lost(&self, lost: bool) {
        if self.lost.swap(lost, Relaxed) != lost {
            if lost {
                tracing::warn!("etcd cannot be reached or has no quorum");
            } else {
                tracing::info!("etcd answers again");
            }
        }
    }

    /// Asks members until `judge` accepts an answer. `ask` is told whether an attempt before may have had an effect or still may;
    /// `judge` the same at the time of the answer, and returns `None` if the answer settles nothing: then it is asked again.
    pub async fn race<R, T>(
        &self,
        ask: impl Fn(&Member, bool) -> Attempt<R> + Send + Sync,
        judge: impl Fn(R, bool) -> Option<T> + Send + Sync,
    ) -> std::result::Result<T, Failure>
    where
        R: Send,
    {
        let known_lost = self.lost();
        let budget_ms = if known_lost { CALL_WHILE_LOST_MS } else { CALL_MS };
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let deadline = start + ms(budget_ms);
        let count = self.all().len();
        let mut running = FuturesUnordered::new();
        let mut said: BTreeMap<String, String> = BTreeMap::new();
        let (mut uncertain, mut tried, mut next) = (false, 0, start);
        loop {
            tokio::select! {
                biased;
                Some((index, url, outcome)) = running.next(), if !running.is_empty() => {
                    let fault = match outcome {
                        Ok(answer) => {
                            self.set_lost(false);
                            self.prefer(index);
                            if let Some(done) = judge(answer, uncertain || !running.is_empty()) {
                                return Ok(done);
                            }
                            next = Instant::now() + ms(ROUND_PAUSE_MS);
                            continue;
                        }
                        Err(fault) => fault,
                    };
                    match fault {
                        Fault::NoEffect(why) => {
                            said.insert(url, why);
                        }
                        Fault::Uncertain(why) => {
                            said.insert(url, why);
                            uncertain = true;
                        }
                        final_fault => {
                            self.set_lost(false);
                            return Err(Failure { uncertain: uncertain || !running.is_empty(), fault: final_fault });
                        }
                    }
                    // While the store is known to be lost, one round of refusals is enough.
                    if known_lost && running.is_empty() && tried >= count {
                        return Err(Failure { uncertain, fault: Fault::NoEffect(sentence(&said, budget_ms, &self.config())) });
                    }
                    // The others at once; after a whole round, a pause.
                    let pause = if tried % count == 0 { ms(ROUND_PAUSE_MS) } else { Duration::ZERO };
                    next = next.min(Instant::now() + pause);
                }
                () = sleep_until(next), if running.len() < ATTEMPTS_AT_ONCE_MAX => {
                    let (index, member) = self.pick(tried);
                    tried += 1;
                    let attempt = ask(&member, uncertain || !running.is_empty());
                    said.entry(member.url.clone()).or_insert_with(|| "no answer".into());
                    let url = member.url.clone();
                    running.push(async move { (index, url, attempt.await) });
                    next = Instant::now() + ms(SILENT_MEMBER_MS);
                }
                () = sleep_until(deadline) => {
                    self.set_lost(true);
                    let (index, _) = self.pick(tried);
                    self.prefer(index);
                    return Err(Failure { uncertain: uncertain || !running.is_empty(), fault: Fault::NoEffect(sentence(&said, budget_ms, &self.config())) });
                }
            }
        }
    }

    /// A call without effect: the first answer counts. `ask` is told whether an attempt before it keeps silent, or was cut off.
    pub async fn read<R: Send>(&self, ask: impl Fn(&Member, bool) -> Attempt<R> + Send + Sync) -> std::result::Result<R, Fault> {
        self.race(ask, |answer, _| Some(answer)).await.map_err(|failure| failure.fault)
    }
}

fn dial_all(config: &Config) -> Result<Vec<Arc<Member>>> {
    if config.endpoints.is_empty() {
        return Err(Error::Unavailable("no etcd endpoint is given; say --etcd-servers https://ADDRESS:2379".into()));
    }
    config.endpoints.iter().map(|url| Member::dial(url, config).map(Arc::new)).collect()
}

/// What a caller is told when no member could answer.
fn sentence(said: &BTreeMap<String, String>, budget_ms: u64, config: &Config) -> String {
    let each: Vec<String> = said.iter().map(|(url, why)| format!("{url}: {why}")).collect();
    let head = if said.values().any(|why| why.contains("leader")) {
        "etcd has no quorum (a majority of its members must run and reach each other)".to_string()
    } else {
        format!("no etcd member answered within {} s", budget_ms as f64 / 1000.0)
    };
    // A member that misses our certificate closes the connection without a word.
    let anonymous = config.certificate_pem.is_none() && said.keys().any(|url| url.starts_with("https:"));
    let hint = if anonymous { " (no client certificate is given; etcd may ask for one)" } else { "" };
    format!("{head}: {}{hint}", each.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: usize) -> Members {
        let endpoints = (1..=count).map(|i| format!("http://192.0.2.{i}:2379")).collect();
        Members::new(Config { endpoints, ..Config::default() }).unwrap()
    }

    fn settled<T: Send + 'static>(outcome: std::result::Result<T, Fault>) -> Attempt<T> {
        futures::future::ready(outcome).boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_moves_on_at_once_and_the_one_that_answers_is_asked_first_next_time() {
        let members = members(3);
        let start = Instant::now();
        let answer = |member: &Member, _| {
            settled(if member.url.contains(".3:") { Ok(member.url.clone()) } else { Err(Fault::NoEffect("connection refused".into())) })
        };
        assert_eq!(members.read(answer).await.unwrap(), "http://192.0.2.3:2379");
        assert!(start.elapsed() < Duration::from_millis(10), "{:?}", start.elapsed());
        assert_eq!(members.pick(0).0, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_member_costs_its_silence_only() {
        let members = members(3);
        let start = Instant::now();
        let answer = |member: &Member, _| if member.url.contains(".1:") { futures::future::pending().boxed() } else { settled(Ok(())) };
        members.read(answer).await.unwrap();
        assert_eq!(start.elapsed().as_millis() / 10, u128::from(SILENT_MEMBER_MS) / 10);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_a_call_ends_in_time_and_the_next_one_sooner() {
        let members = members(3);
        for budget_ms in [CALL_MS, 0] {
            let start = Instant::now();
            let failure = members.race(|_, _| settled::<()>(Err(Fault::NoEffect("no leader".into()))), |(), _| Some(())).await.unwrap_err();
            assert!(!failure.uncertain);
            let Fault::NoEffect(text) = failure.fault else { panic!("{:?}", failure.fault) };
            assert!(text.starts_with("etcd has no quorum") && text.contains("http://192.0.2.2:2379: no leader"), "{text}");
            assert_eq!(start.elapsed().as_millis() / 100, u128::from(budget_ms) / 100);
        }
        let start = Instant::now();
        assert!(members.read(|_, _| futures::future::pending::<std::result::Result<(), Fault>>().boxed()).await.is_err());
        assert_eq!(start.elapsed().as_millis() / 100, u128::from(CALL_WHILE_LOST_MS) / 100);
        members.read(|_, _| settled(Ok(()))).await.unwrap();
        assert!(!members.lost());
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_had_an_effect_is_remembered() {
        let members = members(2);
        let ask = |member: &Member, uncertain: bool| {
            settled(if member.url.contains(".1:") { Err(Fault::Uncertain("connection closed".into())) } else { Ok(uncertain) })
        };
        let told = members.race(ask, |before, now| Some((before, now))).await;
        assert!(matches!(told, Ok((true, true))));
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_refused() {
        assert!(Members::new(Config { endpoints: vec!["10.0.0.1:2379".into()], ..Config::default() }).is_err());
        assert!(Members::new(Config::default()).is_err());
    }
}
