//! RED metrics as blocks: `calls` and `duration` of each resource, delta, over the time between two flushes.

use super::emit::{BlockForm, Blocks, put_points_row};
use super::fields::{data, exponential, histogram, metric, number, temporality};
use super::point::put_times;
use super::red::{Durations, Red, RedSettings, Series};
use crate::batch::TableEntry;
use crate::block::Block;
use crate::error::CoreError;
use crate::otlp::fields::scope;
use crate::otlp::value::{Scalar, put_key_value, put_scalar};
use crate::otlp::wire::{put_bytes, put_fixed64, put_uint};

/// The instrumentation scope of what is made here.
const SCOPE_NAME: &[u8] = b"emp_pipe.red_metrics";
const KINDS: [&str; 6] =
    ["SPAN_KIND_UNSPECIFIED", "SPAN_KIND_INTERNAL", "SPAN_KIND_SERVER", "SPAN_KIND_CLIENT", "SPAN_KIND_PRODUCER", "SPAN_KIND_CONSUMER"];
const STATUSES: [&str; 3] = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];

/// The time that points stand for.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The flush before.
    pub start_unix_nano: u64,
    /// This one.
    pub end_unix_nano: u64,
}

/// Which of the two metrics.
#[derive(Clone, Copy)]
enum Which {
    Calls,
    Duration,
}

impl Red {
    /// What was counted since the last flush, as blocks of at most 1 MiB.
    pub fn flush(&mut self, form: BlockForm<'_>, time: Span) -> Result<Vec<Block>, CoreError> {
        let mut blocks = Blocks::new(form);
        let mut message = Vec::new();
        put_bytes(&mut message, scope::NAME, SCOPE_NAME);
        let scope = TableEntry { message, ..TableEntry::default() };
        let mut order: Vec<usize> = (0..self.series.len()).collect();
        order.sort_by_key(|at| self.series[*at].resource);
        for of_resource in order.chunk_by(|one, other| self.series[*one].resource == self.series[*other].resource) {
            let resource = self.series[of_resource[0]].resource;
            let entry = (resource, &self.resources.all[resource as usize]);
            for which in [Which::Calls, Which::Duration] {
                let (head, data_field, tail) = enclosing(&self.settings, which);
                let points = of_resource.iter().map(|at| {
                    let mut point = Vec::new();
                    put_point(&mut point, &self.series[*at], which, &self.settings, time);
                    point
                });
                put_points_row(&mut blocks, &head, data_field, &tail, points, entry, (0, &scope))?;
            }
        }
        blocks.close()?;
        let done = blocks.done;
        self.reset();
        Ok(done)
    }
}

/// A metric's own fields, the field of its data, and the data's own fields.
fn enclosing(settings: &RedSettings, which: Which) -> (Vec<u8>, u32, Vec<u8>) {
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    let name = match which {
        Which::Calls => "calls",
        Which::Duration => "duration",
    };
    put_bytes(&mut head, metric::NAME, format!("{}.{name}", settings.namespace).as_bytes());
    put_uint(&mut tail, data::AGGREGATION_TEMPORALITY, temporality::DELTA);
    let data_field = match which {
        Which::Calls => {
            put_uint(&mut tail, data::IS_MONOTONIC, 1);
            metric::SUM
        }
        Which::Duration => {
            put_bytes(&mut head, metric::UNIT, if settings.milliseconds { b"ms" } else { b"s" });
            if settings.bounds.is_some() { metric::HISTOGRAM } else { metric::EXPONENTIAL_HISTOGRAM }
        }
    };
    (head, data_field, tail)
}

fn put_point(out: &mut Vec<u8>, series: &Series, which: Which, settings: &RedSettings, time: Span) {
    let (attributes, exemplars) = match (which, &series.durations) {
        (Which::Calls, _) => (number::ATTRIBUTES, number::EXEMPLARS),
        (Which::Duration, Durations::Explicit(_)) => (histogram::ATTRIBUTES, histogram::EXEMPLARS),
        (Which::Duration, Durations::Exponential(_)) => (exponential::ATTRIBUTES, exponential::EXEMPLARS),
    };
    put_attributes(out, attributes, series, settings);
    put_times(out, time.start_unix_nano, time.end_unix_nano);
    match (which, &series.durations) {
        (Which::Calls, _) => put_fixed64(out, number::AS_INT, i64::try_from(series.calls).unwrap_or(i64::MAX) as u64),
        (Which::Duration, Durations::Explicit(histogram)) => histogram.put(out),
        (Which::Duration, Durations::Exponential(histogram)) => histogram.put(out),
    }
    if matches!(which, Which::Duration) {
        series.exemplars.put(out, exemplars);
    }
}

fn put_attributes(out: &mut Vec<u8>, field: u32, series: &Series, settings: &RedSettings) {
    let mut value = Vec::new();
    let mut put = |key: &str, scalar: Scalar<'_>| {
        value.clear();
        put_scalar(&mut value, scalar);
        put_key_value(out, field, key.as_bytes(), &value);
    };
    match &series.name {
        Some(name) => put("span.name", Scalar::String(name)),
        None => put("otel.metric.overflow", Scalar::Bool(true)),
    }
    put("span.kind", Scalar::String(KINDS[series.kind as usize].as_bytes()));
    put("status.code", Scalar::String(STATUSES[series.status as usize].as_bytes()));
    for (key, value) in settings.dimensions.iter().zip(&series.dimensions) {
        if let Some(value) = value {
            put_key_value(out, field, key.as_bytes(), value);
        }
    }
}
