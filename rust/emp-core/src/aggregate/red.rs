//! RED metrics out of spans: calls (errors among them, by status) and durations, by resource, span name, kind and status.
//!
//! Every span counts as many times as its sampler kept none (the adjusted count of its `ot=th`), so the numbers are those of all calls.
//! Nothing but which span names there are is remembered from one flush to the next: each holds what was taken since the last. Not here:
//! how they are written ([`super::red_emit`]).

use super::exemplars::Slowest;
use super::exponential::Exponential;
use super::histogram::Histogram;
use super::metrics::Entries;
use crate::batch::{Signal, TableEntry};
use crate::block::{Header, request_of};
use crate::error::{CoreError, ErrorKind};
use crate::hash::KeyedMap;
use crate::otlp::fields::{resource, resource_rows, span, status};
use crate::otlp::scan::key_value;
use crate::otlp::wire::{Reader, WireError, for_each_field};
use crate::sampling::threshold::Threshold;
use crate::sampling::tracestate;
use crate::sampling::walk::{Part, walk};

/// Span names that are remembered over all resources.
const MAX_NAMES: usize = 100_000;
/// A span name that was not seen for so long makes room for another.
const FORGET_AFTER_NS: u64 = 3_600_000_000_000;
/// Names are looked through for that so seldom.
const FORGET_EVERY_NS: u64 = FORGET_AFTER_NS / 10;
const SPAN_KIND: u32 = 6;
const NS_PER_SECOND: f64 = 1e9;

/// What RED metrics look like.
#[derive(Clone, Debug)]
pub struct RedSettings {
    /// What the metrics' names begin with.
    pub namespace: String,
    /// Upper bounds of the duration's buckets, in the unit; None: an exponential histogram.
    pub bounds: Option<Vec<f64>>,
    /// The unit of durations is milliseconds, not seconds.
    pub milliseconds: bool,
    /// Span attributes that become the metrics' attributes.
    pub dimensions: Vec<String>,
    /// The most span names (with their dimensions) of a resource.
    pub max_names: usize,
    /// The most exemplars of a point.
    pub max_exemplars: usize,
}

/// How long calls took.
#[derive(Debug)]
pub(super) enum Durations {
    Explicit(Histogram),
    Exponential(Box<Exponential>),
}

/// Calls that are counted together.
#[derive(Debug)]
pub(super) struct Series {
    pub resource: u32,
    /// None: past the limit of names.
    pub name: Option<Vec<u8>>,
    pub kind: u8,
    pub status: u8,
    /// The encoded values of the dimensions that the spans have.
    pub dimensions: Vec<Option<Vec<u8>>>,
    pub calls: u64,
    pub durations: Durations,
    pub exemplars: Slowest,
}

/// What was taken of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RedTaken {
    /// Spans that were counted.
    pub spans: u64,
    /// Spans past the limit of names: counted without their name.
    pub overflowed: u64,
    /// Spans that cannot be read: not counted.
    pub unreadable: u64,
}

/// See the module's head.
pub struct Red {
    pub(super) settings: RedSettings,
    pub(super) resources: Entries,
    pub(super) series: Vec<Series>,
    by_key: KeyedMap<Vec<u8>, u32>,
    names: Names,
    key: Vec<u8>,
    now_unix_nano: u64,
}

/// Which names may have a series of their own, by resource.
#[derive(Default)]
struct Names {
    /// When it was seen last, by the hashes of its resource and of itself with its dimensions: a name may be long, and is held for an hour.
    known: KeyedMap<(u64, u64), u64>,
    counts: KeyedMap<u64, usize>,
    looked_through_unix_nano: u64,
    random: ahash::RandomState,
}

impl Names {
    fn admit(&mut self, resource: &TableEntry, name: &[u8], max: usize, now_unix_nano: u64) -> bool {
        let resource = self.random.hash_one(resource);
        let key = (resource, self.random.hash_one(name));
        if let Some(seen) = self.known.get_mut(&key) {
            *seen = now_unix_nano;
            return true;
        }
        let total = self.known.len();
        let count = self.counts.entry(resource).or_default();
        if *count >= max || total >= MAX_NAMES {
            return false;
        }
        *count += 1;
        self.known.insert(key, now_unix_nano);
        true
    }

