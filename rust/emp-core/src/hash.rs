//! The hash of maps that are asked for every row: keyed with the process's random numbers like the standard one, but several times faster.
//!
//! The keys come from outside: without a key in the hash a sender could choose identities that all collide.

/// A map from what a sender wrote.
pub type KeyedMap<K, V> = std::collections::HashMap<K, V, ahash::RandomState>;

/// A set of what a sender wrote.
pub type KeyedSet<K> = std::collections::HashSet<K, ahash::RandomState>;
