//! Batches of changes on their way to a copy of the store: made where the store is, kept where the copy is.
//!
//! A copy begins with everything as of one revision ([`crate::snapshot::stream`]) and follows by batches: all changes after
//! one revision up to another, in order, none left out. Who asks for what comes after a revision says by that that it has
//! everything up to there on its disk; so a copy that dies at any moment asks again, and nothing needs to be remembered of it.
//!
//! ```text
//! "regent-batch\n"  u64 after, u64 upto, u64 milliseconds of the server's Unix time, u32 number of changes
//! per change        u64 revision, u64 created, u32 length, key, u8 whether there is a value, u32 length, value
//! CRC-32            of everything before
//! ```
//!
//! What must stay true: a batch is used whole or not at all; what comes from outside is measured before it is taken.

use crate::{Error, Event, Result, Revision, Store, Watched};
use bytes::Bytes;
use futures::StreamExt;
use std::time::Duration;

/// Where a store says whose it is, which copies there are, and who has a vote. It goes into copies, and into no snapshot.
pub const EPOCH_KEY: &str = "/registry/cluster-epoch";
/// A batch is closed when it has grown to this many bytes; one value more may stand in it.
pub const BATCH_BYTES: usize = 4 << 20;
/// A longer batch is refused.
pub const BATCH_BYTES_MAX: usize = BATCH_BYTES + (65 << 20);
/// How long changes are gathered after the first.
const GATHER: Duration = Duration::from_millis(30);
const MAGIC: &[u8; 13] = b"regent-batch\n";
const KEY_BYTES_MAX: usize = 4 << 10;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    /// The revision that created the key.
    pub created: Revision,
    pub key: String,
    /// `None`: the key was deleted.
    pub value: Option<Bytes>,
}

/// All changes after one revision up to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub after: Revision,
    pub upto: Revision,
    /// When it was made, by the server's clock.
    pub at_unix_ms: u64,
    pub changes: Vec<Change>,
}

