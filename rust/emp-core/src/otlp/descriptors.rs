//! The fields of OTLP's messages: number, JSON name, kind. Source: opentelemetry-proto 1.x and the OTLP specification's JSON encoding
//! (ids in hex, 64-bit integers as strings, enums as integers, other bytes in base64).

use crate::batch::Signal;

/// What a field's value is, on the wire and in JSON.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A string.
    String,
    /// Bytes as base64.
    Base64,
    /// A trace id: 16 bytes, hex in JSON.
    TraceId,
    /// A span id: 8 bytes, hex in JSON.
    SpanId,
    /// uint32, a varint: a number.
    Uint32,
    /// An enum, a varint: a number. Its names are read too.
    Enum(&'static [(&'static str, u8)]),
    /// fixed32: a number.
    Fixed32,
    /// sint32, a zigzag varint: a number.
    Sint32,
    /// uint64, a varint: a string.
    Uint64,
    /// fixed64: a string.
    Fixed64,
    /// int64, a varint: a string.
    Int64,
    /// sfixed64: a string.
    Sfixed64,
    /// A bool.
    Bool,
    /// A double.
    Double,
    /// A message.
    Message(&'static [Descriptor]),
}

impl Kind {
    /// The number of the wire type of one value.
    pub const fn wire_type(self) -> u8 {
        match self {
            Self::String | Self::Base64 | Self::TraceId | Self::SpanId | Self::Message(_) => 2,
            Self::Fixed64 | Self::Sfixed64 | Self::Double => 1,
            Self::Fixed32 => 5,
            Self::Uint32 | Self::Enum(_) | Self::Sint32 | Self::Uint64 | Self::Int64 | Self::Bool => 0,
        }
    }
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
    /// Whether a zero or an empty string is something else than an absent field: members of a oneof, optional fields.
    pub presence: bool,
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Descriptor {
    Descriptor { number, name, kind, repeated: false, presence: false }
}

const fn maybe(number: u32, name: &'static str, kind: Kind) -> Descriptor {
    Descriptor { number, name, kind, repeated: false, presence: true }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Descriptor {
    Descriptor { number, name, kind, repeated: true, presence: false }
}

use Kind::{
    Base64, Bool, Double, Enum, Fixed32, Fixed64, Int64, Message, Sfixed64, Sint32, SpanId, String as Text, TraceId, Uint32, Uint64,
};

/// AnyValue.
pub static ANY_VALUE: [Descriptor; 7] = [
    maybe(1, "stringValue", Text),
    maybe(2, "boolValue", Bool),
    maybe(3, "intValue", Int64),
    maybe(4, "doubleValue", Double),
    maybe(5, "arrayValue", Message(&ARRAY_VALUE)),
    maybe(6, "kvlistValue", Message(&KEY_VALUE_LIST)),
    maybe(7, "bytesValue", Base64),
];
static ARRAY_VALUE: [Descriptor; 1] = [many(1, "values", Message(&ANY_VALUE))];
static KEY_VALUE_LIST: [Descriptor; 1] = [many(1, "values", Message(&KEY_VALUE))];
/// KeyValue.
pub static KEY_VALUE: [Descriptor; 2] = [one(1, "key", Text), one(2, "value", Message(&ANY_VALUE))];

/// The fields of the message in a field.
pub fn inner(descriptors: &'static [Descriptor], number: u32) -> &'static [Descriptor] {
    descriptors
        .iter()
        .find_map(|descriptor| match descriptor.kind {
            Kind::Message(inner) if descriptor.number == number => Some(inner),
            _ => None,
        })
        .unwrap_or_default()
}

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
    one(2, "severityNumber", Enum(&SEVERITY_NUMBER)),
    one(3, "severityText", Text),
    one(5, "body", Message(&ANY_VALUE)),
    many(6, "attributes", Message(&KEY_VALUE)),
    one(7, "droppedAttributesCount", Uint32),
    one(8, "flags", Fixed32),
    one(9, "traceId", TraceId),
    one(10, "spanId", SpanId),
    one(11, "observedTimeUnixNano", Fixed64),
    one(12, "eventName", Text),
];

/// Resource.
pub static RESOURCE: [Descriptor; 3] =
    [many(1, "attributes", Message(&KEY_VALUE)), one(2, "droppedAttributesCount", Uint32), many(3, "entityRefs", Message(&ENTITY_REF))];
static ENTITY_REF: [Descriptor; 4] =
    [one(1, "schemaUrl", Text), one(2, "type", Text), many(3, "idKeys", Text), many(4, "descriptionKeys", Text)];

/// InstrumentationScope.
pub static SCOPE: [Descriptor; 4] =
    [one(1, "name", Text), one(2, "version", Text), many(3, "attributes", Message(&KEY_VALUE)), one(4, "droppedAttributesCount", Uint32)];

/// Span.
pub static SPAN: [Descriptor; 16] = [
    one(1, "traceId", TraceId),
    one(2, "spanId", SpanId),
    one(3, "traceState", Text),
    one(4, "parentSpanId", SpanId),
    one(5, "name", Text),
    one(6, "kind", Enum(&SPAN_KIND)),
    one(7, "startTimeUnixNano", Fixed64),
    one(8, "endTimeUnixNano", Fixed64),
    many(9, "attributes", Message(&KEY_VALUE)),
    one(10, "droppedAttributesCount", Uint32),
    many(11, "events", Message(&SPAN_EVENT)),
    one(12, "droppedEventsCount", Uint32),
    many(13, "links", Message(&SPAN_LINK)),
    one(14, "droppedLinksCount", Uint32),
    one(15, "status", Message(&STATUS)),
    one(16, "flags", Fixed32),
];
/// Span.Event.
pub static SPAN_EVENT: [Descriptor; 4] = [
    one(1, "timeUnixNano", Fixed64),
    one(2, "name", Text),
    many(3, "attributes", Message(&KEY_VALUE)),
    one(4, "droppedAttributesCount", Uint32),
];
/// Span.Link.
pub static SPAN_LINK: [Descriptor; 6] = [
    one(1, "traceId", TraceId),
    one(2, "spanId", SpanId),
    one(3, "traceState", Text),
    many(4, "attributes", Message(&KEY_VALUE)),
    one(5, "droppedAttributesCount", Uint32),
    one(6, "flags", Fixed32),
];
static STATUS: [Descriptor; 2] = [one(2, "message", Text), one(3, "code", Enum(&STATUS_CODE))];

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
    [many(1, "dataPoints", Message(&NUMBER_DATA_POINT)), one(2, "aggregationTemporality", Enum(&TEMPORALITY)), one(3, "isMonotonic", Bool)];
static HISTOGRAM: [Descriptor; 2] =
    [many(1, "dataPoints", Message(&HISTOGRAM_DATA_POINT)), one(2, "aggregationTemporality", Enum(&TEMPORALITY))];
static EXPONENTIAL_HISTOGRAM: [Descriptor; 2] =
    [many(1, "dataPoints", Message(&EXPONENTIAL_HISTOGRAM_DATA_POINT)), one(2, "aggregationTemporality", Enum(&TEMPORALITY))];
static SUMMARY: [Descriptor; 1] = [many(1, "dataPoints", Message(&SUMMARY_DATA_POINT))];
static NUMBER_DATA_POINT: [Descriptor; 7] = [
    many(7, "attributes", Message(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    maybe(4, "asDouble", Double),
    maybe(6, "asInt", Sfixed64),
    many(5, "exemplars", Message(&EXEMPLAR)),
    one(8, "flags", Uint32),
];
static HISTOGRAM_DATA_POINT: [Descriptor; 11] = [
    many(9, "attributes", Message(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "count", Fixed64),
    maybe(5, "sum", Double),
    many(6, "bucketCounts", Fixed64),
    many(7, "explicitBounds", Double),
    many(8, "exemplars", Message(&EXEMPLAR)),
    one(10, "flags", Uint32),
    maybe(11, "min", Double),
    maybe(12, "max", Double),
];
static EXPONENTIAL_HISTOGRAM_DATA_POINT: [Descriptor; 14] = [
    many(1, "attributes", Message(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "count", Fixed64),
    maybe(5, "sum", Double),
    one(6, "scale", Sint32),
    one(7, "zeroCount", Fixed64),
    one(8, "positive", Message(&BUCKETS)),
    one(9, "negative", Message(&BUCKETS)),
    one(10, "flags", Uint32),
    many(11, "exemplars", Message(&EXEMPLAR)),
    maybe(12, "min", Double),
    maybe(13, "max", Double),
    one(14, "zeroThreshold", Double),
];
static BUCKETS: [Descriptor; 2] = [one(1, "offset", Sint32), many(2, "bucketCounts", Uint64)];
static SUMMARY_DATA_POINT: [Descriptor; 7] = [
    many(7, "attributes", Message(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "count", Fixed64),
    one(5, "sum", Double),
    many(6, "quantileValues", Message(&QUANTILE)),
    one(8, "flags", Uint32),
];
static QUANTILE: [Descriptor; 2] = [one(1, "quantile", Double), one(2, "value", Double)];
/// Exemplar.
pub static EXEMPLAR: [Descriptor; 6] = [
    many(7, "filteredAttributes", Message(&KEY_VALUE)),
    one(2, "timeUnixNano", Fixed64),
    maybe(3, "asDouble", Double),
    maybe(6, "asInt", Sfixed64),
    one(4, "spanId", SpanId),
    one(5, "traceId", TraceId),
];

static SEVERITY_NUMBER: [(&str, u8); 25] = [
    ("SEVERITY_NUMBER_UNSPECIFIED", 0),
    ("SEVERITY_NUMBER_TRACE", 1),
    ("SEVERITY_NUMBER_TRACE2", 2),
    ("SEVERITY_NUMBER_TRACE3", 3),
    ("SEVERITY_NUMBER_TRACE4", 4),
    ("SEVERITY_NUMBER_DEBUG", 5),
    ("SEVERITY_NUMBER_DEBUG2", 6),
    ("SEVERITY_NUMBER_DEBUG3", 7),
    ("SEVERITY_NUMBER_DEBUG4", 8),
    ("SEVERITY_NUMBER_INFO", 9),
    ("SEVERITY_NUMBER_INFO2", 10),
    ("SEVERITY_NUMBER_INFO3", 11),
    ("SEVERITY_NUMBER_INFO4", 12),
    ("SEVERITY_NUMBER_WARN", 13),
    ("SEVERITY_NUMBER_WARN2", 14),
    ("SEVERITY_NUMBER_WARN3", 15),
    ("SEVERITY_NUMBER_WARN4", 16),
    ("SEVERITY_NUMBER_ERROR", 17),
    ("SEVERITY_NUMBER_ERROR2", 18),
    ("SEVERITY_NUMBER_ERROR3", 19),
    ("SEVERITY_NUMBER_ERROR4", 20),
    ("SEVERITY_NUMBER_FATAL", 21),
    ("SEVERITY_NUMBER_FATAL2", 22),
    ("SEVERITY_NUMBER_FATAL3", 23),
    ("SEVERITY_NUMBER_FATAL4", 24),
];
static SPAN_KIND: [(&str, u8); 6] = [
    ("SPAN_KIND_UNSPECIFIED", 0),
    ("SPAN_KIND_INTERNAL", 1),
    ("SPAN_KIND_SERVER", 2),
    ("SPAN_KIND_CLIENT", 3),
    ("SPAN_KIND_PRODUCER", 4),
    ("SPAN_KIND_CONSUMER", 5),
];
static STATUS_CODE: [(&str, u8); 3] = [("STATUS_CODE_UNSET", 0), ("STATUS_CODE_OK", 1), ("STATUS_CODE_ERROR", 2)];
static TEMPORALITY: [(&str, u8); 3] =
    [("AGGREGATION_TEMPORALITY_UNSPECIFIED", 0), ("AGGREGATION_TEMPORALITY_DELTA", 1), ("AGGREGATION_TEMPORALITY_CUMULATIVE", 2)];
