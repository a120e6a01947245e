//! The streams of all metrics: found by a point's attributes, in whatever order a sender wrote them.
//!
//! Attributes are hashed one by one and the hashes added up, so every order of them is looked up in the same place. They are kept as they came
//! first; only where bytes differ are both taken apart and compared.

use std::hash::{BuildHasher, Hasher};

use hashbrown::HashTable;

use super::kept::Kept;
use crate::otlp::descriptors::KEY_VALUE;
use crate::otlp::scan::key_value;
use crate::otlp::validate::{MAX_MESSAGE_DEPTH, validate};
use crate::otlp::wire::{Reader, WireError, for_each_field};

/// One stream of a metric.
pub struct Stream {
    at: usize,
    len: u32,
    metric: u32,
    /// The window in which it had a point last.
    pub seen: u32,
    /// Its points of this window.
    pub points: Vec<Kept>,
}

/// See the module's head.
#[derive(Default)]
pub struct Streams {
    all: Vec<Stream>,
    bytes: Vec<u8>,
    table: HashTable<u32>,
    random: ahash::RandomState,
}

impl Streams {
    /// A hash of bytes, keyed as those of the table.
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        self.random.hash_one(bytes)
    }

    /// The same for every order of the attributes.
    #[inline]
    fn key_hash(random: &ahash::RandomState, metric: u32, attributes: &[u8]) -> Result<u64, WireError> {
        let mut sum = 0u64;
        for_each_field(Reader::new(attributes), |field| {
            let mut hasher = random.build_hasher();
            hasher.write(field.raw);
            sum = sum.wrapping_add(hasher.finish());
            Ok::<(), WireError>(())
        })?;
        let mut hasher = random.build_hasher();
        hasher.write_u32(metric);
        hasher.write_u64(sum);
        Ok(hasher.finish())
    }

    /// The stream of a metric that has these attributes (fields of a point); where there is none and `may_add`, a new one. The bool: it is new.
    #[inline]
    pub fn find(&mut self, metric: u32, attributes: &[u8], may_add: bool) -> Result<Option<(u32, bool)>, WireError> {
        let hash = Self::key_hash(&self.random, metric, attributes)?;
        let found =
            self.table.find(hash, |stream| self.all[*stream as usize].metric == metric && is_same(self.attributes(*stream), attributes));
        match found {
            Some(stream) => Ok(Some((*stream, false))),
            None if may_add => self.add(hash, metric, attributes).map(|stream| Some((stream, true))),
            None => check_attributes(attributes).map(|()| None),
        }
    }

    /// They are checked all the way down: what a stream is named by is written again and again.
    #[cold]
    fn add(&mut self, hash: u64, metric: u32, attributes: &[u8]) -> Result<u32, WireError> {
        check_attributes(attributes)?;
        Ok(self.insert(hash, Stream { at: 0, len: 0, metric, seen: 0, points: Vec::new() }, attributes))
    }

    fn insert(&mut self, hash: u64, stream: Stream, attributes: &[u8]) -> u32 {
        let number = self.all.len() as u32;
        self.all.push(Stream { at: self.bytes.len(), len: attributes.len() as u32, ..stream });
        self.bytes.extend_from_slice(attributes);
        let (all, bytes, random) = (&self.all, &self.bytes, &self.random);
        self.table.insert_unique(hash, number, |number| {
            let stream = &all[*number as usize];
            Self::key_hash(random, stream.metric, stream.attributes(bytes)).unwrap_or_default() // it was read before
        });
        number
    }

    /// A stream by its number.
    #[inline]
    pub fn get_mut(&mut self, stream: u32) -> &mut Stream {
        &mut self.all[stream as usize]
    }

    /// A stream's attributes: fields of a point, as they came first.
    #[inline]
    pub fn attributes(&self, stream: u32) -> &[u8] {
        self.all[stream as usize].attributes(&self.bytes)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Bytes that they take, without their points.
    pub fn size_bytes(&self) -> usize {
        self.all.capacity() * size_of::<Stream>()
            + self.bytes.capacity()
            + self.table.capacity() * 6
            // their numbers in the metrics
            + self.all.len() * 4
    }

    /// Gives the room back that no stream came for.
    pub fn fit(&mut self) {
        self.all.shrink_to_fit();
        self.bytes.shrink_to_fit();
    }

    /// Forgets the streams for which `keep` is false and renumbers the others; `metric_of` gives the new number of a metric. Returns the
    /// new number of each stream, `u32::MAX` where it was forgotten.
    pub fn retain(&mut self, keep: impl Fn(&Stream) -> bool, metric_of: impl Fn(u32) -> u32) -> Vec<u32> {
        let old = std::mem::take(self);
        let renumbered = old.all.into_iter().map(|stream| {
            if !keep(&stream) {
                return u32::MAX;
            }
            let attributes = stream.attributes(&old.bytes);
            let metric = metric_of(stream.metric);
            let hash = Self::key_hash(&self.random, metric, attributes).unwrap_or_default(); // it was read before
            self.insert(hash, Stream { metric, ..stream }, attributes)
        });
        renumbered.collect()
    }
}

impl Stream {
    fn attributes<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.at..self.at + self.len as usize]
    }
}

#[inline]
fn is_same(ours: &[u8], theirs: &[u8]) -> bool {
    ours == theirs || (ours.len() == theirs.len() && are_reordered(ours, theirs))
}

#[cold]
fn are_reordered(ours: &[u8], theirs: &[u8]) -> bool {
    let fields = |attributes| {
        let mut fields: Vec<&[u8]> = Vec::new();
        for_each_field(Reader::new(attributes), |field| {
            fields.push(field.raw);
            Ok::<(), WireError>(())
        })?;
        fields.sort_unstable();
        Ok::<_, WireError>(fields)
    };
    matches!((fields(ours), fields(theirs)), (Ok(ours), Ok(theirs)) if ours == theirs)
}

fn check_attributes(attributes: &[u8]) -> Result<(), WireError> {
    for_each_field(Reader::new(attributes), |field| validate(field.message(), &KEY_VALUE, MAX_MESSAGE_DEPTH))
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
