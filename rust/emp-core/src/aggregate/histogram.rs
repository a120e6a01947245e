//! Histograms with explicit bounds: reading a delta point, adding two of the same bounds.

use super::fields::histogram as field;
use super::point::empty;
use super::stats::Stats;
use crate::otlp::wire::{Field, Value, WireError, put_header};

/// What a delta point counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Its totals.
    pub stats: Stats,
    /// `explicit_bounds`.
    pub bounds: Vec<f64>,
    /// `bucket_counts`: one more than the bounds, or none of both.
    pub buckets: Vec<u64>,
}

impl Histogram {
    /// Forgets all; keeps the memory as [`empty`] does.
    pub fn clear(&mut self) {
        self.stats = Stats::default();
        empty(&mut self.bounds);
        empty(&mut self.buckets);
    }

    /// Reads a field; false where it is none of a histogram's own.
    pub fn read(&mut self, field: &Field<'_>) -> Result<bool, WireError> {
        match (field.number, field.value) {
            (field::BUCKET_COUNTS, _) => fixed64s(field, |bits| self.buckets.push(bits)),
            (field::EXPLICIT_BOUNDS, _) => fixed64s(field, |bits| self.bounds.push(f64::from_bits(bits))),
            _ => Ok(self.stats.read(field, field::MIN, field::MAX)),
        }
    }

    /// Whether it is one that can be added to: a bucket for each space between bounds.
    pub fn is_sound(&self) -> bool {
        self.buckets.len() == self.bounds.len() + 1 || (self.buckets.is_empty() && self.bounds.is_empty())
    }

    /// Adds another; false, and nothing is changed, where they have other bounds or do not fit together ([`Stats::merged`]).
    pub fn absorb(&mut self, other: &Self) -> bool {
        let same_bounds = self.buckets.len() == other.buckets.len()
            && self.bounds.iter().map(|bound| bound.to_bits()).eq(other.bounds.iter().map(|bound| bound.to_bits()));
        if !same_bounds || self.buckets.iter().zip(&other.buckets).any(|(ours, theirs)| ours.checked_add(*theirs).is_none()) {
            return false;
        }
        let Some(stats) = self.stats.merged(&other.stats) else { return false };
        self.stats = stats;
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(ours, theirs)| *ours += theirs);
        true
    }

    /// Counts a value `count` times.
    pub fn record(&mut self, value: f64, count: u64) {
        self.stats.record(value, count);
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket] = self.buckets[bucket].saturating_add(count);
    }

    /// Appends its fields.
    pub fn put(&self, out: &mut Vec<u8>) {
        self.stats.put(out, field::MIN, field::MAX);
        if !self.buckets.is_empty() {
            put_header(out, field::BUCKET_COUNTS, 8 * self.buckets.len());
            self.buckets.iter().for_each(|count| out.extend_from_slice(&count.to_le_bytes()));
        }
        if !self.bounds.is_empty() {
            put_header(out, field::EXPLICIT_BOUNDS, 8 * self.bounds.len());
            self.bounds.iter().for_each(|bound| out.extend_from_slice(&bound.to_bits().to_le_bytes()));
        }
    }

    /// Bytes on the heap.
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + 8 * (self.buckets.capacity() + self.bounds.capacity())
    }
}

/// Visits repeated fixed64, packed or not; false where the field has another type.
pub fn fixed64s(field: &Field<'_>, mut visit: impl FnMut(u64)) -> Result<bool, WireError> {
    match field.value {
        Value::Fixed64(bits) => visit(bits),
        Value::Bytes(packed) => {
            let (chunks, rest) = packed.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(WireError { offset: field.bytes_offset(), detail: "protobuf: packed numbers end early" });
            }
            chunks.iter().for_each(|chunk| visit(u64::from_le_bytes(*chunk)));
        }
        _ => return Ok(false),
    }
    Ok(true)
}
