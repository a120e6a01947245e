//! Syslog: one message (RFC 5424, RFC 3164, and what is really sent for it) to fields, and a stream of messages to rows.
//!
//! ```text
//!   datagram ────────────────────────┐
//!   stream ──▶ frames.rs: messages ──┴▶ parse (this file) ──▶ Message ──▶ fields.rs: a record ──▶ normaliser's row
//! ```
//!
//! Nothing is refused: a message that no rule fits is a body. Lines of a file come without the priority. The names of fields are those of
//! OpenTelemetry's log data model (its appendix on syslog).

mod decoder;
pub mod fields;
pub mod frames;
mod header;
mod structured;
#[cfg(test)]
mod tests;

pub use decoder::{Counts, Decoder, Settings, Stream};
pub use fields::{FACILITIES, SEVERITIES, Value};
pub use header::When;

use crate::normalize::time::TimeReader;

/// Which rule a message follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A version after the priority.
    Rfc5424,
    /// A time, and what usually follows one.
    Rfc3164,
    /// Neither: the body is all that there is, but maybe for a priority and a tag.
    Bare,
}

/// What a message says; empty where it says nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Which rule it follows.
    pub form: Form,
    /// Facility and severity, 0 to 191.
    pub priority: Option<u8>,
    /// RFC 5424's version, which is 1; 0 in the other forms.
    pub version: u16,
    /// When it was written.
    pub time_unix_nano: Option<i64>,
    /// The time as it is written, where it is none that can be read.
    pub unread_time: &'a [u8],
    /// The host that it names.
    pub host: &'a [u8],
    /// The application: RFC 5424's APP-NAME, RFC 3164's tag.
    pub app: &'a [u8],
    /// The process.
    pub proc_id: &'a [u8],
    /// RFC 5424's MSGID.
    pub msg_id: &'a [u8],
    /// RFC 5424's structured data, whole elements without what is between them and the body.
    pub structured: &'a [u8],
    /// The text.
    pub body: &'a [u8],
    /// It says that it follows RFC 5424 and then does not: what could not be read is in the body.
    pub malformed: bool,
}

impl<'a> Message<'a> {
    fn bare(body: &'a [u8]) -> Self {
        Self {
            form: Form::Bare,
            priority: None,
            version: 0,
            time_unix_nano: None,
            unread_time: b"",
            host: b"",
            app: b"",
            proc_id: b"",
            msg_id: b"",
            structured: b"",
            body,
            malformed: false,
        }
    }
}

/// Reads messages; remembers the minute of the last one.
#[derive(Clone, Debug, Default)]
pub struct Parser {
    times: TimeReader,
}

impl Parser {
    /// What one message says. White space, line ends and NUL bytes at its end are no part of it.
    pub fn parse<'a>(&mut self, message: &'a [u8], when: &When) -> Message<'a> {
        self.untrimmed(trimmed(message), when)
    }

    /// The same, where what is at the end is known to be the message's own.
    pub(crate) fn untrimmed<'a>(&mut self, message: &'a [u8], when: &When) -> Message<'a> {
        let (priority, rest) = match priority(message) {
            Some((priority, len)) => (Some(priority), &message[len..]),
            None => (None, message),
        };
        if priority.is_some()
            && let Some((version, text)) = header::version(rest)
        {
            let mut found = header::rfc5424(text, &mut self.times);
            (found.priority, found.version) = (priority, version);
            return found;
        }
        let mut found = header::rfc3164(rest, when, &mut self.times);
        found.priority = priority;
        found
    }
}

/// The message without line ends, NUL bytes and spaces at its end.
pub(crate) fn trimmed(mut message: &[u8]) -> &[u8] {
    while let [rest @ .., b'\r' | b'\n' | b'\0' | b' ' | b'\t'] = message {
        message = rest;
    }
    message
}

/// The priority at the front of a message, and how long it is with its brackets.
pub(crate) fn priority(message: &[u8]) -> Option<(u8, usize)> {
    let [b'<', rest @ ..] = message else { return None };
    let digits = rest.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=3).contains(&digits) || rest.get(digits) != Some(&b'>') {
        return None;
    }
    let value = rest[..digits].iter().fold(0_u16, |value, digit| value * 10 + u16::from(digit - b'0'));
    (value <= 191).then_some((value as u8, digits + 2))
}
