//! The standard schema as a table: which key means what, and which other spellings of it occur.
//!
//! Looked up only when a key is new to a connection; [`super::shape`] remembers the answer.

use std::collections::HashMap;

/// What a field is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An attribute under its canonical name.
    Attribute,
    /// The same, with a column of its own.
    JobId,
    /// The same; makes the record an event.
    EventType,
    /// An attribute in milliseconds: an alias is taken for it only when it is a number.
    Millis,
    /// When it happened.
    Time,
    /// The level, as text or number.
    Level,
    /// OTLP's own severity number.
    SeverityNumber,
    /// The body.
    Body,
    /// Hex: the OTLP field; else an attribute.
    TraceId,
    /// Hex: the OTLP field; else an attribute.
    SpanId,
    /// W3C's header: an attribute that also fills absent ids.
    Traceparent,
    /// Text: an attribute. A map: `exception.*`.
    Error,
    /// One of [`IDENTITY`], by index: goes to the resource.
    Identity(u8),
}

/// The resource attributes that records carry, in the order in which a resource lists them.
pub const IDENTITY: [&str; 5] = ["machine_id", "worker_id", "service_type", "service.name", "host.name"];

/// A line of the schema: the canonical name, its role, and its other spellings (an earlier one goes before a later one).
type Line = (&'static str, Role, &'static [&'static str]);

const SCHEMA: &[Line] = &[
    ("timestamp", Role::Time, &["@timestamp", "time", "ts", "datetime"]),
    (
        "level",
        Role::Level,
        &["severity", "lvl", "loglevel", "log_level", "logLevel", "levelname", "log.level", "severity_text", "severityText"],
    ),
    ("severity_number", Role::SeverityNumber, &["severityNumber"]),
    ("message", Role::Body, &["msg", "log"]),
    ("trace_id", Role::TraceId, &["traceId", "traceID", "trace.id"]),
    ("span_id", Role::SpanId, &["spanId", "spanID", "span.id"]),
    ("traceparent", Role::Traceparent, &[]),
    ("machine_id", Role::Identity(0), &["machineId", "machineID"]),
    ("worker_id", Role::Identity(1), &["workerId", "workerID"]),
    ("service_type", Role::Identity(2), &["serviceType"]),
    ("service.name", Role::Identity(3), &["service", "service_name", "serviceName"]),
    ("host.name", Role::Identity(4), &["hostname", "host_name", "hostName"]),
    ("job_id", Role::JobId, &["jobId", "jobID"]),
    ("event_type", Role::EventType, &["eventType"]),
    ("duration_ms", Role::Millis, &["durationMs", "duration"]),
    ("error", Role::Error, &["err", "exception"]),
    ("exception.stacktrace", Role::Attribute, &["stack", "stacktrace", "stack_trace"]),
    ("exception.message", Role::Attribute, &[]),
    ("exception.type", Role::Attribute, &[]),
    ("connector_id", Role::Attribute, &["connectorId"]),
    ("session_id", Role::Attribute, &["sessionId"]),
    ("user_id", Role::Attribute, &["userId"]),
    ("job_status", Role::Attribute, &["jobStatus"]),
    ("error_type", Role::Attribute, &["errorType"]),
    ("input_size", Role::Attribute, &["inputSize"]),
    ("output_size", Role::Attribute, &["outputSize"]),
    ("queue_position", Role::Attribute, &["queuePosition"]),
    ("estimated_wait_time", Role::Attribute, &["estimatedWaitTime"]),
    ("resource_allocation", Role::Attribute, &["resourceAllocation"]),
    ("current_operation", Role::Attribute, &["currentOperation"]),
    ("elapsed_time", Role::Attribute, &["elapsedTime"]),
    ("health_status", Role::Attribute, &["healthStatus"]),
    ("health_details", Role::Attribute, &["healthDetails"]),
];

/// What a key means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// The name under which the value is kept as an attribute.
    pub canonical: Box<[u8]>,
    /// What is done with the value.
    pub role: Role,
    /// 0 for the canonical spelling, else its place among the others, from 1.
    pub rank: u16,
}

/// The table of a [`super::Normalizer`].
#[derive(Clone, Debug)]
pub struct Table {
    meanings: HashMap<Box<[u8]>, Meaning>,
}

impl Table {
    /// The standard schema with a user's aliases (alias to canonical name), which go before the schema's own.
    pub fn new<'a>(aliases: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut meanings = HashMap::new();
        for (canonical, role, others) in SCHEMA {
            for (rank, key) in std::iter::once(canonical).chain(others.iter()).enumerate() {
                let meaning = Meaning { canonical: canonical.as_bytes().into(), role: *role, rank: rank as u16 };
                meanings.insert(Box::from(key.as_bytes()), meaning);
            }
        }
        let mut own = Vec::new();
        for (alias, canonical) in aliases {
            let known: Option<&Meaning> = meanings.get(canonical.as_bytes());
            let (canonical, role) =
                known.map_or((canonical.as_bytes().into(), Role::Attribute), |known| (known.canonical.clone(), known.role));
            own.push((Box::from(alias.as_bytes()), Meaning { canonical, role, rank: 1 }));
        }
        meanings.extend(own);
        Self { meanings }
    }

    /// The keys that are known, with what they mean.
    pub fn known(&self) -> impl Iterator<Item = (&[u8], &Meaning)> {
        self.meanings.iter().map(|(key, meaning)| (&**key, meaning))
    }

    /// What `key` means; an unknown key is an attribute under its own name.
    pub fn meaning(&self, key: &[u8]) -> Meaning {
        self.meanings.get(key).cloned().unwrap_or_else(|| Meaning { canonical: key.into(), role: Role::Attribute, rank: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_stands_for_two_things() {
        let mut seen = std::collections::HashSet::new();
        for (canonical, _, others) in SCHEMA {
            for key in std::iter::once(canonical).chain(others.iter()) {
                assert!(seen.insert(*key), "{key} is in the schema twice");
            }
        }
    }

    #[test]
    fn a_users_alias_takes_the_role_of_what_it_stands_for() {
        let table = Table::new([("gpuBox", "machine_id"), ("took", "elapsed")]);
        assert_eq!(table.meaning(b"gpuBox").role, Role::Identity(0));
        assert_eq!(&*table.meaning(b"took").canonical, b"elapsed");
    }
}
