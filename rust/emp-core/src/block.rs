//! [`Block`]: batches as one OTLP export request, compressed, with the header that answers what the log, routing and limits ask.
//!
//! The header is JSON with a format version: newer versions read older ones, older ones refuse newer with advice. `docs/decisions/001-log.md`
//! lists its fields. How rows are gathered: [`crate::otlp::encode`].

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Extremes, FLAG_ERROR, FLAG_EVENT, Signal, TableEntry};
use crate::compress::{Codec, compress, decompress, with_raw_scratch};
use crate::error::{CoreError, ErrorKind};
use crate::hash::KeyedMap;
use crate::otlp::decode::{decode, string_attribute};
use crate::otlp::encode::Plan;
use crate::otlp::fields::{resource, scope};
use crate::otlp::points::put_with_points;
use crate::otlp::wire::Reader;

/// The format that this version writes.
pub const FORMAT_VERSION: u32 = 1;
/// More tags or services than this are not listed: the set is None then.
pub const MAX_LISTED: usize = 16;
/// Longer tags and services are not listed either: a header stays small whatever a sender writes.
const MAX_LISTED_BYTES: usize = 256;

/// What a block says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The format version; see [`FORMAT_VERSION`].
    pub version: u32,
    /// How the payload is compressed.
    pub codec: Codec,
    /// What the rows are.
    pub signal: Signal,
    /// Unique, made once.
    pub block_id: String,
    /// Where the log files it.
    pub topic: String,
    /// What the books count: log records, spans, data points.
    pub records: u64,
    /// Rows flagged as errors.
    pub errors: u64,
    /// Rows flagged as events.
    pub events: u64,
    /// The earliest known time of a row; 0 when no row has one.
    pub min_time_unix_nano: i64,
    /// The latest time of a row.
    pub max_time_unix_nano: i64,
    /// The size of the export request.
    pub uncompressed_bytes: u64,
    /// See [`Extremes`].
    pub max_body_bytes: u32,
    /// See [`Extremes`].
    pub max_attributes: u32,
    /// See [`Extremes`].
    pub max_value_bytes: u32,
    /// See [`Extremes`].
    pub max_key_bytes: u32,
    /// See [`Extremes`].
    pub max_span_events: u32,
    /// Spans of the trace that has most in this block.
    pub max_trace_spans: u32,
    /// The Fluent tags, sorted, "" for rows without one; None when there are too many to list.
    pub tags: Option<Vec<String>>,
    /// The `service.name`s, sorted, "" for rows without one; None when there are too many to list.
    pub services: Option<Vec<String>>,
    /// The severity numbers, sorted.
    pub severities: Vec<u8>,
    /// Sampling has decided.
    #[serde(default)]
    pub decided: bool,
    /// RED metrics have been derived.
    #[serde(default)]
    pub red_done: bool,
    /// Metrics have been aggregated.
    #[serde(default)]
    pub aggregated: bool,
}

impl Header {
    /// Reads a header. A newer format is an error of kind `log_newer`.
    pub fn parse(bytes: &[u8]) -> Result<Self, CoreError> {
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let parsed: Result<Self, _> = serde_json::from_slice(bytes);
        let version = match &parsed {
            Ok(header) => Some(header.version),
            Err(_) => serde_json::from_slice::<VersionOnly>(bytes).ok().map(|only| only.version),
        };
        match (parsed, version) {
            (_, Some(version)) if version > FORMAT_VERSION => Err(CoreError::new(
                ErrorKind::LogNewer,
                0,
                format!("a block of format version {version}; this emp-pipe reads up to {FORMAT_VERSION}"),
            )),
            (Ok(header), _) if header.version == 0 => Err(CoreError::new(ErrorKind::BlockInvalid, 0, "a block header of version 0")),
            (Ok(header), _) => Ok(header),
            (Err(error), _) => {
                Err(CoreError::new(ErrorKind::BlockInvalid, error.column().saturating_sub(1), format!("a block header: {error}")))
            }
        }
    }

