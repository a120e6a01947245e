//! Which resource a record belongs to: its identity, lifted off the record, encoded once.
//!
//! Each part of an identity (its machine_id, its worker_id, …) has a number on the connection; the usual part is the same as the last
//! record's, which is one comparison. The numbers together name the resource, which is encoded when it is new. A batch has a bounded
//! number of resources: beyond it identity stays on the record.

use std::borrow::Cow;

use super::Normalizer;
use super::bytes_map::{BytesMap, NumberMap, hash};
use super::copy::{BLOCK, same_block};
use super::table::IDENTITY;
use super::wire::{FIELD_1, put_text_attribute, repaired};
use crate::batch::TableEntry;
use crate::hash::KeyedMap;
use crate::otlp::fields::resource;
use crate::otlp::scan::string_value;
use crate::otlp::value::for_each_pair;
use crate::otlp::wire::{Reader, WireError};

/// Parts of an identity.
const PARTS: usize = IDENTITY.len();
/// Bits of a part's number in an [`Identity`].
const BITS: u32 = 12;
/// Different values of a part that are remembered; then all are forgotten.
const MAX_KNOWN: usize = (1 << BITS) - 2;

/// An identity: the numbers of its parts side by side, 0 for a part that it lacks. Valid until the next batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity(u64);

impl Identity {
    /// With a part, by index in [`IDENTITY`].
    #[inline(always)]
    pub fn with(self, index: u8, number: u32) -> Self {
        Self(self.0 | u64::from(number) << (u32::from(index) * BITS))
    }

    fn number(self, index: usize) -> u32 {
        (self.0 >> (index as u32 * BITS)) as u32 & ((1 << BITS) - 1)
    }
}

/// The resource that a group of records brought along: an OTLP resource, or one of Fluent Bit's OTLP groups.
#[derive(Clone, Debug, Default)]
pub struct Base {
    entry: TableEntry,
    /// The keys of its attributes.
    keys: Vec<Vec<u8>>,
    /// The text of those in [`IDENTITY`]; empty for others.
    text: [Vec<u8>; PARTS],
}

impl Base {
    /// A resource as it came.
    pub fn new(entry: TableEntry) -> Self {
        let mut new = Self::default();
        // What cannot be read proves nothing; it is kept as it came.
        let _ = for_each_pair(Reader::new(&entry.message), resource::ATTRIBUTES, |pair| {
            if let Some(index) = IDENTITY.iter().position(|key| key.as_bytes() == pair.key) {
                new.text[index] = string_value(pair.value)?.map(|(text, _)| text.to_vec()).unwrap_or_default();
            }
            new.keys.push(pair.key.to_vec());
            Ok::<(), WireError>(())
        });
        new.entry = entry;
        new
    }

    fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known == key.as_bytes())
    }

    /// By index in [`IDENTITY`]: which parts may be lifted onto it.
    pub fn lacking(&self) -> [bool; PARTS] {
        IDENTITY.map(|key| !self.has(key))
    }

    /// The resource with an identity, what is derived from it, and the receiver's stamp, each where it lacks them.
    pub fn complete(&self, rules: &Normalizer, identity: [Cow<'_, [u8]>; PARTS]) -> TableEntry {
        let mut entry = self.entry.clone();
        let mut keys: Vec<&[u8]> = self.keys.iter().map(Vec::as_slice).collect();
        let mut put = |key: &'static [u8], text: &[u8]| {
            if !text.is_empty() && !keys.contains(&key) {
                keys.push(key);
                put_text_attribute(&mut entry.message, FIELD_1, key, text);
            }
        };
        for (key, text) in IDENTITY.iter().zip(&identity) {
            put(key.as_bytes(), text);
        }
        let stamped = |key: &str| rules.stamp.iter().find(|(known, _)| known == key).map_or(&b""[..], |(_, text)| text.as_bytes());
        // What the resource says of itself goes first, also where it is no text.
        let text = |index: usize| match &identity[index][..] {
            _ if self.has(IDENTITY[index]) => &self.text[index],
            [] => stamped(IDENTITY[index]),
            text => text,
        };
        let (machine, worker, service_type) = (text(0), text(1), text(2));
        if self.has(IDENTITY[2]) || !identity[2].is_empty() || stamped("service.name").is_empty() {
            put(b"service.name", service_type);
        }
        // The stamp names the host of this process: it holds for another machine's records no more than its machine_id does.
        if machine != stamped("machine_id") || stamped("host.name").is_empty() {
            put(b"host.name", machine);
        }
        if !machine.is_empty() {
            let mut instance = [b"machine-", machine].concat();
            let own = worker.strip_prefix(machine).and_then(|rest| rest.strip_prefix(b"-")).unwrap_or(worker);
            if !own.is_empty() {
                instance.push(b'.');
                instance.extend_from_slice(own);
            }
            put(b"service.instance.id", &instance);
        }
        for (key, text) in &rules.stamp {
            if !keys.contains(&key.as_bytes()) {
                put_text_attribute(&mut entry.message, FIELD_1, key.as_bytes(), text.as_bytes());
            }
        }
        entry
    }
}

