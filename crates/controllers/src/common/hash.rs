//! Short names for contents: the same content gives the same few letters, from Kubernetes' safe alphabet (no vowels, and
//! nothing that is easily mistaken), so that they can be part of names and labels.

use sha2::{Digest, Sha256};

const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A hash of the content and of how often it has collided, 8 to 10 letters long.
pub fn short_hash(content: &[u8], collisions: Option<i32>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(content);
    if let Some(collisions) = collisions.filter(|n| *n > 0) {
        hasher.update(collisions.to_le_bytes());
    }
    let digest = hasher.finalize();
    letters(u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

/// A number in the safe alphabet: each of its decimal digits as one letter.
fn letters(number: u32) -> String {
    number.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_has_the_same_hash() {
        let hash = short_hash(b"a", None);
        assert_eq!(hash, short_hash(b"a", Some(0)));
        assert_ne!(hash, short_hash(b"a", Some(1)));
        assert_ne!(hash, short_hash(b"b", None));
        assert!((1..=10).contains(&hash.len()) && hash.bytes().all(|b| ALPHABET.contains(&b)), "{hash}");
    }
}
