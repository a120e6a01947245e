//! The streams of all metrics: found by the bytes of a point's attributes, in whatever order a sender wrote them.
//!
//! The bytes as they came are looked up first. New ones are put in the order of their keys and looked up again; both forms are remembered,
//! so attributes are sorted once for each order in which they ever come.

use std::hash::{BuildHasher, Hasher};

use hashbrown::HashTable;

use super::kept::Kept;
use crate::otlp::descriptors::KEY_VALUE;
use crate::otlp::scan::key_value;
use crate::otlp::validate::{MAX_MESSAGE_DEPTH, validate};
use crate::otlp::wire::{Reader, WireError, for_each_field};

/// A form of a stream's attributes.
struct Alias {
    at: usize,
    len: u32,
    metric: u32,
    stream: u32,
}

/// As many forms of a stream are remembered. Some senders write attributes in an order that is another one each time.
const MAX_FORMS: u32 = 8;

/// One stream of a metric.
pub struct Stream {
    alias: u32,
    forms: u32,
    /// The window in which it had a point last.
    pub seen: u32,
    /// Its points of this window.
    pub points: Vec<Kept>,
}

/// See the module's head.
#[derive(Default)]
pub struct Streams {
    all: Vec<Stream>,
    aliases: Vec<Alias>,
    bytes: Vec<u8>,
    table: HashTable<u32>,
    random: ahash::RandomState,
    sorted: Vec<u8>,
}

