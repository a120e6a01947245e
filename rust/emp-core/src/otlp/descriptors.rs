//! The fields of OTLP's messages: number, JSON name, kind. Source: opentelemetry-proto 1.x and the OTLP specification's JSON encoding
//! (ids in hex, 64-bit integers as strings, enums as integers, other bytes in base64).

use crate::batch::Signal;

/// How a field is written.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A string.
    String,
    /// Bytes as base64.
    Base64,
    /// Bytes as hex: trace and span ids.
    Hex,
    /// uint32, fixed32, enums: a number.
    Uint,
    /// sint32, zigzag: a number.
    Sint,
    /// uint64: a string.
    Uint64,
    /// fixed64: a string.
    Fixed64,
    /// int64, sfixed64: a string.
    Int64,
    /// A bool.
    Bool,
    /// A double.
    Double,
    /// A message.
    Message(&'static [Descriptor]),
}

/// A field of a message.
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// Its number.
    pub number: u32,
    /// Its name in JSON.
    pub name: &'static str,
    /// How its value is written.
    pub kind: Kind,
    /// Whether it is a list (of scalars: packed or not).
    pub repeated: bool,
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Descriptor {
    Descriptor { number, name, kind, repeated: false }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Descriptor {
    Descriptor { number, name, kind, repeated: true }
}

use Kind::{Base64, Bool, Double, Fixed64, Hex, Int64, Message, Sint, String as Text, Uint, Uint64};

static ANY_VALUE: [Descriptor; 7] = [
    one(1, "stringValue", Text),
    one(2, "boolValue", Bool),
    one(3, "intValue", Int64),
    one(4, "doubleValue", Double),
    one(5, "arrayValue", Message(&ARRAY_VALUE)),
    one(6, "kvlistValue", Message(&KEY_VALUE_LIST)),
    one(7, "bytesValue", Base64),
];
static ARRAY_VALUE: [Descriptor; 1] = [many(1, "values", Message(&ANY_VALUE))];
static KEY_VALUE_LIST: [Descriptor; 1] = [many(1, "values", Message(&KEY_VALUE))];
static KEY_VALUE: [Descriptor; 2] = [one(1, "key", Text), one(2, "value", Message(&ANY_VALUE))];

/// The export request of a signal.
pub fn request(signal: Signal) -> &'static [Descriptor] {
    match signal {
        Signal::Logs => &LOGS_REQUEST,
        Signal::Traces => &TRACE_REQUEST,
        Signal::Metrics => &METRICS_REQUEST,
    }
}

static LOGS_REQUEST: [Descriptor; 1] = [many(1, "resourceLogs", Message(&RESOURCE_LOGS))];
static RESOURCE_LOGS: [Descriptor; 3] =
    [one(1, "resource", Message(&RESOURCE)), many(2, "scopeLogs", Message(&SCOPE_LOGS)), one(3, "schemaUrl", Text)];
static SCOPE_LOGS: [Descriptor; 3] = [one(1, "scope", Message(&SCOPE)), many(2, "logRecords", Message(&LOG)), one(3, "schemaUrl", Text)];
static TRACE_REQUEST: [Descriptor; 1] = [many(1, "resourceSpans", Message(&RESOURCE_SPANS))];
static RESOURCE_SPANS: [Descriptor; 3] =
    [one(1, "resource", Message(&RESOURCE)), many(2, "scopeSpans", Message(&SCOPE_SPANS)), one(3, "schemaUrl", Text)];
static SCOPE_SPANS: [Descriptor; 3] = [one(1, "scope", Message(&SCOPE)), many(2, "spans", Message(&SPAN)), one(3, "schemaUrl", Text)];
static METRICS_REQUEST: [Descriptor; 1] = [many(1, "resourceMetrics", Message(&RESOURCE_METRICS))];
static RESOURCE_METRICS: [Descriptor; 3] =
    [one(1, "resource", Message(&RESOURCE)), many(2, "scopeMetrics", Message(&SCOPE_METRICS)), one(3, "schemaUrl", Text)];
static SCOPE_METRICS: [Descriptor; 3] = [one(1, "scope", Message(&SCOPE)), many(2, "metrics", Message(&METRIC)), one(3, "schemaUrl", Text)];

/// LogRecord.
pub static LOG: [Descriptor; 11] = [
    one(1, "timeUnixNano", Fixed64),
    one(2, "severityNumber", Uint),
    one(3, "severityText", Text),
    one(5, "body", Message(&ANY_VALUE)),
    many(6, "attributes", Message(&KEY_VALUE)),
    one(7, "droppedAttributesCount", Uint),
    one(8, "flags", Uint),
    one(9, "traceId", Hex),
    one(10, "spanId", Hex),
    one(11, "observedTimeUnixNano", Fixed64),
    one(12, "eventName", Text),
];

/// Resource.
pub static RESOURCE: [Descriptor; 3] =
    [many(1, "attributes", Message(&KEY_VALUE)), one(2, "droppedAttributesCount", Uint), many(3, "entityRefs", Message(&ENTITY_REF))];
static ENTITY_REF: [Descriptor; 4] =
    [one(1, "schemaUrl", Text), one(2, "type", Text), many(3, "idKeys", Text), many(4, "descriptionKeys", Text)];