#[derive(Clone, Debug)]
struct Known {
    entry: TableEntry,
    /// The batch (its number) in which it has `index`.
    batch: u32,
    index: u32,
}

/// The values that a part has had.
#[derive(Clone, Debug)]
struct Part {
    last: [u8; BLOCK],
    /// Longer values are not compared with; `usize::MAX` for none.
    last_len: usize,
    last_number: u32,
    numbers: BytesMap,
}

impl Default for Part {
    fn default() -> Self {
        Self { last: [0; BLOCK], last_len: usize::MAX, last_number: 0, numbers: BytesMap::default() }
    }
}

/// The identities of a connection.
#[derive(Clone, Debug)]
pub struct Identities {
    base: Base,
    parts: [Part; PARTS],
    known: Vec<Known>,
    by_identity: NumberMap,
    by_message: KeyedMap<Box<[u8]>, u32>,
    /// The last record's, if it was in this batch.
    last: Option<(Identity, u32)>,
    batch: u32,
    /// By index in [`IDENTITY`]: may be lifted (the base lacks it).
    pub liftable: [bool; PARTS],
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            base: Base::default(),
            parts: Default::default(),
            known: Vec::new(),
            by_identity: NumberMap::default(),
            by_message: KeyedMap::default(),
            last: None,
            batch: 0,
            liftable: [true; PARTS],
        }
    }
}

impl Identities {
    /// To be called when a batch begins: resources have no place in it yet.
    pub fn new_batch(&mut self) {
        self.batch = self.batch.wrapping_add(1);
        self.last = None;
        if self.by_identity.len() > MAX_KNOWN {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.parts = Default::default();
        self.known.clear();
        self.by_identity.clear();
        self.by_message.clear();
        self.last = None;
    }

    /// Sets the resource attributes that the following records share.
    pub fn set_base(&mut self, base: Base) {
        self.liftable = base.lacking();
        self.base = base;
        self.forget();
    }

    /// The number of a part (by index in [`IDENTITY`]) that has a value; None when the batch has too many of them.
    ///
    /// # Safety
    /// `BLOCK` bytes are readable from the first byte of `text`.
    #[inline(always)]
    pub unsafe fn part(&mut self, index: u8, text: &[u8]) -> Option<u32> {
        let part = &self.parts[usize::from(index)];
        // SAFETY: the caller's promise; `last` is a block.
        if text.len() == part.last_len && unsafe { same_block(text.as_ptr(), part.last.as_ptr(), text.len()) } {
            return Some(part.last_number);
        }
        self.look_up_part(index, text)
    }

    /// The same, whatever lies behind the text.
    pub fn look_up_part(&mut self, index: u8, text: &[u8]) -> Option<u32> {
        let part = &mut self.parts[usize::from(index)];
        let hash = hash(text);
        let at = match part.numbers.get(hash, text) {
            Some(at) => at,
            None if part.numbers.len() >= MAX_KNOWN => return None,
            None => part.numbers.insert(hash, text),
        };
        part.last_number = at + 1;
        part.last_len = usize::MAX;
        if let Some(last) = part.last.get_mut(..text.len()) {
            last.copy_from_slice(text);
            part.last_len = text.len();
        }
        Some(part.last_number)
    }

    /// The place of a record's resource in the batch; None when the batch may have no more: identity then stays on the record.
    #[inline(always)]
    pub fn resource(&mut self, rules: &Normalizer, resources: &mut Vec<TableEntry>, identity: Identity) -> Option<u32> {
        if let Some((last, index)) = self.last
            && last == identity
        {
            return Some(index);
        }
        self.look_up(rules, resources, identity)
    }

    fn look_up(&mut self, rules: &Normalizer, resources: &mut Vec<TableEntry>, identity: Identity) -> Option<u32> {
        let known = match self.by_identity.get(identity.0) {
            Some(known) => known,
            None => self.learn(rules, identity),
        };
        let known = &mut self.known[known as usize];
        if known.batch != self.batch {
            // One place is kept for the resource without identity, which takes what is over the limit.
            if identity != Identity::default() && resources.len() + 1 >= rules.max_resources.max(2) {
                return None;
            }
            known.index = resources.len() as u32;
            known.batch = self.batch;
            resources.push(known.entry.clone());
        }
        self.last = Some((identity, known.index));
        Some(known.index)
    }

    /// Encodes the resource of an identity that is new to the connection.
    #[cold]
    fn learn(&mut self, rules: &Normalizer, identity: Identity) -> u32 {
        let text = std::array::from_fn(|index| match identity.number(index) {
            0 => Cow::Borrowed(&[][..]),
            number => repaired(self.parts[index].numbers.key(number - 1)),
        });
        let entry = self.base.complete(rules, text);
        // Two identities may come to one resource (a service_type and the service.name that is derived from it).
        let next = self.known.len() as u32;
        let known = *self.by_message.entry(entry.message.as_slice().into()).or_insert(next);
        if known == next {
            self.known.push(Known { entry, batch: self.batch.wrapping_sub(1), index: 0 });
        }
        self.by_identity.insert(identity.0, known);
        known
    }
}
