//! One data point as it lies in a metric: its fields told apart into attributes, exemplars, what is understood, and the rest.

use super::exponential::Exponential;
use super::fields::{FLAG_NO_RECORDED_VALUE, exponential, histogram, number, point, summary};
use super::histogram::Histogram;
use crate::otlp::wire::{Field, Reader, Value as Wire, WireError, put_fixed64};

/// The four shapes of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// NumberDataPoint: of gauges and sums.
    Number,
    /// HistogramDataPoint.
    Histogram,
    /// ExponentialHistogramDataPoint.
    Exponential,
    /// SummaryDataPoint.
    Summary,
}

/// The numbers that a shape has for what all points have.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// `attributes`
    pub attributes: u32,
    /// `exemplars`; 0 where there are none.
    pub exemplars: u32,
    /// `flags`
    pub flags: u32,
}

impl Shape {
    /// See [`Numbers`].
    pub const fn numbers(self) -> Numbers {
        match self {
            Self::Number => Numbers { attributes: number::ATTRIBUTES, exemplars: number::EXEMPLARS, flags: number::FLAGS },
            Self::Histogram => Numbers { attributes: histogram::ATTRIBUTES, exemplars: histogram::EXEMPLARS, flags: histogram::FLAGS },
            Self::Exponential => {
                Numbers { attributes: exponential::ATTRIBUTES, exemplars: exponential::EXEMPLARS, flags: exponential::FLAGS }
            }
            Self::Summary => Numbers { attributes: summary::ATTRIBUTES, exemplars: 0, flags: summary::FLAGS },
        }
    }
}

/// What a point says. `Passed` is a point that is kept as it lies: its fields are in [`Point::rest`].
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Nothing.
    None,
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// See above; the count tells a reset, points with other explicit bounds are counted apart.
    Passed {
        /// Observations.
        count: u64,
        /// A hash of `explicit_bounds`.
        bounds: u64,
    },
    /// A delta histogram.
    Histogram(&'a Histogram),
    /// A delta exponential histogram.
    Exponential(&'a Exponential),
}

/// A point that has been read.
#[derive(Clone, Copy, Debug)]
pub struct Point<'a> {
    /// 0: not set.
    pub start_unix_nano: u64,
    /// 0: not set.
    pub time_unix_nano: u64,
    /// It has a value, and no flag that denies it.
    pub recorded: bool,
    /// The attribute fields as they lie, one after another.
    pub attributes: &'a [u8],
    /// The exemplar fields.
    pub exemplars: &'a [u8],
    /// All other fields that are in none of the above or in `value`, `flags` among them.
    pub rest: &'a [u8],
    /// What it says.
    pub value: Value<'a>,
}

/// Fields of one kind: a piece of the message while they lie together, else copied together.
#[derive(Default)]
struct Gathered {
    start: usize,
    end: usize,
    copied: Vec<u8>,
}

impl Gathered {
    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        empty(&mut self.copied);
    }

    #[inline]
    fn add(&mut self, message: &[u8], field: &Field<'_>) {
        if self.copied.is_empty() && (self.start == self.end || self.end == field.offset) {
            self.start = if self.start == self.end { field.offset } else { self.start };
            self.end = field.offset + field.raw.len();
            return;
        }
        if self.copied.is_empty() {
            self.copied.extend_from_slice(&message[self.start..self.end]);
        }
        self.copied.extend_from_slice(field.raw);
    }

    fn get<'a>(&'a self, message: &'a [u8]) -> &'a [u8] {
        if self.copied.is_empty() { &message[self.start..self.end] } else { &self.copied }
    }
}

/// What one list of a reader keeps from one point to the next: as much as points need that are not there to need much.
const KEPT_BYTES: usize = 1 << 14;

/// Empties a list and keeps its memory, but not what a huge point needed.
pub fn empty<T>(list: &mut Vec<T>) {
    list.clear();
    list.shrink_to(KEPT_BYTES / size_of::<T>());
}

/// Reads points; keeps its memory from one to the next ([`empty`]).
#[derive(Default)]
pub struct PointReader {
    attributes: Gathered,
    exemplars: Gathered,
    rest: Gathered,
    histogram: Histogram,
    exponential: Exponential,
}

