//! The controller runtime: it alone owns watching, queueing, deduplication, rate limits, back-off, workers and shutdown.
//!
//! A controller says what makes a key dirty ([`Inputs`]) and what to do about a key ([`Controller::reconcile`]). It never
//! sees an event, never spawns, never sleeps: it returns [`Next::After`] to be called later, or an error to be called
//! again after a back-off. A panic is caught, logged, and treated as an error.
//!
//! What must stay true: nothing is reconciled before every informer the controller declared holds its first whole list;
//! a key is never reconciled twice at once; within [`limits::SHUTDOWN_GRACE`] of the shutdown every loop has stopped.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Resource;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::error::ErrorExt;
use crate::informer::{Change, Informer, Key};
use crate::limits;
use crate::queue::Queue;

/// One control loop.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// Kubernetes' own name of it, as in `--controllers`: `deployment-controller`.
    fn name(&self) -> &'static str;
    /// Declares what makes a key dirty.
    fn inputs(&self, inputs: &mut Inputs);
    /// Makes the world of this key as it should be, as far as possible now.
    async fn reconcile(&self, key: &Key) -> Result<Next, Error>;
    /// How many keys may be worked on at once.
    fn workers(&self) -> usize {
        5
    }
}

/// When to look at the key again, beyond its inputs changing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Only when an input changes.
    Done,
    /// Also after this long.
    After(Duration),
}

impl Next {
    /// The earlier of the two.
    #[must_use]
    pub fn sooner(self, other: Next) -> Next {
        match (self, other) {
            (Next::After(a), Next::After(b)) => Next::After(a.min(b)),
            (Next::Done, next) | (next, Next::Done) => next,
        }
    }
}

/// Why a reconcile has not come to its end. All of them are retried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or did not answer.
    #[error("the API request failed: {}", .0.short())]
    Api(#[from] kube::Error),
    /// Something that is not there yet; said in words.
    #[error("{0}")]
    NotYet(String),
    /// Anything else.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// The view was stale: quite normal, and gone with the retry.
    fn is_stale_view(&self) -> bool {
        matches!(self, Error::Api(error) if error.is_conflict())
    }
}

type Feed = Box<dyn FnOnce(Queue) -> BoxFuture<'static, ()> + Send>;

/// What makes the keys of one controller dirty.
#[derive(Default)]
pub struct Inputs {
    synced: Vec<BoxFuture<'static, ()>>,
    feeds: Vec<Feed>,
}

impl Inputs {
    /// Every change of an object of this kind makes its own key dirty.
    pub fn primary<K: Resource + Send + Sync + 'static>(&mut self, informer: &Informer<K>) {
        self.mapped(informer, |change| vec![Key::of(&**change.object())]);
    }

    /// Every change of an object of this kind makes its controlling owner's key dirty, if that is of `owner_kind`.
    pub fn owned<K: Resource + Send + Sync + 'static>(&mut self, informer: &Informer<K>, owner_kind: &'static str) {
        self.mapped(informer, move |change| {
            let mut keys = Vec::new();
            for object in change.old().into_iter().chain([change.object()]) {
                let owner = object.meta().owner_references.iter().flatten().find(|o| o.controller == Some(true) && o.kind == owner_kind);
                if let Some(owner) = owner {
                    let key = Key::new(object.meta().namespace.clone().unwrap_or_default(), owner.name.clone());
                    if !keys.contains(&key) {
                        keys.push(key);
                    }
                }
            }
            keys
        });
    }

    /// Every change of an object of this kind makes the keys dirty that the function names.
    pub fn mapped<K: Resource + Send + Sync + 'static>(
        &mut self,
        informer: &Informer<K>,
        keys: impl Fn(&Change<K>) -> Vec<Key> + Send + Sync + 'static,
    ) {
        self.read(informer);
        let informer = informer.clone();
        self.feeds.push(Box::new(move |queue| {
            async move {
                let mut changes = informer.subscribe();
                while let Some(change) = changes.next().await {
                    for key in keys(&change) {
                        queue.add(key);
                    }
                }
            }
            .boxed()
        }));
    }

    /// The controller reads this informer, but its changes make nothing dirty.
    pub fn read<K: Resource + Send + Sync + 'static>(&mut self, informer: &Informer<K>) {
        let informer = informer.clone();
        self.synced.push(async move { informer.synced().await }.boxed());
    }

    /// Keys come from the controller itself: for kinds that are only known at run time. The source MUST NOT end.
    pub fn fed(&mut self, source: impl FnOnce(Queue) -> BoxFuture<'static, ()> + Send + 'static) {
        self.feeds.push(Box::new(source));
    }

    /// The key is dirty at the start and then this often.
    pub fn every(&mut self, period: Duration, key: Key) {
        self.feeds.push(Box::new(move |queue| {
            async move {
                loop {
                    queue.add(key.clone());
                    sleep(period).await;
                }
            }
            .boxed()
        }));
    }
}

/// Runs the controllers until the shutdown, then waits for their reconciles in progress (bounded). No controllers are run
/// until the shutdown as well: to end earlier means that something is wrong.
pub async fn run_controllers(list: Vec<Arc<dyn Controller>>, shutdown: CancellationToken) {
    if list.is_empty() {
        return shutdown.cancelled().await;
    }
    let mut running = JoinSet::new();
    for controller in list {
        running.spawn(run_controller(controller, shutdown.clone()));
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended {
            error!(%error, "a controller's loop has ended by itself");
        }
    }
}

