//! Two small maps for look-ups per record: byte strings to numbers, numbers to numbers.
//!
//! The standard map would spend more time in its hash, which is made against chosen keys, than the rest of a record takes. Here a sender
//! who chooses keys that collide makes its own look-ups linear in the entries of its own connection, which are bounded.

/// Folds 64 bits into a state.
#[inline(always)]
fn fold(state: u64, word: u64) -> u64 {
    let product = u128::from(state ^ word) * 0x9e37_79b9_7f4a_7c15;
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).map_or(0, |word| u64::from_le_bytes(*word))
}

/// The hash of a byte string.
#[inline(always)]
pub fn hash(bytes: &[u8]) -> u64 {
    let len = bytes.len();
    let mut state = 0x243f_6a88_85a3_08d3 ^ len as u64;
    match len {
        0 => fold(state, 0),
        1..8 => fold(state, bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))),
        _ => {
            let mut at = 0;
            while at + 8 < len {
                state = fold(state, word(bytes, at));
                at += 8;
            }
            fold(state, word(bytes, len - 8))
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    hash: u64,
    /// Index into `keys`; `FREE` for none.
    index: u32,
}

const FREE: u32 = u32::MAX;

/// Byte strings, numbered from 0 in order of arrival.
#[derive(Clone, Debug, Default)]
pub struct BytesMap {
    places: Vec<Place>,
    keys: Vec<Box<[u8]>>,
}

impl BytesMap {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key of a number.
    pub fn key(&self, number: u32) -> &[u8] {
        &self.keys[number as usize]
    }

    /// The number of a key.
    #[inline(always)]
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<u32> {
        let mask = self.places.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let place = self.places[at];
            if place.index == FREE {
                return None;
            }
            if place.hash == hash && *self.keys[place.index as usize] == *key {
                return Some(place.index);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a key that is not there; returns its number.
    pub fn insert(&mut self, hash: u64, key: &[u8]) -> u32 {
        if (self.keys.len() + 1) * 2 > self.places.len() {
            let size = (self.places.len() * 2).max(8);
            let old = std::mem::replace(&mut self.places, vec![Place { hash: 0, index: FREE }; size]);
            old.into_iter().filter(|place| place.index != FREE).for_each(|place| self.put(place));
        }
        let index = self.keys.len() as u32;
        self.keys.push(key.into());
        self.put(Place { hash, index });
        index
    }

    fn put(&mut self, place: Place) {
        let mask = self.places.len() - 1;
        let mut at = place.hash as usize & mask;
        while self.places[at].index != FREE {
            at = (at + 1) & mask;
        }
        self.places[at] = place;
    }
}

/// Numbers to numbers.
#[derive(Clone, Debug, Default)]
pub struct NumberMap {
    /// Key and value; a value of `FREE` for none.
    places: Vec<(u64, u32)>,
    len: usize,
}

impl NumberMap {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The value of a key.
    #[inline(always)]
    pub fn get(&self, key: u64) -> Option<u32> {
        let mask = self.places.len().checked_sub(1)?;
        let mut at = fold(0, key) as usize & mask;
        loop {
            let (this, value) = self.places[at];
            if value == FREE {
                return None;
            }
            if this == key {
                return Some(value);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a key that is not there; the value is not `u32::MAX`.
    pub fn insert(&mut self, key: u64, value: u32) {
        if (self.len + 1) * 2 > self.places.len() {
            let size = (self.places.len() * 2).max(8);
            let old = std::mem::replace(&mut self.places, vec![(0, FREE); size]);
            old.into_iter().filter(|(_, value)| *value != FREE).for_each(|(key, value)| self.put(key, value));
        }
        self.len += 1;
        self.put(key, value);
    }

    fn put(&mut self, key: u64, value: u32) {
        let mask = self.places.len() - 1;
        let mut at = fold(0, key) as usize & mask;
        while self.places[at].1 != FREE {
            at = (at + 1) & mask;
        }
        self.places[at] = (key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_length_are_found_and_no_others() {
        let mut map = BytesMap::default();
        let text: Vec<u8> = (0..100).collect();
        for len in 0..100usize {
            let key = &text[..len];
            assert_eq!(map.get(hash(key), key), None);
            assert_eq!(map.insert(hash(key), key), len as u32);
        }
        for len in 0..100usize {
            let key = &text[..len];
            assert_eq!(map.get(hash(key), key), Some(len as u32));
            assert_eq!(map.key(len as u32), key);
        }
        // The same hash alone is not enough.
        assert_eq!(map.get(hash(&text[..9]), b"other key"), None);
    }

    #[test]
    fn numbers_are_found_and_no_others() {
        let mut map = NumberMap::default();
        for key in 0..1000u64 {
            map.insert(key << 24, key as u32);
        }
        for key in 0..1000u64 {
            assert_eq!(map.get(key << 24), Some(key as u32));
            assert_eq!(map.get(key << 24 | 1), None);
        }
        map.clear();
        assert_eq!(map.get(0), None);
    }
}