impl PointReader {
    /// Reads a point. `opened`: histograms are taken apart, to be added to; otherwise they are passed as they lie. `hash` is of bounds.
    pub fn read<'a>(
        &'a mut self,
        shape: Shape,
        message: &'a [u8],
        opened: bool,
        hash: impl Fn(&[u8]) -> u64,
    ) -> Result<Point<'a>, WireError> {
        self.clear(shape, opened);
        let numbers = shape.numbers();
        let mut common = Common::default();
        let mut value = Value::None;
        let mut reader = Reader::new(message);
        while let Some(field) = reader.next_field()? {
            if field.number == numbers.attributes && field.bytes().is_some() {
                self.attributes.add(message, &field);
                continue;
            }
            if field.number == numbers.exemplars && field.bytes().is_some() {
                self.exemplars.add(message, &field);
                continue;
            }
            match (field.number, field.value) {
                (point::START_TIME_UNIX_NANO, Wire::Fixed64(time)) => common.start = time,
                (point::TIME_UNIX_NANO, Wire::Fixed64(time)) => common.time = time,
                (number, Wire::Varint(flags)) if number == numbers.flags => {
                    common.flags = flags;
                    self.rest.add(message, &field);
                }
                _ => {
                    let known = match shape {
                        Shape::Number => read_number(&field, &mut value),
                        Shape::Histogram if opened => self.histogram.read(&field)?,
                        Shape::Exponential if opened => self.exponential.read(&field)?,
                        _ => {
                            note_passed(shape, &field, &mut value, &hash);
                            false
                        }
                    };
                    if !known {
                        self.rest.add(message, &field);
                    }
                }
            }
        }
        match shape {
            Shape::Number => {}
            Shape::Histogram if opened && self.histogram.is_sound() => value = Value::Histogram(&self.histogram),
            Shape::Exponential if opened && self.exponential.is_sound() => value = Value::Exponential(&self.exponential),
            // One that cannot be added to: as it lies.
            _ if opened => return self.read(shape, message, false, hash),
            _ if matches!(value, Value::None) => value = Value::Passed { count: 0, bounds: 0 },
            _ => {}
        }
        Ok(Point {
            start_unix_nano: common.start,
            time_unix_nano: common.time,
            recorded: common.flags & FLAG_NO_RECORDED_VALUE == 0 && !matches!(value, Value::None),
            attributes: self.attributes.get(message),
            exemplars: self.exemplars.get(message),
            rest: self.rest.get(message),
            value,
        })
    }

    fn clear(&mut self, shape: Shape, opened: bool) {
        self.attributes.clear();
        self.exemplars.clear();
        self.rest.clear();
        match shape {
            Shape::Histogram if opened => self.histogram.clear(),
            Shape::Exponential if opened => self.exponential.clear(),
            _ => {}
        }
    }
}

#[derive(Default)]
struct Common {
    start: u64,
    time: u64,
    flags: u64,
}

#[inline]
fn read_number(field: &Field<'_>, value: &mut Value<'_>) -> bool {
    match (field.number, field.value) {
        (number::AS_INT, Wire::Fixed64(bits)) => *value = Value::Int(bits as i64),
        (number::AS_DOUBLE, Wire::Fixed64(bits)) => *value = Value::Double(f64::from_bits(bits)),
        _ => return false,
    }
    true
}

fn note_passed(shape: Shape, field: &Field<'_>, value: &mut Value<'_>, hash: &impl Fn(&[u8]) -> u64) {
    let (mut count, mut bounds) = if let Value::Passed { count, bounds } = *value { (count, bounds) } else { (0, 0) };
    match (field.number, field.value) {
        (histogram::COUNT, Wire::Fixed64(observed)) => count = observed,
        (histogram::EXPLICIT_BOUNDS, _) if shape == Shape::Histogram => bounds = bounds.rotate_left(1) ^ hash(field.raw),
        _ => return,
    }
    *value = Value::Passed { count, bounds };
}

/// Appends `start_time_unix_nano` and `time_unix_nano`.
pub fn put_times(out: &mut Vec<u8>, start_unix_nano: u64, time_unix_nano: u64) {
    for (number, time) in [(point::START_TIME_UNIX_NANO, start_unix_nano), (point::TIME_UNIX_NANO, time_unix_nano)] {
        if time != 0 {
            put_fixed64(out, number, time);
        }
    }
}
