//! A log record or a span made to fit: shortened texts end with a mark, what is left out is counted in the row's own dropped counts.

use std::borrow::Cow;

use super::text::{fitting_text, shortened};
use super::{Applied, DestinationLimits};
use crate::batch::Signal;
use crate::hash::KeyedSet;
use crate::otlp::fields::{log, span, span_event, span_link};
use crate::otlp::scan::{KeyValue, key_value};
use crate::otlp::value::{Scalar, put_key_value, put_scalar};
use crate::otlp::wire::{Field, Reader, WireError, for_each_field, put_bytes, put_uint};

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
            is_span: false,
        },
        _ => Shape {
            attributes: span::ATTRIBUTES,
            max_attributes: limits.max_span_attributes,
            attributes_name: "max_span_attributes",
            dropped_attributes: span::DROPPED_ATTRIBUTES_COUNT,
            body: None,
            is_span: true,
        },
    };
    let keep = kept_attributes(message, &shape)?;
    let mut row = Row { limits, applied, keys: KeyedSet::default(), dropped_attributes: 0, dropped_events: 0 };
    let kept_events = if shape.is_span { kept_events(message, limits.max_span_events)? } else { None };
    let (mut attribute, mut event) = (0, 0);
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
        } else if !shape.is_span {
            out.extend_from_slice(field.raw);
            Ok(())
        } else {
            match field.number {
                span::EVENTS => {
                    event += 1;
                    if kept_events.as_ref().is_none_or(|keep| keep[event - 1]) {
                        row.put_part(out, &field, span_event::ATTRIBUTES, span_event::DROPPED_ATTRIBUTES_COUNT)
                    } else {
                        row.count("max_span_events");
                        row.dropped_events += 1;
                        Ok(())
                    }
                }
                span::LINKS => row.put_part(out, &field, span_link::ATTRIBUTES, span_link::DROPPED_ATTRIBUTES_COUNT),
                span::DROPPED_EVENTS_COUNT => {
                    row.dropped_events += field.scalar().unwrap_or(0);
                    Ok(())
                }
                _ => {
                    out.extend_from_slice(field.raw);
                    Ok::<(), WireError>(())
                }
            }
        }
    })?;
    if row.dropped_attributes > 0 {
        put_uint(out, shape.dropped_attributes, row.dropped_attributes.min(u64::from(u32::MAX)));
    }
    if row.dropped_events > 0 {
        put_uint(out, span::DROPPED_EVENTS_COUNT, row.dropped_events.min(u64::from(u32::MAX)));
    }
    Ok(())
}

struct Shape {
    attributes: u32,
    max_attributes: u32,
    attributes_name: &'static str,
    dropped_attributes: u32,
    body: Option<u32>,
    /// It has events and links.
    is_span: bool,
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
            ranks.push(STANDARD.iter().position(|standard| *standard == key).unwrap_or(STANDARD.len()));
        }
        Ok::<(), WireError>(())
    })?;
    Ok(best(&ranks, shape.max_attributes))
}

/// Which events stay, by their number: exceptions first, for they say why the span failed, then in order. None: all.
fn kept_events(message: &[u8], most: u32) -> Result<Option<Vec<bool>>, WireError> {
    if most == 0 {
        return Ok(None);
    }
    let mut ranks = Vec::new();
    for_each_field(Reader::new(message), |field| {
        if field.number == span::EVENTS {
            let mut is_exception = false;
            for_each_field(field.message(), |field| {
                if field.number == span_event::NAME {
                    is_exception = field.bytes() == Some(b"exception");
                }
                Ok::<(), WireError>(())
            })?;
            ranks.push(usize::from(!is_exception));
        }
        Ok::<(), WireError>(())
    })?;
    Ok(best(&ranks, most))
}

/// The `most` of lowest rank, the first ones among equals. None: all.
fn best(ranks: &[usize], most: u32) -> Option<Vec<bool>> {
    if ranks.len() <= most as usize {
        return None;
    }
    let mut order: Vec<usize> = (0..ranks.len()).collect();
    order.sort_by_key(|number| ranks[*number]);
    let mut keep = vec![false; ranks.len()];
    for number in order.iter().take(most as usize) {
        keep[*number] = true;
    }
    Some(keep)
}

struct Row<'a, 'm> {
    limits: &'a DestinationLimits,
    applied: &'a mut Applied,
    /// The keys written so far: shortened ones may meet.
    keys: KeyedSet<Cow<'m, [u8]>>,
    dropped_attributes: u64,
    dropped_events: u64,
}

impl<'m> Row<'_, 'm> {
    fn count(&mut self, limit: &'static str) {
        *self.applied.entry(limit).or_default() += 1;
    }

    fn put_attribute(&mut self, out: &mut Vec<u8>, number: u32, pair: KeyValue<'m>) -> Result<(), WireError> {
        let key = shortened(pair.key, self.limits.max_key_bytes);
        if self.limits.max_key_bytes != 0 {
            if matches!(key, Cow::Owned(_)) {
                self.count("max_key_bytes");
            }
            if !self.keys.insert(key.clone()) {
                self.dropped_attributes += 1;
                return Ok(());
            }
        }
        match fitting_text(&pair.value, self.limits.max_value_bytes)? {
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
        match fitting_text(&field.message(), self.limits.max_body_bytes)? {
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

    /// Appends an event or a link, which has attributes and a dropped count of its own.
    fn put_part(&mut self, out: &mut Vec<u8>, field: &Field<'m>, attributes: u32, dropped: u32) -> Result<(), WireError> {
        let mut part = Vec::with_capacity(field.raw.len());
        let row_keys = std::mem::take(&mut self.keys);
        let row_dropped = std::mem::take(&mut self.dropped_attributes);
        for_each_field(field.message(), |inner| {
            if inner.number == attributes {
                self.put_attribute(&mut part, inner.number, key_value(inner.message())?)
            } else if inner.number == dropped {
                self.dropped_attributes += inner.scalar().unwrap_or(0);
                Ok(())
            } else {
                part.extend_from_slice(inner.raw);
                Ok(())
            }
        })?;
        if self.dropped_attributes > 0 {
            put_uint(&mut part, dropped, self.dropped_attributes.min(u64::from(u32::MAX)));
        }
        self.keys = row_keys;
        self.dropped_attributes = row_dropped;
        put_bytes(out, field.number, &part);
        Ok(())
    }
}
