//! One conditional write, and what may be said of it when its answer was lost.
//!
//! An update or a delete names the revision that it replaces, and that never comes back; so asking again cannot do it twice. A create
//! names nothing: had it been done and the key been deleted since, asking again would bring a deleted object back. So a create whose
//! answer is out is not asked again; the key is read until it shows our mark, or time is up.
//!
//! What must stay true: `Committed` only for what etcd acknowledged or what bears our mark; `Conflict` only when no attempt of ours had
//! or can have an effect; everything else is [`Error::Unknown`].

use super::{Fault, Mark, Member, Shared, Stored, mark, range, revision, signed};
use crate::{Error, Outcome, Result, Revision, Write};
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, proto::PbKeyValue, proto::PbResponseOp, proto::PbTxnOpResponse};
use futures::FutureExt;
use std::sync::atomic::Ordering::SeqCst;

/// What etcd said to one attempt.
enum Answer<T> {
    Done(Revision),
    /// The condition did not hold; this stands there.
    Refused(Option<T>),
    /// The key was read, in place of asking again.
    Found(Option<T>),
}

pub(super) async fn commit(shared: &Shared, write: Write) -> Result<Outcome> {
    if let Some(error @ Error::Damaged(_)) = shared.trouble.lock().clone() {
        return Err(error);
    }
    // While the store is known to be lost, a read goes first: it fails without leaving a doubt behind.
    if shared.members.lost() {
        shared.range(shared.stored_key(write.key()), GetOptions::new().with_count_only(), Revision(0)).await?;
    }
    let own = shared.marks.next();
    let before = shared.seen();
    let ask = |member: &Member, uncertain: bool| {
        if uncertain && matches!(write, Write::Create { .. }) {
            let read = range(member, shared.stored_key(write.key()), GetOptions::new(), true);
            return async move {
                let answer = read.await?;
                Ok((answer.header, Answer::Found(answer.kvs.into_iter().next())))
            }
            .boxed();
        }
        let (mut kv, txn) = (member.kv(), transaction(shared, &write, own));
        async move {
            let answer = kv.txn(txn).await?.0;
            if !answer.succeeded && fenced(&answer.responses) {
                return Err(Fault::Final(super::restore::standing()));
            }
            let seen = answer.header.as_ref().map_or(Revision(0), |header| revision(header.revision));
            Ok((answer.header, if answer.succeeded { Answer::Done(seen) } else { Answer::Refused(standing(answer.responses)) }))
        }
        .boxed()
    };
    let judge_answer = |(header, answer): (Option<etcd_client::proto::PbResponseHeader>, Answer<PbKeyValue>), uncertain: bool| {
        shared.saw(header.as_ref());
        let read = |kv: Option<PbKeyValue>| kv.map(|kv| shared.read(kv)).transpose();
        let answer = match answer {
            Answer::Done(revision) => Ok(Answer::Done(revision)),
            Answer::Refused(kv) => read(kv).map(Answer::Refused),
            Answer::Found(kv) => read(kv).map(Answer::Found),
        };
        match answer {
            Ok(answer) => judge(&write, own, before, answer, uncertain).map(Ok),
            Err(error) => Some(Err(error)),
        }
    };
    match shared.members.race(ask, judge_answer).await {
        Ok(outcome) => {
            if matches!(outcome, Ok(Outcome::Committed(_))) {
                // There is room again.
                shared.trouble.lock().take_if(|error| matches!(error, Error::Unwritable(_)));
            }
            outcome
        }
        Err(failure) => Err(match (failure.fault, failure.uncertain) {
            (Fault::Final(error), false) => {
                shared.note(&error);
                error
            }
            (Fault::Final(error), true) => {
                shared.note(&error);
                Error::Unknown(error.to_string())
            }
            (Fault::NoEffect(why), false) => Error::Unavailable(why),
            (Fault::NoEffect(why) | Fault::Uncertain(why), _) => Error::Unknown(why),
            (other, _) => Error::Unknown(format!("{other:?}")),
        }),
    }
}

fn transaction(shared: &Shared, write: &Write, own: Mark) -> Txn {
    let key = shared.stored_key(write.key());
    let (condition, change) = match write {
        Write::Create { value, .. } => {
            (Compare::create_revision(key.clone(), CompareOp::Equal, 0), TxnOp::put(key.clone(), mark::seal(value, own), None))
        }
        Write::Update { value, expected, .. } => {
            (Compare::mod_revision(key.clone(), CompareOp::Equal, signed(*expected)), TxnOp::put(key.clone(), mark::seal(value, own), None))
        }
        Write::Delete { expected, .. } => (Compare::mod_revision(key.clone(), CompareOp::Equal, signed(*expected)), TxnOp::delete(key.clone(), None)),
    };
    let mut conditions = vec![condition];
    let mut otherwise = vec![TxnOp::get(key, None)];
    if !shared.restoring.load(SeqCst) {
        let fence = shared.stored_key(super::restore::KEY);
        conditions.push(Compare::create_revision(fence.clone(), CompareOp::Equal, 0));
        otherwise.push(TxnOp::get(fence, Some(GetOptions::new().with_keys_only())));
    }
    Txn::new().when(conditions).and_then([change]).or_else(otherwise)
}

