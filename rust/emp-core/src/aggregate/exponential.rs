//! Exponential histograms: reading a delta point, and adding two by the data model's rules: the coarser scale, the larger zero threshold.
//!
//! Bucket `index` at scale `s` holds values in (base^index, base^(index+1)], base = 2^(2^-s); a scale coarser by n is the index shifted by n,
//! so no count is ever split or lost. Source: OpenTelemetry metrics data model, ExponentialHistogram.

use super::fields::{buckets as buckets_field, exponential as field};
use super::point::empty;
use super::stats::Stats;
use crate::otlp::wire::{Field, Reader, Value, WireError, for_each_field, put_fixed64, put_message, put_uint, put_varint, varint_len};

/// The buckets that a merged side may span, as SDKs have by default; where a sender has more of them, so many.
const MAX_BUCKETS: usize = 160;
/// A point with more of them is not added to: what a point costs must not depend on what another one claimed.
const MOST_BUCKETS: usize = 1024;
/// With more of them, the empty ones counted, the others are not even read: each takes up to eight times its bytes.
const MOST_READ: usize = 64 * MOST_BUCKETS;
/// Indices are below it: those at the ends must fit the field that the first one is in.
const INDICES_END: i64 = 1 << 31;
/// Where SDKs begin.
const FINEST_SCALE: i32 = 20;
/// Two raises are the rule.
const MAX_RAISES: usize = 8;

/// One side's buckets, without empty ones at the ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets {
    /// The index of the first.
    pub offset: i64,
    /// The counts.
    pub counts: Vec<u64>,
}

/// What a delta point counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exponential {
    /// Its totals.
    pub stats: Stats,
    /// The resolution: larger is finer.
    pub scale: i32,
    /// Observations whose absolute value is at most the threshold.
    pub zero_count: u64,
    /// The zero bucket's half width.
    pub zero_threshold: f64,
    /// Above it.
    pub positive: Buckets,
    /// Below its negative.
    pub negative: Buckets,
    /// It came with more buckets than are read.
    pub is_cut: bool,
}

impl Buckets {
    fn clear(&mut self) {
        self.offset = 0;
        empty(&mut self.counts);
    }

    /// False where there are more than [`MOST_READ`].
    fn read(&mut self, message: Reader<'_>) -> Result<bool, WireError> {
        let mut all = true;
        let mut push = |counts: &mut Vec<u64>, count| match counts.len() < MOST_READ {
            true => counts.push(count),
            false => all = false,
        };
        for_each_field(message, |field| {
            match (field.number, field.value) {
                (buckets_field::OFFSET, Value::Varint(value)) => self.offset = i64::from(zigzag(value)),
                (buckets_field::COUNTS, Value::Varint(count)) => push(&mut self.counts, count),
                (buckets_field::COUNTS, Value::Bytes(_)) => {
                    let mut packed = field.message();
                    while let Some(count) = packed.next_varint()? {
                        push(&mut self.counts, count);
                    }
                }
                _ => {}
            }
            Ok::<(), WireError>(())
        })?;
        Ok(all)
    }

    fn trim(&mut self) {
        let filled = self.counts.iter().rposition(|count| *count != 0).map_or(0, |last| last + 1);
        self.counts.truncate(filled);
        let empty = self.counts.iter().position(|count| *count != 0).unwrap_or(0);
        self.counts.drain(..empty);
        self.offset = if self.counts.is_empty() { 0 } else { self.offset + empty as i64 };
    }

    fn end(&self) -> i64 {
        self.offset + self.counts.len() as i64
    }

    fn bucket(&mut self, index: i64) -> Option<&mut u64> {
        usize::try_from(index - self.offset).ok().and_then(|at| self.counts.get_mut(at))
    }

    fn total(&self) -> u128 {
        self.counts.iter().map(|count| u128::from(*count)).sum()
    }

