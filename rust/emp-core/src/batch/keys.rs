//! A set of attribute keys of one row: compared one by one while they are few, which is faster than hashing them.

use std::collections::HashSet;

/// Up to so many keys are compared one by one; more come from a sender that may mean harm, so they are hashed.
const FEW: usize = 32;

/// A set of keys that lie elsewhere.
#[derive(Default)]
pub(crate) struct KeySet<'a> {
    few: Vec<&'a [u8]>,
    many: HashSet<&'a [u8]>,
}

impl<'a> KeySet<'a> {
    /// Whether a key is in the set.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.few.contains(&key) || (!self.many.is_empty() && self.many.contains(key))
    }

    /// Adds a key; false when it was there.
    pub(crate) fn insert(&mut self, key: &'a [u8]) -> bool {
        if self.few.contains(&key) {
            return false;
        }
        if self.few.len() < FEW {
            self.few.push(key);
            return true;
        }
        self.many.insert(key)
    }

    /// Whether there is no key.
    pub(crate) fn is_empty(&self) -> bool {
        self.few.is_empty()
    }
}