    fn forget(&mut self, now_unix_nano: u64) {
        if now_unix_nano.saturating_sub(self.looked_through_unix_nano) < FORGET_EVERY_NS {
            return;
        }
        self.looked_through_unix_nano = now_unix_nano;
        let counts = &mut self.counts;
        self.known.retain(|(resource, _), seen| {
            let keep = now_unix_nano.saturating_sub(*seen) < FORGET_AFTER_NS;
            if !keep && let Some(count) = counts.get_mut(resource) {
                *count -= 1;
            }
            keep
        });
        self.counts.retain(|_, count| *count > 0);
    }
}

/// What is read of a span.
#[derive(Default)]
struct Span<'a> {
    trace_id: &'a [u8],
    span_id: &'a [u8],
    name: &'a [u8],
    kind: u8,
    status: u8,
    start: u64,
    end: u64,
    weight: f64,
    dimensions: Vec<Option<&'a [u8]>>,
}

impl Red {
    /// One that has counted nothing.
    pub fn new(settings: RedSettings) -> Self {
        Self {
            settings,
            resources: Entries::default(),
            series: Vec::new(),
            by_key: KeyedMap::default(),
            names: Names::default(),
            key: Vec::new(),
            now_unix_nano: 0,
        }
    }

    /// Forgets what was counted; which names there are stays.
    pub fn reset(&mut self) {
        self.series = Vec::new();
        self.by_key.clear();
        self.resources = Entries::default();
        self.names.forget(self.now_unix_nano);
    }

    /// Counts the spans of a block. An error: it cannot be read, and nothing was counted.
    pub fn take(&mut self, header: &Header, payload: &[u8], max_bytes: usize, now_unix_nano: u64) -> Result<RedTaken, CoreError> {
        if header.signal != Signal::Traces {
            return Err(CoreError::new(ErrorKind::BlockInvalid, 0, format!("a block of {}, not of traces", header.signal.name())));
        }
        let request = request_of(header, payload, max_bytes)?;
        let broken = |error: WireError| error.of_kind(ErrorKind::BlockInvalid);
        walk(&request, |_| Ok(())).map_err(broken)?;
        self.now_unix_nano = now_unix_nano;
        let mut taken = RedTaken::default();
        let mut resource = 0;
        walk(&request, |part| {
            match part {
                Part::Resource(message) => resource = self.resources.intern(&resource_entry(message)?, resource::ATTRIBUTES),
                Part::Scope(_) => {}
                Part::Span(message) => match self.read(message) {
                    Ok(span) => self.count(resource, &span, &mut taken),
                    Err(_) => taken.unreadable += 1,
                },
            }
            Ok(())
        })
        .map_err(broken)?;
        Ok(taken)
    }

