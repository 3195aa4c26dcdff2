//! The store of several servers: real etcd, 3.4 or newer.
//!
//! **Mapping.** A key is a key of etcd (behind [`Config::prefix`]), a [`Revision`] is etcd's revision, `created` and `modified` are its
//! create and mod revision. A value is stored with its writer's mark (`mark.rs`). A write is one transaction that compares the
//! mod revision (a create: that there is none); what stands there instead comes back from its else branch, in the same round trip.
//!
//! **Bounded.** Every call ends within [`limits::CALL_MS`]; without quorum it is [`Error::Unavailable`], with what each member said
//! (`members.rs`). Reads are linearizable, all of them: by the leader's word (ReadIndex), and where that keeps silent by an entry of
//! the log. A read index that was on its way when the leader went is lost, and etcd waits for it, and lets later ones wait behind it,
//! for seven seconds; an entry goes through as soon as there is a leader.
//!
//! **Lost answers** (`write.rs`). When a member dies with our write in hand, the write is asked for again only where that cannot do it
//! twice, and what is found is ours only if it bears our mark. What cannot be told is [`Error::Unknown`], never "not done".
//!
//! **Watches** (`watch.rs`) live on when their member, the leader or the connection dies, from the last revision that was handed over.
//!
//! **Alarms.** A full database is [`Error::Unwritable`], diverged data are [`Error::Damaged`]; [`Store::check`] finds both, and
//! [`Store::trouble`] says so until they are gone. Of diverged data nothing is served: each member would say something else.
//!
//! What this module does not do: start etcd. It says with which flags ([`flags`]).

pub mod cluster;
mod fault;
pub mod flags;
pub mod limits;
mod mark;
mod members;
pub mod restore;
mod watch;
mod write;

