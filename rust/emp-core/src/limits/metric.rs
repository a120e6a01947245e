//! A metric made to fit: keys and values of its points' and exemplars' attributes. Points and attributes are never left out for their number.

use std::borrow::Cow;

use super::text::{shortened_apart, text_over};
use super::{Applied, DestinationLimits};
use crate::hash::KeyedSet;
use crate::otlp::fields::metric;
use crate::otlp::scan::key_value;
use crate::otlp::value::{Scalar, put_key_value, put_scalar};
use crate::otlp::wire::{Field, Reader, WireError, for_each_field, put_bytes};

/// Appends `message` made to fit.
pub fn shorten(limits: &DestinationLimits, message: &[u8], out: &mut Vec<u8>, applied: &mut Applied) -> Result<(), WireError> {
    let mut metric = Metric { limits, applied };
    for_each_field(Reader::new(message), |field| {
        if !metric::DATA.contains(&field.number) {
            out.extend_from_slice(field.raw);
            return Ok::<(), WireError>(());
        }
        let mut data = Vec::with_capacity(field.raw.len());
        for_each_field(field.message(), |inner| {
            if inner.number == metric::POINTS && inner.bytes().is_some() {
                metric.put_point(&mut data, &inner, field.number)
            } else {
                data.extend_from_slice(inner.raw);
                Ok(())
            }
        })?;
        put_bytes(out, field.number, &data);
        Ok(())
    })
}

struct Metric<'a> {
    limits: &'a DestinationLimits,
    applied: &'a mut Applied,
}

impl Metric<'_> {
    fn put_point(&mut self, out: &mut Vec<u8>, field: &Field<'_>, data: u32) -> Result<(), WireError> {
        let (attributes, exemplars) = (metric::point_attributes(data), metric::point_exemplars(data));
        let mut point = Vec::with_capacity(field.raw.len());
        let mut keys = KeyedSet::default();
        for_each_field(field.message(), |inner| {
            if inner.number == attributes {
                self.put_attribute(&mut point, &inner, &mut keys)
            } else if inner.number == exemplars {
                self.put_exemplar(&mut point, &inner)
            } else {
                point.extend_from_slice(inner.raw);
                Ok(())
            }
        })?;
        put_bytes(out, field.number, &point);
        Ok(())
    }

    fn put_exemplar(&mut self, out: &mut Vec<u8>, field: &Field<'_>) -> Result<(), WireError> {
        let mut exemplar = Vec::with_capacity(field.raw.len());
        let mut keys = KeyedSet::default();
        for_each_field(field.message(), |inner| {
            if inner.number == metric::EXEMPLAR_ATTRIBUTES {
                self.put_attribute(&mut exemplar, &inner, &mut keys)
            } else {
                exemplar.extend_from_slice(inner.raw);
                Ok(())
            }
        })?;
        put_bytes(out, field.number, &exemplar);
        Ok(())
    }

    /// Appends an attribute made to fit; `keys` are those written before: of shortened ones that meet the first stays.
    fn put_attribute<'m>(&mut self, out: &mut Vec<u8>, field: &Field<'m>, keys: &mut KeyedSet<Cow<'m, [u8]>>) -> Result<(), WireError> {
        let pair = key_value(field.message())?;
        let key = shortened_apart(pair.key, self.limits.max_key_bytes);
        if self.limits.max_key_bytes != 0 {
            if matches!(key, Cow::Owned(_)) {
                *self.applied.entry("max_key_bytes").or_default() += 1;
            }
            if !keys.insert(key.clone()) {
                return Ok(());
            }
        }
        match text_over(&pair.value, self.limits.max_value_bytes)? {
            Some(text) => {
                *self.applied.entry("max_value_bytes").or_default() += 1;
                let mut value = Vec::with_capacity(self.limits.max_value_bytes as usize + 8);
                put_scalar(&mut value, Scalar::String(&shortened_apart(&text, self.limits.max_value_bytes)));
                put_key_value(out, field.number, &key, &value);
            }
            None => put_key_value(out, field.number, &key, pair.value.rest()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::batch::Signal;
    use crate::limits::row;
    use crate::otlp::fields::{span, span_event};
    use crate::otlp::wire::put_message;

    #[test]
    fn two_hundred_thousand_attributes_are_made_to_fit_in_seconds() {
        let put_attributes = |out: &mut Vec<u8>, number: u32| {
            (0..200_000).for_each(|key| put_key_value(out, number, format!("a key that is too long {key}").as_bytes(), b""));
        };
        let limits = DestinationLimits { max_key_bytes: 40, ..DestinationLimits::default() };
        let (mut metric, mut span) = (Vec::new(), Vec::new());
        put_message(&mut metric, metric::DATA[0], |out| {
            put_message(out, metric::POINTS, |out| put_attributes(out, metric::point_attributes(metric::DATA[0])));
        });
        put_message(&mut span, span::EVENTS, |out| put_attributes(out, span_event::ATTRIBUTES));
        let started = Instant::now();
        let (mut out, mut applied) = (Vec::new(), Applied::new());
        shorten(&limits, &metric, &mut out, &mut applied).unwrap();
        row::shorten(&limits, Signal::Traces, &span, &mut out, &mut applied).unwrap();
        assert!(out.len() >= metric.len() + span.len());
        // Comparing each key with all before it takes minutes.
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
