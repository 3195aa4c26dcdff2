//! Short names for contents: the same content gives the same few letters, from Kubernetes' safe alphabet (no vowels, and
//! nothing that is easily mistaken), so that they can be part of names and labels.

use serde::Serialize;
use sha2::{Digest, Sha256};

const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A hash of the content and of how often it has collided, 8 to 10 letters long.
pub fn short_hash<T: Serialize>(content: &T, collisions: Option<i32>) -> String {
    let mut hasher = Sha256::new();
    // Maps serialise in order of their keys and structs in order of their fields, so this is stable. A template always serialises.
    hasher.update(serde_json::to_vec(content).unwrap_or_default());
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
        let hash = short_hash(&"a", None);
        assert_eq!(hash, short_hash(&"a", Some(0)));
        assert_ne!(hash, short_hash(&"a", Some(1)));
        assert_ne!(hash, short_hash(&"b", None));
        assert!((1..=10).contains(&hash.len()) && hash.bytes().all(|b| ALPHABET.contains(&b)), "{hash}");
    }
}
