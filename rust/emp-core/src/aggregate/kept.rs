//! What a stream keeps of a window: points that stand, points that were added up, and the rules by which a new one joins them.

use super::exemplars::offer;
use super::exponential::Exponential;
use super::fields::number;
use super::histogram::Histogram;
use super::point::{Point, Value, put_times};
use crate::otlp::wire::put_fixed64;

/// How far back a new point looks for one to join, and changes any: a sender that never joins any must not make it slow.
pub const LOOK_BACK: usize = 16;

/// What becomes of the points of a stream within a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Gauges: the latest by time.
    Latest,
    /// The latest of each start time, and each before a reset. `falls`: a smaller value is a reset as well.
    Cumulative {
        /// Monotonic sums, and all that counts.
        falls: bool,
    },
    /// Added up.
    Delta,
    /// No temporality: every point as it is.
    Pass,
}

/// See [`Value`].
#[derive(Clone, Debug)]
pub enum Content {
    /// Nothing.
    None,
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// As it lies, in `rest`.
    Passed {
        /// Observations.
        count: u64,
        /// A hash of `explicit_bounds`.
        bounds: u64,
    },
    /// Added up.
    Histogram(Box<Histogram>),
    /// Added up.
    Exponential(Box<Exponential>),
}

/// A point of the window.
#[derive(Clone, Debug)]
pub struct Kept {
    /// 0: not set.
    pub start_unix_nano: u64,
    /// 0: not set.
    pub time_unix_nano: u64,
    /// It has a value, and no flag that denies it.
    pub recorded: bool,
    /// What it says.
    pub content: Content,
    /// Most points have nothing of the kind, and there may be a hundred thousand.
    extra: Option<Box<Extra>>,
}

/// What a point has beside its value.
#[derive(Clone, Debug, Default)]
struct Extra {
    /// Fields that are in none of the others.
    rest: Vec<u8>,
    /// Exemplar fields.
    exemplars: Vec<u8>,
}

/// How a point is kept.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    /// See [`Rule`].
    pub rule: Rule,
    /// The most exemplars of a point.
    pub max_exemplars: usize,
}

impl Join {
    /// Takes a point in, whose exemplars have been checked.
    pub fn add(self, points: &mut Vec<Kept>, point: &Point<'_>) {
        if !point.recorded {
            // A marker: the latest is enough, and says something only while no value comes after it.
            return match points.iter_mut().rev().take(LOOK_BACK).find(|kept| !kept.recorded) {
                Some(marker) if marker.time_unix_nano <= point.time_unix_nano => marker.become_point(point, self.max_exemplars),
                Some(_) => {}
                None => push(points, points.len(), point, self.max_exemplars),
            };
        }
        match self.rule {
            Rule::Pass => push(points, points.len(), point, self.max_exemplars),
            Rule::Latest => match points.iter_mut().rev().take(LOOK_BACK).find(|kept| kept.recorded) {
                Some(kept) => kept.become_later(point, self.max_exemplars),
                None => push(points, points.len(), point, self.max_exemplars),
            },
            Rule::Delta => {
                for kept in points.iter_mut().rev().take(LOOK_BACK).filter(|kept| kept.recorded) {
                    if kept.absorb(point, self.max_exemplars) {
                        return;
                    }
                }
                push(points, points.len(), point, self.max_exemplars)
            }
            Rule::Cumulative { falls } => self.add_cumulative(points, point, falls),
        }
    }

    /// Points of one start time lie in the order of their times; all but the last are those before a reset.
    fn add_cumulative(self, points: &mut Vec<Kept>, point: &Point<'_>, falls: bool) {
        let oldest = points.len().saturating_sub(LOOK_BACK);
        let before = (oldest..points.len()).rev().find(|at| points[*at].precedes(point));
        let after = (before.map_or(oldest, |at| at + 1)..points.len()).find(|at| points[*at].is_alike(point));
        if let Some(after) = after {
            let later = &mut points[after];
            if !(falls && fell(measure(&point.value), later.measure())) {
                return later.offer(point.exemplars, self.max_exemplars);
            }
        }
        match before {
            Some(before) if !(falls && fell(points[before].measure(), measure(&point.value))) => {
                points[before].become_later(point, self.max_exemplars)
            }
            _ => push(points, after.unwrap_or(points.len()), point, self.max_exemplars),
        }
    }
}

#[cold]
fn grow(points: &mut Vec<Kept>) {
    // Most streams keep one point: no room for four.
    points.reserve_exact(points.len().max(1));
}

fn push(points: &mut Vec<Kept>, at: usize, point: &Point<'_>, max_exemplars: usize) {
    if points.len() == points.capacity() {
        grow(points);
    }
    let mut kept = Kept {
        start_unix_nano: point.start_unix_nano,
        time_unix_nano: point.time_unix_nano,
        recorded: point.recorded,
        content: content(&point.value),
        extra: None,
    };
    kept.offer(point.exemplars, max_exemplars);
    kept.replace_rest(point.rest);
    points.insert(at, kept);
}

fn content(value: &Value<'_>) -> Content {
    match *value {
        Value::None => Content::None,
        Value::Int(value) => Content::Int(value),
        Value::Double(value) => Content::Double(value),
        Value::Passed { count, bounds } => Content::Passed { count, bounds },
        Value::Histogram(histogram) => Content::Histogram(Box::new(histogram.clone())),
        Value::Exponential(exponential) => Content::Exponential(Box::new(exponential.clone())),
    }
}

/// What a fall is seen by.
#[derive(Clone, Copy)]
enum Measure {
    Int(i64),
    Double(f64),
    Count(u64),
}

