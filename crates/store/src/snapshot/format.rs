//! The bytes of a snapshot file: pure readers and writers over any `Read` and `Write`.
//!
//! ```text
//! "regent-snapshot\n"                                   16 bytes
//! header            u32 length, JSON                    in clear: what it is of, and how it is sealed
//! frames            u32 length | last-bit, bytes        one gzip stream, cut in pieces; each sealed if asked
//! summary           u32 length, JSON                    in clear: how much is in it
//! SHA-256           32 bytes                            of everything before
//! ```
//!
//! The gzip stream is a row of records: files first, then keys in order, then one end record with the totals. All numbers
//! are little-endian. A reader hashes while it reads; the totals, the hash and the end of the file must all agree, so a
//! flipped bit or a missing tail is always noticed. It MUST be noticed before anything of the content is used for good:
//! [`super::verify`] reads a file to its end first.
//!
//! A sealed frame is AES-256-GCM under a key of this file alone ([`Secret`] and a random salt), its nonce is its number and
//! whether it is the last, and the header is bound to it: frames can be neither moved, dropped nor put into another file.

use super::{Error, Result, seal::Seal, seal::Secret};
use crate::{KeyValue, Revision};
use aws_lc_rs::digest;
use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The format that this version writes; it reads this one and older ones.
pub const FORMAT: u32 = 1;
const MAGIC: &[u8; 16] = b"regent-snapshot\n";
/// Content of one frame; the last may be shorter.
const FRAME_BYTES: usize = 64 * 1024;
/// What sealing adds to a frame.
const SEAL_BYTES_MAX: usize = 16;
const LAST_FRAME: u32 = 1 << 31;
/// Header and summary are small.
const JSON_BYTES_MAX: usize = 64 * 1024;
const KEY_BYTES_MAX: usize = 4 * 1024;
/// One value or one file; an object is at most a few MiB.
const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
const HASH_BYTES: usize = 32;

const TAG_FILE: u8 = b'F';
const TAG_KEY: u8 = b'K';
const TAG_END: u8 = b'E';

/// What a snapshot is of; readable without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    /// The version that wrote it.
    pub regent: String,
    /// The cluster it is of: the fingerprint of its authority.
    pub cluster: String,
    /// The kind of store it was taken from: `sqlite`, `etcd`, `memory`.
    pub store: String,
    /// The one revision that all of it shows.
    pub revision: u64,
    /// Seconds since 1970.
    pub created_at_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<super::seal::Description>,
}

/// How much is in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub keys: u64,
    /// Of all keys and values.
    pub bytes: u64,
    pub files: u64,
}

/// A file that the store alone does not hold: a key, a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// A path relative to where such files lie; never absolute, never with `..`.
    pub name: String,
    pub mode: u32,
    pub content: Vec<u8>,
}

/// One piece of a snapshot's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    File(Blob),
    Key(KeyValue),
}

pub type Hash = [u8; HASH_BYTES];