    /// The header as it is stored and sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        // JSON refuses keys of maps that are no strings, and there is no map; what senders wrote are strings like any other.
        serde_json::to_vec(self).expect("a header has only strings, numbers and bools")
    }
}

/// A header and its payload.
#[derive(Clone, Debug)]
pub struct Block {
    /// What the payload is.
    pub header: Header,
    /// The compressed export request.
    pub payload: Vec<u8>,
}

/// One block out of batches of one signal, which must not be empty.
pub fn encode_block(batches: &[&Batch], codec: Codec, level: i32, topic: &str, block_id: &str) -> Result<Block, CoreError> {
    let Some(first) = batches.first() else {
        return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, "a block needs at least one batch"));
    };
    if batches.iter().any(|batch| batch.signal != first.signal) {
        return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, "a block holds one signal; the batches have several"));
    }
    let plan = Plan::new(batches);
    let header = header_of(&plan, batches, codec, topic, block_id);
    let payload = if codec == Codec::None {
        let mut payload = Vec::with_capacity(plan.encoded_len());
        plan.write(&mut payload);
        payload
    } else {
        with_raw_scratch(|raw| plan.write(raw), |raw| compress(codec, level, raw))
    };
    Ok(Block { header, payload })
}

fn header_of(plan: &Plan<'_>, batches: &[&Batch], codec: Codec, topic: &str, block_id: &str) -> Header {
    let signal = batches[0].signal;
    let (mut errors, mut events, mut severities) = (0u64, 0u64, 0u64);
    let (mut min_time, mut max_time) = (i64::MAX, 0);
    for batch in batches {
        let columns = &batch.columns;
        for &flags in &columns.flags {
            errors += u64::from(flags & FLAG_ERROR != 0);
            events += u64::from(flags & FLAG_EVENT != 0);
        }
        for &severity in &columns.severity_number {
            severities |= 1 << severity.min(63);
        }
        for &time in &columns.time_unix_nano {
            // A row without a time says nothing about the span of times.
            min_time = min_time.min(if time == 0 { i64::MAX } else { time });
            max_time = max_time.max(time);
        }
    }
    let extremes = merged_extremes(batches);
    Header {
        version: FORMAT_VERSION,
        codec,
        signal,
        block_id: block_id.to_owned(),
        topic: topic.to_owned(),
        records: batches.iter().map(|batch| batch.record_count()).sum(),
        errors,
        events,
        min_time_unix_nano: if min_time == i64::MAX { 0 } else { min_time },
        max_time_unix_nano: max_time,
        uncompressed_bytes: plan.encoded_len() as u64,
        max_body_bytes: extremes.max_body_bytes,
        max_attributes: extremes.max_attributes,
        max_value_bytes: extremes.max_value_bytes,
        max_key_bytes: extremes.max_key_bytes,
        max_span_events: extremes.max_span_events,
        max_trace_spans: extremes.max_trace_spans,
        tags: listed(plan.scopes(), scope::ATTRIBUTES, b"fluent.tag"),
        services: listed(plan.resources(), resource::ATTRIBUTES, b"service.name"),
        severities: (0..64).filter(|bit| severities >> bit & 1 == 1).collect(),
        decided: false,
        red_done: false,
        aggregated: false,
    }
}

fn merged_extremes(batches: &[&Batch]) -> Extremes {
    let mut merged = Extremes::default();
    for Extremes { max_body_bytes, max_attributes, max_value_bytes, max_key_bytes, max_span_events, .. } in
        batches.iter().map(|batch| batch.extremes)
    {
        merged.max_body_bytes = merged.max_body_bytes.max(max_body_bytes);
        merged.max_attributes = merged.max_attributes.max(max_attributes);
        merged.max_value_bytes = merged.max_value_bytes.max(max_value_bytes);
        merged.max_key_bytes = merged.max_key_bytes.max(max_key_bytes);
        merged.max_span_events = merged.max_span_events.max(max_span_events);
    }
    if batches[0].signal == Signal::Traces {
        let mut spans: KeyedMap<[u8; 16], u32> = KeyedMap::default();
        for trace_id in batches.iter().flat_map(|batch| &batch.columns.trace_id) {
            *spans.entry(*trace_id).or_default() += 1;
        }
        merged.max_trace_spans = spans.into_values().max().unwrap_or(0);
    }
    merged
}

