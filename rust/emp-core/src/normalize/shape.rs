//! What a connection's keys mean, remembered: records of one sender have the same keys in nearly the same order.
//!
//! Each known key is a [`Slot`] with its resolved meaning and the bytes that an attribute of that name begins with; each slot remembers
//! which slot came next the last time. So the usual field costs one comparison of 16 or 32 bytes and no hashing.

use std::collections::HashMap;

use super::copy::SLACK;
use super::table::{Role, Table};

/// Keys (with their msgpack head) up to this size are remembered.
pub const MAX_KEY_BYTES: usize = 32;
/// Attribute names up to this size are remembered.
const MAX_NAME_BYTES: usize = 58;
/// A connection with more keys than this pays a look-up for those beyond.
const MAX_SLOTS: usize = 512;

/// A key that was seen. Its size is a power of two, so that an index is a shift.
#[derive(Clone, Debug)]
#[repr(align(128))]
pub struct Slot {
    /// The key as on the wire, zero padded.
    pub raw: [u8; MAX_KEY_BYTES],
    /// Its length.
    pub raw_len: u8,
    /// What is done with the value.
    pub role: Role,
    /// Another spelling, not the canonical one.
    pub is_alias: bool,
    /// The slot that followed last time.
    pub next: u16,
    /// Which output name it claims; a second claim in one record is a conflict.
    pub claim: u16,
    /// Bytes of the attribute's name.
    pub name_len: u8,
    /// `0x32 <length> 0x0a <name length> <name>`: the length is patched in.
    pub prefix: [u8; SLACK],
}

impl Slot {
    /// The attribute's name.
    pub fn name(&self) -> &[u8] {
        &self.prefix[4..4 + usize::from(self.name_len)]
    }
}

/// The slots of a connection.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    /// Slot 0 stands for the beginning of a record.
    pub slots: Vec<Slot>,
    /// By claim: the record (its number) that made it last.
    pub claimed: Vec<u32>,
    by_key: HashMap<Box<[u8]>, u16>,
    claims: HashMap<Box<[u8]>, u16>,
}

impl Shapes {
    /// The slot of a key that the prediction missed; None when it cannot be remembered. `raw` is the key with its msgpack head, `key` its text.
    pub fn find(&mut self, table: &Table, raw: &[u8], key: &[u8]) -> Option<u16> {
        if let Some(slot) = self.by_key.get(raw) {
            return Some(*slot);
        }
        if raw.len() > MAX_KEY_BYTES || self.slots.len() >= MAX_SLOTS || !key.is_ascii() {
            return None;
        }
        let meaning = table.meaning(key);
        let name = &*meaning.canonical;
        if name.len() > MAX_NAME_BYTES || !name.is_ascii() {
            return None;
        }
        let next_claim = self.claimed.len() as u16;
        let claim = *self.claims.entry(name.into()).or_insert(next_claim);
        if claim == next_claim {
            self.claimed.push(0);
        }
        let mut slot = Slot {
            raw: [0; MAX_KEY_BYTES],
            raw_len: raw.len() as u8,
            role: meaning.role,
            is_alias: meaning.rank > 0,
            next: 0,
            claim,
            name_len: name.len() as u8,
            prefix: [0; SLACK],
        };
        slot.raw[..raw.len()].copy_from_slice(raw);
        slot.prefix[..4].copy_from_slice(&[0x32, 0, 0x0a, name.len() as u8]);
        slot.prefix[4..4 + name.len()].copy_from_slice(name);
        let index = self.slots.len() as u16;
        self.by_key.insert(raw.into(), index);
        self.slots.push(slot);
        Some(index)
    }

    /// Shapes that know nothing.
    pub fn new() -> Self {
        // Its key is msgpack's unused byte, which begins no key. Its claim is its own.
        let start = Slot {
            raw: [0xc1; MAX_KEY_BYTES],
            raw_len: 1,
            role: Role::Attribute,
            is_alias: false,
            next: 0,
            claim: 0,
            name_len: 0,
            prefix: [0; SLACK],
        };
        Self { slots: vec![start], claimed: vec![0], ..Self::default() }
    }
}
