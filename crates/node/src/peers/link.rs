//! What this node knows of its link to the API, and the word on it that it gives its peers.
//!
//! ```text
//! exchanges (lease, status) --begun, answered, failed--> Link --doubtful--> one question a second --> Link
//! informers --connected--------------------------------> Link --word--> membership --> who judges this node's silence
//! ```
//!
//! A link can be cut in ways that no connection notices: what is lost in one direction only leaves requests hanging until a
//! timeout, and keeps a watch open on which nothing will ever come. So an exchange that merely *waits* is a doubt, and who
//! doubts asks: a question that is not answered within a second decides.
//!
//! What must stay true: the word changes within a few seconds of the first exchange that is not answered, whatever the kind of
//! cut; an answer, also a refusal, is a sign that the API is reached, and outweighs every failure of what was asked before it.

use parking_lot::Mutex;
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::watch, time::Instant};

/// An exchange that has waited for this long for its answer is a doubt.
pub(super) const DOUBT_AFTER: Duration = Duration::from_secs(1);
/// The API counts as out of reach when it has been for this long.
pub(super) const UNREACHED_FOR: Duration = Duration::from_millis(500);

/// The link. Shared.
pub(super) struct Link {
    state: Mutex<State>,
    word: watch::Sender<bool>,
}

impl Default for Link {
    fn default() -> Link {
        Link { state: Mutex::default(), word: watch::Sender::new(true) }
    }
}

/// The pure part. Times are handed in.
#[derive(Debug, Default)]
struct State {
    /// Since when each exchange under way has been waiting.
    waiting: BTreeMap<u64, Instant>,
    begun: u64,
    /// When the last answer came.
    answered: Option<Instant>,
    /// When the last exchange that failed was begun.
    failed: Option<Instant>,
    unreached_since: Option<Instant>,
}

impl State {
    fn begin(&mut self, now: Instant) -> u64 {
        self.begun += 1;
        self.waiting.insert(self.begun, now);
        self.begun
    }

    fn end(&mut self, exchange: u64, answered: bool, now: Instant) {
        let Some(since) = self.waiting.remove(&exchange) else { return };
        let latest = if answered { &mut self.answered } else { &mut self.failed };
        *latest = (*latest).max(Some(if answered { now } else { since }));
    }

    /// Whether the last thing heard is that nothing is heard.
    fn is_silent(&self) -> bool {
        self.failed.is_some_and(|failed| self.answered.is_none_or(|answered| failed >= answered))
    }

    fn is_doubtful(&self, now: Instant) -> bool {
        self.is_silent() || self.waiting.values().any(|since| now.duration_since(*since) >= DOUBT_AFTER)
    }

    /// Whether the API is reached, as the peers are told.
    fn is_reached(&mut self, connected: bool, now: Instant) -> bool {
        if connected && !self.is_silent() {
            self.unreached_since = None;
            return true;
        }
        now.duration_since(*self.unreached_since.get_or_insert(now)) < UNREACHED_FOR
    }
}

/// An exchange under way; one that is given up is forgotten.
struct Exchange<'a> {
    link: &'a Link,
    number: u64,
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        self.link.state.lock().waiting.remove(&self.number);
    }
}

impl Link {
    /// Waits for an exchange with the API, and takes in how it goes.
    pub(super) async fn exchange<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
        let exchange = Exchange { link: self, number: self.state.lock().begin(Instant::now()) };
        let answer = request.await;
        let answered = matches!(answer, Ok(_) | Err(kube::Error::Api(_)));
        self.state.lock().end(exchange.number, answered, Instant::now());
        answer
    }

    /// Whether it must be asked if the API is reached.
    pub(super) fn is_doubtful(&self) -> bool {
        !*self.word.borrow() || self.state.lock().is_doubtful(Instant::now())
    }

    /// The word for the peers. `connected`: whether the informers are.
    pub(super) fn word(&self, connected: bool) -> bool {
        let reached = self.state.lock().is_reached(connected, Instant::now());
        let changed = self.word.send_if_modified(|word| std::mem::replace(word, reached) != reached);
        if changed {
            tracing::info!(reachable = reached, "the API, as this node tells its peers");
        }
        reached
    }

    /// Waits until the API is reached again after it was not.
    pub(super) async fn returned(&self) {
        let mut word = self.word.subscribe();
        while word.changed().await.is_ok() {
            if *word.borrow_and_update() {
                return;
            }
        }
        // The sender lives in self.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> kube::Error {
        kube::Error::Service("no answer".into())
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_doubts_and_who_is_not_answered_says_so() {
        let link = Link::default();
        let hangs = link.exchange(std::future::pending::<Result<(), _>>());
        tokio::pin!(hangs);
        assert!(tokio::time::timeout(DOUBT_AFTER / 2, &mut hangs).await.is_err());
        assert!(!link.is_doubtful(), "half a second is no doubt");
        assert!(tokio::time::timeout(DOUBT_AFTER / 2, &mut hangs).await.is_err());
        assert!(link.is_doubtful() && link.word(true), "a doubt is not a word yet");
        assert!(link.exchange(async { Err::<(), _>(gone()) }).await.is_err());
        assert!(link.word(true));
        tokio::time::advance(UNREACHED_FOR).await;
        assert!(!link.word(true), "the informers' connections may stand for long after the cut");
        // An answer outweighs what was asked before it, also when that fails later.
        let late = link.state.lock().begin(Instant::now());
        tokio::time::advance(DOUBT_AFTER).await;
        assert!(link.exchange(async { Ok(()) }).await.is_ok());
        link.state.lock().end(late, false, Instant::now());
        assert!(link.word(true));
        assert!(!link.word(false) || link.word(true), "informers that are not connected for a moment are no news");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_is_no_doubt_and_a_refusal_is_an_answer() {
        let link = Link::default();
        let hangs = link.exchange(std::future::pending::<Result<(), _>>());
        assert!(tokio::time::timeout(2 * DOUBT_AFTER, hangs).await.is_err());
        assert!(!link.is_doubtful());
        let refusal = kube::core::Status::failure("no", "Forbidden").with_code(403);
        assert!(link.exchange(async { Err::<(), _>(kube::Error::Api(refusal.boxed())) }).await.is_err());
        assert!(!link.is_doubtful());
    }

    #[tokio::test(start_paused = true)]
    async fn a_return_is_told_once() {
        let link = std::sync::Arc::new(Link::default());
        let waits = tokio::spawn({
            let link = link.clone();
            async move { link.returned().await }
        });
        tokio::task::yield_now().await;
        link.word(false);
        tokio::time::advance(UNREACHED_FOR).await;
        assert!(!link.word(false) && !waits.is_finished());
        assert!(link.word(true));
        waits.await.expect("it has returned");
    }
}
