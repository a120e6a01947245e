//! What a message says as the fields of a record, a msgpack map for the normaliser.
//!
//! As OpenTelemetry's log data model maps syslog (its appendix): the severity is the level, the host `host.name`, the application
//! `service.name`, and the rest `syslog.*`; a process id that is a number is `process.pid`.

use super::{Message, structured};
use crate::hash::KeyedMap;
use crate::normalize::json::{put_int, put_str};

/// By the number in the priority.
pub const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
/// By the number in the priority.
pub const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

/// A value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text, maybe not UTF-8.
    Text(&'a [u8]),
    /// A whole number.
    Int(i64),
    /// A name that occurs several times has all of its values.
    Texts(&'a [Vec<u8>]),
}

impl Message<'_> {
    /// Calls `put` with the name and the value of each field but the time, each name once; the body (`message`) first.
    pub fn fields(&self, mut put: impl FnMut(&[u8], Value<'_>)) {
        put(b"message", Value::Text(self.body));
        if let Some(priority) = self.priority {
            put(b"level", Value::Text(SEVERITIES[usize::from(priority & 7)].as_bytes()));
            put(b"syslog.facility", Value::Text(FACILITIES[usize::from(priority >> 3).min(23)].as_bytes()));
        }
        match pid(self.proc_id) {
            Some(pid) => put(b"process.pid", Value::Int(pid)),
            None => text(&mut put, b"syslog.procid", self.proc_id),
        }
        text(&mut put, b"host.name", self.host);
        text(&mut put, b"service.name", self.app);
        text(&mut put, b"syslog.msgid", self.msg_id);
        text(&mut put, b"syslog.timestamp", self.unread_time);
        if self.version > 1 {
            put(b"syslog.version", Value::Int(i64::from(self.version)));
        }
        if !self.structured.is_empty() {
            self.structured_fields(&mut put);
        }
    }

    #[cold]
    fn structured_fields(&self, put: &mut impl FnMut(&[u8], Value<'_>)) {
        let mut names: Vec<(Vec<u8>, Vec<Vec<u8>>)> = Vec::new();
        let mut places: KeyedMap<Vec<u8>, usize> = KeyedMap::default();
        structured::each(self.structured, |id, name, value| {
            let name = match (id, name) {
                (b"origin", b"swVersion") => b"service.version".to_vec(),
                (b"origin", b"ip") => b"client.address".to_vec(),
                (id, b"") => [b"syslog.", id].concat(),
                (id, name) => [b"syslog.", id, b".", name].concat(),
            };
            let place = *places.entry(name.clone()).or_insert_with(|| {
                names.push((name, Vec::new()));
                names.len() - 1
            });
            names[place].1.push(value.into_owned());
        });
        for (name, values) in &names {
            match values.as_slice() {
                [value] => put(name, Value::Text(value)),
                values => put(name, Value::Texts(values)),
            }
        }
    }
}

fn text(put: &mut impl FnMut(&[u8], Value<'_>), name: &[u8], value: &[u8]) {
    if !value.is_empty() {
        put(name, Value::Text(value));
    }
}

fn pid(proc_id: &[u8]) -> Option<i64> {
    if proc_id.is_empty() || proc_id.len() > 10 || !proc_id.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(proc_id.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
}

/// A record that is being written; its memory is used again.
#[derive(Debug, Default)]
pub(super) struct Record {
    out: Vec<u8>,
    count: u32,
}

impl Record {
    pub(super) fn begin(&mut self) {
        self.out.clear();
        // A quiet source keeps little.
        self.out.shrink_to(64 << 10);
        self.out.extend_from_slice(&[0xdf, 0, 0, 0, 0]);
        self.count = 0;
    }

    pub(super) fn put(&mut self, name: &[u8], value: Value<'_>) {
        self.count += 1;
        put_str(&mut self.out, name);
        match value {
            Value::Text(text) => put_str(&mut self.out, text),
            Value::Int(number) => put_int(&mut self.out, number),
            Value::Texts(texts) => {
                self.out.push(0xdd);
                self.out.extend_from_slice(&(texts.len() as u32).to_be_bytes());
                texts.iter().for_each(|text| put_str(&mut self.out, text));
            }
        }
    }

    pub(super) fn put_bool(&mut self, name: &[u8], value: bool) {
        self.count += 1;
        put_str(&mut self.out, name);
        self.out.push(0xc2 | u8::from(value));
    }

    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        self.out[1..5].copy_from_slice(&self.count.to_be_bytes());
        &mut self.out
    }
}