/// The distinct values of a string attribute over table entries, "" where one lacks it; None when they are too many or too long.
fn listed<'a>(entries: impl Iterator<Item = &'a TableEntry>, attributes_field: u32, key: &[u8]) -> Option<Vec<String>> {
    let mut values = BTreeSet::new();
    let mut last: Option<&TableEntry> = None;
    for entry in entries {
        if last.is_some_and(|last| std::ptr::eq(last, entry)) {
            continue;
        }
        last = Some(entry);
        let value = string_attribute(&entry.message, attributes_field, key).unwrap_or_default();
        values.insert(value);
        if values.len() > MAX_LISTED || value.len() > MAX_LISTED_BYTES {
            return None;
        }
    }
    Some(values.into_iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect())
}

/// The export request of a block, inflated.
pub fn inflate(header: &Header, payload: &[u8], max_bytes: usize) -> Result<Vec<u8>, CoreError> {
    let known = usize::try_from(header.uncompressed_bytes).unwrap_or(usize::MAX);
    let request = decompress(header.codec, payload, max_bytes, Some(known), ErrorKind::BlockInvalid)?;
    if request.len() != known {
        let detail = format!("a block of {} bytes, whose header says {known}", request.len());
        return Err(CoreError::new(ErrorKind::BlockInvalid, 0, detail));
    }
    Ok(request)
}

/// [`inflate`] that copies nothing where the payload is the request.
pub fn request_of<'a>(header: &Header, payload: &'a [u8], max_bytes: usize) -> Result<Cow<'a, [u8]>, CoreError> {
    if header.codec == Codec::None && payload.len() as u64 == header.uncompressed_bytes && payload.len() <= max_bytes {
        return Ok(Cow::Borrowed(payload));
    }
    inflate(header, payload, max_bytes).map(Cow::Owned)
}

/// The rows of a block.
pub fn decode_block(header: &Header, payload: &[u8], max_inflated_bytes: usize) -> Result<Batch, CoreError> {
    decode(header.signal, &request_of(header, payload, max_inflated_bytes)?, ErrorKind::BlockInvalid)
}

/// What a block of ours may inflate to where the caller sets no limit.
pub(crate) const MAX_OWN_BYTES: usize = 1 << 30;

/// The export request of a block in another codec.
pub fn recode(header: &Header, payload: &[u8], codec: Codec) -> Result<Vec<u8>, CoreError> {
    let request = inflate(header, payload, MAX_OWN_BYTES)?;
    Ok(if codec == Codec::None { request } else { compress(codec, 1, &request) })
}

/// One block out of several of one signal, in their order: inflated, concatenated (a valid request, as protobuf merges repeated fields),
/// compressed. Its header is the sum of theirs; `max_trace_spans` is an upper bound, since a trace may lie in several.
pub fn merge_blocks(blocks: &[(&Header, &[u8])], codec: Codec, block_id: &str) -> Result<Block, CoreError> {
    let Some(((first, _), rest)) = blocks.split_first() else {
        return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, "nothing to merge"));
    };
    let mut header = Header { codec, block_id: block_id.to_owned(), ..(*first).clone() };
    for (other, _) in rest {
        if other.signal != header.signal {
            return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, "a block holds one signal; these have several"));
        }
        header.absorb(other);
    }
    let size = usize::try_from(header.uncompressed_bytes).unwrap_or(usize::MAX);
    if size > MAX_OWN_BYTES {
        return Err(CoreError::new(ErrorKind::BlockInvalid, 0, "merged blocks of over 1 GiB"));
    }
    let mut request = Vec::new();
    for (header, payload) in blocks {
        request.extend_from_slice(&request_of(header, payload, MAX_OWN_BYTES)?);
    }
    let payload = if codec == Codec::None { request } else { compress(codec, 1, &request) };
    Ok(Block { header, payload })
}

