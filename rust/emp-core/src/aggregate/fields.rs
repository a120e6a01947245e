//! The field numbers of metrics. Source: opentelemetry/proto/metrics/v1/metrics.proto.
#![allow(missing_docs, dead_code, reason = "the names are the specification's")]

pub mod metric {
    pub const NAME: u32 = 1;
    pub const UNIT: u32 = 3;
    pub const GAUGE: u32 = 5;
    pub const SUM: u32 = 7;
    pub const HISTOGRAM: u32 = 9;
    pub const EXPONENTIAL_HISTOGRAM: u32 = 10;
    pub const SUMMARY: u32 = 11;
}

/// Gauge, Sum, Histogram, ExponentialHistogram, Summary.
pub mod data {
    pub const POINTS: u32 = 1;
    pub const AGGREGATION_TEMPORALITY: u32 = 2;
    pub const IS_MONOTONIC: u32 = 3;
}

pub mod temporality {
    pub const DELTA: u64 = 1;
    pub const CUMULATIVE: u64 = 2;
}

/// What all points have under the same numbers.
pub mod point {
    pub const START_TIME_UNIX_NANO: u32 = 2;
    pub const TIME_UNIX_NANO: u32 = 3;
}

pub mod number {
    pub const AS_DOUBLE: u32 = 4;
    pub const EXEMPLARS: u32 = 5;
    pub const AS_INT: u32 = 6;
    pub const ATTRIBUTES: u32 = 7;
    pub const FLAGS: u32 = 8;
}

pub mod histogram {
    pub const COUNT: u32 = 4;
    pub const SUM: u32 = 5;
    pub const BUCKET_COUNTS: u32 = 6;
    pub const EXPLICIT_BOUNDS: u32 = 7;
    pub const EXEMPLARS: u32 = 8;
    pub const ATTRIBUTES: u32 = 9;
    pub const FLAGS: u32 = 10;
    pub const MIN: u32 = 11;
    pub const MAX: u32 = 12;
}

pub mod exponential {
    pub const ATTRIBUTES: u32 = 1;
    pub const COUNT: u32 = 4;
    pub const SUM: u32 = 5;
    pub const SCALE: u32 = 6;
    pub const ZERO_COUNT: u32 = 7;
    pub const POSITIVE: u32 = 8;
    pub const NEGATIVE: u32 = 9;
    pub const FLAGS: u32 = 10;
    pub const EXEMPLARS: u32 = 11;
    pub const MIN: u32 = 12;
    pub const MAX: u32 = 13;
    pub const ZERO_THRESHOLD: u32 = 14;
}

pub mod buckets {
    pub const OFFSET: u32 = 1;
    pub const COUNTS: u32 = 2;
}

pub mod summary {
    pub const ATTRIBUTES: u32 = 7;
    pub const FLAGS: u32 = 8;
}

pub mod exemplar {
    pub const TIME_UNIX_NANO: u32 = 2;
    pub const AS_DOUBLE: u32 = 3;
    pub const SPAN_ID: u32 = 4;
    pub const TRACE_ID: u32 = 5;
}

/// DataPointFlags.
pub const FLAG_NO_RECORDED_VALUE: u64 = 1;
