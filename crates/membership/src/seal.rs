//! Packets sealed with the cluster's key: AES-256-GCM, so that only members speak, and only members listen.
//!
//! ```text
//!   "RGM1" | key id 4 | sender 8 | session 8 | counter 8 | ciphertext | tag 16
//! ```
//!
//! Every start of every sender (a session) has a key of its own, derived from the cluster's key, and counts its packets;
//! the count is the nonce, so no nonce is ever used twice under a key. The header and the receiver's number are
//! authenticated with the text: a packet is good for one receiver. The count also tells repeated packets.
//!
//! Keys rotate: all keys of [`Keys`] open, the first seals. To rotate, put the new key second everywhere, then first, then
//! take the old one out.

use crate::{identity::NodeId, limits};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    digest, hmac,
};
use std::collections::HashMap;

const MAGIC: &[u8; 4] = b"RGM1";
const HEADER_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
/// Keys that a cluster has at most at once.
const KEYS_MAX: usize = 8;

/// The cluster's keys. The first one seals; all open.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Vec<([u8; 4], [u8; KEY_BYTES])>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(id, _)| u32::from_be_bytes(*id))).finish()
    }
}

/// Why a packet is not one of ours.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Not of this protocol, or too long or short.
    #[error("a foreign packet")]
    Foreign,
    /// Sealed with a key that is not known here.
    #[error("a packet of another cluster, or of a key that is not known here yet")]
    UnknownKey,
    /// Not sealed by a member, not for this one, or changed on the way.
    #[error("a packet whose seal does not fit")]
    Seal,
    /// Seen before, or too old to tell.
    #[error("a repeated packet")]
    Repeated,
    /// The keys do not have the right form.
    #[error("the membership key is not one to eight lines of 64 hexadecimal digits")]
    Keys,
}

impl Keys {
    /// From text: one key a line, 64 hexadecimal digits each.
    pub fn parse(text: &str) -> Result<Keys, Error> {
        let mut keys = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut key = [0; KEY_BYTES];
            if line.len() != 2 * KEY_BYTES || !line.is_ascii() {
                return Err(Error::Keys);
            }
            for (byte, digits) in key.iter_mut().zip(line.as_bytes().chunks(2)) {
                let digits = std::str::from_utf8(digits).map_err(|_| Error::Keys)?;
                *byte = u8::from_str_radix(digits, 16).map_err(|_| Error::Keys)?;
            }
            let hash = digest::digest(&digest::SHA256, &key);
            let mut id = [0; 4];
            id.copy_from_slice(&hash.as_ref()[..4]);
            keys.push((id, key));
        }
        if keys.is_empty() || keys.len() > KEYS_MAX { Err(Error::Keys) } else { Ok(Keys(keys)) }
    }

    /// The key of one sender's session.
    fn session(key: &[u8; KEY_BYTES], sender: NodeId, session: u64) -> Option<LessSafeKey> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
        context.update(b"regent membership session");
        context.update(&sender.0.to_be_bytes());
        context.update(&session.to_be_bytes());
        UnboundKey::new(&AES_256_GCM, context.sign().as_ref()).ok().map(LessSafeKey::new)
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn aad(header: &[u8], receiver: NodeId) -> Aad<Vec<u8>> {
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(&receiver.0.to_be_bytes());
    Aad::from(bytes)
}

/// Seals what this start of this node sends.
pub struct Sealer {
    me: NodeId,
    session: u64,
    counter: u64,
    key_id: [u8; 4],
    key: LessSafeKey,
}

impl Sealer {
    /// `session` MUST be one that this node has not used before.
    pub fn new(keys: &Keys, me: NodeId, session: u64) -> Result<Sealer, Error> {
        let (id, key) = keys.0.first().ok_or(Error::Keys)?;
        Ok(Sealer { me, session, counter: 0, key_id: *id, key: Keys::session(key, me, session).ok_or(Error::Keys)? })
    }

    /// Seals with these keys from now on.
    pub fn rotate(&mut self, keys: &Keys) -> Result<(), Error> {
        let counter = self.counter;
        *self = Sealer::new(keys, self.me, self.session)?;
        // The same key may come back: it goes on where it was.
        self.counter = counter;
        Ok(())
    }

