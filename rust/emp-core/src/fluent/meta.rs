//! The reserved key of records that one emp-pipe writes by Forward, and the names inside it.
//!
//! A record is flat, so that any peer reads it: `message`, `level`, the ids, the resource's attributes, the row's. What that cannot say
//! stands in a map of plain texts and numbers under the FIRST key, [`KEY`]. The decoder puts row, resource and scope together again
//! ([`super::restore`]); what a peer on the way changed or added in the flat fields holds.
//!
//! ```text
//! {"_emp": {"c": 15, "n": 9, "l": "INFO", "o": 1700000000000000000, "r": ["machine_id", …], "s": {"n": "fluent.forward", "t": 1}},
//!  "message": …, "level": "info", "trace_id": "…", "span_id": "…", "machine_id": …, "job_id": …}
//! ```

/// The reserved key. First in the record, so that one comparison finds it.
pub const KEY: &[u8] = b"_emp";

/// Which flat fields are no attributes: a sum of [`CLAIM_BODY`] and its neighbours.
pub const CLAIMS: &[u8] = b"c";
/// `message` is the body.
pub const CLAIM_BODY: u8 = 1;
/// `level` follows from severity number and text.
pub const CLAIM_LEVEL: u8 = 2;
/// `trace_id` is the OTLP field, in hex.
pub const CLAIM_TRACE_ID: u8 = 4;
/// `span_id` is the OTLP field, in hex.
pub const CLAIM_SPAN_ID: u8 = 8;

/// The claimed flat fields, by bit.
pub const CLAIMED: [(u8, &[u8]); 4] =
    [(CLAIM_BODY, b"message"), (CLAIM_LEVEL, b"level"), (CLAIM_TRACE_ID, b"trace_id"), (CLAIM_SPAN_ID, b"span_id")];

/// severity_number, where it is not 0.
pub const SEVERITY_NUMBER: &[u8] = b"n";
/// severity_text, where there is one.
pub const SEVERITY_TEXT: &[u8] = b"l";
/// observed_time_unix_nano, where it is not 0.
pub const OBSERVED_TIME: &[u8] = b"o";
/// time_unix_nano, where the entry's EventTime cannot say it (0, or past 2106).
pub const TIME: &[u8] = b"t";
/// Attributes of the row whose key is taken in the flat record: `[[key, value], …]`.
pub const ROW_EXTRA: &[u8] = b"x";
/// Other fields of the LogRecord (flags, event_name, …) as they lie in protobuf, in base64.
pub const ROW_OTHER: &[u8] = b"u";

/// The flat keys that are attributes of the resource.
pub const RESOURCE_KEYS: &[u8] = b"r";
/// Attributes of the resource whose key is taken in the flat record: `[[key, value], …]`.
pub const RESOURCE_EXTRA: &[u8] = b"rx";
/// Other fields of the Resource, in base64.
pub const RESOURCE_OTHER: &[u8] = b"ru";
/// schema_url of the ResourceLogs.
pub const RESOURCE_SCHEMA_URL: &[u8] = b"rs";
/// Other fields of the ResourceLogs, in base64.
pub const RESOURCE_UNKNOWN: &[u8] = b"rw";

/// The scope: a map of what follows.
pub const SCOPE: &[u8] = b"s";
/// Its name.
pub const SCOPE_NAME: &[u8] = b"n";
/// Its version.
pub const SCOPE_VERSION: &[u8] = b"v";
/// Its attributes, without `fluent.tag` where [`SCOPE_HAS_TAG`] is there: `[[key, value], …]`.
pub const SCOPE_ATTRIBUTES: &[u8] = b"a";
/// It has the attribute `fluent.tag`: the message's tag.
pub const SCOPE_HAS_TAG: &[u8] = b"t";
/// Other fields of the InstrumentationScope, in base64.
pub const SCOPE_OTHER: &[u8] = b"u";
/// schema_url of the ScopeLogs.
pub const SCOPE_SCHEMA_URL: &[u8] = b"s";
/// Other fields of the ScopeLogs, in base64.
pub const SCOPE_UNKNOWN: &[u8] = b"w";
