//! Which attribute keys name a secret: whole words of a key, however they are joined.
//!
//! `api_key` is found in `x-api-key`, `apiKey`, `APIKey` and `http.request.header.api_key`; `token` is not found in `input_tokens`.

use std::collections::HashSet;

/// A rule of more words is not found in a key.
const MAX_WORDS: usize = 4;
/// What is looked at of a key, from its end: longer ones come from nobody who has a secret.
const MAX_KEY_BYTES: usize = 512;

/// What a key says of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyMatch {
    /// Nothing.
    No,
    /// A text is a secret, a number is one about it: `token_count`.
    Within,
    /// The value is the secret itself, whatever its type.
    AtEnd,
}

/// Names of secrets, compared by their letters.
#[derive(Debug, Default)]
pub struct Keys {
    names: HashSet<Vec<u8>>,
    kept: HashSet<Vec<u8>>,
}

impl Keys {
    /// Rules and exceptions; an exception is a whole key.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>, kept: impl Iterator<Item = &'a str>) -> Self {
        let joined = |name: &str| name.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_lowercase()).collect();
        Self { names: names.map(joined).filter(|name: &Vec<u8>| !name.is_empty()).collect(), kept: kept.map(joined).collect() }
    }

    /// What a key says of its value.
    pub fn of(&self, key: &[u8]) -> KeyMatch {
        let mut letters = Vec::with_capacity(key.len().min(MAX_KEY_BYTES));
        // Where words begin, and the end.
        let mut starts: Vec<usize> = Vec::new();
        let key = &key[key.len().saturating_sub(MAX_KEY_BYTES)..];
        let mut joint = true;
        for (index, &byte) in key.iter().enumerate() {
            if !byte.is_ascii_alphanumeric() && byte < 0x80 {
                joint = true;
                continue;
            }
            let before = index.checked_sub(1).map_or(0, |at| key[at]);
            let after = key.get(index + 1).copied().unwrap_or(0);
            let hump = byte.is_ascii_uppercase() && (!before.is_ascii_uppercase() || after.is_ascii_lowercase());
            if joint || hump {
                starts.push(letters.len());
            }
            joint = false;
            letters.push(byte.to_ascii_lowercase());
        }
        starts.push(letters.len());
        let mut found = KeyMatch::No;
        for first in 0..starts.len() - 1 {
            for last in first + 1..starts.len().min(first + 1 + MAX_WORDS) {
                if self.names.contains(&letters[starts[first]..starts[last]]) {
                    found = if last == starts.len() - 1 { KeyMatch::AtEnd } else { KeyMatch::Within };
                }
                if found == KeyMatch::AtEnd {
                    break;
                }
            }
            if found == KeyMatch::AtEnd {
                break;
            }
        }
        if found != KeyMatch::No && self.kept.contains(&letters) { KeyMatch::No } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyMatch, Keys};

    #[test]
    fn whole_words_are_found_however_they_are_joined() {
        let keys = Keys::new(["password", "token", "api_key", "cookie"].into_iter(), ["token_type"].into_iter());
        for key in
            ["password", "db.password", "userPassword", "API_KEY", "x-api-key", "apiKey", "APIKey", "apikey", "AuthToken", "Set-Cookie"]
        {
            assert_eq!(keys.of(key.as_bytes()), KeyMatch::AtEnd, "{key}");
        }
        for key in ["password_hash", "token_count", "api_key.id", "cookie-consent"] {
            assert_eq!(keys.of(key.as_bytes()), KeyMatch::Within, "{key}");
        }
        for key in ["", "tokens", "gen_ai.usage.input_tokens", "passwordless", "keyboard", "api", "token_type", "apikeyring", "\u{e4}token"]
        {
            assert_eq!(keys.of(key.as_bytes()), KeyMatch::No, "{key}");
        }
    }

    #[test]
    fn any_bytes_are_a_key() {
        let keys = Keys::new(["password", "!"].into_iter(), [].into_iter());
        assert_eq!(keys.of(&[0xff, 0, b'P', 0xc3]), KeyMatch::No);
        assert_eq!(keys.of(b"\x00password\xff"), KeyMatch::No, "a byte that is no ASCII belongs to the word");
        let long = [&b"a.".repeat(100_000)[..], b"password"].concat();
        assert_eq!(keys.of(&long), KeyMatch::AtEnd, "the end of a long key is looked at");
    }
}