    /// A packet for this receiver.
    pub fn seal(&mut self, receiver: NodeId, text: &[u8]) -> Result<Vec<u8>, Error> {
        self.counter += 1;
        let mut packet = Vec::with_capacity(HEADER_BYTES + text.len() + 16);
        packet.extend_from_slice(MAGIC);
        packet.extend_from_slice(&self.key_id);
        packet.extend_from_slice(&self.me.0.to_be_bytes());
        packet.extend_from_slice(&self.session.to_be_bytes());
        packet.extend_from_slice(&self.counter.to_be_bytes());
        let mut sealed = text.to_vec();
        self.key.seal_in_place_append_tag(nonce(self.counter), aad(&packet, receiver), &mut sealed).map_err(|_| Error::Seal)?;
        packet.extend_from_slice(&sealed);
        if packet.len() > limits::PACKET_BYTES_MAX { Err(Error::Foreign) } else { Ok(packet) }
    }
}

/// Opens what others send.
pub struct Opener {
    me: NodeId,
    keys: Keys,
    senders: HashMap<(NodeId, [u8; 4]), Sender>,
}

struct Sender {
    session: u64,
    key: LessSafeKey,
    window: Window,
    last_ms: u64,
}

impl Opener {
    /// Opens packets for this node.
    pub fn new(keys: Keys, me: NodeId) -> Opener {
        Opener { me, keys, senders: HashMap::new() }
    }

    /// Opens with these keys from now on.
    pub fn rotate(&mut self, keys: Keys) {
        self.senders.retain(|(_, id), _| keys.0.iter().any(|(known, _)| known == id));
        self.keys = keys;
    }

    /// The sender and the text of a packet.
    pub fn open(&mut self, packet: &[u8], now_ms: u64) -> Result<(NodeId, Vec<u8>), Error> {
        if packet.len() < HEADER_BYTES + 16 || packet.len() > limits::PACKET_BYTES_MAX || !packet.starts_with(MAGIC) {
            return Err(Error::Foreign);
        }
        let (header, sealed) = packet.split_at(HEADER_BYTES);
        let number = |at: usize| header[at..at + 8].try_into().map(u64::from_be_bytes).map_err(|_| Error::Foreign);
        let id: [u8; 4] = header[4..8].try_into().map_err(|_| Error::Foreign)?;
        let (sender, session, counter) = (NodeId(number(8)?), number(16)?, number(24)?);
        if sender == self.me {
            return Err(Error::Foreign);
        }
        let (_, cluster_key) = self.keys.0.iter().find(|(known, _)| *known == id).ok_or(Error::UnknownKey)?;
        let known = self.senders.get(&(sender, id));
        if let Some(known) = known
            && session < known.session
            && now_ms.saturating_sub(known.last_ms) < limits::SESSION_SILENT_MS
        {
            return Err(Error::Repeated);
        }
        let same = known.filter(|known| known.session == session);
        if same.is_some_and(|known| known.window.seen(counter)) {
            return Err(Error::Repeated);
        }
        let mut text = sealed.to_vec();
        let length = match same {
            Some(known) => known.key.open_in_place(nonce(counter), aad(header, self.me), &mut text).map_err(|_| Error::Seal)?.len(),
            None => {
                let key = Keys::session(cluster_key, sender, session).ok_or(Error::Seal)?;
                let length = key.open_in_place(nonce(counter), aad(header, self.me), &mut text).map_err(|_| Error::Seal)?.len();
                if self.senders.len() >= limits::MEMBERS_MAX && !self.senders.contains_key(&(sender, id)) {
                    return Err(Error::Foreign);
                }
                self.senders.insert((sender, id), Sender { session, key, window: Window::default(), last_ms: now_ms });
                length
            }
        };
        text.truncate(length);
        if let Some(known) = self.senders.get_mut(&(sender, id)) {
            known.window.note(counter);
            known.last_ms = now_ms;
        }
        Ok((sender, text))
    }
}

