//! The field numbers of opentelemetry-proto that the core reads or writes. Source: opentelemetry/proto/{common,logs,trace,metrics}/v1.
#![allow(missing_docs, reason = "the names are the specification's")]

/// Export{Logs,Trace,Metrics}ServiceRequest.
pub mod request {
    pub const RESOURCE_ROWS: u32 = 1;
}

/// ResourceLogs, ResourceSpans, ResourceMetrics.
pub mod resource_rows {
    pub const RESOURCE: u32 = 1;
    pub const SCOPE_ROWS: u32 = 2;
    pub const SCHEMA_URL: u32 = 3;
}

/// ScopeLogs, ScopeSpans, ScopeMetrics: the rows have the same number in all three.
pub mod scope_rows {
    pub const SCOPE: u32 = 1;
    pub const ROW: u32 = 2;
    pub const SCHEMA_URL: u32 = 3;
}

pub mod resource {
    pub const ATTRIBUTES: u32 = 1;
}

pub mod scope {
    pub const NAME: u32 = 1;
    pub const VERSION: u32 = 2;
    pub const ATTRIBUTES: u32 = 3;
    pub const DROPPED_ATTRIBUTES_COUNT: u32 = 4;
}

pub mod log {
    pub const TIME_UNIX_NANO: u32 = 1;
    pub const SEVERITY_NUMBER: u32 = 2;
    pub const SEVERITY_TEXT: u32 = 3;
    pub const BODY: u32 = 5;
    pub const ATTRIBUTES: u32 = 6;
    pub const DROPPED_ATTRIBUTES_COUNT: u32 = 7;
    pub const FLAGS: u32 = 8;
    pub const TRACE_ID: u32 = 9;
    pub const SPAN_ID: u32 = 10;
    pub const OBSERVED_TIME_UNIX_NANO: u32 = 11;
    pub const EVENT_NAME: u32 = 12;
}

pub mod metric {
    /// gauge, sum, histogram, exponential_histogram, summary.
    pub const DATA: [u32; 5] = [5, 7, 9, 10, 11];
    /// `data_points` in all of them.
    pub const POINTS: u32 = 1;

    /// Where a point of the data in field `data` has its attributes.
    pub fn point_attributes(data: u32) -> u32 {
        match data {
            9 => 9,
            10 => 1,
            _ => 7,
        }
    }

    /// Where it has its exemplars; a summary has none (0).
    pub fn point_exemplars(data: u32) -> u32 {
        match data {
            9 => 8,
            10 => 11,
            11 => 0,
            _ => 5,
        }
    }

    /// `filtered_attributes` of an exemplar.
    pub const EXEMPLAR_ATTRIBUTES: u32 = 7;
}

pub mod span {
    pub const TRACE_ID: u32 = 1;
    pub const SPAN_ID: u32 = 2;
    pub const TRACE_STATE: u32 = 3;
    pub const PARENT_SPAN_ID: u32 = 4;
    pub const NAME: u32 = 5;
    pub const START_TIME_UNIX_NANO: u32 = 7;
    pub const END_TIME_UNIX_NANO: u32 = 8;
    pub const ATTRIBUTES: u32 = 9;
    pub const DROPPED_ATTRIBUTES_COUNT: u32 = 10;
    pub const EVENTS: u32 = 11;
    pub const DROPPED_EVENTS_COUNT: u32 = 12;
    pub const LINKS: u32 = 13;
    pub const STATUS: u32 = 15;
}

pub mod span_link {
    pub const ATTRIBUTES: u32 = 4;
    pub const DROPPED_ATTRIBUTES_COUNT: u32 = 5;
}

pub mod span_event {
    pub const NAME: u32 = 2;
    pub const ATTRIBUTES: u32 = 3;
    pub const DROPPED_ATTRIBUTES_COUNT: u32 = 4;
}

pub mod status {
    pub const CODE: u32 = 3;
    pub const CODE_ERROR: u64 = 2;
}

pub mod key_value {
    pub const KEY: u32 = 1;
    pub const VALUE: u32 = 2;
}

pub mod any_value {
    pub const STRING: u32 = 1;
    pub const BOOL: u32 = 2;
    pub const INT: u32 = 3;
    pub const DOUBLE: u32 = 4;
    pub const ARRAY: u32 = 5;
    pub const KVLIST: u32 = 6;
    pub const BYTES: u32 = 7;
}

/// ArrayValue and KeyValueList: both hold their elements in field 1.
pub mod list {
    pub const VALUES: u32 = 1;
}
