//! Which attribute keys name a secret: whole words of a key, however they are joined.
//!
//! `api_key` is found in `x-api-key`, `apiKey`, `APIKey` and `http.request.header.api_key`; `token` is not found in `input_tokens`.
//! Rows have few distinct keys, so that what was found of one is remembered ([`KeyMemo`]).

use std::collections::HashSet;

/// A rule of more words is not found in a key.
const MAX_WORDS: usize = 4;
/// What is looked at of a key, from its end: longer ones come from nobody who has a secret.
const MAX_KEY_BYTES: usize = 512;

/// How many keys are remembered, a power of two; a key that is longer is not.
const MEMO_SLOTS: usize = 512;
const MEMO_KEY_BYTES: usize = 64;

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

    /// What a key says of its value, asked of `memo` first.
    pub fn remembered(&self, key: &[u8], memo: &mut KeyMemo) -> KeyMatch {
        if key.len() > MEMO_KEY_BYTES {
            return self.of(key);
        }
        if memo.slots.is_empty() {
            memo.slots.resize(MEMO_SLOTS, Slot { ends: Ends::default(), long: Box::default(), says: KeyMatch::No });
        }
        let ends = Ends::of(key);
        let long = if key.len() > ENDS_BYTES { key } else { &[] };
        let slot = &mut memo.slots[ends.slot()];
        if slot.ends != ends || *slot.long != *long {
            *slot = Slot { ends, long: long.into(), says: self.of(key) };
        }
        slot.says
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

/// Keys that were asked for lately, each in the one slot that is its own: bounded, whoever chooses the keys.
#[derive(Debug, Default)]
pub struct KeyMemo {
    slots: Vec<Slot>,
}

/// A key, and what it says. The first are empty: the empty key names nothing.
#[derive(Clone, Debug)]
struct Slot {
    ends: Ends,
    /// What is longer than [`ENDS_BYTES`].
    long: Box<[u8]>,
    says: KeyMatch,
}

/// A key by its length, its first bytes and its last: all of it, up to [`ENDS_BYTES`]; of a longer one enough to choose a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ends(u64, u64, usize);

const ENDS_BYTES: usize = 16;

impl Ends {
    #[inline]
    fn of(key: &[u8]) -> Self {
        if let (Some(first), Some(last)) = (key.first_chunk::<8>(), key.last_chunk::<8>()) {
            return Self(u64::from_le_bytes(*first), u64::from_le_bytes(*last), key.len());
        }
        if let (Some(first), Some(last)) = (key.first_chunk::<4>(), key.last_chunk::<4>()) {
            return Self(u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into(), key.len());
        }
        let short = key.iter().fold(0, |bytes, byte| bytes << 8 | u64::from(*byte));
        Self(short, 0, key.len())
    }

    #[inline]
    fn slot(self) -> usize {
        let hash = (self.0 ^ self.1.rotate_left(29) ^ self.2 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 32) as usize % MEMO_SLOTS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{KeyMatch, KeyMemo, Keys};

    proptest! {
        #[test]
        fn the_memo_says_of_every_key_what_the_rules_say(keys in proptest::collection::vec("[aApPiIkKeEyY_.x\u{e4}-]{0,9}", 1..40)) {
            let rules = Keys::new(["api_key", "key"].into_iter(), [].into_iter());
            let mut memo = KeyMemo::default();
            for key in keys.iter().chain(&keys) {
                prop_assert_eq!(rules.remembered(key.as_bytes(), &mut memo), rules.of(key.as_bytes()));
            }
        }
    }

    #[test]
    fn more_keys_than_are_remembered_are_each_told_right() {
        let keys = Keys::new(["token"].into_iter(), [].into_iter());
        let mut memo = KeyMemo::default();
        for number in (0..5_000).chain(0..5_000) {
            assert_eq!(keys.remembered(format!("token{number}").as_bytes(), &mut memo), KeyMatch::No);
            assert_eq!(keys.remembered(format!("{number}.token").as_bytes(), &mut memo), KeyMatch::AtEnd);
        }
    }

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
