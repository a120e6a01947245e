//! What one encoded row says to the columns: read once when a row comes in as OTLP or has been rewritten.

use super::fields::{any_value, key_value, log, span, span_event, span_link, status};
use super::points::measure_points;
use super::wire::{Field, Reader, WireError, for_each_field};
use crate::batch::{Batch, Extremes, FLAG_ERROR, FLAG_EVENT, Signal, View};

/// The columns of one row.
#[derive(Clone, Copy, Debug)]
pub struct RowFacts {
    /// See [`crate::batch::Columns`].
    pub time_unix_nano: i64,
    /// OTLP severity number.
    pub severity_number: u8,
    /// [`FLAG_ERROR`], [`FLAG_EVENT`].
    pub flags: u8,
    /// Zeros when absent or of the wrong length.
    pub trace_id: [u8; 16],
    /// Zeros when absent or of the wrong length.
    pub span_id: [u8; 8],
    /// The string body, absolute.
    pub body: View,
    /// Attribute `job_id`, absolute.
    pub job_id: View,
    /// Attribute `event_type`, absolute.
    pub event_type: View,
    /// Data points of a metric.
    pub points: u32,
}

impl RowFacts {
    /// Those of a row that says nothing.
    pub const NOTHING: Self = Self {
        time_unix_nano: 0,
        severity_number: 0,
        flags: 0,
        trace_id: [0; 16],
        span_id: [0; 8],
        body: View::NONE,
        job_id: View::NONE,
        event_type: View::NONE,
        points: 0,
    };
}

/// A key and a value of a `KeyValue` message. The value is the encoded `AnyValue`.
#[derive(Clone, Debug)]
pub struct KeyValue<'a> {
    /// The key's bytes.
    pub key: &'a [u8],
    /// A reader of the `AnyValue`.
    pub value: Reader<'a>,
}

/// Reads a `KeyValue`: the last key and the last value count, as protobuf says.
#[inline]
pub fn key_value<'a>(message: Reader<'a>) -> Result<KeyValue<'a>, WireError> {
    let mut usual = message.clone();
    if let Some(key) = usual.short_message(0x0a)
        && let Some(value) = usual.short_message(0x12)
        && usual.rest().is_empty()
    {
        return Ok(KeyValue { key: key.rest(), value });
    }
    let mut out = KeyValue { key: &[], value: Reader::new(&[]) };
    for_each_field(message, |field| {
        match field.number {
            key_value::KEY => out.key = field.bytes().unwrap_or_default(),
            key_value::VALUE => out.value = field.message(),
            _ => {}
        }
        Ok::<(), WireError>(())
    })?;
    Ok(out)
}

/// The payload and absolute offset of an `AnyValue` that is a string; None for other types.
#[inline]
pub fn string_value<'a>(value: Reader<'a>) -> Result<Option<(&'a [u8], usize)>, WireError> {
    let mut usual = value.clone();
    if let Some(text) = usual.short_message(0x0a)
        && usual.rest().is_empty()
    {
        return Ok(Some((text.rest(), text.offset())));
    }
    let mut found = None;
    for_each_field(value, |field| {
        found = (field.number == any_value::STRING).then(|| field.bytes().map(|bytes| (bytes, field.bytes_offset()))).flatten();
        Ok::<(), WireError>(())
    })?;
    Ok(found)
}

/// Reads a row (its message, whose first byte lies at `base` of the row buffer) and widens `extremes` by it.
pub fn scan_row(signal: Signal, message: &[u8], base: usize, extremes: &mut Extremes) -> Result<RowFacts, WireError> {
    match signal {
        Signal::Logs => scan_log(Reader::at(message, base), extremes),
        Signal::Traces => scan_span(Reader::at(message, base), extremes),
        Signal::Metrics => {
            for_each_field(Reader::at(message, base), |_| Ok::<(), WireError>(()))?;
            // Only their sizes count: a point's `job_id` is not the metric's.
            let mut nothing = RowFacts::NOTHING;
            let points = measure_points(Reader::at(message, base), |field| {
                let _ = scan_attribute(field, extremes, &mut nothing);
            });
            extremes.max_key_bytes = extremes.max_key_bytes.max(points.short_bytes);
            extremes.max_value_bytes = extremes.max_value_bytes.max(points.short_bytes);
            Ok(RowFacts { points: points.count, ..RowFacts::NOTHING })
        }
    }
}

fn scan_log(message: Reader<'_>, extremes: &mut Extremes) -> Result<RowFacts, WireError> {
    let mut facts = RowFacts::NOTHING;
    let mut attributes = 0;
    for_each_field(message, |field| {
        match field.number {
            log::TIME_UNIX_NANO => facts.time_unix_nano = time(&field),
            log::SEVERITY_NUMBER => facts.severity_number = severity(&field),
            log::BODY => {
                let string = string_value(field.message())?;
                facts.body = view(string);
                extremes.max_body_bytes = extremes.max_body_bytes.max(measured(string, field.message()));
            }
            log::ATTRIBUTES => {
                attributes += 1;
                scan_attribute(&field, extremes, &mut facts)?;
            }
            log::TRACE_ID => facts.trace_id = id(&field),
            log::SPAN_ID => facts.span_id = id(&field),
            log::EVENT_NAME if field.bytes().is_some_and(|name| !name.is_empty()) => facts.flags |= FLAG_EVENT,
            _ => {}
        }
        Ok::<(), WireError>(())
    })?;
    if facts.severity_number >= 17 {
        facts.flags |= FLAG_ERROR;
    }
    extremes.max_attributes = extremes.max_attributes.max(attributes);
    Ok(facts)
}

