//! Count, sum, min and max: what both kinds of histograms have, and when two of them may become one.

// Both kinds have count and sum under the same numbers.
use super::fields::histogram::{COUNT, SUM};
use crate::otlp::wire::{Field, Value, put_fixed64};

/// The totals of a histogram's point.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Observations.
    pub count: u64,
    /// Absent where observations may be negative and fall.
    pub sum: Option<f64>,
    /// The least observation.
    pub min: Option<f64>,
    /// The greatest observation.
    pub max: Option<f64>,
}

impl Stats {
    /// Both as one; None where the result would say less than the two do: a total that only one of them has, a sum that is not finite
    /// beside one that is, a count or sum past what fits.
    pub fn merged(&self, other: &Self) -> Option<Self> {
        let says_nothing = |stats: &Self| stats.count == 0 && stats.sum.is_none_or(|sum| sum == 0.0);
        if says_nothing(other) {
            return Some(if says_nothing(self) { self.filled(other) } else { *self });
        }
        if says_nothing(self) {
            return Some(*other);
        }
        let sum = match (self.sum, other.sum) {
            (Some(ours), Some(theirs)) => {
                let sum = ours + theirs;
                if ours.is_finite() != theirs.is_finite() || (ours.is_finite() && !sum.is_finite()) {
                    return None;
                }
                Some(sum)
            }
            (None, None) => None,
            _ => return None,
        };
        let both = |ours: Option<f64>, theirs: Option<f64>, pick: fn(f64, f64) -> f64| match (ours, theirs) {
            (Some(ours), Some(theirs)) => Some(Some(pick(ours, theirs))),
            (None, None) => Some(None),
            _ => None,
        };
        Some(Self {
            count: self.count.checked_add(other.count)?,
            sum,
            min: both(self.min, other.min, f64::min)?,
            max: both(self.max, other.max, f64::max)?,
        })
    }

    /// Counts a value `count` times.
    pub fn record(&mut self, value: f64, count: u64) {
        self.count = self.count.saturating_add(count);
        self.sum = Some(self.sum.unwrap_or(0.0) + value * count as f64);
        self.min = Some(self.min.map_or(value, |min| min.min(value)));
        self.max = Some(self.max.map_or(value, |max| max.max(value)));
    }

    /// Of two empty ones: what either has.
    fn filled(&self, other: &Self) -> Self {
        Self { count: 0, sum: self.sum.or(other.sum), min: self.min.or(other.min), max: self.max.or(other.max) }
    }

    /// Reads a field; false where it is none of these. Min and max have other numbers in each kind.
    pub fn read(&mut self, field: &Field<'_>, min: u32, max: u32) -> bool {
        let Value::Fixed64(bits) = field.value else { return false };
        match field.number {
            COUNT => self.count = bits,
            SUM => self.sum = Some(f64::from_bits(bits)),
            number if number == min => self.min = Some(f64::from_bits(bits)),
            number if number == max => self.max = Some(f64::from_bits(bits)),
            _ => return false,
        }
        true
    }

    /// Appends the fields; those of min and max have other numbers in each kind.
    pub fn put(&self, out: &mut Vec<u8>, min: u32, max: u32) {
        if self.count != 0 {
            put_fixed64(out, COUNT, self.count);
        }
        for (number, value) in [(SUM, self.sum), (min, self.min), (max, self.max)] {
            if let Some(value) = value {
                put_fixed64(out, number, value.to_bits());
            }
        }
    }
}
