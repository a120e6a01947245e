//! [`Batch`]: rows of one signal in memory, wire-backed and columnar.
//!
//! Rows lie in one contiguous buffer, each already an encoded OTLP `LogRecord` / `Span` / `Metric` **with the prefix that it has inside
//! its scope message** (field 2, length-delimited: tag `0x12`, varint length). So an export request is a gather: headers, then copies of
//! row ranges; a run of rows of one resource and scope is one copy. Columns beside it answer what routing and limits ask.
//! Written once by a decoder ([`crate::fluent`], [`crate::otlp`]), never changed after: everything that changes a batch makes a new one.

mod arrow;
pub(crate) use arrow::{attributes_field, tag_of, text_attribute};
pub mod build;
pub mod from_arrow;
pub(crate) mod keys;
pub mod mark;
pub mod rewrite;
mod select;
pub mod values;

use serde::{Deserialize, Serialize};

/// Which of OpenTelemetry's signals the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// Log records.
    Logs,
    /// Spans.
    Traces,
    /// Metrics (a row is a metric with its data points).
    Metrics,
}

impl Signal {
    /// The name in headers, configuration and Python.
    pub fn name(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }

    /// The signal of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Logs, Self::Traces, Self::Metrics].into_iter().find(|signal| signal.name() == name)
    }
}

/// The row is an error: severity_number >= 17, or a span whose status is an error.
pub const FLAG_ERROR: u8 = 1;
/// The row is an operational event: it has an `event_type` (or an OTLP `event_name`).
pub const FLAG_EVENT: u8 = 2;

/// A piece of the row buffer; `len == ABSENT` where the row has no such field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Offset into [`Batch::rows`].
    pub offset: u32,
    /// Length in bytes, or [`View::ABSENT`].
    pub len: u32,
}

impl View {
    /// The length that says: no such field.
    pub const ABSENT: u32 = u32::MAX;
    /// The view of an absent field.
    pub const NONE: Self = Self { offset: 0, len: Self::ABSENT };
}

/// A resource or a scope of the batch, encoded once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct TableEntry {
    /// The encoded `Resource` or `InstrumentationScope` message, without tag and length.
    pub message: Vec<u8>,
    /// `schema_url` of the enclosing ResourceX or ScopeX message; empty when unset.
    pub schema_url: Vec<u8>,
    /// Other fields of the enclosing message that we do not know, as they came (OTLP input only).
    pub unknown: Vec<u8>,
}

/// The largest values in the rows, or upper bounds of them: what a block's header says so that a destination's limits can be checked
/// without opening it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extremes {
    /// Bytes of the longest body: of a string its own, of anything else those of the encoded value.
    pub max_body_bytes: u32,
    /// Attributes of the row that has most.
    pub max_attributes: u32,
    /// Bytes of the longest attribute value of rows, measured likewise.
    pub max_value_bytes: u32,
    /// Bytes of the longest attribute key of rows.
    pub max_key_bytes: u32,
    /// Events of the span that has most.
    pub max_span_events: u32,
    /// Spans of the trace that has most in this batch.
    pub max_trace_spans: u32,
}

/// The columns; each has one element per row.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// `time_unix_nano` of a log record, the start of a span; 0 when unknown.
    pub time_unix_nano: Vec<i64>,
    /// OTLP severity number, 0 when unspecified.
    pub severity_number: Vec<u8>,
    /// Index into [`Batch::resources`].
    pub resource: Vec<u32>,
    /// Index into [`Batch::scopes`].
    pub scope: Vec<u32>,
    /// [`FLAG_ERROR`], [`FLAG_EVENT`].
    pub flags: Vec<u8>,
    /// Zeros when absent.
    pub trace_id: Vec<[u8; 16]>,
    /// Zeros when absent.
    pub span_id: Vec<[u8; 8]>,
    /// The string body.
    pub body: Vec<View>,
    /// Attribute `job_id`; without it, `jobId` or `baggage.job_id`.
    pub job_id: Vec<View>,
    /// Attribute `event_type`.
    pub event_type: Vec<View>,
    /// Data points of a metric; no elements at all for other signals.
    pub points: Vec<u32>,
}

/// Rows of one signal. See the module's head for the shape.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the rows are.
    pub signal: Signal,
    /// All rows one after another, each with its `0x12 <length>` prefix.
    pub rows: Vec<u8>,
    /// Where each row ends in `rows`; row i is `rows[row_end[i-1]..row_end[i]]`.
    pub row_end: Vec<u32>,
    /// One element per row each.
    pub columns: Columns,
    /// The distinct resources, in order of first use.
    pub resources: Vec<TableEntry>,
    /// The distinct scopes, in order of first use. The Fluent tag is the scope's attribute `fluent.tag`.
    pub scopes: Vec<TableEntry>,
    /// The largest values of the rows.
    pub extremes: Extremes,
}

impl Batch {
    /// An empty batch of a signal.
    pub fn new(signal: Signal) -> Self {
        Self {
            signal,
            rows: Vec::new(),
            row_end: Vec::new(),
            columns: Columns::default(),
            resources: Vec::new(),
            scopes: Vec::new(),
            extremes: Extremes::default(),
        }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.row_end.len()
    }

    /// What the books count: log records, spans, data points.
    pub fn record_count(&self) -> u64 {
        match self.signal {
            Signal::Metrics => self.columns.points.iter().map(|points| u64::from(*points)).sum(),
            Signal::Logs | Signal::Traces => self.len() as u64,
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.row_end.is_empty()
    }

    /// The bytes of row `index` with its prefix.
    pub fn row(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.row_end[index - 1] as usize };
        &self.rows[start..self.row_end[index] as usize]
    }

    /// The bytes that a view names; None when absent.
    pub fn view(&self, view: View) -> Option<&[u8]> {
        (view.len != View::ABSENT).then(|| &self.rows[view.offset as usize..(view.offset + view.len) as usize])
    }
}