/// Which of the newest packets were seen.
#[derive(Clone, Debug)]
struct Window {
    newest: u64,
    bits: [u64; (limits::REPLAY_WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Self {
        Window { newest: 0, bits: [0; (limits::REPLAY_WINDOW / 64) as usize] }
    }
}

impl Window {
    fn place(counter: u64) -> (usize, u64) {
        (((counter % limits::REPLAY_WINDOW) / 64) as usize, 1 << (counter % 64))
    }

    fn seen(&self, counter: u64) -> bool {
        if counter > self.newest {
            return false;
        }
        let (word, bit) = Window::place(counter);
        self.newest - counter >= limits::REPLAY_WINDOW || self.bits[word] & bit != 0
    }

    fn note(&mut self, counter: u64) {
        if counter > self.newest {
            if counter - self.newest >= limits::REPLAY_WINDOW {
                self.bits = Window::default().bits;
            } else {
                for skipped in self.newest + 1..=counter {
                    let (word, bit) = Window::place(skipped);
                    self.bits[word] &= !bit;
                }
            }
            self.newest = counter;
        }
        let (word, bit) = Window::place(counter);
        self.bits[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn keys(digit: char) -> String {
        std::iter::repeat_n(digit, 64).collect()
    }

    #[test]
    fn what_a_member_seals_its_receiver_opens_once() {
        let keys = Keys::parse(&keys('a')).unwrap();
        let mut from = Sealer::new(&keys, A, 7).unwrap();
        let mut to = Opener::new(keys.clone(), B);
        let packet = from.seal(B, b"hello").unwrap();
        assert_eq!(to.open(&packet, 0), Ok((A, b"hello".to_vec())));
        assert_eq!(to.open(&packet, 0), Err(Error::Repeated));
        let for_another = from.seal(NodeId(3), b"hello").unwrap();
        assert_eq!(to.open(&for_another, 0), Err(Error::Seal));
        let mut changed = from.seal(B, b"hello").unwrap();
        changed[40] ^= 1;
        assert_eq!(to.open(&changed, 0), Err(Error::Seal));
        assert_eq!(to.open(b"GET / HTTP/1.1", 0), Err(Error::Foreign));
        let stranger = Keys::parse(&self::keys('b')).unwrap();
        assert_eq!(to.open(&Sealer::new(&stranger, A, 8).unwrap().seal(B, b"x").unwrap(), 0), Err(Error::UnknownKey));
    }

    #[test]
    fn packets_may_overtake_each_other_but_not_come_twice_nor_from_an_old_session() {
        let keys = Keys::parse(&keys('a')).unwrap();
        let mut from = Sealer::new(&keys, A, 7).unwrap();
        let mut to = Opener::new(keys.clone(), B);
        let packets: Vec<_> = (0..3000).map(|_| from.seal(B, b"x").unwrap()).collect();
        for i in [5, 3, 4, 100, 99, 2999, 2990] {
            assert!(to.open(&packets[i], 0).is_ok(), "{i}");
        }
        for i in [5, 3, 100, 2999, 2990, 1000] {
            assert_eq!(to.open(&packets[i], 0), Err(Error::Repeated), "{i}");
        }
        let mut later = Sealer::new(&keys, A, 8).unwrap();
        assert!(to.open(&later.seal(B, b"x").unwrap(), 0).is_ok());
        let old = from.seal(B, b"x").unwrap();
        assert_eq!(to.open(&old, 1), Err(Error::Repeated));
        assert!(to.open(&old, limits::SESSION_SILENT_MS + 1).is_ok());
    }

    #[test]
    fn keys_rotate_without_a_gap() {
        let (old, both) = (keys('a'), format!("{}\n{}\n", keys('b'), keys('a')));
        let (old, both) = (Keys::parse(&old).unwrap(), Keys::parse(&both).unwrap());
        let mut from = Sealer::new(&old, A, 7).unwrap();
        let mut to = Opener::new(old, B);
        assert!(to.open(&from.seal(B, b"x").unwrap(), 0).is_ok());
        to.rotate(both.clone());
        assert!(to.open(&from.seal(B, b"x").unwrap(), 0).is_ok());
        from.rotate(&both).unwrap();
        assert!(to.open(&from.seal(B, b"x").unwrap(), 0).is_ok());
        assert_eq!(Keys::parse("abc"), Err(Error::Keys));
        assert_eq!(Keys::parse(""), Err(Error::Keys));
    }
}