fn damaged(what: &str) -> Error {
    Error::Damaged(what.to_string())
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

/// Writes one snapshot.
pub struct Writer<W: Write> {
    records: GzEncoder<Frames<W>>,
    summary: Summary,
}

struct Hashing<W> {
    inner: W,
    hash: digest::Context,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Cuts a stream into frames.
struct Frames<W: Write> {
    out: Hashing<W>,
    seal: Option<Seal>,
    number: u64,
    frame: Vec<u8>,
}

impl<W: Write> Frames<W> {
    fn put(&mut self, last: bool) -> io::Result<()> {
        let mut frame = std::mem::replace(&mut self.frame, Vec::with_capacity(FRAME_BYTES));
        if let Some(seal) = &self.seal {
            seal.close(self.number, last, &mut frame).map_err(io::Error::other)?;
        }
        self.number += 1;
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.out.write_all(&(length | if last { LAST_FRAME } else { 0 }).to_le_bytes())?;
        self.out.write_all(&frame)
    }
}

impl<W: Write> Write for Frames<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let take = buffer.len().min(FRAME_BYTES - self.frame.len());
        self.frame.extend_from_slice(&buffer[..take]);
        if self.frame.len() == FRAME_BYTES {
            self.put(false)?;
        }
        Ok(take)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn put_json<W: Write>(out: &mut W, value: &impl Serialize) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(value)?;
    out.write_all(&u32::try_from(text.len()).map_err(io::Error::other)?.to_le_bytes())?;
    out.write_all(&text)?;
    Ok(text)
}

impl<W: Write> Writer<W> {
    /// Begins a snapshot: writes the header, sealed with `secret` if there is one.
    pub fn new(out: W, mut header: Header, secret: Option<&Secret>) -> Result<Writer<W>> {
        header.format = FORMAT;
        header.seal = secret.map(Secret::describe).transpose()?;
        let mut out = Hashing { inner: out, hash: digest::Context::new(&digest::SHA256) };
        out.write_all(MAGIC).map_err(Error::Io)?;
        let text = put_json(&mut out, &header).map_err(Error::Io)?;
        let seal = match (secret, &header.seal) {
            (Some(secret), Some(description)) => Some(Seal::new(secret, description, &text)?),
            _ => None,
        };
        let frames = Frames { out, seal, number: 0, frame: Vec::with_capacity(FRAME_BYTES) };
        // What is kept is text; the quickest level already makes a tenth of it.
        Ok(Writer { records: GzEncoder::new(frames, Compression::fast()), summary: Summary::default() })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.records.write_all(bytes).map_err(Error::Io)
    }

    fn put_sized(&mut self, bytes: &[u8], most: usize, what: &str) -> Result<()> {
        if bytes.len() > most {
            return Err(Error::TooBig { what: what.to_string(), bytes: bytes.len() as u64, most: most as u64 });
        }
        self.put(&(bytes.len() as u32).to_le_bytes())?;
        self.put(bytes)
    }

    /// Adds a file. Files come before keys.
    pub fn file(&mut self, blob: &Blob) -> Result<()> {
        self.put(&[TAG_FILE])?;
        self.put_sized(blob.name.as_bytes(), KEY_BYTES_MAX, "a file's name")?;
        self.put(&blob.mode.to_le_bytes())?;
        self.put_sized(&blob.content, VALUE_BYTES_MAX, &blob.name)?;
        self.summary.files += 1;
        Ok(())
    }

    /// Adds a key. Keys come in order.
    pub fn key(&mut self, kv: &KeyValue) -> Result<()> {
        self.put(&[TAG_KEY])?;
        self.put_sized(kv.key.as_bytes(), KEY_BYTES_MAX, "a key")?;
        self.put(&kv.created.0.to_le_bytes())?;
        self.put(&kv.modified.0.to_le_bytes())?;
        self.put_sized(&kv.value, VALUE_BYTES_MAX, &kv.key)?;
        self.summary.keys += 1;
        self.summary.bytes += (kv.key.len() + kv.value.len()) as u64;
        Ok(())
    }

    /// Ends the snapshot; returns where it was written to, how much is in it, and its hash.
    pub fn finish(mut self) -> Result<(W, Summary, Hash)> {
        let summary = self.summary;
        self.put(&[TAG_END])?;
        for number in [summary.keys, summary.bytes, summary.files] {
            self.put(&number.to_le_bytes())?;
        }
        let mut frames = self.records.finish().map_err(Error::Io)?;
        frames.put(true).map_err(Error::Io)?;
        let mut out = frames.out;
        put_json(&mut out, &summary).map_err(Error::Io)?;
        let mut hash = Hash::default();
        hash.copy_from_slice(out.hash.finish().as_ref());
        let mut inner = out.inner;
        inner.write_all(&hash).map_err(Error::Io)?;
        inner.flush().map_err(Error::Io)?;
        Ok((inner, summary, hash))
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

struct HashingReader<R> {
    inner: R,
    hash: digest::Context,
    bytes: u64,
}

impl<R: Read> HashingReader<R> {
    /// Fills the buffer, or says what was cut off.
    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        match self.inner.read_exact(buffer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Error::Damaged(format!("it ends in the middle of {what}"))),
            Err(error) => return Err(Error::Io(error)),
        }
        self.hash.update(buffer);
        self.bytes += buffer.len() as u64;
        Ok(())
    }

    fn number(&mut self, what: &str) -> Result<u32> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes, what)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn json<T: for<'a> Deserialize<'a>>(&mut self, what: &str) -> Result<(T, Vec<u8>)> {
        let length = self.number(what)? as usize;
        if length > JSON_BYTES_MAX {
            return Err(Error::Damaged(format!("its {what} has no sensible length")));
        }
        let mut text = vec![0; length];
        self.fill(&mut text, what)?;
        let value = serde_json::from_slice(&text).map_err(|_| Error::Damaged(format!("its {what} cannot be read")))?;
        Ok((value, text))
    }
}