/// InstrumentationScope.
pub static SCOPE: [Descriptor; 4] =
    [one(1, "name", Text), one(2, "version", Text), many(3, "attributes", Message(&KEY_VALUE)), one(4, "droppedAttributesCount", Uint)];

/// Span.
pub static SPAN: [Descriptor; 16] = [
    one(1, "traceId", Hex),
    one(2, "spanId", Hex),
    one(3, "traceState", Text),
    one(4, "parentSpanId", Hex),
    one(5, "name", Text),
    one(6, "kind", Uint),
    one(7, "startTimeUnixNano", Fixed64),
    one(8, "endTimeUnixNano", Fixed64),
    many(9, "attributes", Message(&KEY_VALUE)),
    one(10, "droppedAttributesCount", Uint),
    many(11, "events", Message(&SPAN_EVENT)),
    one(12, "droppedEventsCount", Uint),
    many(13, "links", Message(&SPAN_LINK)),
    one(14, "droppedLinksCount", Uint),
    one(15, "status", Message(&STATUS)),
    one(16, "flags", Uint),
];
static SPAN_EVENT: [Descriptor; 4] = [
    one(1, "timeUnixNano", Fixed64),
    one(2, "name", Text),
    many(3, "attributes", Message(&KEY_VALUE)),
    one(4, "droppedAttributesCount", Uint),
];
static SPAN_LINK: [Descriptor; 6] = [
    one(1, "traceId", Hex),
    one(2, "spanId", Hex),
    one(3, "traceState", Text),
    many(4, "attributes", Message(&KEY_VALUE)),
    one(5, "droppedAttributesCount", Uint),
    one(6, "flags", Uint),
];
static STATUS: [Descriptor; 2] = [one(2, "message", Text), one(3, "code", Uint)];

/// Metric.
pub static METRIC: [Descriptor; 9] = [
    one(1, "name", Text),
    one(2, "description", Text),
    one(3, "unit", Text),
    one(5, "gauge", Message(&GAUGE)),
    one(7, "sum", Message(&SUM)),
    one(9, "histogram", Message(&HISTOGRAM)),
    one(10, "exponentialHistogram", Message(&EXPONENTIAL_HISTOGRAM)),
    one(11, "summary", Message(&SUMMARY)),
    many(12, "metadata", Message(&KEY_VALUE)),
];
static GAUGE: [Descriptor; 1] = [many(1, "dataPoints", Message(&NUMBER_DATA_POINT))];
static SUM: [Descriptor; 3] =
    [many(1, "dataPoints", Message(&NUMBER_DATA_POINT)), one(2, "aggregationTemporality", Uint), one(3, "isMonotonic", Bool)];
static HISTOGRAM: [Descriptor; 2] = [many(1, "dataPoints", Message(&HISTOGRAM_DATA_POINT)), one(2, "aggregationTemporality", Uint)];
static EXPONENTIAL_HISTOGRAM: [Descriptor; 2] =
    [many(1, "dataPoints", Message(&EXPONENTIAL_HISTOGRAM_DATA_POINT)), one(2, "aggregationTemporality", Uint)];
static SUMMARY: [Descriptor; 1] = [many(1, "dataPoints", Message(&SUMMARY_DATA_POINT))];
static NUMBER_DATA_POINT: [Descriptor; 7] = [
    many(7, "attributes", Message(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "asDouble", Double),
    one(6, "asInt", Int64),
    many(5, "exemplars", Message(&EXEMPLAR)),
    one(8, "flags", Uint),
];
static HISTOGRAM_DATA_POINT: [Descriptor; 11] = [
    many(9, "attributes", Message(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "count", Fixed64),
    one(5, "sum", Double),
    many(6, "bucketCounts", Fixed64),
    many(7, "explicitBounds", Double),
    many(8, "exemplars", Message(&EXEMPLAR)),
    one(10, "flags", Uint),
    one(11, "min", Double),
    one(12, "max", Double),
];
static EXPONENTIAL_HISTOGRAM_DATA_POINT: [Descriptor; 14] = [
    many(1, "attributes", Message(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "count", Fixed64),
    one(5, "sum", Double),
    one(6, "scale", Sint),
    one(7, "zeroCount", Fixed64),
    one(8, "positive", Message(&BUCKETS)),
    one(9, "negative", Message(&BUCKETS)),
    one(10, "flags", Uint),
    many(11, "exemplars", Message(&EXEMPLAR)),
    one(12, "min", Double),
    one(13, "max", Double),
    one(14, "zeroThreshold", Double),
];
static BUCKETS: [Descriptor; 2] = [one(1, "offset", Sint), many(2, "bucketCounts", Uint64)];
static SUMMARY_DATA_POINT: [Descriptor; 7] = [
    many(7, "attributes", Message(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "count", Fixed64),
    one(5, "sum", Double),
    many(6, "quantileValues", Message(&QUANTILE)),
    one(8, "flags", Uint),
];
static QUANTILE: [Descriptor; 2] = [one(1, "quantile", Double), one(2, "value", Double)];
static EXEMPLAR: [Descriptor; 6] = [
    many(7, "filteredAttributes", Message(&KEY_VALUE)),
    one(2, "timeUnixNano", Fixed64),
    one(3, "asDouble", Double),
    one(6, "asInt", Int64),
    one(4, "spanId", Hex),
    one(5, "traceId", Hex),
];