    /// Makes the scale coarser by `shift`.
    pub fn downscale(&mut self, shift: u32) {
        if shift == 0 || self.counts.is_empty() {
            return;
        }
        let first = shifted(self.offset, shift);
        let last = shifted(self.end() - 1, shift);
        // Indices only come closer together: the target never lies behind the source.
        for at in 0..self.counts.len() {
            let to = (shifted(self.offset + at as i64, shift) - first) as usize;
            let count = std::mem::take(&mut self.counts[at]);
            // Points that are added up never have more than fits ([`Exponential::absorb`]); weights of spans may.
            self.counts[to] = self.counts[to].saturating_add(count);
        }
        self.counts.truncate((last - first + 1) as usize);
        self.offset = first;
    }

    /// How much coarser the scale must be for the union of two to span at most `max` buckets.
    fn shift_to_fit(&self, other: &Self) -> u32 {
        if self.counts.is_empty() || other.counts.is_empty() {
            return 0;
        }
        let max = MAX_BUCKETS.max(self.counts.len()).max(other.counts.len()) as i64;
        let (first, last) = (self.offset.min(other.offset), self.end().max(other.end()) - 1);
        (0..64).find(|shift| shifted(last, *shift) - shifted(first, *shift) < max).unwrap_or(63)
    }

    fn add(&mut self, other: &Self) {
        if other.counts.is_empty() {
            return;
        }
        if self.counts.is_empty() {
            self.offset = other.offset;
        }
        let first = self.offset.min(other.offset);
        let end = self.end().max(other.end());
        let before = (self.offset - first) as usize;
        self.counts.splice(..0, std::iter::repeat_n(0, before));
        self.offset = first;
        self.counts.resize((end - first) as usize, 0);
        let at = (other.offset - first) as usize;
        self.counts[at..].iter_mut().zip(&other.counts).for_each(|(ours, theirs)| *ours += theirs);
    }

    /// Takes the buckets out that lie within a zero bucket; where its edge is inside a filled one the threshold is raised to that one's end.
    fn take_within(&mut self, scale: i32, threshold: &mut f64) -> u64 {
        let edge = index_of(*threshold, scale);
        let mut taken = 0;
        // Of a scale finer than doubles are the edge may lie as far away as an i64 reaches.
        let within = (edge.saturating_add(1).clamp(self.offset, self.end()) - self.offset) as usize;
        let at = usize::try_from(edge.saturating_sub(self.offset)).ok();
        if at.and_then(|at| self.counts.get(at)).is_some_and(|count| *count != 0) {
            *threshold = threshold.max(upper_bound(edge, scale));
        }
        for count in &mut self.counts[..within] {
            taken += std::mem::take(count);
        }
        self.trim();
        taken
    }

    fn put(&self, out: &mut Vec<u8>, number: u32) {
        if self.counts.is_empty() {
            return;
        }
        put_message(out, number, |out| {
            put_sint(out, buckets_field::OFFSET, self.offset as i32);
            let len: usize = self.counts.iter().map(|count| varint_len(*count)).sum();
            crate::otlp::wire::put_header(out, buckets_field::COUNTS, len);
            self.counts.iter().for_each(|count| put_varint(out, *count));
        });
    }
}

impl Exponential {
    /// Forgets all; keeps the memory as [`empty`] does.
    pub fn clear(&mut self) {
        self.stats = Stats::default();
        (self.scale, self.zero_count, self.zero_threshold, self.is_cut) = (0, 0, 0.0, false);
        self.positive.clear();
        self.negative.clear();
    }

