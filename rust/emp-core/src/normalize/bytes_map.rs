//! A small map from byte strings in parts to numbers, for look-ups per record.
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

/// A hash of the bytes of one part, its length included.
#[inline(always)]
pub fn hash_part(state: u64, part: &[u8]) -> u64 {
    let len = part.len();
    let state = state.rotate_left(17) ^ len as u64;
    match len {
        0 => state,
        1..4 => fold(state, u64::from(part[0]) | u64::from(part[len / 2]) << 8 | u64::from(part[len - 1]) << 16),
        4..8 => {
            let half = |at: usize| part[at..].first_chunk::<4>().map_or(0, |half| u32::from_le_bytes(*half));
            fold(state, u64::from(half(0)) | u64::from(half(len - 4)) << 32)
        }
        8..=16 => fold(fold(state, word(part, 0)), word(part, len - 8)),
        _ => {
            let mut state = state;
            let mut at = 0;
            while at + 8 < len {
                state = fold(state, word(part, at));
                at += 8;
            }
            fold(state, word(part, len - 8))
        }
    }
}

/// The hash of a key in parts.
#[inline(always)]
pub fn hash(parts: &[&[u8]]) -> u64 {
    parts.iter().fold(0x243f_6a88_85a3_08d3, |state, part| hash_part(state, part))
}

#[derive(Clone, Copy, Debug)]
struct Place {
    hash: u64,
    /// Index into `keys`; `EMPTY` for none.
    entry: u32,
}

const EMPTY: Place = Place { hash: 0, entry: u32::MAX };

#[derive(Clone, Debug)]
struct Entry {
    /// The parts one after another.
    key: Box<[u8]>,
    ends: Box<[u32]>,
    value: u32,
}

/// The map.
#[derive(Clone, Debug, Default)]
pub struct BytesMap {
    places: Vec<Place>,
    entries: Vec<Entry>,
}

/// Equality without a call for short parts.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    match a.len() {
        0 => true,
        len @ 8..=16 => word(a, 0) == word(b, 0) && word(a, len - 8) == word(b, len - 8),
        _ => a == b,
    }
}

impl Entry {
    #[inline(always)]
    fn is(&self, parts: &[&[u8]]) -> bool {
        let mut start = 0;
        self.ends.len() == parts.len()
            && self.ends.iter().zip(parts).all(|(end, part)| {
                let same = same(&self.key[start..*end as usize], part);
                start = *end as usize;
                same
            })
    }
}

impl BytesMap {
    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether the entry at `index` (as [`Self::get`] returned it) has this key.
    #[inline(always)]
    pub fn is_at(&self, index: u32, parts: &[&[u8]]) -> bool {
        self.entries.get(index as usize).is_some_and(|entry| entry.is(parts))
    }

    /// The number at an index.
    #[inline(always)]
    pub fn value(&self, index: u32) -> u32 {
        self.entries[index as usize].value
    }

    /// The index of a key.
    #[inline(always)]
    pub fn get(&self, hash: u64, parts: &[&[u8]]) -> Option<u32> {
        let mask = self.places.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let place = self.places[at];
            if place.entry == u32::MAX {
                return None;
            }
            if place.hash == hash {
                if self.entries[place.entry as usize].is(parts) {
                    return Some(place.entry);
                }
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a key that is not there; returns its index.
    pub fn insert(&mut self, hash: u64, parts: &[&[u8]], value: u32) -> u32 {
        if (self.entries.len() + 1) * 2 > self.places.len() {
            let size = (self.places.len() * 2).max(16);
            let old = std::mem::replace(&mut self.places, vec![EMPTY; size]);
            old.into_iter().filter(|place| place.entry != u32::MAX).for_each(|place| self.place(place));
        }
        let mut end = 0;
        let ends = parts.iter().map(|part| {
            end += part.len() as u32;
            end
        });
        let ends = ends.collect();
        self.entries.push(Entry { key: parts.concat().into(), ends, value });
        let index = self.entries.len() as u32 - 1;
        self.place(Place { hash, entry: index });
        index
    }

    fn place(&mut self, place: Place) {
        let mask = self.places.len() - 1;
        let mut at = place.hash as usize & mask;
        while self.places[at].entry != u32::MAX {
            at = (at + 1) & mask;
        }
        self.places[at] = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_length_are_found_and_no_others() {
        let mut map = BytesMap::default();
        let text: Vec<u8> = (0..100).collect();
        for len in 0..100u32 {
            let parts: [&[u8]; 2] = [&text[..len as usize], b"x"];
            map.insert(hash(&parts), &parts, len);
        }
        for len in 0..100u32 {
            let parts: [&[u8]; 2] = [&text[..len as usize], b"x"];
            let index = map.get(hash(&parts), &parts).unwrap();
            assert_eq!(map.value(index), len);
            assert!(map.is_at(index, &parts));
            let other: [&[u8]; 2] = [&text[..len as usize], b"y"];
            assert_eq!(map.get(hash(&other), &other), None);
        }
        // The same bytes cut elsewhere are another key, even under the same hash.
        let parts: [&[u8]; 2] = [&text[..2], b"x"];
        let moved: [&[u8]; 2] = [&text[..1], &[1, b'x']];
        assert_eq!(map.get(hash(&parts), &moved), None);
        map.clear();
        assert_eq!(map.get(hash(&parts), &parts), None);
    }
}
