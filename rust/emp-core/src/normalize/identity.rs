//! Which resource a record belongs to: its identity, lifted off the record, encoded once.
//!
//! The identity of the last record is compared first (neighbours share it); then a map keyed on the raw identity answers; only an identity
//! that is new to the connection is encoded. A batch has a bounded number of resources: beyond it identity stays on the record.

use std::collections::HashMap;

use super::Normalizer;
use super::bytes_map::{self, BytesMap};
use super::table::IDENTITY;
use super::wire::{FIELD_1, put_text_attribute, repaired};
use crate::batch::TableEntry;

/// An identity as found on a record, by index in [`IDENTITY`]; empty where it has none.
pub type Identity<'a> = [&'a [u8]; 5];

/// Identities that a connection remembers.
const MAX_KNOWN: usize = 4096;
const NONE: u32 = u32::MAX;

/// Resource attributes that a group of records brought along (Fluent Bit's OTLP groups).
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// Encoded attributes, field tag included.
    pub encoded: Vec<u8>,
    /// Their keys.
    pub keys: Vec<Vec<u8>>,
    /// Other fields of the Resource message.
    pub tail: Vec<u8>,
    /// schema_url of the ResourceLogs.
    pub schema_url: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Known {
    entry: TableEntry,
    /// The batch (its number) in which it has `index`.
    batch: u32,
    index: u32,
}

/// The identities of a connection.
#[derive(Clone, Debug)]
pub struct Identities {
    base: Base,
    known: Vec<Known>,
    by_identity: BytesMap,
    by_message: HashMap<Box<[u8]>, u32>,
    /// The last record's identity, by its index in `by_identity`; `NONE` when a batch or a base is new.
    last: u32,
    last_index: u32,
    batch: u32,
    /// By index in [`IDENTITY`]: may be lifted (the base lacks it).
    pub liftable: [bool; 5],
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            base: Base::default(),
            known: Vec::new(),
            by_identity: BytesMap::default(),
            by_message: HashMap::new(),
            last: NONE,
            last_index: 0,
            batch: 0,
            liftable: [true; 5],
        }
    }
}

impl Identities {
    /// To be called when a batch begins: resources have no place in it yet.
    pub fn new_batch(&mut self) {
        self.batch = self.batch.wrapping_add(1);
        self.last = NONE;
        if self.by_identity.len() > MAX_KNOWN {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.known.clear();
        self.by_identity.clear();
        self.by_message.clear();
    }

    /// Sets the resource attributes that the following records share.
    pub fn set_base(&mut self, base: Base) {
        for (index, key) in IDENTITY.iter().enumerate() {
            self.liftable[index] = !base.keys.iter().any(|known| known == key.as_bytes());
        }
        self.base = base;
        self.forget();
        self.last = NONE;
    }

    /// The place of a record's resource in the batch; None when the batch may have no more: identity then stays on the record.
    #[inline]
    pub fn resource(&mut self, rules: &Normalizer, resources: &mut Vec<TableEntry>, identity: &Identity<'_>) -> Option<u32> {
        if self.by_identity.is_at(self.last, identity) {
            return Some(self.last_index);
        }
        let hash = bytes_map::hash(identity);
        let at = match self.by_identity.get(hash, identity) {
            Some(at) => at,
            None => self.learn(rules, hash, identity),
        };
        let known = &mut self.known[self.by_identity.value(at) as usize];
        if known.batch != self.batch {
            let bare = identity.iter().all(|text| text.is_empty());
            // One place is kept for the resource without identity, which takes what is over the limit.
            if !bare && resources.len() + 1 >= rules.max_resources.max(2) {
                return None;
            }
            known.index = resources.len() as u32;
            known.batch = self.batch;
            resources.push(known.entry.clone());
        }
        (self.last, self.last_index) = (at, known.index);
        Some(known.index)
    }

    /// Encodes the resource of an identity that is new to the connection.
    #[cold]
    fn learn(&mut self, rules: &Normalizer, hash: u64, identity: &Identity<'_>) -> u32 {
        let entry = TableEntry { message: self.encode(rules, identity), schema_url: self.base.schema_url.clone(), unknown: Vec::new() };
        // Two identities may come to one resource (a service_type and the service.name that is derived from it).
        let next = self.known.len() as u32;
        let index = *self.by_message.entry(entry.message.as_slice().into()).or_insert(next);
        if index == next {
            self.known.push(Known { entry, batch: self.batch.wrapping_sub(1), index: 0 });
        }
        self.by_identity.insert(hash, identity, index)
    }

    /// The encoded Resource: the base, the identity, what is derived from it, and the receiver's stamp where still lacking.
    fn encode(&self, rules: &Normalizer, identity: &Identity<'_>) -> Vec<u8> {
        let mut out = self.base.encoded.clone();
        let mut keys: Vec<&[u8]> = self.base.keys.iter().map(Vec::as_slice).collect();
        let mut put = |out: &mut Vec<u8>, key: &'static [u8], text: &[u8]| {
            if !text.is_empty() && !keys.contains(&key) {
                keys.push(key);
                put_text_attribute(out, FIELD_1, key, text);
            }
        };
        let text: Vec<_> = identity.iter().map(|text| repaired(text)).collect();
        for (key, text) in IDENTITY.iter().zip(&text) {
            put(&mut out, key.as_bytes(), text);
        }
        let stamped = |key: &str| rules.stamp.iter().find(|(known, _)| known == key).map_or(&b""[..], |(_, text)| text.as_bytes());
        let or_stamp = |index: usize| if text[index].is_empty() { stamped(IDENTITY[index]) } else { &text[index] };
        let (machine, worker) = (or_stamp(0), or_stamp(1));
        if !text[2].is_empty() || stamped("service.name").is_empty() {
            put(&mut out, b"service.name", or_stamp(2));
        }
        // The stamp names the host of this process: it holds for another machine's records no more than its machine_id does.
        if machine != stamped("machine_id") || stamped("host.name").is_empty() {
            put(&mut out, b"host.name", machine);
        }
        if !machine.is_empty() {
            let mut instance = [b"machine-", machine].concat();
            let own = worker.strip_prefix(machine).and_then(|rest| rest.strip_prefix(b"-")).unwrap_or(worker);
            if !own.is_empty() {
                instance.push(b'.');
                instance.extend_from_slice(own);
            }
            put(&mut out, b"service.instance.id", &instance);
        }
        for (key, text) in &rules.stamp {
            if !keys.contains(&key.as_bytes()) {
                put_text_attribute(&mut out, FIELD_1, key.as_bytes(), text.as_bytes());
            }
        }
        out.extend_from_slice(&self.base.tail);
        out
    }
}