fn measure(value: &Value<'_>) -> Measure {
    match *value {
        Value::Int(value) => Measure::Int(value),
        Value::Double(value) => Measure::Double(value),
        Value::Passed { count, .. } => Measure::Count(count),
        Value::None | Value::Histogram(_) | Value::Exponential(_) => Measure::Count(0),
    }
}

fn fell(before: Measure, after: Measure) -> bool {
    match (before, after) {
        (Measure::Int(before), Measure::Int(after)) => after < before,
        (Measure::Count(before), Measure::Count(after)) => after < before,
        (before, after) => after.as_f64() < before.as_f64(),
    }
}

impl Measure {
    fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Double(value) => value,
            Self::Count(value) => value as f64,
        }
    }
}

impl Kept {
    fn measure(&self) -> Measure {
        match self.content {
            Content::Int(value) => Measure::Int(value),
            Content::Double(value) => Measure::Double(value),
            Content::Passed { count, .. } => Measure::Count(count),
            Content::None | Content::Histogram(_) | Content::Exponential(_) => Measure::Count(0),
        }
    }

    /// Of the same start time and the same explicit bounds.
    fn is_alike(&self, point: &Point<'_>) -> bool {
        let bounds = |content: &Content| if let Content::Passed { bounds, .. } = content { *bounds } else { 0 };
        let same_bounds = match point.value {
            Value::Passed { bounds: theirs, .. } => bounds(&self.content) == theirs,
            _ => true,
        };
        self.recorded && self.start_unix_nano == point.start_unix_nano && same_bounds
    }

    fn precedes(&self, point: &Point<'_>) -> bool {
        self.is_alike(point) && self.time_unix_nano <= point.time_unix_nano
    }

    /// The later of both stands.
    fn become_later(&mut self, point: &Point<'_>, max_exemplars: usize) {
        if point.time_unix_nano < self.time_unix_nano {
            return self.offer(point.exemplars, max_exemplars);
        }
        self.become_point(point, max_exemplars)
    }

    fn become_point(&mut self, point: &Point<'_>, max_exemplars: usize) {
        self.offer(point.exemplars, max_exemplars);
        self.start_unix_nano = point.start_unix_nano;
        self.time_unix_nano = point.time_unix_nano;
        self.content = content(&point.value);
        self.replace_rest(point.rest);
    }

    fn replace_rest(&mut self, rest: &[u8]) {
        if self.extra.is_some() || !rest.is_empty() {
            let extra = self.extra.get_or_insert_default();
            extra.rest.clear();
            extra.rest.extend_from_slice(rest);
        }
    }

    fn offer(&mut self, exemplars: &[u8], max_exemplars: usize) {
        if !exemplars.is_empty() {
            offer(&mut self.extra.get_or_insert_default().exemplars, exemplars, max_exemplars);
        }
    }

    /// Adds a delta; false where they do not fit together: a whole number beside a double, other bounds, more than fits.
    fn absorb(&mut self, point: &Point<'_>, max_exemplars: usize) -> bool {
        let sum = match (&mut self.content, &point.value) {
            (Content::Int(ours), Value::Int(theirs)) => match ours.checked_add(*theirs) {
                Some(sum) => Some(Content::Int(sum)),
                None => return false,
            },
            (Content::Double(ours), Value::Double(theirs)) => {
                let sum = *ours + *theirs;
                // What is not finite would swallow all that it is added to.
                if ours.is_finite() != theirs.is_finite() || (ours.is_finite() && !sum.is_finite()) {
                    return false;
                }
                Some(Content::Double(sum))
            }
            (Content::Histogram(_), Value::Histogram(_)) | (Content::Exponential(_), Value::Exponential(_)) => None,
            _ => return false,
        };
        let absorbed = match (&mut self.content, &point.value) {
            (Content::Histogram(ours), Value::Histogram(theirs)) => ours.absorb(theirs),
            (Content::Exponential(ours), Value::Exponential(theirs)) => ours.absorb(theirs),
            _ => true,
        };
        if !absorbed {
            return false;
        }
        if let Some(sum) = sum {
            self.content = sum;
        }
        self.offer(point.exemplars, max_exemplars);
        self.start_unix_nano = match (self.start_unix_nano, point.start_unix_nano) {
            (0, start) | (start, 0) => start,
            (ours, theirs) => ours.min(theirs),
        };
        if point.time_unix_nano >= self.time_unix_nano {
            self.time_unix_nano = point.time_unix_nano;
            self.replace_rest(point.rest);
        }
        true
    }

    /// Appends the point's message, but for its attributes.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_times(out, self.start_unix_nano, self.time_unix_nano);
        match &self.content {
            Content::None | Content::Passed { .. } => {}
            Content::Int(value) => put_fixed64(out, number::AS_INT, *value as u64),
            Content::Double(value) => put_fixed64(out, number::AS_DOUBLE, value.to_bits()),
            Content::Histogram(histogram) => histogram.put(out),
            Content::Exponential(exponential) => exponential.put(out),
        }
        if let Some(extra) = &self.extra {
            out.extend_from_slice(&extra.rest);
            out.extend_from_slice(&extra.exemplars);
        }
    }

    /// Bytes that it takes.
    pub fn size_bytes(&self) -> usize {
        let content = match &self.content {
            Content::Histogram(histogram) => histogram.size_bytes(),
            Content::Exponential(exponential) => exponential.size_bytes(),
            _ => 0,
        };
        let extra = |extra: &Extra| size_of::<Extra>() + extra.rest.capacity() + extra.exemplars.capacity();
        size_of::<Self>() + self.extra.as_deref().map_or(0, extra) + content
    }
}