use crate::{Depth, Error, KeyValue, Outcome, Page, Result, Revision, Store, Watch, Write};
use etcd_client::{AlarmAction, AlarmType, CompactionOptions, Compare, CompareOp, GetOptions, Txn, TxnOp, proto::PbTxnOpResponse};
use fault::Fault;
use futures::FutureExt;
use mark::{Mark, Marks};
use members::{Member, Members};
use parking_lot::Mutex;
use std::{
    sync::{Arc, atomic::AtomicBool, atomic::AtomicUsize, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::watch as newest;

/// Where etcd is, and who we are to it.
#[derive(Clone, Default)]
pub struct Config {
    /// Client URLs, `https://10.0.0.11:2379`; all are used.
    pub endpoints: Vec<String>,
    /// The authority of the members' certificates.
    pub ca_pem: Option<String>,
    /// Our client certificate and its key.
    pub certificate_pem: Option<String>,
    pub key_pem: Option<String>,
    /// Put before every key, so that clusters can share an etcd; empty as a rule, for keys begin with `/registry/`.
    pub prefix: String,
}

/// A store on etcd.
pub struct Etcd {
    shared: Arc<Shared>,
}

/// What watches keep of their store.
struct Shared {
    members: Members,
    prefix: String,
    marks: Marks,
    /// The newest revision that any answer has shown.
    newest: newest::Sender<u64>,
    trouble: Mutex<Option<Error>>,
    page_keys: AtomicUsize,
    /// Whether this store is the one that restores a snapshot.
    restoring: AtomicBool,
    /// Whether the fence of another's restore stood when it was last looked for.
    fenced: AtomicBool,
}

/// A key as it stands in etcd.
struct Stored {
    kv: KeyValue,
    mark: Option<Mark>,
}

impl Etcd {
    /// A store at `config`'s endpoints. Fails if the configuration cannot be used; whether etcd answers shows with the first call.
    pub async fn connect(config: Config) -> Result<Etcd> {
        let shared = Shared {
            prefix: config.prefix.clone(),
            members: Members::new(config)?,
            marks: Marks::default(),
            newest: newest::Sender::new(0),
            trouble: Mutex::new(None),
            page_keys: AtomicUsize::new(limits::PAGE_KEYS_MAX),
            restoring: AtomicBool::new(false),
            fenced: AtomicBool::new(false),
        };
        Ok(Etcd { shared: Arc::new(shared) })
    }

    /// New endpoints (a member joined or left) or credentials (a certificate was renewed). The prefix stays.
    pub fn reconfigure(&self, config: Config) -> Result<()> {
        self.shared.members.reconfigure(config)
    }
}

impl Shared {
    fn stored_key(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.prefix).into_bytes()
    }

    fn key(&self, stored: &[u8]) -> Result<String> {
        let key = std::str::from_utf8(stored).ok().and_then(|key| key.strip_prefix(self.prefix.as_str()));
        key.map(String::from).ok_or_else(|| Error::Damaged(format!("etcd holds a key that is not ours: {}", String::from_utf8_lossy(stored))))
    }

    fn read(&self, kv: etcd_client::proto::PbKeyValue) -> Result<Stored> {
        let key = self.key(&kv.key)?;
        let (created, modified) = (revision(kv.create_revision), revision(kv.mod_revision));
        let (value, mark) = mark::open(kv.value);
        Ok(Stored { kv: KeyValue { key, value, created, modified }, mark })
    }

    /// Takes note of a revision that an answer has shown.
    fn saw(&self, header: Option<&etcd_client::proto::PbResponseHeader>) -> Revision {
        let seen = header.map_or(Revision(0), |header| revision(header.revision));
        self.newest.send_if_modified(|newest| {
            let newer = seen.0 > *newest;
            *newest = (*newest).max(seen.0);
            newer
        });
        seen
    }

    fn seen(&self) -> Revision {
        Revision(*self.newest.borrow())
    }

    /// What a failed read is to a caller.
    fn error(&self, fault: Fault, asked: Revision) -> Error {
        match fault {
            Fault::NoEffect(why) | Fault::Uncertain(why) | Fault::Refused(why) => Error::Unavailable(why),
            Fault::Compacted => Error::Compacted { asked, oldest: Revision(asked.0 + 1) },
            Fault::Future => Error::Future { asked, newest: self.seen() },
            Fault::AnswerTooLong => Error::TooLarge(format!("an answer of etcd is longer than {} bytes", limits::ANSWER_BYTES_MAX)),
            Fault::Final(error) => {
                self.note(&error);
                error
            }
        }
    }

    /// Keeps what needs a person for [`Store::trouble`].
    fn note(&self, error: &Error) {
        if matches!(error, Error::Damaged(_) | Error::Unwritable(_)) {
            *self.trouble.lock() = Some(error.clone());
        }
    }

    async fn range(&self, key: Vec<u8>, options: GetOptions, asked: Revision) -> Result<etcd_client::proto::PbRangeResponse> {
        if let Some(error @ Error::Damaged(_)) = self.trouble.lock().clone() {
            return Err(error);
        }
        let ask = |member: &Member, doubt| range(member, key.clone(), options.clone(), doubt || self.members.lost());
        let fault = match self.members.read(ask).await {
            Ok(answer) => {
                self.saw(answer.header.as_ref());
                return Ok(answer);
            }
            Err(fault) => fault,
        };
        let compacted = matches!(fault, Fault::Compacted);
        let error = self.error(fault, asked);
        if compacted && let Some(oldest) = watch::oldest(self).await {
            return Err(Error::Compacted { asked, oldest });
        }
        Err(error)
    }
}

/// A key that is never written: see [`range`].
const NEVER: &str = "never";

fn revision(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn range(member: &Member, key: Vec<u8>, options: GetOptions, by_log: bool) -> members::Attempt<etcd_client::proto::PbRangeResponse> {
    let mut kv = member.kv();
    async move {
        if !by_log {
            return Ok(kv.get(key, Some(options)).await?.0);
        }
        // A transaction that could write goes through the log; no version is below nought, so this one never does.
        let never = Compare::version(NEVER, CompareOp::Less, 0);
        let answer = kv.txn(Txn::new().when([never]).and_then([TxnOp::put(NEVER, "", None)]).or_else([TxnOp::get(key, Some(options))])).await?.0;
        let range = answer.responses.into_iter().find_map(|op| match op.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => Some(range),
            _ => None,
        });
        Ok(etcd_client::proto::PbRangeResponse { header: answer.header, ..range.unwrap_or_default() })
    }
    .boxed()
}

/// The first key after all that start with `prefix`, as etcd wants it: one zero byte if there is none.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|byte| *byte < 0xff);
    let Some(last) = kept else { return vec![0] };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end
}

