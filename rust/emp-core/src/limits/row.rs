//! One row made to fit: shortened texts end with [`MARK`], what is left out is counted in the row's own dropped counts.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{DestinationLimits, exceeds};
use crate::batch::Signal;
use crate::json_lines::value::value_text;
use crate::otlp::fields::{log, span, span_event};
use crate::otlp::scan::{KeyValue, key_value};
use crate::otlp::value::{AnyValue, Scalar, any_value, put_key_value, put_scalar};
use crate::otlp::wire::{Field, Reader, WireError, for_each_field, put_bytes, put_uint};

/// What a shortened text ends with.
pub const MARK: &[u8] = "…".as_bytes();

/// Attributes that stay when others must go: what people search by.
const STANDARD: [&[u8]; 22] = [
    b"job_id",
    b"event_type",
    b"job_status",
    b"machine_id",
    b"worker_id",
    b"service_type",
    b"session_id",
    b"connector_id",
    b"trace_id",
    b"span_id",
    b"duration_ms",
    b"source",
    b"error",
    b"error_type",
    b"exception.type",
    b"exception.message",
    b"exception.stacktrace",
    b"stack",
    b"progress",
    b"model",
    b"http.response.status_code",
    b"http.route",
];

type Applied = BTreeMap<&'static str, u64>;

/// Appends `message` made to fit.
pub fn shorten(
    limits: &DestinationLimits,
    signal: Signal,
    message: &[u8],
    out: &mut Vec<u8>,
    applied: &mut Applied,
) -> Result<(), WireError> {
    let shape = match signal {
        Signal::Logs => Shape {
            attributes: log::ATTRIBUTES,
            max_attributes: limits.max_log_attributes,
            attributes_name: "max_log_attributes",
            dropped_attributes: log::DROPPED_ATTRIBUTES_COUNT,
            body: Some(log::BODY),
            events: None,
        },
        _ => Shape {
            attributes: span::ATTRIBUTES,
            max_attributes: limits.max_span_attributes,
            attributes_name: "max_span_attributes",
            dropped_attributes: span::DROPPED_ATTRIBUTES_COUNT,
            body: None,
            events: Some((span::EVENTS, span::DROPPED_EVENTS_COUNT)),
        },
    };
    let keep = kept_attributes(message, &shape)?;
    let mut row = Row { limits, applied, keys: Vec::new(), dropped_attributes: 0, dropped_events: 0 };
    let (mut attribute, mut events) = (0, 0);
    for_each_field(Reader::new(message), |field| {
        if field.number == shape.attributes {
            attribute += 1;
            if keep.as_ref().is_none_or(|keep| keep[attribute - 1]) {
                row.put_attribute(out, field.number, key_value(field.message())?)
            } else {
                row.count(shape.attributes_name);
                row.dropped_attributes += 1;
                Ok(())
            }
        } else if field.number == shape.dropped_attributes {
            row.dropped_attributes += field.scalar().unwrap_or(0);
            Ok(())
        } else if Some(field.number) == shape.body {
            row.put_body(out, &field)
        } else if let Some((number, dropped)) = shape.events {
            if field.number == number {
                events += 1;
                if exceeds(events, limits.max_span_events) {
                    row.count("max_span_events");
                    row.dropped_events += 1;
                    Ok(())
                } else {
                    row.put_event(out, &field)
                }
            } else {
                if field.number == dropped {
                    row.dropped_events += field.scalar().unwrap_or(0);
                } else {
                    out.extend_from_slice(field.raw);
                }
                Ok(())
            }
        } else {
            out.extend_from_slice(field.raw);
            Ok::<(), WireError>(())
        }
    })?;
    if row.dropped_attributes > 0 {
        put_uint(out, shape.dropped_attributes, row.dropped_attributes.min(u64::from(u32::MAX)));
    }
    if let (Some((_, number)), true) = (shape.events, row.dropped_events > 0) {
        put_uint(out, number, row.dropped_events.min(u64::from(u32::MAX)));
    }
    Ok(())
}

struct Shape {
    attributes: u32,
    max_attributes: u32,
    attributes_name: &'static str,
    dropped_attributes: u32,
    body: Option<u32>,
    /// The events and the count of those left out.
    events: Option<(u32, u32)>,
}