    /// Reads a field; false where it is none of its own.
    pub fn read(&mut self, field: &Field<'_>) -> Result<bool, WireError> {
        match (field.number, field.value) {
            (field::SCALE, Value::Varint(value)) => self.scale = zigzag(value),
            (field::ZERO_COUNT, Value::Fixed64(count)) => self.zero_count = count,
            (field::ZERO_THRESHOLD, Value::Fixed64(bits)) => self.zero_threshold = f64::from_bits(bits),
            (field::POSITIVE, Value::Bytes(_)) => self.is_cut |= !self.positive.read(field.message())?,
            (field::NEGATIVE, Value::Bytes(_)) => self.is_cut |= !self.negative.read(field.message())?,
            _ => return Ok(self.stats.read(field, field::MIN, field::MAX)),
        }
        Ok(true)
    }

    /// Ends the reading; whether it is one that can be added to.
    pub fn is_sound(&mut self) -> bool {
        self.positive.trim();
        self.negative.trim();
        let fits = |side: &Buckets| side.counts.len() <= MOST_BUCKETS && side.end() <= INDICES_END;
        fits(&self.positive)
            && fits(&self.negative)
            && self.zero_threshold.is_finite()
            && self.zero_threshold >= 0.0
            && self.total() <= u128::from(u64::MAX)
    }

    fn total(&self) -> u128 {
        u128::from(self.zero_count) + self.positive.total() + self.negative.total()
    }

    /// Adds another; false, and nothing is changed, where they do not fit together ([`Stats::merged`]).
    pub fn absorb(&mut self, other: &Self) -> bool {
        let Some(stats) = self.stats.merged(&other.stats) else { return false };
        if self.total() + other.total() > u128::from(u64::MAX) {
            return false;
        }
        let same_shape = self.scale == other.scale && self.zero_threshold == other.zero_threshold;
        let fits = self.positive.shift_to_fit(&other.positive) == 0 && self.negative.shift_to_fit(&other.negative) == 0;
        if same_shape && fits {
            self.add(other, stats);
            return true;
        }
        let (mut ours, mut theirs) = (self.clone(), other.clone());
        let scale = ours.scale.min(theirs.scale);
        if !ours.downscale_to(i64::from(scale)) || !theirs.downscale_to(i64::from(scale)) {
            return false;
        }
        // Raising one's threshold may put the other's edge inside a filled bucket: until both agree, upwards only.
        let mut raises = 0;
        while ours.zero_threshold != theirs.zero_threshold {
            // At a scale finer than doubles are, edges cannot be told apart.
            raises += 1;
            if raises > MAX_RAISES {
                return false;
            }
            let threshold = ours.zero_threshold.max(theirs.zero_threshold);
            ours.widen_zero(threshold);
            theirs.widen_zero(threshold);
        }
        let shift = ours.positive.shift_to_fit(&theirs.positive).max(ours.negative.shift_to_fit(&theirs.negative));
        let scale = i64::from(scale) - i64::from(shift);
        if !ours.downscale_to(scale) || !theirs.downscale_to(scale) {
            return false;
        }
        ours.add(&theirs, stats);
        *self = ours;
        true
    }

    fn add(&mut self, other: &Self, stats: Stats) {
        self.stats = stats;
        self.zero_count += other.zero_count;
        self.positive.add(&other.positive);
        self.negative.add(&other.negative);
    }

    /// False where the scale does not fit its field.
    fn downscale_to(&mut self, scale: i64) -> bool {
        let Ok(new) = i32::try_from(scale) else { return false };
        let shift = u32::try_from(i64::from(self.scale) - scale).unwrap_or(0);
        self.positive.downscale(shift);
        self.negative.downscale(shift);
        self.scale = new;
        true
    }

    fn widen_zero(&mut self, threshold: f64) {
        if threshold <= self.zero_threshold {
            return;
        }
        let mut raised = threshold;
        self.zero_count += self.positive.take_within(self.scale, &mut raised);
        // A threshold that the positive side has raised takes in more of the negative one; raised again by that it takes in no more of the
        // positive one than its edge, which is done once more.
        self.zero_count += self.negative.take_within(self.scale, &mut raised);
        self.zero_count += self.positive.take_within(self.scale, &mut raised);
        self.zero_threshold = raised;
    }