/// A snapshot whose header has been read.
pub struct Reader<R: Read> {
    pub header: Header,
    header_text: Vec<u8>,
    source: HashingReader<R>,
}

/// What the end of a snapshot says; only now is known that it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub summary: Summary,
    pub hash: Hash,
    pub file_bytes: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn new(source: R) -> Result<Reader<R>> {
        let mut source = HashingReader { inner: source, hash: digest::Context::new(&digest::SHA256), bytes: 0 };
        let mut magic = [0; MAGIC.len()];
        match source.fill(&mut magic, "its first line") {
            Ok(()) if &magic == MAGIC => {}
            Ok(()) | Err(Error::Damaged(_)) => return Err(Error::NoSnapshot),
            Err(error) => return Err(error),
        }
        let (header, header_text): (Header, _) = source.json("header")?;
        if header.format > FORMAT {
            return Err(Error::TooNew { format: header.format });
        }
        Ok(Reader { header, header_text, source })
    }

    /// Reads on to the end without looking inside the frames; needs no secret.
    pub fn skip_to_end(mut self) -> Result<Ending> {
        let mut frame = Vec::with_capacity(FRAME_BYTES + SEAL_BYTES_MAX);
        while !next_frame(&mut self.source, &mut frame)? {}
        end(self.source)
    }

    /// The content. A sealed snapshot needs its secret.
    pub fn content(self, secret: Option<&Secret>) -> Result<Content<R>> {
        let seal = match (&self.header.seal, secret) {
            (None, _) => None,
            (Some(_), None) => return Err(Error::SecretNeeded),
            (Some(description), Some(secret)) => Some(Seal::new(secret, description, &self.header_text)?),
        };
        let frames = FrameReader { source: self.source, seal, number: 0, frame: Vec::new(), place: 0, last: false, failure: None };
        Ok(Content { records: GzDecoder::new(frames), seen: Summary::default(), last_key: None })
    }
}

/// Reads a frame; returns whether it is the last.
fn next_frame<R: Read>(source: &mut HashingReader<R>, frame: &mut Vec<u8>) -> Result<bool> {
    let word = source.number("its content")?;
    let length = (word & !LAST_FRAME) as usize;
    if length > FRAME_BYTES + SEAL_BYTES_MAX {
        return Err(damaged("a piece of it has no sensible length"));
    }
    frame.resize(length, 0);
    source.fill(frame, "its content")?;
    Ok(word & LAST_FRAME != 0)
}

/// Reads what comes after the frames, and compares.
fn end<R: Read>(mut source: HashingReader<R>) -> Result<Ending> {
    let (summary, _) = source.json("summary")?;
    let mut hash = Hash::default();
    hash.copy_from_slice(source.hash.finish().as_ref());
    let mut written = Hash::default();
    match source.inner.read_exact(&mut written) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged("it ends in the middle of its checksum")),
        Err(error) => return Err(Error::Io(error)),
    }
    if hash != written {
        return Err(damaged("its content is not what its SHA-256 checksum says"));
    }
    if source.inner.read(&mut [0]).map_err(Error::Io)? != 0 {
        return Err(damaged("something follows after its end"));
    }
    Ok(Ending { summary, hash, file_bytes: source.bytes + HASH_BYTES as u64 })
}

/// The frames put together again.
struct FrameReader<R: Read> {
    source: HashingReader<R>,
    seal: Option<Seal>,
    number: u64,
    frame: Vec<u8>,
    place: usize,
    last: bool,
    /// The true reason behind an `io::Error` that went through the decoder.
    failure: Option<Error>,
}

impl<R: Read> FrameReader<R> {
    fn advance(&mut self) -> Result<()> {
        self.last = next_frame(&mut self.source, &mut self.frame)?;
        if let Some(seal) = &self.seal {
            seal.open(self.number, self.last, &mut self.frame)?;
        }
        self.number += 1;
        self.place = 0;
        Ok(())
    }
}

impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.place == self.frame.len() {
            if self.last {
                return Ok(0);
            }
            if let Err(error) = self.advance() {
                self.failure = Some(error);
                return Err(io::Error::other("a frame cannot be read"));
            }
        }
        let take = buffer.len().min(self.frame.len() - self.place);
        buffer[..take].copy_from_slice(&self.frame[self.place..self.place + take]);
        self.place += take;
        Ok(take)
    }
}

/// The content of a snapshot, item by item.
pub struct Content<R: Read> {
    records: GzDecoder<FrameReader<R>>,
    seen: Summary,
    last_key: Option<String>,
}

impl<R: Read> Content<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.records.read_exact(buffer).map_err(|_| match self.records.get_mut().failure.take() {
            Some(error) => error,
            None => damaged("its content cannot be unpacked"),
        })
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn sized(&mut self, most: usize) -> Result<Vec<u8>> {
        let length = u32::from_le_bytes(self.number()?) as usize;
        if length > most {
            return Err(damaged("a record in it has no sensible length"));
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String> {
        String::from_utf8(self.sized(KEY_BYTES_MAX)?).map_err(|_| damaged("a name in it is not text"))
    }

    /// The next item; `None` after the last, when [`Content::finish`] says whether all of it was whole.
    pub fn next_item(&mut self) -> Result<Option<Item>> {
        let [tag] = self.number()?;
        match tag {
            TAG_FILE => {
                let name = self.text()?;
                let mode = u32::from_le_bytes(self.number()?);
                let content = self.sized(VALUE_BYTES_MAX)?;
                self.seen.files += 1;
                if name.is_empty() || name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
                    return Err(Error::Damaged(format!("a file in it has the impossible name {name:?}")));
                }
                Ok(Some(Item::File(Blob { name, mode, content })))
            }
            TAG_KEY => {
                let key = self.text()?;
                let created = Revision(u64::from_le_bytes(self.number()?));
                let modified = Revision(u64::from_le_bytes(self.number()?));
                let value = Bytes::from(self.sized(VALUE_BYTES_MAX)?);
                if self.last_key.as_ref().is_some_and(|last| *last >= key) {
                    return Err(Error::Damaged(format!("the key {key:?} is out of order")));
                }
                self.seen.keys += 1;
                self.seen.bytes += (key.len() + value.len()) as u64;
                self.last_key = Some(key.clone());
                Ok(Some(Item::Key(KeyValue { key, value, created, modified })))
            }
            TAG_END => {
                let mut said = [0; 3];
                for number in &mut said {
                    *number = u64::from_le_bytes(self.number()?);
                }
                if said != [self.seen.keys, self.seen.bytes, self.seen.files] {
                    return Err(damaged("it does not hold as much as it says"));
                }
                Ok(None)
            }
            _ => Err(damaged("a record in it is of no known kind")),
        }
    }

    /// Reads what follows the last item and compares it with what was seen.
    pub fn finish(mut self) -> Result<Ending> {
        let mut rest = Vec::new();
        let read = (&mut self.records).take(1).read_to_end(&mut rest);
        let mut frames = self.records.into_inner();
        match (read, frames.failure.take()) {
            (_, Some(error)) => return Err(error),
            (Err(_), None) => return Err(damaged("its content cannot be unpacked")),
            (Ok(0), None) => {}
            (Ok(_), None) => return Err(damaged("something follows after its last record")),
        }
        // The decoder stops where gzip ends; the frames must end there too.
        while !frames.last {
            frames.advance()?;
            if !frames.frame.is_empty() {
                return Err(damaged("something follows after its content"));
            }
        }
        let ending = end(frames.source)?;
        if ending.summary != self.seen {
            return Err(damaged("its summary is not of its content"));
        }
        Ok(ending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            format: 0,
            regent: "test".into(),
            cluster: "abc".into(),
            store: "memory".into(),
            revision: 184_596,
            created_at_s: 1_700_000_000,
            seal: None,
        }
    }

    fn write(items: &[Item], secret: Option<&Secret>) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), header(), secret).unwrap();
        for item in items {
            match item {
                Item::File(blob) => writer.file(blob).unwrap(),
                Item::Key(kv) => writer.key(kv).unwrap(),
            }
        }
        writer.finish().unwrap().0
    }

    fn read(bytes: &[u8], secret: Option<&Secret>) -> Result<(Vec<Item>, Ending)> {
        let mut content = Reader::new(bytes)?.content(secret)?;
        let mut items = Vec::new();
        while let Some(item) = content.next_item()? {
            items.push(item);
        }
        Ok((items, content.finish()?))
    }

    fn items() -> impl Strategy<Value = Vec<Item>> {
        let keys = proptest::collection::btree_map("/[a-z0-9/é-]{0,40}", proptest::collection::vec(any::<u8>(), 0..3000), 0..40);
        let files = proptest::collection::vec(("[a-z]{1,8}(/[a-z.]{1,3}[a-z])?", proptest::collection::vec(any::<u8>(), 0..200)), 0..3);
        (files, keys).prop_map(|(files, keys)| {
            let file = |(name, content)| Item::File(Blob { name, mode: 0o600, content });
            let key = |(i, (key, value)): (usize, (String, Vec<u8>))| {
                Item::Key(KeyValue { key, value: value.into(), created: Revision(i as u64), modified: Revision(i as u64 * 3) })
            };
            files.into_iter().map(file).chain(keys.into_iter().enumerate().map(key)).collect()
        })
    }

    fn key_file() -> Secret {
        Secret::key_file(b"0123456789abcdef0123456789abcdef".to_vec()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_written_is_read(items in items(), sealed in any::<bool>()) {
            let secret = sealed.then(key_file);
            let bytes = write(&items, secret.as_ref());
            let (found, ending) = read(&bytes, secret.as_ref()).unwrap();
            prop_assert_eq!(found, items);
            prop_assert_eq!(ending.file_bytes, bytes.len() as u64);
            prop_assert_eq!(Reader::new(&bytes[..]).unwrap().skip_to_end().unwrap(), ending);
        }

        #[test]
        fn a_flipped_bit_is_refused(items in items(), sealed in any::<bool>(), place in any::<prop::sample::Index>(), bit in 0..8u32) {
            let secret = sealed.then(key_file);
            let mut bytes = write(&items, secret.as_ref());
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            prop_assert!(read(&bytes, secret.as_ref()).is_err());
            prop_assert!(Reader::new(&bytes[..]).and_then(Reader::skip_to_end).is_err());
        }

        #[test]
        fn a_cut_or_longer_file_is_refused(items in items(), sealed in any::<bool>(), place in any::<prop::sample::Index>()) {
            let secret = sealed.then(key_file);
            let mut bytes = write(&items, secret.as_ref());
            let cut = &bytes[..place.index(bytes.len())];
            prop_assert!(read(cut, secret.as_ref()).is_err());
            prop_assert!(Reader::new(cut).and_then(Reader::skip_to_end).is_err());
            bytes.push(0);
            prop_assert!(Reader::new(&bytes[..]).and_then(Reader::skip_to_end).is_err());
        }

        #[test]
        fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut file = MAGIC.to_vec();
            file.extend(&bytes);
            prop_assert!(read(&bytes, None).is_err());
            prop_assert!(read(&file, None).is_err());
        }
    }

    #[test]
    fn a_sealed_file_needs_its_own_secret() {
        let kv = KeyValue { key: "/a".into(), value: Bytes::from_static(b"topsecret"), created: Revision(1), modified: Revision(1) };
        let bytes = write(&[Item::Key(kv)], Some(&key_file()));
        assert!(!bytes.windows(9).any(|w| w == b"topsecret"));
        assert!(matches!(read(&bytes, None), Err(Error::SecretNeeded)));
        let other = Secret::key_file(vec![7; 32]).unwrap();
        assert!(matches!(read(&bytes, Some(&other)), Err(Error::SecretWrong)));
        assert!(Reader::new(&bytes[..]).unwrap().skip_to_end().is_ok(), "whole can be seen without it");
    }

    #[test]
    fn a_format_from_the_future_is_refused() {
        let bytes = write(&[], None);
        let text = String::from_utf8_lossy(&bytes[20..60]).into_owned();
        assert!(text.starts_with(r#"{"format":1"#), "{text}");
        let mut newer = bytes.clone();
        newer[20 + 10] = b'9';
        assert!(matches!(Reader::new(&newer[..]), Err(Error::TooNew { format: 9 })));
    }
}