/// Which attributes stay, by their number: the standard ones first, then in order. None: all.
fn kept_attributes(message: &[u8], shape: &Shape) -> Result<Option<Vec<bool>>, WireError> {
    if shape.max_attributes == 0 {
        return Ok(None);
    }
    let mut ranks = Vec::new();
    for_each_field(Reader::new(message), |field| {
        if field.number == shape.attributes {
            let key = key_value(field.message())?.key;
            ranks.push((STANDARD.iter().position(|standard| *standard == key).unwrap_or(STANDARD.len()), ranks.len()));
        }
        Ok::<(), WireError>(())
    })?;
    let mut keep = vec![false; ranks.len()];
    ranks.sort_unstable();
    for (_, number) in ranks.iter().take(shape.max_attributes as usize) {
        keep[*number] = true;
    }
    Ok((ranks.len() > shape.max_attributes as usize).then_some(keep))
}

struct Row<'a> {
    limits: &'a DestinationLimits,
    applied: &'a mut Applied,
    /// The keys written so far: shortened ones may meet.
    keys: Vec<Vec<u8>>,
    dropped_attributes: u64,
    dropped_events: u64,
}

impl Row<'_> {
    fn count(&mut self, limit: &'static str) {
        *self.applied.entry(limit).or_default() += 1;
    }

    fn put_attribute(&mut self, out: &mut Vec<u8>, number: u32, pair: KeyValue<'_>) -> Result<(), WireError> {
        let key = shortened(pair.key, self.limits.max_key_bytes);
        if self.limits.max_key_bytes != 0 {
            if matches!(key, Cow::Owned(_)) {
                self.count("max_key_bytes");
            }
            if self.keys.iter().any(|known| **known == *key) {
                self.dropped_attributes += 1;
                return Ok(());
            }
            self.keys.push(key.to_vec());
        }
        match self.fitting_text(&pair.value, self.limits.max_value_bytes)? {
            Some(text) => {
                self.count("max_value_bytes");
                let mut value = Vec::with_capacity(text.len() + 8);
                put_scalar(&mut value, Scalar::String(&text));
                put_key_value(out, number, &key, &value);
            }
            None => put_key_value(out, number, &key, pair.value.rest()),
        }
        Ok(())
    }

    fn put_body(&mut self, out: &mut Vec<u8>, field: &Field<'_>) -> Result<(), WireError> {
        match self.fitting_text(&field.message(), self.limits.max_body_bytes)? {
            Some(text) => {
                self.count("max_body_bytes");
                let mut value = Vec::with_capacity(text.len() + 8);
                put_scalar(&mut value, Scalar::String(&text));
                put_bytes(out, field.number, &value);
            }
            None => out.extend_from_slice(field.raw),
        }
        Ok(())
    }

    /// The text that replaces a value longer than `limit` (a map or list becomes its JSON first); None when it fits.
    fn fitting_text(&self, value: &Reader<'_>, limit: u32) -> Result<Option<Vec<u8>>, WireError> {
        let len = match any_value(value.clone())? {
            AnyValue::String(text) => text.len(),
            AnyValue::Bytes(_) | AnyValue::Array(_) | AnyValue::KvList(_) => value.rest().len(),
            _ => 0,
        };
        if limit == 0 || len <= limit as usize {
            return Ok(None);
        }
        Ok(value_text(value.clone())?.map(|text| shortened(&text, limit).into_owned()))
    }

    fn put_event(&mut self, out: &mut Vec<u8>, field: &Field<'_>) -> Result<(), WireError> {
        let mut event = Vec::with_capacity(field.raw.len());
        let row_keys = std::mem::take(&mut self.keys);
        let row_dropped = std::mem::take(&mut self.dropped_attributes);
        for_each_field(field.message(), |inner| match inner.number {
            span_event::ATTRIBUTES => self.put_attribute(&mut event, inner.number, key_value(inner.message())?),
            span_event::DROPPED_ATTRIBUTES_COUNT => {
                self.dropped_attributes += inner.scalar().unwrap_or(0);
                Ok(())
            }
            _ => {
                event.extend_from_slice(inner.raw);
                Ok(())
            }
        })?;
        if self.dropped_attributes > 0 {
            put_uint(&mut event, span_event::DROPPED_ATTRIBUTES_COUNT, self.dropped_attributes.min(u64::from(u32::MAX)));
        }
        self.keys = row_keys;
        self.dropped_attributes = row_dropped;
        put_bytes(out, field.number, &event);
        Ok(())
    }
}

/// `text`, cut at a character and marked where it is longer than `limit` (0: none).
fn shortened(text: &[u8], limit: u32) -> Cow<'_, [u8]> {
    if !exceeds(u32::try_from(text.len()).unwrap_or(u32::MAX), limit) {
        return Cow::Borrowed(text);
    }
    let mut end = limit as usize - MARK.len();
    // Step back over the inside of a character; bytes that are no UTF-8 end it after three.
    for _ in 0..3 {
        if end > 0 && text[end] & 0xc0 == 0x80 {
            end -= 1;
        }
    }
    Cow::Owned([&text[..end], MARK].concat())
}