/// Why bytes are no batch.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("these bytes are not a whole batch of changes: {0}")]
pub struct Malformed(&'static str);

impl Batch {
    pub fn encode(&self) -> Vec<u8> {
        let bytes: usize = self.changes.iter().map(|change| 29 + change.key.len() + change.value.as_ref().map_or(0, Bytes::len)).sum();
        let mut out = Vec::with_capacity(MAGIC.len() + 32 + bytes);
        out.extend_from_slice(MAGIC);
        for number in [self.after.0, self.upto.0, self.at_unix_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let sized = |out: &mut Vec<u8>, bytes: &[u8]| {
            // Values are shorter than 4 GiB by far: the store takes none that long.
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        out.extend_from_slice(&(self.changes.len() as u32).to_le_bytes());
        for change in &self.changes {
            out.extend_from_slice(&change.revision.0.to_le_bytes());
            out.extend_from_slice(&change.created.0.to_le_bytes());
            sized(&mut out, change.key.as_bytes());
            out.push(u8::from(change.value.is_some()));
            if let Some(value) = &change.value {
                sized(&mut out, value);
            }
        }
        let sum = crc32fast::hash(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    pub fn decode(bytes: &Bytes) -> std::result::Result<Batch, Malformed> {
        let body = bytes.len().checked_sub(4).ok_or(Malformed("they are too few"))?;
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(Malformed("they are too many"));
        }
        let sum: [u8; 4] = bytes[body..].try_into().map_err(|_| Malformed("they are too few"))?;
        if crc32fast::hash(&bytes[..body]) != u32::from_le_bytes(sum) {
            return Err(Malformed("the checksum is another"));
        }
        let mut rest = Rest(bytes.slice(..body));
        if rest.take(MAGIC.len())?.as_ref() != MAGIC {
            return Err(Malformed("they begin with something else"));
        }
        let (after, upto, at_unix_ms) = (Revision(rest.u64()?), Revision(rest.u64()?), rest.u64()?);
        let count = rest.u32()?;
        let (mut changes, mut last) = (Vec::new(), after);
        for _ in 0..count {
            let (revision, created) = (Revision(rest.u64()?), Revision(rest.u64()?));
            let key = rest.sized(KEY_BYTES_MAX)?;
            let key = std::str::from_utf8(&key).map_err(|_| Malformed("a key is no text"))?.to_owned();
            let value = match rest.take(1)?[0] {
                0 => None,
                _ => Some(rest.sized(BATCH_BYTES_MAX)?),
            };
            if revision <= last || revision > upto {
                return Err(Malformed("its changes are not in order"));
            }
            last = revision;
            changes.push(Change { revision, created, key, value });
        }
        if !rest.0.is_empty() {
            return Err(Malformed("something follows after its end"));
        }
        Ok(Batch { after, upto, at_unix_ms, changes })
    }
}

struct Rest(Bytes);

impl Rest {
    fn take(&mut self, count: usize) -> std::result::Result<Bytes, Malformed> {
        if count > self.0.len() {
            return Err(Malformed("they end in the middle"));
        }
        Ok(self.0.split_to(count))
    }
    fn u64(&mut self) -> std::result::Result<u64, Malformed> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }
    fn u32(&mut self) -> std::result::Result<u32, Malformed> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }
    fn sized(&mut self, most: usize) -> std::result::Result<Bytes, Malformed> {
        let length = self.u32()? as usize;
        if length > most { Err(Malformed("a length makes no sense")) } else { self.take(length) }
    }
}

/// What comes after a revision: waits for a change for so long, and a moment more for those that follow it. A batch without
/// changes says that there were none. [`Error::Compacted`] and [`Error::Future`]: the copy has to begin anew.
pub async fn changes(store: &dyn Store, after: Revision, wait: Duration, at_unix_ms: impl Fn() -> u64) -> Result<Batch> {
    let newest = store.revision().await?;
    if after > newest {
        return Err(Error::Future { asked: after, newest });
    }
    let mut watch = store.watch(crate::snapshot::SAVED_PREFIX, after).await?;
    let (mut deadline, mut bytes) = (tokio::time::Instant::now() + wait, 0);
    let mut batch = Batch { after, upto: after, at_unix_ms: 0, changes: Vec::new() };
    'gather: while let Ok(Some(seen)) = tokio::time::timeout_at(deadline, watch.next()).await {
        let events: Vec<Event> = match seen? {
            Watched::Progress(_) => continue,
            Watched::Events(events) => events,
        };
        if batch.changes.is_empty() {
            deadline = tokio::time::Instant::now() + GATHER;
        }
        for event in events {
            if bytes >= BATCH_BYTES {
                break 'gather;
            }
            bytes += event.key.len() + event.value.as_ref().map_or(0, Bytes::len);
            batch.upto = event.revision;
            batch.changes.push(Change { revision: event.revision, created: event.created, key: event.key, value: event.value });
        }
    }
    batch.at_unix_ms = at_unix_ms();
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, Write, memory::Memory};
    use proptest::prelude::*;

    fn batch() -> Batch {
        let change = |revision, key: &str, value: Option<&'static str>| Change {
            revision: Revision(revision),
            created: Revision(3),
            key: key.into(),
            value: value.map(|text| Bytes::from_static(text.as_bytes())),
        };
        let changes = vec![change(4, "/registry/a", Some("one")), change(7, "/registry/b", None), change(8, "/registry/a", Some(""))];
        Batch { after: Revision(3), upto: Revision(9), at_unix_ms: 77, changes }
    }

    #[test]
    fn a_batch_is_read_as_it_was_written_and_never_otherwise() {
        let bytes = Bytes::from(batch().encode());
        assert_eq!(Batch::decode(&bytes), Ok(batch()));
        for cut in 0..bytes.len() {
            assert!(Batch::decode(&bytes.slice(..cut)).is_err());
            let mut flipped = bytes.to_vec();
            flipped[cut] ^= 1;
            assert!(Batch::decode(&flipped.into()).is_err(), "byte {cut}");
        }
        let mut unordered = batch();
        unordered.changes.swap(0, 1);
        assert!(Batch::decode(&unordered.encode().into()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_batch_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), whole: bool) {
            let mut text = if whole { MAGIC.to_vec() } else { Vec::new() };
            text.extend(bytes);
            let sum = crc32fast::hash(&text);
            text.extend(sum.to_le_bytes());
            let _ = Batch::decode(&text.into());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_after_a_revision_is_told_in_order_and_without_gaps() {
        let store = Memory::default();
        let wait = Duration::from_secs(2);
        let put = |i: u32| store.commit(Write::Create { key: format!("/registry/x/{i}"), value: "v".into() });
        let Outcome::Committed(first) = put(1).await.unwrap() else { panic!() };
        put(2).await.unwrap();
        let all = changes(&store, Revision(first.0 - 1), wait, || 5).await.unwrap();
        assert_eq!((all.changes.len(), all.upto, all.at_unix_ms), (2, Revision(first.0 + 1), 5));
        let nothing = changes(&store, all.upto, wait, || 5).await.unwrap();
        assert_eq!((nothing.changes.len(), nothing.upto), (0, all.upto));
        assert!(matches!(changes(&store, Revision(99), wait, || 5).await, Err(Error::Future { .. })));
        store.compact(all.upto).await.unwrap();
        assert!(matches!(changes(&store, first, wait, || 5).await, Err(Error::Compacted { .. })));
    }
}