async fn run_controller(controller: Arc<dyn Controller>, shutdown: CancellationToken) {
    let name = controller.name();
    let mut inputs = Inputs::default();
    controller.inputs(&mut inputs);
    let wait = futures::future::join_all(inputs.synced);
    tokio::select! {
        () = shutdown.cancelled() => return,
        _ = wait => {}
    }
    let queue = Queue::new(name);
    let mut feeds = JoinSet::new();
    for feed in inputs.feeds {
        feeds.spawn(feed(queue.clone()));
    }
    let mut workers = JoinSet::new();
    for _ in 0..controller.workers().max(1) {
        workers.spawn(work(controller.clone(), queue.clone(), shutdown.clone()));
    }
    info!(controller = name, "started");
    tokio::select! {
        () = shutdown.cancelled() => {}
        // Feeds do not end, and do not panic unless a controller's mapping does: then the process must not go on half deaf.
        Some(ended) = feeds.join_next() => {
            error!(controller = name, ?ended, "an input has ended; stopping this controller");
        }
    }
    feeds.abort_all();
    if shutdown.is_cancelled() && timeout(limits::SHUTDOWN_GRACE, async { while workers.join_next().await.is_some() {} }).await.is_err() {
        warn!(controller = name, "reconciles in progress were cut off at shutdown");
    }
    workers.shutdown().await;
    debug!(controller = name, "stopped");
}

async fn work(controller: Arc<dyn Controller>, queue: Queue, shutdown: CancellationToken) {
    loop {
        let item = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            item = queue.next() => item,
        };
        attempt(&*controller, &queue, item.key()).await;
    }
}

/// One reconcile of one key, and what follows from it for the queue.
async fn attempt(controller: &dyn Controller, queue: &Queue, key: &Key) {
    let started = Instant::now();
    let outcome = AssertUnwindSafe(controller.reconcile(key)).catch_unwind().await;
    queue.counters().worked(started.elapsed());
    match outcome {
        Ok(Ok(next)) => {
            queue.forget(key);
            if let Next::After(delay) = next {
                queue.add_after(key.clone(), delay);
            }
        }
        Ok(Err(problem)) => {
            let failures = queue.failures(key) + 1;
            let pause = queue.add_rate_limited(key.clone());
            // A stale view, or a first failure, is everyday life; a failure that stays is news, but not every time.
            if problem.is_stale_view() || failures < 3 {
                debug!(controller = controller.name(), %key, failures, error = %problem, "will be retried");
            } else if failures.is_power_of_two() {
                warn!(controller = controller.name(), %key, failures, pause_ms = pause.as_millis() as u64, error = %problem, "keeps failing");
            }
        }
        Err(panic) => {
            queue.counters().panics.fetch_add(1, Ordering::Relaxed);
            queue.add_rate_limited(key.clone());
            let what = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
            error!(controller = controller.name(), %key, panic = what.as_deref().unwrap_or("unknown"), "a reconcile has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Panics, fails, succeeds with a later call, and is then done.
    struct Flaky {
        log: Arc<Mutex<Vec<String>>>,
        finished: CancellationToken,
    }

    #[async_trait]
    impl Controller for Flaky {
        fn name(&self) -> &'static str {
            "flaky-controller"
        }
        fn inputs(&self, inputs: &mut Inputs) {
            inputs.every(Duration::from_secs(100_000), Key::new("", "a"));
        }
        async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
            let calls = {
                let mut log = self.log.lock();
                log.push(key.to_string());
                log.len()
            };
            match calls {
                1 => panic!("at the disco"),
                2 => Err(Error::NotYet("no".into())),
                3 => Ok(Next::After(Duration::from_secs(30))),
                _ => {
                    self.finished.cancel();
                    Ok(Next::Done)
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn panics_and_errors_are_retried_and_delays_kept() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let finished = CancellationToken::new();
        let started = Instant::now();
        let controller = Arc::new(Flaky { log: log.clone(), finished: finished.clone() });
        timeout(Duration::from_secs(600), run_controllers(vec![controller], finished)).await.unwrap();
        assert_eq!(log.lock().len(), 4);
        assert_eq!(started.elapsed().as_secs(), 30);
        assert_eq!(QueueOf::panics("flaky-controller"), 1);
    }

    struct QueueOf;
    impl QueueOf {
        fn panics(name: &'static str) -> u64 {
            crate::metrics::QueueCounters::of(name).panics()
        }
    }

    /// Never comes back from its reconcile.
    struct Stuck;

    #[async_trait]
    impl Controller for Stuck {
        fn name(&self) -> &'static str {
            "stuck-controller"
        }
        fn inputs(&self, inputs: &mut Inputs) {
            inputs.every(Duration::from_secs(100_000), Key::new("", "a"));
        }
        async fn reconcile(&self, _: &Key) -> Result<Next, Error> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_is_bounded() {
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let running = tokio::spawn(run_controllers(vec![Arc::new(Stuck)], shutdown));
        sleep(Duration::from_secs(1)).await;
        let stopped_at = Instant::now();
        stop.cancel();
        timeout(Duration::from_secs(600), running).await.unwrap().unwrap();
        assert_eq!(stopped_at.elapsed(), limits::SHUTDOWN_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn no_controllers_run_until_the_shutdown() {
        let shutdown = CancellationToken::new();
        let mut running = tokio::spawn(run_controllers(Vec::new(), shutdown.clone()));
        assert!(timeout(Duration::from_secs(600), &mut running).await.is_err(), "nothing has ended it");
        shutdown.cancel();
        timeout(Duration::from_secs(600), running).await.unwrap().unwrap();
    }

    #[test]
    fn the_sooner_of_two() {
        let after = |s| Next::After(Duration::from_secs(s));
        assert_eq!(Next::Done.sooner(after(3)), after(3));
        assert_eq!(after(5).sooner(after(3)), after(3));
        assert_eq!(Next::Done.sooner(Next::Done), Next::Done);
    }
}
