//! Which attribute keys of a log record mean more than themselves, found in a few nanoseconds: most keys are told by first byte and length.

use crate::normalize::bytes_map::{BytesMap, hash};
use crate::normalize::table::{Role, Table};

/// The key is another spelling of a name.
pub const ALIAS: u32 = 1;
/// May fill an absent time.
pub const TIME: u32 = 1 << 1;
/// May fill an absent severity.
pub const LEVEL: u32 = 1 << 2;
/// May fill an absent body.
pub const BODY: u32 = 1 << 3;
/// May fill an absent trace id.
pub const TRACE_ID: u32 = 1 << 4;
/// May fill an absent span id.
pub const SPAN_ID: u32 = 1 << 5;
/// May fill both ids.
pub const TRACEPARENT: u32 = 1 << 6;
/// A map becomes `exception.*`.
pub const ERROR: u32 = 1 << 7;
/// From this bit on: a part of an identity, by its index.
pub const IDENTITY: u32 = 8;

/// The keys of a table.
#[derive(Clone, Debug)]
pub struct Keys {
    /// By first byte: the lengths that keys have, as bits; the last one for all longer.
    lengths: Box<[u64; 256]>,
    numbers: BytesMap,
    roles: Vec<u32>,
}

impl Keys {
    /// The keys of a table that have a role or another name.
    pub fn new(table: &Table) -> Self {
        let mut new = Self { lengths: Box::new([0; 256]), numbers: BytesMap::default(), roles: Vec::new() };
        for (key, meaning) in table.known() {
            let role = match meaning.role {
                // Under its own name nothing happens to it; what has a column is read as it is.
                Role::Attribute | Role::JobId | Role::EventType | Role::Millis => 0,
                Role::Time => TIME,
                Role::Level | Role::SeverityNumber => LEVEL,
                Role::Body => BODY,
                Role::TraceId => TRACE_ID,
                Role::SpanId => SPAN_ID,
                Role::Traceparent => TRACEPARENT,
                Role::Error => ERROR,
                Role::Identity(index) => 1 << (IDENTITY + u32::from(index)),
            };
            // A role that takes the value off the record makes no attribute: there its name does not matter.
            let renamed = role & !ERROR == 0 && *meaning.canonical != *key;
            let roles = role | if renamed { ALIAS } else { 0 };
            if roles != 0
                && let Some(first) = key.first()
            {
                new.lengths[usize::from(*first)] |= 1 << key.len().min(63);
                new.numbers.insert(hash(key), key);
                new.roles.push(roles);
            }
        }
        new
    }

    /// The roles of a key, as bits; 0 for nearly all.
    #[inline(always)]
    pub fn roles(&self, key: &[u8]) -> u32 {
        let Some(first) = key.first() else { return 0 };
        if self.lengths[usize::from(*first)] >> key.len().min(63) & 1 == 0 {
            return 0;
        }
        self.numbers.get(hash(key), key).map_or(0, |number| self.roles[number as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_a_role_or_another_name_are_found_and_no_others() {
        let keys = Keys::new(&Table::new([("box", "machine_id"), ("took", "elapsed")]));
        for (key, roles) in [
            ("jobId", ALIAS),
            ("job_id", 0),
            ("duration", ALIAS),
            ("duration_ms", 0),
            ("took", ALIAS),
            ("elapsed", 0),
            ("level", LEVEL),
            ("lvl", LEVEL),
            ("error", ERROR),
            ("err", ERROR | ALIAS),
            ("message", BODY),
            ("traceId", TRACE_ID),
            ("traceparent", TRACEPARENT),
            ("machine_id", 1 << IDENTITY),
            ("box", 1 << IDENTITY),
            ("host.name", 1 << (IDENTITY + 4)),
            ("http.method", 0),
            ("", 0),
        ] {
            assert_eq!(keys.roles(key.as_bytes()), roles, "{key}");
        }
    }
}
