//! Metrics added up to one point per stream and window: what a group of the log has taken comes out at its next tick, and nothing else.
//!
//! ```text
//! take(batch) ─▶ metrics (identity) ─▶ streams (attributes) ─▶ kept points ─▶ flush: blocks of at most 1 MiB
//! ```
//!
//! A window has no time of its own: it is what was taken since the last flush, so a late point is in the next one. Nothing of a flushed
//! window is remembered but which streams there are. What joins what: [`kept`]. Not here: which deliveries a window ends.

pub mod emit;
mod exemplars;
mod exponential;
pub(crate) mod fields;
mod histogram;
mod kept;
mod metrics;
mod point;
pub mod red;
pub mod red_emit;
mod stats;
mod streams;
pub use streams::with_sorted_attributes;

use crate::batch::{Batch, Signal};
use crate::block::{Header, decode_block};
use crate::error::{CoreError, ErrorKind};
use crate::fluent::read::MAX_REJECTED_BYTES;
use crate::otlp::fields::{resource, scope};
use crate::otlp::points::count_points;
use crate::otlp::wire::{Reader, WireError, put_bytes, put_header, put_uint};
use kept::{Join, Kept, LOOK_BACK, Rule};
use metrics::{Entries, Metrics, NONE, is_point};
use point::{Point, PointReader, Value};
use streams::Streams;

/// What an aggregator holds to.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The most streams of a metric of one resource, that for all the others included.
    pub max_streams: usize,
    /// The most exemplars of a point.
    pub max_exemplars: usize,
    /// After so many windows without a point a stream is forgotten, and its place is free for another.
    pub idle_windows: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_streams: 2000, max_exemplars: 5, idle_windows: 10 }
    }
}

/// A point, or a metric, whose bytes cannot be read; the others of its batch were taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The metric as it came, with this point alone (where it is a point).
    pub data: Vec<u8>,
    /// What was seen.
    pub detail: &'static str,
    /// Points.
    pub points: u64,
}

/// What was taken of a batch.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Points that can be read.
    pub points: u64,
    /// Of those: points of cumulative streams past the limit, which are left out.
    pub skipped: u64,
    /// See there.
    pub unreadable: Vec<Unreadable>,
    unreadable_bytes: usize,
}

impl Taken {
    /// Notes what cannot be read. Past a number of bytes only how much it is: a sender whose points are all broken must not make a copy of its
    /// metric for each.
    #[cold]
    fn set_aside(&mut self, error: WireError, points: u64, data: impl FnOnce() -> Vec<u8>) {
        match self.unreadable.last_mut() {
            Some(last) if self.unreadable_bytes > MAX_REJECTED_BYTES => last.points += points,
            _ => {
                let mut data = data();
                data.truncate(MAX_REJECTED_BYTES);
                self.unreadable_bytes += data.len() + size_of::<Unreadable>();
                self.unreadable.push(Unreadable { data, detail: error.detail, points });
            }
        }
    }
}

/// What is not to be aggregated: a metric without data that we know.
struct Passed {
    resource: u32,
    scope: u32,
    message: Vec<u8>,
}

/// See the module's head.
pub struct Aggregator {
    settings: Settings,
    resources: Entries,
    scopes: Entries,
    metrics: Metrics,
    streams: Streams,
    reader: PointReader,
    passed: Vec<Passed>,
    window: u32,
    kept_bytes: usize,
}