fn scan_span(message: Reader<'_>, extremes: &mut Extremes) -> Result<RowFacts, WireError> {
    let mut facts = RowFacts::NOTHING;
    let (mut attributes, mut events) = (0, 0);
    for_each_field(message, |field| {
        match field.number {
            span::TRACE_ID => facts.trace_id = id(&field),
            span::SPAN_ID => facts.span_id = id(&field),
            span::START_TIME_UNIX_NANO => facts.time_unix_nano = time(&field),
            span::ATTRIBUTES => {
                attributes += 1;
                scan_attribute(&field, extremes, &mut facts)?;
            }
            span::EVENTS => {
                events += 1;
                scan_part(field.message(), span_event::ATTRIBUTES, extremes)?;
            }
            span::LINKS => scan_part(field.message(), span_link::ATTRIBUTES, extremes)?,
            span::STATUS => for_each_field(field.message(), |field| {
                if field.number == status::CODE {
                    facts.flags &= !FLAG_ERROR;
                    if field.scalar() == Some(status::CODE_ERROR) {
                        facts.flags |= FLAG_ERROR;
                    }
                }
                Ok::<(), WireError>(())
            })?,
            _ => {}
        }
        Ok::<(), WireError>(())
    })?;
    extremes.max_attributes = extremes.max_attributes.max(attributes);
    extremes.max_span_events = extremes.max_span_events.max(events);
    Ok(facts)
}

/// Measures the attributes of an event or a link. Only their sizes count: an event's `job_id` is not the span's.
pub fn scan_part(part: Reader<'_>, attributes: u32, extremes: &mut Extremes) -> Result<(), WireError> {
    let mut nothing = RowFacts::NOTHING;
    for_each_field(part, |field| {
        if field.number == attributes {
            scan_attribute(&field, extremes, &mut nothing)?;
        }
        Ok::<(), WireError>(())
    })
}

#[inline]
fn scan_attribute(field: &Field<'_>, extremes: &mut Extremes, facts: &mut RowFacts) -> Result<(), WireError> {
    let KeyValue { key, value } = key_value(field.message())?;
    extremes.max_key_bytes = extremes.max_key_bytes.max(key.len() as u32);
    let string = string_value(value.clone())?;
    extremes.max_value_bytes = extremes.max_value_bytes.max(measured(string, value));
    match key {
        b"job_id" => facts.job_id = view(string),
        // As an SDK's own baggage processor names it, or JavaScript writes it: where the row has no `job_id`.
        b"jobId" | b"baggage.job_id" if facts.job_id == View::NONE => facts.job_id = view(string),
        b"event_type" => {
            facts.event_type = view(string);
            facts.flags |= if string.is_some() { FLAG_EVENT } else { 0 };
        }
        _ => {}
    }
    Ok(())
}

/// The size that limits compare: of a string its bytes, of anything else those of the encoded value.
#[inline]
fn measured(string: Option<(&[u8], usize)>, value: Reader<'_>) -> u32 {
    string.map_or(value.rest(), |(bytes, _)| bytes).len() as u32
}

#[inline]
fn time(field: &Field<'_>) -> i64 {
    field.scalar().and_then(|value| i64::try_from(value).ok()).unwrap_or(i64::MAX)
}

#[inline]
fn severity(field: &Field<'_>) -> u8 {
    field.scalar().and_then(|value| u8::try_from(value).ok()).unwrap_or(0)
}

#[inline]
fn id<const N: usize>(field: &Field<'_>) -> [u8; N] {
    field.bytes().and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

#[inline]
fn view(string: Option<(&[u8], usize)>) -> View {
    string.map_or(View::NONE, |(bytes, offset)| View { offset: offset as u32, len: bytes.len() as u32 })
}

impl Batch {
    /// Appends a row: its message is copied, prefixed, and read for the columns. Nothing is appended on an error.
    pub fn push_message(&mut self, message: &[u8], resource: u32, scope: u32) -> Result<(), WireError> {
        let before = self.rows.len();
        super::wire::put_bytes(&mut self.rows, super::fields::scope_rows::ROW, message);
        let base = self.rows.len() - message.len();
        if u32::try_from(self.rows.len()).is_err() {
            self.rows.truncate(before);
            return Err(WireError { offset: base, detail: "a batch would exceed 4 GiB" });
        }
        match scan_row(self.signal, message, base, &mut self.extremes) {
            Ok(facts) => {
                self.push_facts(&facts, resource, scope);
                Ok(())
            }
            Err(error) => {
                self.rows.truncate(before);
                Err(error)
            }
        }
    }

    /// Appends the columns of a row that ends where `rows` ends now.
    pub fn push_facts(&mut self, facts: &RowFacts, resource: u32, scope: u32) {
        self.row_end.push(self.rows.len() as u32);
        let columns = &mut self.columns;
        columns.time_unix_nano.push(facts.time_unix_nano);
        columns.severity_number.push(facts.severity_number);
        columns.resource.push(resource);
        columns.scope.push(scope);
        columns.flags.push(facts.flags);
        columns.trace_id.push(facts.trace_id);
        columns.span_id.push(facts.span_id);
        columns.body.push(facts.body);
        columns.job_id.push(facts.job_id);
        columns.event_type.push(facts.event_type);
        if self.signal == Signal::Metrics {
            columns.points.push(facts.points);
        }
    }
}
