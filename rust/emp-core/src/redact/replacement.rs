//! What takes the place of a secret: a mask, or a keyed hash, by which the same secret is known again and by nobody guessed.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const HASH_BEGINS: &[u8] = b"[hash:";
const HASH_DIGITS: usize = 16;
const HASH_BYTES: usize = HASH_BEGINS.len() + HASH_DIGITS + 1;

/// See the module's head.
pub struct Replacement {
    mask: Vec<u8>,
    hash: Option<Hmac<Sha256>>,
}

impl Replacement {
    /// A mask, or with a key the first 64 bits of HMAC-SHA256 of the secret.
    pub fn new(mask: &str, hash_key: Option<&[u8]>) -> Self {
        // HMAC takes a key of any length.
        let hash = hash_key.and_then(|key| Hmac::new_from_slice(key).ok());
        Self { mask: mask.as_bytes().to_vec(), hash }
    }

    /// Appends what takes the place of a secret.
    pub fn put(&self, secret: &[u8], out: &mut Vec<u8>) {
        let Some(hash) = &self.hash else { return out.extend_from_slice(&self.mask) };
        let digest = hash.clone().chain_update(secret).finalize().into_bytes();
        out.extend_from_slice(HASH_BEGINS);
        for byte in &digest[..HASH_DIGITS / 2] {
            out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
        }
        out.push(b']');
    }

    /// Whether a text is what took the place of a secret, here or where it came from.
    pub fn is_one(&self, text: &[u8]) -> bool {
        text == self.mask || text.len() == HASH_BYTES && hash_begins(text)
    }

    /// Whether what was found at `start..end` is a part of what took the place of a secret.
    pub fn covers(&self, text: &[u8], start: usize, end: usize) -> bool {
        let longest = self.mask.len().max(HASH_BYTES);
        (start.saturating_sub(longest)..=start).any(|at| {
            let here = &text[at..];
            let masked = !self.mask.is_empty() && here.starts_with(&self.mask) && at + self.mask.len() >= end;
            masked || at + HASH_BYTES >= end && hash_begins(here)
        })
    }
}

fn hash_begins(text: &[u8]) -> bool {
    let Some(digits) = text.strip_prefix(HASH_BEGINS) else { return false };
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    digits.get(HASH_DIGITS) == Some(&b']') && digits[..HASH_DIGITS].iter().all(digit)
}

#[cfg(test)]
mod tests {
    use super::Replacement;

    fn put(key: Option<&[u8]>, secret: &str) -> String {
        let mut out = Vec::new();
        Replacement::new("[x]", key).put(secret.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Test case 2 of RFC 4231.
    #[test]
    fn a_hash_is_the_beginning_of_hmac_sha256() {
        assert_eq!(put(Some(b"Jefe"), "what do ya want for nothing?"), "[hash:5bdcc146bf60754e]");
        assert_eq!(put(None, "what"), "[x]");
    }

    #[test]
    fn another_key_makes_another_hash_and_the_same_key_the_same() {
        assert_eq!(put(Some(b"one"), "hunter2"), put(Some(b"one"), "hunter2"));
        assert_ne!(put(Some(b"one"), "hunter2"), put(Some(b"two"), "hunter2"));
        assert_ne!(put(Some(b"one"), "hunter2"), put(Some(b"one"), "hunter3"));
    }

    #[test]
    fn what_took_the_place_of_a_secret_is_none() {
        let replacement = Replacement::new("[x]", None);
        for text in ["[x]", "[hash:0123456789abcdef]"] {
            assert!(replacement.is_one(text.as_bytes()) && replacement.covers(text.as_bytes(), 1, text.len() - 1), "{text}");
        }
        for text in ["[y]", "[hash:0123456789abcdeg]", "[hash:0123456789abcde]", "[hash:0123456789abcdef]x", ""] {
            assert!(!replacement.is_one(text.as_bytes()), "{text}");
        }
        assert!(!replacement.covers(b"[hash:0123456789abcdef]x", 1, 24), "it goes on behind it");
    }
}