/// Whether the else branch has found the fence of a restore.
fn fenced(responses: &[PbResponseOp]) -> bool {
    responses.get(1).is_some_and(|op| matches!(&op.response, Some(PbTxnOpResponse::ResponseRange(range)) if !range.kvs.is_empty()))
}

/// What the else branch has read.
fn standing(responses: Vec<PbResponseOp>) -> Option<PbKeyValue> {
    responses.into_iter().take(1).find_map(|op| match op.response {
        Some(PbTxnOpResponse::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    })
}

/// What an answer says of the write. `before` was shown by some answer before the write was sent; `uncertain`: another attempt may have
/// had an effect, or may yet. `None`: it settles nothing.
fn judge(write: &Write, own: Mark, before: Revision, answer: Answer<Stored>, uncertain: bool) -> Option<Outcome> {
    let (standing, refused) = match answer {
        Answer::Done(revision) => return Some(Outcome::Committed(revision)),
        Answer::Refused(standing) => (standing, true),
        Answer::Found(standing) => (standing, false),
    };
    if let Some(stored) = &standing
        && stored.mark == Some(own)
    {
        return Some(Outcome::Committed(stored.kv.modified));
    }
    // A create is asked for only once no attempt before it can have an effect, so its refusal is the whole truth.
    let surely_not_done = (refused && (!uncertain || matches!(write, Write::Create { .. })))
        || standing.as_ref().is_some_and(|Stored { kv, .. }| match write {
            // It has stood there since before we asked.
            Write::Create { .. } => kv.created <= before,
            // Nothing has changed since before we asked, and what stands there is not what we would have replaced.
            Write::Update { expected, .. } => kv.modified <= before && kv.modified != *expected,
            // It has lived on since before the revision that we would have deleted.
            Write::Delete { expected, .. } => kv.created <= *expected && kv.modified != *expected,
        });
    surely_not_done.then(|| Outcome::Conflict(standing.map(|stored| stored.kv)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyValue;
    use bytes::Bytes;

    const OWN: Mark = Mark(7);

    type Make = fn(Option<Stored>) -> Answer<Stored>;

    fn standing(created: u64, modified: u64, mark: u64) -> Option<Stored> {
        let kv = KeyValue { key: "/k".into(), value: Bytes::new(), created: Revision(created), modified: Revision(modified) };
        Some(Stored { kv, mark: Some(Mark(mark)) })
    }

    /// What is said of each kind of write (create, update of 5, delete of 5), sent when the newest revision seen was 10.
    fn said(make: Make, stored: impl Fn() -> Option<Stored>, uncertain: bool) -> [&'static str; 3] {
        let (key, value, expected) = (|| "/k".to_string(), Bytes::new(), Revision(5));
        [Write::Create { key: key(), value: value.clone() }, Write::Update { key: key(), value, expected }, Write::Delete { key: key(), expected }]
            .map(|write| match judge(&write, OWN, Revision(10), make(stored()), uncertain) {
                Some(Outcome::Committed(_)) => "done",
                Some(Outcome::Conflict(_)) => "conflict",
                None => "unclear",
            })
    }

    #[test]
    fn without_doubt_etcds_word_counts() {
        assert_eq!(said(|_| Answer::Done(Revision(11)), || None, false), ["done"; 3]);
        assert_eq!(said(Answer::Refused, || None, false), ["conflict"; 3]);
        assert_eq!(said(Answer::Refused, || standing(3, 11, 8), false), ["conflict"; 3]);
    }

    #[test]
    fn in_doubt_only_our_mark_says_done() {
        assert_eq!(said(Answer::Found, || standing(11, 11, 7), true), ["done"; 3]);
        assert_eq!(said(Answer::Refused, || standing(11, 11, 7), true), ["done"; 3]);
        assert_eq!(said(|_| Answer::Done(Revision(11)), || None, true), ["done"; 3]);
    }

    #[test]
    fn in_doubt_a_conflict_must_be_proven() {
        // Gone, or another's and newer than our question: ours may have come before.
        assert_eq!(said(Answer::Found, || None, true), ["unclear"; 3]);
        assert_eq!(said(Answer::Found, || standing(12, 12, 8), true), ["unclear"; 3]);
        // The same object, changed by another since: a delete was not done, an update may have been.
        assert_eq!(said(Answer::Refused, || standing(3, 12, 8), true), ["conflict", "unclear", "conflict"]);
        // As it stood before we asked.
        assert_eq!(said(Answer::Found, || standing(6, 6, 8), true), ["conflict", "conflict", "unclear"]);
        // A create that is asked for is the only one of its kind.
        assert_eq!(said(Answer::Refused, || standing(12, 12, 8), true), ["conflict", "unclear", "unclear"]);
    }
}