impl Aggregator {
    /// One that holds nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            resources: Entries::default(),
            scopes: Entries::default(),
            metrics: Metrics::default(),
            streams: Streams::default(),
            reader: PointReader::default(),
            passed: Vec::new(),
            window: 1,
            kept_bytes: 0,
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        *self = Self::new(self.settings);
    }

    /// Streams that it knows, those without a point in this window included.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// About how many bytes it takes.
    pub fn size_bytes(&self) -> usize {
        let tables = self.resources.size_bytes() + self.scopes.size_bytes() + self.metrics.size_bytes() + self.streams.size_bytes();
        tables + self.kept_bytes
    }

    /// Takes the metrics of a block in. An error: it cannot be read, and nothing was taken.
    pub fn take_block(&mut self, header: &Header, payload: &[u8], max_bytes: usize) -> Result<Taken, CoreError> {
        if header.signal != Signal::Metrics {
            return Err(CoreError::new(ErrorKind::BlockInvalid, 0, format!("a block of {}, not of metrics", header.signal.name())));
        }
        Ok(self.take(&decode_block(header, payload, max_bytes)?))
    }

    /// Takes the metrics of a batch in.
    pub fn take(&mut self, batch: &Batch) -> Taken {
        let mut taken = Taken::default();
        let mut resources = vec![NONE; batch.resources.len()];
        let mut scopes = vec![NONE; batch.scopes.len()];
        for row in 0..batch.len() {
            let (at, scope_at) = (batch.columns.resource[row] as usize, batch.columns.scope[row] as usize);
            if resources[at] == NONE {
                resources[at] = self.resources.intern(&batch.resources[at], resource::ATTRIBUTES);
            }
            if scopes[scope_at] == NONE {
                scopes[scope_at] = self.scopes.intern(&batch.scopes[scope_at], scope::ATTRIBUTES);
            }
            let message = batch.message(row);
            if let Err(error) = self.take_metric(message, resources[at], scopes[scope_at], &mut taken) {
                let points = u64::from(count_points(Reader::new(message)));
                taken.set_aside(error, points, || message.to_vec());
            }
        }
        taken
    }

    /// An error: nothing of the metric was taken.
    fn take_metric(&mut self, message: &[u8], resource: u32, scope: u32, taken: &mut Taken) -> Result<(), WireError> {
        let row = self.metrics.read(message, resource, scope)?;
        let Some(metric) = row.metric else {
            self.kept_bytes += message.len();
            self.passed.push(Passed { resource, scope, message: message.to_vec() });
            return Ok(());
        };
        let known = &mut self.metrics.all[metric as usize];
        known.seen = self.window;
        known.present = true;
        for mut data in std::iter::once(row.data).chain(row.more) {
            while let Some(field) = data.next_field()? {
                if !is_point(&field) {
                    continue;
                }
                let point = field.bytes().unwrap_or_default();
                match self.take_point(metric, point) {
                    Ok(used) => {
                        taken.points += 1;
                        taken.skipped += u64::from(!used);
                    }
                    Err(error) => taken.set_aside(error, 1, || self.alone(metric, point)),
                }
            }
        }
        Ok(())
    }

    /// A metric with one of its points alone.
    fn alone(&self, metric: u32, point: &[u8]) -> Vec<u8> {
        let metric = &self.metrics.all[metric as usize];
        let mut data = metric.head.clone();
        let mut framed = Vec::new();
        put_bytes(&mut framed, fields::data::POINTS, point);
        put_header(&mut data, metric.data_field, framed.len() + metric.tail.len());
        data.extend_from_slice(&framed);
        data.extend_from_slice(&metric.tail);
        data
    }

    /// False: the point is past the limit and cannot be added up with others.
    fn take_point(&mut self, number: u32, message: &[u8]) -> Result<bool, WireError> {
        let metric = &mut self.metrics.all[number as usize];
        let (rule, shape) = (metric.rule, metric.shape);
        let streams = &mut self.streams;
        let point = self.reader.read(shape, message, rule == Rule::Delta, |bytes| streams.hash(bytes))?;
        exemplars::check(point.exemplars)?;
        // The stream for all the others has a place of its own.
        let named = metric.streams.len() - usize::from(metric.overflow != NONE);
        let is_full = named + 1 >= self.settings.max_streams;
        let join = Join { rule, max_exemplars: self.settings.max_exemplars };
        let add = |streams: &mut Streams, stream: u32, point: &Point<'_>| {
            let stream = streams.get_mut(stream);
            stream.seen = self.window;
            // Only the last points change: a sender whose points never join would make counting all of them at each new one slow.
            let changing = stream.points.len().saturating_sub(LOOK_BACK);
            let size = |points: &[Kept]| points[changing..].iter().map(Kept::size_bytes).sum::<usize>();
            let before = size(&stream.points);
            join.add(&mut stream.points, point);
            size(&stream.points).wrapping_sub(before)
        };
        if let Some((stream, is_new)) = streams.find(number, point.attributes, !is_full)? {
            if is_new {
                metric.streams.push(stream);
            }
            self.kept_bytes = self.kept_bytes.wrapping_add(add(streams, stream, &point));
            return Ok(true);
        }
        metric.overflowed += 1;
        let attributes = emit::overflow_attributes(shape.numbers().attributes);
        if metric.overflow == NONE
            && let Some((stream, is_new)) = streams.find(number, &attributes, true)?
        {
            if is_new {
                metric.streams.push(stream);
            }
            metric.overflow = stream;
        }
        if matches!(rule, Rule::Delta | Rule::Latest) {
            self.kept_bytes = self.kept_bytes.wrapping_add(add(streams, metric.overflow, &point));
            return Ok(true);
        }
        // Totals of several streams are no total of theirs: a point without a value says that there are more streams.
        let mut rest = Vec::new();
        put_uint(&mut rest, shape.numbers().flags, fields::FLAG_NO_RECORDED_VALUE);
        let marker = Point { recorded: false, attributes: &attributes, exemplars: &[], rest: &rest, value: Value::None, ..point };
        self.kept_bytes = self.kept_bytes.wrapping_add(add(streams, metric.overflow, &marker));
        Ok(false)
    }

    /// Ends the window: forgets its points, and the streams that have been idle for long.
    fn end_window(&mut self) {
        self.passed = Vec::new();
        self.kept_bytes = 0;
        for metric in &mut self.metrics.all {
            metric.present = false;
            metric.overflowed = 0;
        }
        if self.window.is_multiple_of(self.settings.idle_windows.max(1)) {
            self.forget_idle(self.settings.idle_windows);
        }
        self.streams.fit();
        self.window += 1;
    }

    /// Forgets the streams that had no point in the last `windows` windows.
    fn forget_idle(&mut self, windows: u32) {
        let oldest = (self.window + 1).saturating_sub(windows.max(1));
        let metrics = self.metrics.retain(&mut self.resources, &mut self.scopes, |metric| metric.seen >= oldest);
        let keep = |stream: &streams::Stream| stream.seen >= oldest;
        let streams = self.streams.retain(keep, |metric| metrics[metric as usize]);
        for metric in &mut self.metrics.all {
            metric.streams.retain_mut(|stream| {
                *stream = streams[*stream as usize];
                *stream != NONE
            });
            if metric.overflow != NONE {
                metric.overflow = streams[metric.overflow as usize];
            }
        }
    }

    /// Forgets which streams there are, but for those of the last window: for when memory is short.
    pub fn shrink(&mut self) {
        self.window -= 1;
        self.forget_idle(1);
        self.window += 1;
    }
}

#[cfg(test)]
mod tests;
