//! Exemplars, kept sparsely: a point holds a few, those with a trace id first, then the latest.

use super::fields::exemplar as field;
use crate::otlp::wire::{Reader, WireError, for_each_field, put_bytes, put_fixed64, put_message};

struct Candidate<'a> {
    /// The field as it lies in a point.
    raw: &'a [u8],
    traced: bool,
    time: u64,
}

/// Calls `visit` with each of the exemplar fields that lie one after another in `fields`.
fn candidates<'a>(fields: &'a [u8], mut visit: impl FnMut(Candidate<'a>)) -> Result<(), WireError> {
    for_each_field(Reader::new(fields), |raw| {
        let mut candidate = Candidate { raw: raw.raw, traced: false, time: 0 };
        for_each_field(raw.message(), |field| {
            match field.number {
                field::TRACE_ID => candidate.traced = field.bytes().is_some_and(|id| id.iter().any(|byte| *byte != 0)),
                field::TIME_UNIX_NANO => candidate.time = field.scalar().unwrap_or(0),
                _ => {}
            }
            Ok::<(), WireError>(())
        })?;
        visit(candidate);
        Ok(())
    })
}

/// Whether the exemplar fields in `fields` can be read.
pub fn check(fields: &[u8]) -> Result<(), WireError> {
    candidates(fields, |_| ())
}

/// Adds the exemplars in `incoming` to those in `kept` (both checked: fields of a point, one after another), and keeps the best `max` of
/// them, in their order.
pub fn offer(kept: &mut Vec<u8>, incoming: &[u8], max: usize) {
    if incoming.is_empty() {
        return;
    }
    // Never more than one too many: a point may have millions.
    let mut best: Vec<Candidate<'_>> = Vec::new();
    let mut add = |candidate| {
        best.push(candidate);
        if best.len() > max {
            let worst = (0..best.len()).min_by_key(|at| (best[*at].traced, best[*at].time)).unwrap_or_default();
            best.remove(worst);
        }
    };
    let _ = candidates(kept, &mut add).and_then(|()| candidates(incoming, &mut add));
    *kept = best.iter().map(|candidate| candidate.raw).collect::<Vec<_>>().concat();
}

/// The exemplars of calls: the slowest ones, for they are what one looks for.
#[derive(Debug, Default)]
pub struct Slowest(Vec<Call>);

#[derive(Debug)]
struct Call {
    value: f64,
    time_unix_nano: u64,
    trace_id: [u8; 16],
    span_id: [u8; 8],
}

impl Slowest {
    /// Keeps a call if it is among the `max` slowest. One without sound ids leads nowhere.
    pub fn offer(&mut self, value: f64, time_unix_nano: u64, trace_id: &[u8], span_id: &[u8], max: usize) {
        if self.0.len() >= max && self.0.last().is_none_or(|fastest| value <= fastest.value) {
            return;
        }
        let (Ok(trace_id), Ok(span_id)) = (trace_id.try_into(), span_id.try_into()) else { return };
        if trace_id == [0; 16] || span_id == [0; 8] {
            return;
        }
        self.0.truncate(max - 1);
        let at = self.0.partition_point(|call| call.value >= value);
        self.0.insert(at, Call { value, time_unix_nano, trace_id, span_id });
    }

    /// Appends them as fields `number` of a point.
    pub fn put(&self, out: &mut Vec<u8>, number: u32) {
        for call in &self.0 {
            put_message(out, number, |out| {
                put_fixed64(out, field::TIME_UNIX_NANO, call.time_unix_nano);
                put_fixed64(out, field::AS_DOUBLE, call.value.to_bits());
                put_bytes(out, field::SPAN_ID, &call.span_id);
                put_bytes(out, field::TRACE_ID, &call.trace_id);
            });
        }
    }
}