#[async_trait::async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        let answer = self.shared.range(self.shared.stored_key(key), GetOptions::new(), Revision(0)).await?;
        answer.kvs.into_iter().next().map(|kv| self.shared.read(kv).map(|stored| stored.kv)).transpose()
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
        let shared = &self.shared;
        let stored = shared.stored_key(prefix);
        let end = prefix_end(&stored);
        let mut start = stored;
        if let Some(after) = after {
            let mut next = shared.stored_key(after);
            next.push(0);
            start = start.max(next);
        }
        let mut page = Page { items: Vec::new(), revision: at.map_or(Revision(0), |at| at.max(Revision(1))), more: false };
        loop {
            let keys = shared.page_keys.load(Relaxed);
            let wanted = if limit == 0 { keys } else { keys.min(limit - page.items.len()) };
            let options = GetOptions::new().with_range(end.clone()).with_limit(wanted as i64).with_revision(signed(page.revision));
            let answer = match shared.range(start.clone(), options, page.revision).await {
                Err(Error::TooLarge(_)) if keys > 1 => {
                    shared.page_keys.store(keys / 2, Relaxed);
                    continue;
                }
                other => other?,
            };
            if page.revision == Revision(0) {
                page.revision = answer.header.as_ref().map_or(Revision(0), |header| revision(header.revision));
                // Asked after the list: half of a restore cannot have been read if no fence stands now.
                shared.unfenced().await?;
            }
            page.more = answer.more;
            for kv in answer.kvs {
                start = kv.key.clone();
                page.items.push(shared.read(kv)?.kv);
            }
            start.push(0);
            if !page.more || (limit > 0 && page.items.len() >= limit) {
                return Ok(page);
            }
        }
    }

    async fn commit(&self, write: Write) -> Result<Outcome> {
        write::commit(&self.shared, write).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        watch::start(self.shared.clone(), prefix, from).await
    }

    async fn revision(&self) -> Result<Revision> {
        // The answer's header holds the revision, and a linearizable read is never answered from the past.
        self.shared.unfenced().await
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        let shared = &self.shared;
        let ask = |member: &Member, _| {
            let mut kv = member.kv();
            async move { kv.compact(signed(at), Some(CompactionOptions::new())).await.map_err(Fault::from) }.boxed()
        };
        match shared.members.race(ask, |answer, _| Some(answer)).await {
            Ok(_) => Ok(()),
            // An attempt whose answer was lost has done it.
            Err(failure) if failure.uncertain && matches!(failure.fault, Fault::Compacted) => Ok(()),
            Err(failure) => Err(shared.error(failure.fault, at)),
        }
    }

    fn trouble(&self) -> Option<Error> {
        self.shared.trouble.lock().clone()
    }

    fn is_being_restored(&self) -> bool {
        self.shared.fenced.load(Relaxed)
    }

    /// Whether a majority answers and no alarm is raised.
    async fn check(&self, _depth: Depth) -> Result<()> {
        let ask = |member: &Member, _| {
            let mut client = member.plain();
            async move { Ok(client.alarm(AlarmAction::Get, AlarmType::None, None).await?) }.boxed()
        };
        let alarms = self.shared.members.read(ask).await.map_err(|fault| self.shared.error(fault, Revision(0)))?;
        let raised = |wanted: AlarmType| alarms.alarms().iter().any(|alarm| alarm.alarm() == wanted);
        let found = if raised(AlarmType::Corrupt) {
            Some(Error::Damaged(fault::CORRUPT.into()))
        } else if raised(AlarmType::Nospace) {
            Some(Error::Unwritable(fault::FULL.into()))
        } else {
            None
        };
        *self.shared.trouble.lock() = found.clone();
        if let Some(error) = found {
            return Err(error);
        }
        self.revision().await.map(drop)
    }
}

/// Calls that have a bound of their own, for they do not go through [`Members::race`].
async fn within<T>(ms: u64, what: &str, call: impl Future<Output = std::result::Result<T, etcd_client::Error>>) -> Result<T> {
    match tokio::time::timeout(Duration::from_millis(ms), call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(match Fault::from(error) {
            Fault::NoEffect(why) | Fault::Uncertain(why) | Fault::Refused(why) => Error::Unavailable(format!("{what}: {why}")),
            Fault::Final(error) => error,
            other => Error::Unavailable(format!("{what}: {other:?}")),
        }),
        Err(_) => Err(Error::Unavailable(format!("{what}: no answer within {} s", ms as f64 / 1000.0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(prefix_end(b"/registry/"), b"/registry0");
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), [0]);
        assert_eq!(prefix_end(b""), [0]);
    }
}