    fn read<'a>(&self, message: Reader<'a>) -> Result<Span<'a>, WireError> {
        let dimensions = &self.settings.dimensions;
        let mut found = Span { weight: 1.0, dimensions: vec![None; dimensions.len()], ..Span::default() };
        for_each_field(message, |field| {
            match field.number {
                span::TRACE_ID => found.trace_id = field.bytes().unwrap_or_default(),
                span::SPAN_ID => found.span_id = field.bytes().unwrap_or_default(),
                span::TRACE_STATE => found.weight = adjusted_count(field.bytes().unwrap_or_default()),
                span::NAME => found.name = field.bytes().unwrap_or_default(),
                SPAN_KIND => found.kind = field.scalar().filter(|kind| *kind <= 5).unwrap_or(0) as u8,
                span::START_TIME_UNIX_NANO => found.start = field.scalar().unwrap_or(0),
                span::END_TIME_UNIX_NANO => found.end = field.scalar().unwrap_or(0),
                span::ATTRIBUTES if !dimensions.is_empty() => {
                    let attribute = key_value(field.message())?;
                    if let Some(at) = dimensions.iter().position(|dimension| dimension.as_bytes() == attribute.key) {
                        found.dimensions[at] = Some(attribute.value.rest());
                    }
                }
                span::STATUS => for_each_field(field.message(), |field| {
                    if field.number == status::CODE {
                        found.status = field.scalar().filter(|code| *code <= 2).unwrap_or(0) as u8;
                    }
                    Ok::<(), WireError>(())
                })?,
                _ => {}
            }
            Ok::<(), WireError>(())
        })?;
        Ok(found)
    }

    fn count(&mut self, resource: u32, span: &Span<'_>, taken: &mut RedTaken) {
        taken.spans += 1;
        self.key.clear();
        self.key.extend_from_slice(&resource.to_le_bytes());
        self.key.extend_from_slice(&[span.kind, span.status, 1]);
        let named = self.key.len();
        self.key.extend_from_slice(&(span.name.len() as u32).to_le_bytes());
        self.key.extend_from_slice(span.name);
        for dimension in &span.dimensions {
            self.key.extend_from_slice(&dimension.map_or(u32::MAX, |value| value.len() as u32).to_le_bytes());
            self.key.extend_from_slice(dimension.unwrap_or_default());
        }
        let number = match self.by_key.get(&self.key) {
            Some(number) => *number,
            None => self.new_series(resource, span, named),
        };
        let seconds = span.end.saturating_sub(span.start) as f64 / NS_PER_SECOND;
        let value = if self.settings.milliseconds { seconds * 1000.0 } else { seconds };
        let count = whole_count(span.weight, span.span_id);
        let series = &mut self.series[number as usize];
        taken.overflowed += u64::from(series.name.is_none());
        series.calls = series.calls.saturating_add(count);
        match &mut series.durations {
            Durations::Explicit(histogram) => histogram.record(value, count),
            Durations::Exponential(histogram) => histogram.record(value, count),
        }
        series.exemplars.offer(value, span.end, span.trace_id, span.span_id, self.settings.max_exemplars);
    }

    #[cold]
    fn new_series(&mut self, resource: u32, span: &Span<'_>, named: usize) -> u32 {
        let entry = &self.resources.all[resource as usize];
        let is_named = self.names.admit(entry, &self.key[named..], self.settings.max_names, self.now_unix_nano);
        if !is_named {
            // Past the limit: one series for each kind and status, so that errors can still be told from calls.
            self.key.truncate(named);
            self.key[named - 1] = 0;
            if let Some(number) = self.by_key.get(&self.key) {
                return *number;
            }
        }
        let number = self.series.len() as u32;
        self.by_key.insert(self.key.clone(), number);
        let owned = |value: &&[u8]| value.to_vec();
        self.series.push(Series {
            resource,
            name: is_named.then(|| String::from_utf8_lossy(span.name).into_owned().into_bytes()),
            kind: span.kind,
            status: span.status,
            dimensions: if is_named { span.dimensions.iter().map(|value| value.as_ref().map(owned)).collect() } else { Vec::new() },
            calls: 0,
            durations: match &self.settings.bounds {
                Some(bounds) => {
                    Durations::Explicit(Histogram { bounds: bounds.clone(), buckets: vec![0; bounds.len() + 1], ..Histogram::default() })
                }
                None => Durations::Exponential(Box::new(Exponential::finest())),
            },
            exemplars: Slowest::default(),
        });
        number
    }
}

/// The resource of a ResourceSpans message, and its schema URL.
fn resource_entry(message: Reader<'_>) -> Result<TableEntry, WireError> {
    let mut entry = TableEntry::default();
    for_each_field(message, |field| {
        match field.number {
            resource_rows::RESOURCE => entry.message.extend_from_slice(field.bytes().unwrap_or_default()),
            resource_rows::SCHEMA_URL => entry.schema_url = field.bytes().unwrap_or_default().to_vec(),
            _ => {}
        }
        Ok::<(), WireError>(())
    })?;
    Ok(entry)
}

/// How many spans one stands for; one whose tracestate breaks the rules for itself.
fn adjusted_count(trace_state: &[u8]) -> f64 {
    let state = tracestate::read(trace_state);
    state.threshold.filter(|_| !state.malformed).map_or(1.0, Threshold::adjusted_count)
}

/// A whole number of calls whose mean is the weight: what is left of it counts as one as often as its size says, by the span's id. So the
/// same span always counts alike, and bucket counts add up to calls.
fn whole_count(weight: f64, span_id: &[u8]) -> u64 {
    let whole = weight.floor();
    let rest = weight - whole;
    if rest == 0.0 {
        return whole as u64;
    }
    let id = span_id.iter().fold(0u64, |id, byte| id << 8 | u64::from(*byte));
    // splitmix64's finaliser: ids that are counted up, as load generators do, are spread too.
    let mut mixed = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let chance = (mixed >> 11) as f64 / (1u64 << 53) as f64;
    (whole as u64).saturating_add(u64::from(chance < rest))
}