impl Header {
    fn absorb(&mut self, other: &Self) {
        self.records = self.records.saturating_add(other.records);
        self.errors = self.errors.saturating_add(other.errors);
        self.events = self.events.saturating_add(other.events);
        self.uncompressed_bytes = self.uncompressed_bytes.saturating_add(other.uncompressed_bytes);
        self.min_time_unix_nano = match (self.min_time_unix_nano, other.min_time_unix_nano) {
            (0, time) | (time, 0) => time,
            (ours, theirs) => ours.min(theirs),
        };
        self.max_time_unix_nano = self.max_time_unix_nano.max(other.max_time_unix_nano);
        self.max_body_bytes = self.max_body_bytes.max(other.max_body_bytes);
        self.max_attributes = self.max_attributes.max(other.max_attributes);
        self.max_value_bytes = self.max_value_bytes.max(other.max_value_bytes);
        self.max_key_bytes = self.max_key_bytes.max(other.max_key_bytes);
        self.max_span_events = self.max_span_events.max(other.max_span_events);
        self.max_trace_spans = self.max_trace_spans.saturating_add(other.max_trace_spans);
        self.tags = union(self.tags.take(), other.tags.as_ref());
        self.services = union(self.services.take(), other.services.as_ref());
        self.severities = self.severities.iter().chain(&other.severities).copied().collect::<BTreeSet<_>>().into_iter().collect();
        self.decided &= other.decided;
        self.red_done &= other.red_done;
        self.aggregated &= other.aggregated;
    }
}

fn union(ours: Option<Vec<String>>, theirs: Option<&Vec<String>>) -> Option<Vec<String>> {
    let all: BTreeSet<String> = ours?.into_iter().chain(theirs?.iter().cloned()).collect();
    (all.len() <= MAX_LISTED).then(|| all.into_iter().collect())
}

/// Two blocks of half the rows each, with the flags and the codec of the whole: of one metric, half its points each. None when it is one
/// record.
pub fn halve(header: &Header, payload: &[u8], block_ids: [&str; 2]) -> Result<Option<[Block; 2]>, CoreError> {
    let batch = decode_block(header, payload, MAX_OWN_BYTES)?;
    let [first, second] = match batch.len() {
        0 | 1 => match half_metrics(&batch) {
            Some(halves) => halves,
            None => return Ok(None),
        },
        rows => [batch.slice(0, rows / 2), batch.slice(rows / 2, rows)],
    };
    let half = |batch: &Batch, block_id| {
        let mut block = encode_block(&[batch], header.codec, 1, &header.topic, block_id)?;
        block.header.decided = header.decided;
        block.header.red_done = header.red_done;
        block.header.aggregated = header.aggregated;
        Ok(block)
    };
    Ok(Some([half(&first, block_ids[0])?, half(&second, block_ids[1])?]))
}

/// The one metric of a batch twice, with half its points each; None when it has fewer than two, or cannot be followed.
fn half_metrics(batch: &Batch) -> Option<[Batch; 2]> {
    let middle = batch.columns.points.first()? / 2;
    let half = |keep: &dyn Fn(u32) -> bool| {
        let mut out = Batch { resources: batch.resources.clone(), scopes: batch.scopes.clone(), ..Batch::new(batch.signal) };
        let mut message = Vec::new();
        put_with_points(&mut message, Reader::new(batch.message(0)), keep).ok()?;
        out.push_message(&message, batch.columns.resource[0], batch.columns.scope[0]).ok()?;
        Some(out)
    };
    if middle == 0 {
        return None;
    }
    Some([half(&|number| number < middle)?, half(&|number| number >= middle)?])
}
