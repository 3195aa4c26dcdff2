//! Telling one's own write: every value in etcd ends in a mark that only its writer knows.
//!
//! When the answer to a write is lost (a member died, a link was cut), the only way to learn what became of it is to look
//! at the key. An equal value proves nothing, for another server may have written the same bytes from the same state; an
//! equal mark does. So a stored value is `<value>\n~<16 hexadecimal digits>`, and nobody above this back end sees the end.
//! A value without a mark (put there by another program) is taken as it is.
//!
//! What must stay true: no two writes ever carry the same mark.

use bytes::Bytes;
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

const OPENING: &[u8; 2] = b"\n~";
/// What a mark adds to a value, in bytes.
pub const LENGTH: usize = OPENING.len() + 16;

/// Names one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u64);

/// Gives out marks: each process counts on from a random number of 64 bits.
pub struct Marks(AtomicU64);

impl Default for Marks {
    fn default() -> Self {
        Marks(AtomicU64::new(RandomState::new().build_hasher().finish()))
    }
}

impl Marks {
    /// A mark that no other write carries.
    pub fn next(&self) -> Mark {
        Mark(self.0.fetch_add(1, Relaxed))
    }
}

/// A value as it is stored.
pub fn seal(value: &[u8], mark: Mark) -> Vec<u8> {
    let mut stored = Vec::with_capacity(value.len() + LENGTH);
    stored.extend_from_slice(value);
    stored.extend_from_slice(OPENING);
    stored.extend_from_slice(format!("{:016x}", mark.0).as_bytes());
    stored
}

/// Takes a stored value apart.
pub fn open(stored: Vec<u8>) -> (Bytes, Option<Mark>) {
    let mut value = Bytes::from(stored);
    let Some(end) = value.len().checked_sub(LENGTH) else { return (value, None) };
    let digits = value[end..].strip_prefix(OPENING).filter(|digits| digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    let mark = digits.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(Mark);
    if mark.is_some() {
        value.truncate(end);
    }
    (value, mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_as_it_went_in() {
        for value in [&b""[..], b"{}", b"\n~0123456789abcdef", &[0xff, 0, b'\n', b'~']] {
            let mark = Mark(u64::MAX - 7);
            assert_eq!(open(seal(value, mark)), (Bytes::copy_from_slice(value), Some(mark)));
        }
    }

    #[test]
    fn what_another_program_wrote_is_taken_as_it_is() {
        for value in [&b""[..], b"{}", b"{\"a\":\"long enough to hold a mark\"}", b"x\n~0123456789ABCDEF", b"x\n~0123456789abcdeg"] {
            assert_eq!(open(value.to_vec()), (Bytes::copy_from_slice(value), None));
        }
    }

    #[test]
    fn marks_differ() {
        let marks = Marks::default();
        assert_ne!(marks.next(), marks.next());
        assert_ne!(Marks::default().next(), Marks::default().next());
    }
}