    /// An empty one of the finest scale that SDKs begin with.
    pub fn finest() -> Self {
        Self { scale: FINEST_SCALE, ..Self::default() }
    }

    /// Counts a value, which is not negative, `count` times; the scale becomes as coarse as its buckets need.
    pub fn record(&mut self, value: f64, count: u64) {
        self.stats.record(value, count);
        if value <= self.zero_threshold {
            self.zero_count = self.zero_count.saturating_add(count);
            return;
        }
        let mut index = index_of(value, self.scale);
        if let Some(bucket) = self.positive.bucket(index) {
            *bucket = bucket.saturating_add(count);
            return;
        }
        let one = |index| Buckets { offset: index, counts: vec![count] };
        let shift = self.positive.shift_to_fit(&one(index));
        if shift > 0 {
            self.downscale_to(i64::from(self.scale) - i64::from(shift));
            index = shifted(index, shift);
        }
        match self.positive.bucket(index) {
            Some(bucket) => *bucket = bucket.saturating_add(count),
            None => self.positive.add(&one(index)),
        }
    }

    /// Appends its fields.
    pub fn put(&self, out: &mut Vec<u8>) {
        self.stats.put(out, field::MIN, field::MAX);
        if self.scale != 0 {
            put_sint(out, field::SCALE, self.scale);
        }
        if self.zero_count != 0 {
            put_fixed64(out, field::ZERO_COUNT, self.zero_count);
        }
        if self.zero_threshold != 0.0 {
            put_fixed64(out, field::ZERO_THRESHOLD, self.zero_threshold.to_bits());
        }
        self.positive.put(out, field::POSITIVE);
        self.negative.put(out, field::NEGATIVE);
    }

    /// Bytes on the heap.
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + 8 * (self.positive.counts.capacity() + self.negative.counts.capacity())
    }
}

fn zigzag(value: u64) -> i32 {
    let value = value as u32;
    (value >> 1) as i32 ^ -((value & 1) as i32)
}

fn put_sint(out: &mut Vec<u8>, number: u32, value: i32) {
    put_uint(out, number, u64::from(((value << 1) ^ (value >> 31)) as u32));
}

/// An index at a coarser scale: shifted, towards minus infinity.
fn shifted(index: i64, shift: u32) -> i64 {
    index >> shift.min(63)
}

/// The bucket that holds a value; far below all buckets for zero.
pub fn index_of(value: f64, scale: i32) -> i64 {
    if value <= 0.0 {
        return i64::MIN / 2;
    }
    // Powers of two are the last value of their bucket, at every scale: exact where logarithms would not be.
    let (mantissa, exponent) = fraction(value);
    let is_power = mantissa == 0.5;
    if scale <= 0 {
        // 2^(exponent-1) <= value < 2^exponent
        let index = exponent - 1 - i64::from(is_power);
        return shifted(index, scale.unsigned_abs());
    }
    if is_power && scale < 52 {
        return ((exponent - 1) << scale) - 1;
    }
    ((value.log2() * f64::from(scale.min(1000)).exp2()).ceil() as i64).saturating_sub(1)
}

/// The greatest value of a bucket.
fn upper_bound(index: i64, scale: i32) -> f64 {
    // Not a product of nothing and infinity.
    if index == -1 { 1.0 } else { (index.saturating_add(1) as f64 * (-f64::from(scale)).exp2()).exp2().min(f64::MAX) }
}

/// `value` as mantissa in [0.5, 1) times 2^exponent.
fn fraction(value: f64) -> (f64, i64) {
    let normal = if value < f64::MIN_POSITIVE { value * 2f64.powi(64) } else { value };
    let lowered = if value < f64::MIN_POSITIVE { 64 } else { 0 };
    let bits = normal.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i64 - 1022 - lowered;
    (f64::from_bits(bits & !(0x7ff << 52) | 1022 << 52), exponent)
}