impl Streams {
    /// A hash of bytes, keyed as those of the table.
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        self.random.hash_one(bytes)
    }

    #[inline]
    fn key_hash(random: &ahash::RandomState, metric: u32, attributes: &[u8]) -> u64 {
        let mut hasher = random.build_hasher();
        hasher.write_u32(metric);
        hasher.write(attributes);
        hasher.finish()
    }

    #[inline]
    fn look_up(&self, metric: u32, attributes: &[u8]) -> Option<u32> {
        let hash = Self::key_hash(&self.random, metric, attributes);
        let found = self.table.find(hash, |at| {
            let alias = &self.aliases[*at as usize];
            alias.metric == metric && &self.bytes[alias.at..alias.at + alias.len as usize] == attributes
        });
        found.map(|at| self.aliases[*at as usize].stream)
    }

    /// The stream of a metric that has these attributes (fields of a point); where there is none and `may_add`, a new one. The bool: it is new.
    #[inline]
    pub fn find(&mut self, metric: u32, attributes: &[u8], may_add: bool) -> Result<Option<(u32, bool)>, WireError> {
        match self.look_up(metric, attributes) {
            Some(stream) => Ok(Some((stream, false))),
            None => self.find_sorted(metric, attributes, may_add),
        }
    }

    #[cold]
    fn find_sorted(&mut self, metric: u32, attributes: &[u8], may_add: bool) -> Result<Option<(u32, bool)>, WireError> {
        let mut sorted = std::mem::take(&mut self.sorted);
        let found = sort_attributes(attributes, &mut sorted).map(|()| self.find_or_add(metric, attributes, &sorted, may_add));
        self.sorted = sorted;
        found
    }

    fn find_or_add(&mut self, metric: u32, attributes: &[u8], sorted: &[u8], may_add: bool) -> Option<(u32, bool)> {
        if let Some(stream) = self.look_up(metric, sorted) {
            let known = &mut self.all[stream as usize];
            if known.forms < MAX_FORMS {
                known.forms += 1;
                self.add_alias(metric, attributes, stream);
            }
            return Some((stream, false));
        }
        if !may_add {
            return None;
        }
        let stream = self.all.len() as u32;
        let alias = self.add_alias(metric, sorted, stream);
        let forms = if sorted == attributes { 1 } else { 2 };
        self.all.push(Stream { alias, forms, seen: 0, points: Vec::new() });
        if sorted != attributes {
            self.add_alias(metric, attributes, stream);
        }
        Some((stream, true))
    }

    fn add_alias(&mut self, metric: u32, attributes: &[u8], stream: u32) -> u32 {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(attributes);
        let index = self.aliases.len() as u32;
        self.aliases.push(Alias { at, len: attributes.len() as u32, metric, stream });
        let (aliases, bytes, random) = (&self.aliases, &self.bytes, &self.random);
        let hash_of = |at: &u32| {
            let alias = &aliases[*at as usize];
            Self::key_hash(random, alias.metric, &bytes[alias.at..alias.at + alias.len as usize])
        };
        self.table.insert_unique(Self::key_hash(random, metric, attributes), index, hash_of);
        index
    }

    /// A stream by its number.
    #[inline]
    pub fn get_mut(&mut self, stream: u32) -> &mut Stream {
        &mut self.all[stream as usize]
    }

    /// A stream's attributes: fields of a point, in the order of their keys.
    pub fn attributes(&self, stream: u32) -> &[u8] {
        let alias = &self.aliases[self.all[stream as usize].alias as usize];
        &self.bytes[alias.at..alias.at + alias.len as usize]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Bytes that they take, without their points.
    pub fn size_bytes(&self) -> usize {
        self.all.capacity() * size_of::<Stream>()
            + self.aliases.capacity() * size_of::<Alias>()
            + self.bytes.capacity()
            + self.table.capacity() * 6
            // their numbers in the metrics
            + self.all.len() * 4
    }

    /// Forgets the streams for which `keep` is false and renumbers the others; `metric_of` gives the new number of a metric. Returns the
    /// new number of each stream, `u32::MAX` where it was forgotten.
    pub fn retain(&mut self, keep: impl Fn(&Stream) -> bool, metric_of: impl Fn(u32) -> u32) -> Vec<u32> {
        let mut old = std::mem::take(self);
        let mut renumbered = vec![u32::MAX; old.all.len()];
        for (number, stream) in old.all.iter_mut().enumerate() {
            if !keep(stream) {
                continue;
            }
            let alias = &old.aliases[stream.alias as usize];
            let bytes = &old.bytes[alias.at..alias.at + alias.len as usize];
            let new = self.all.len() as u32;
            renumbered[number] = new;
            let alias = self.add_alias(metric_of(alias.metric), bytes, new);
            self.all.push(Stream { alias, forms: stream.forms, seen: stream.seen, points: std::mem::take(&mut stream.points) });
        }
        for (index, alias) in old.aliases.iter().enumerate() {
            let stream = renumbered[alias.stream as usize];
            if stream != u32::MAX && old.all[alias.stream as usize].alias != index as u32 {
                let bytes = &old.bytes[alias.at..alias.at + alias.len as usize];
                self.add_alias(metric_of(alias.metric), bytes, stream);
            }
        }
        renumbered
    }
}

/// Puts attribute fields in the order of their keys. They are checked all the way down: what a stream is named by is written again and again.
fn sort_attributes(attributes: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
    out.clear();
    let mut fields: Vec<(&[u8], &[u8])> = Vec::new();
    for_each_field(Reader::new(attributes), |field| {
        validate(field.message(), &KEY_VALUE, MAX_MESSAGE_DEPTH)?;
        fields.push((key_value(field.message())?.key, field.raw));
        Ok::<(), WireError>(())
    })?;
    fields.sort_unstable();
    fields.iter().for_each(|(_, raw)| out.extend_from_slice(raw));
    Ok(())
}

/// The same for the attributes of a resource or scope (fields `number` of `message`): they come first, then everything else as it lies. What
/// cannot be read stays as it is.
pub fn with_sorted_attributes(message: &[u8], number: u32) -> Vec<u8> {
    let (mut attributes, mut rest, mut sorted) = (Vec::new(), Vec::new(), Vec::new());
    let split = for_each_field(Reader::new(message), |field| {
        if field.number == number { &mut attributes } else { &mut rest }.extend_from_slice(field.raw);
        Ok::<(), WireError>(())
    });
    if split.and_then(|()| sort_attributes(&attributes, &mut sorted)).is_err() {
        return message.to_vec();
    }
    sorted.extend_from_slice(&rest);
    sorted
}
