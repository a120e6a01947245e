//! The hot path: a usual log record or span, checked and read for the columns in one pass over its bytes.
//!
//! It knows the fields and the shapes that SDKs write. At anything else it gives up ([`None`]), and the row is checked and read by its
//! descriptors ([`super::items`]), which also says what is wrong. What passes here passes there, with the same columns: a property test
//! holds that.

use super::items::ITEM_DEPTH;
use super::keys::{self, Keys};
use crate::batch::{Extremes, FLAG_ERROR, FLAG_EVENT, View};
use crate::normalize::unfold::may_be_folded;
use crate::otlp::descriptors::{ANY_VALUE, SPAN_EVENT, SPAN_LINK};
use crate::otlp::fields::{log, span_event, span_link};
use crate::otlp::scan::{RowFacts, key_value, scan_part};
use crate::otlp::validate::validate;
use crate::otlp::value::{AnyValue, any_value};
use crate::otlp::wire::Reader;

/// Bytes of a row, read forward; every read is checked.
pub(super) struct Bytes<'a> {
    data: &'a [u8],
    at: usize,
    /// Where `data` begins in the row buffer.
    base: usize,
}

/// The tag of a list of pairs in an `AnyValue`.
const KVLIST: u8 = 0x32;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Whether bytes are UTF-8; most are short and ASCII.
#[inline(always)]
fn is_text(bytes: &[u8]) -> bool {
    let Some(last) = bytes.last_chunk::<8>() else {
        return bytes.iter().fold(0, |all, byte| all | byte) < 0x80 || simdutf8::basic::from_utf8(bytes).is_ok();
    };
    if bytes.len() > 256 {
        return simdutf8::basic::from_utf8(bytes).is_ok();
    }
    let mut all = u64::from_le_bytes(*last);
    for chunk in bytes.chunks_exact(8) {
        all |= u64::from_le_bytes(chunk.try_into().unwrap_or_default());
    }
    all & HIGHS == 0 || simdutf8::basic::from_utf8(bytes).is_ok()
}

/// A value that is a string, or the size of one that is not.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Text(&'a [u8], View),
    /// Its length and its first byte, 0 for none.
    Other(usize, u8),
}

impl Value<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        match self {
            Self::Text(text, _) => text.len() as u32,
            Self::Other(len, _) => *len as u32,
        }
    }

    #[inline(always)]
    fn is_kvlist(&self) -> bool {
        matches!(self, Self::Other(_, KVLIST))
    }

    #[inline(always)]
    fn view(&self) -> View {
        match self {
            Self::Text(_, view) => *view,
            Self::Other(..) => View::NONE,
        }
    }
}

impl<'a> Bytes<'a> {
    /// At the beginning of a message.
    #[inline(always)]
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, base: 0 }
    }

    /// A tag of one byte, stepped over; None at the end.
    #[inline(always)]
    pub(super) fn tag(&mut self) -> Option<u8> {
        let tag = self.data.get(self.at).copied();
        self.at += 1;
        tag
    }

    #[inline(always)]
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.data.get(self.at..)?.get(..len)?;
        self.at += len;
        Some(taken)
    }

    /// A length of one to three bytes.
    #[inline(always)]
    fn len(&mut self) -> Option<usize> {
        let first = usize::from(*self.data.get(self.at)?);
        self.at += 1;
        if first < 0x80 {
            return Some(first);
        }
        let second = usize::from(*self.data.get(self.at)?);
        self.at += 1;
        if second < 0x80 {
            return Some(first & 0x7f | second << 7);
        }
        let third = usize::from(*self.data.get(self.at)?);
        self.at += 1;
        (third < 0x80).then_some(first & 0x7f | (second & 0x7f) << 7 | third << 14)
    }

    /// The payload of a length-delimited field, at its length.
    #[inline(always)]
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.len()?;
        self.take(len)
    }

    #[inline(always)]
    fn text(&mut self) -> Option<&'a [u8]> {
        self.bytes().filter(|text| is_text(text))
    }

    #[inline(always)]
    pub(super) fn fixed64(&mut self) -> Option<u64> {
        self.take(8).and_then(|bytes| bytes.first_chunk::<8>()).map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// A varint of one byte.
    #[inline(always)]
    fn small(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0]).filter(|byte| *byte < 0x80)
    }

    /// A varint whose value does not matter.
    #[inline(always)]
    pub(super) fn varint(&mut self) -> Option<()> {
        let end = self.data.get(self.at..)?.iter().take(10).position(|byte| *byte < 0x80)?;
        self.at += end + 1;
        Some(())
    }

    /// An id of N bytes, or an empty one.
    #[inline(always)]
    fn id<const N: usize>(&mut self) -> Option<[u8; N]> {
        match self.bytes()? {
            [] => Some([0; N]),
            id => id.try_into().ok(),
        }
    }

    /// The `AnyValue` whose length is next.
    #[inline(always)]
    fn value(&mut self) -> Option<Value<'a>> {
        let len = self.len()?;
        let start = self.at;
        let value = self.take(len)?;
        match value {
            [0x0a, text_len, text @ ..] if *text_len < 0x80 && usize::from(*text_len) == text.len() => {
                let view = View { offset: (self.base + start + 2) as u32, len: text.len() as u32 };
                is_text(text).then_some(Value::Text(text, view))
            }
            [0x0a, ..] => {
                let mut inner = Bytes { data: value, at: 1, base: self.base + start };
                let text = inner.text()?;
                let view = View { offset: (inner.base + inner.at - text.len()) as u32, len: text.len() as u32 };
                (inner.at == value.len()).then_some(Value::Text(text, view))
            }
            [] | [0x10, 0..0x80] | [0x18, 0..0x80] | [0x21, _, _, _, _, _, _, _, _] => {
                Some(Value::Other(len, value.first().copied().unwrap_or(0)))
            }
            [0x18, number @ .., 0..0x80] if number.len() < 10 && number.iter().all(|byte| *byte >= 0x80) => Some(Value::Other(len, 0x18)),
            [first, ..] if *first != 0x0a => {
                // A repeated string in a oneof would have to be told from a plain one.
                let single = Reader::new(value).next_field().ok()??.raw.len() == len;
                (single && validate(Reader::new(value), &ANY_VALUE, ITEM_DEPTH - 3).is_ok()).then_some(Value::Other(len, *first))
            }
            _ => None,
        }
    }

    /// The `KeyValue` whose length is next.
    #[inline(always)]
    pub(super) fn attribute(&mut self) -> Option<(&'a [u8], Value<'a>)> {
        let len = self.len()?;
        let start = self.at;
        let pair = self.take(len)?;
        let mut inner = Bytes { data: pair, at: 0, base: self.base + start };
        let key = if inner.take(1)? == [0x0a] { inner.text()? } else { return None };
        let value = if inner.take(1)? == [0x12] { inner.value()? } else { return None };
        (inner.at == len).then_some((key, value))
    }
}

/// What the rules of normalisation have to look at in a log record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Zero where unknown, as far as it is a time.
    pub observed_time_unix_nano: u64,
    /// There is a severity text.
    pub has_severity_text: bool,
    /// There is a body.
    pub has_body: bool,
    /// The body is a list of pairs, or text that may hold a record.
    pub may_be_folded: bool,
    /// Keys whose meaning is more than themselves: the roles, as bits.
    pub roles: u32,
}

impl Log {
    /// The same of a record of any shape, which was checked.
    pub fn of(mut message: Reader<'_>, known: &Keys) -> Self {
        let mut log = Self::default();
        while let Ok(Some(field)) = message.next_field() {
            match field.number {
                log::OBSERVED_TIME_UNIX_NANO => log.observed_time_unix_nano = field.scalar().unwrap_or(0),
                log::SEVERITY_TEXT => log.has_severity_text = field.bytes().is_some_and(|text| !text.is_empty()),
                log::BODY => {
                    log.has_body = !field.message().rest().is_empty();
                    log.may_be_folded = match any_value(field.message()) {
                        Ok(AnyValue::String(text)) => may_be_folded(text),
                        Ok(AnyValue::KvList(_)) => true,
                        _ => false,
                    };
                }
                log::ATTRIBUTES => {
                    if let Ok(attribute) = key_value(field.message()) {
                        log.roles |= known.roles(attribute.key);
                    }
                }
                _ => {}
            }
        }
        log
    }
}

/// The largest values of a row.
#[inline(always)]
fn widen(extremes: &mut Extremes, key: &[u8], value: &Value<'_>) {
    extremes.max_key_bytes = extremes.max_key_bytes.max(key.len() as u32);
    extremes.max_value_bytes = extremes.max_value_bytes.max(value.len());
}

#[inline(always)]
fn known_attribute(facts: &mut RowFacts, key: &[u8], value: &Value<'_>) {
    match key {
        b"job_id" => facts.job_id = value.view(),
        b"jobId" | b"baggage.job_id" if facts.job_id == View::NONE => facts.job_id = value.view(),
        b"event_type" => {
            facts.event_type = value.view();
            facts.flags |= if let Value::Text(..) = value { FLAG_EVENT } else { 0 };
        }
        _ => {}
    }
}

#[inline(always)]
fn time(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Reads a log record whose first byte will lie at `base` of the row buffer; None where it is not a usual one.
#[inline]
pub fn log(message: &[u8], base: usize, known: &Keys, extremes: &mut Extremes) -> Option<(RowFacts, Log)> {
    let mut bytes = Bytes { data: message, at: 0, base };
    let mut facts = RowFacts::NOTHING;
    let mut log = Log::default();
    let mut widened = *extremes;
    let mut attributes = 0;
    while let Some(&tag) = message.get(bytes.at) {
        bytes.at += 1;
        match tag {
            0x32 => {
                let (key, value) = bytes.attribute()?;
                attributes += 1;
                widen(&mut widened, key, &value);
                known_attribute(&mut facts, key, &value);
                log.roles |= match known.roles(key) {
                    keys::ERROR if !value.is_kvlist() => 0,
                    roles => roles,
                };
            }
            0x09 => facts.time_unix_nano = time(bytes.fixed64()?),
            0x59 => log.observed_time_unix_nano = bytes.fixed64()?,
            0x10 => facts.severity_number = bytes.small()?,
            0x1a => log.has_severity_text = !bytes.text()?.is_empty(),
            0x2a => {
                let value = bytes.value()?;
                facts.body = value.view();
                widened.max_body_bytes = widened.max_body_bytes.max(value.len());
                log.has_body = value.len() > 0 || facts.body != View::NONE;
                log.may_be_folded = match value {
                    Value::Text(text, _) => may_be_folded(text),
                    Value::Other(..) => value.is_kvlist(),
                };
            }
            0x45 => drop(bytes.take(4)?),
            0x4a => facts.trace_id = bytes.id()?,
            0x52 => facts.span_id = bytes.id()?,
            0x38 => bytes.varint()?,
            0x62 => facts.flags |= if bytes.text()?.is_empty() { 0 } else { FLAG_EVENT },
            _ => return None,
        }
    }
    if facts.severity_number >= 17 {
        facts.flags |= FLAG_ERROR;
    }
    widened.max_attributes = widened.max_attributes.max(attributes);
    *extremes = widened;
    Some((facts, log))
}

/// Reads a span whose first byte will lie at `base` of the row buffer; None where it is not a usual one.
#[inline]
pub fn span(message: &[u8], base: usize, extremes: &mut Extremes) -> Option<RowFacts> {
    let mut bytes = Bytes { data: message, at: 0, base };
    let mut facts = RowFacts::NOTHING;
    let mut widened = *extremes;
    let (mut attributes, mut events) = (0, 0);
    while let Some(&tag) = message.get(bytes.at) {
        bytes.at += 1;
        match tag {
            0x4a => {
                let (key, value) = bytes.attribute()?;
                attributes += 1;
                widen(&mut widened, key, &value);
                known_attribute(&mut facts, key, &value);
            }
            0x0a => facts.trace_id = bytes.id()?,
            0x12 => facts.span_id = bytes.id()?,
            0x22 => drop(bytes.id::<8>()?),
            0x1a | 0x2a => drop(bytes.text()?),
            0x30 | 0x50 | 0x60 | 0x70 => bytes.varint()?,
            0x39 => facts.time_unix_nano = time(bytes.fixed64()?),
            0x41 => drop(bytes.fixed64()?),
            0x5a => {
                let event = bytes.bytes()?;
                validate(Reader::new(event), &SPAN_EVENT, ITEM_DEPTH - 1).ok()?;
                scan_part(Reader::new(event), span_event::ATTRIBUTES, &mut widened).ok()?;
                events += 1;
            }
            0x6a => {
                let link = bytes.bytes()?;
                validate(Reader::new(link), &SPAN_LINK, ITEM_DEPTH - 1).ok()?;
                scan_part(Reader::new(link), span_link::ATTRIBUTES, &mut widened).ok()?;
            }
            0x7a => {
                let mut status = Bytes { data: bytes.bytes()?, at: 0, base: 0 };
                while let Some(&tag) = status.data.get(status.at) {
                    status.at += 1;
                    match tag {
                        0x12 => drop(status.text()?),
                        0x18 if status.small()? == 2 => facts.flags |= FLAG_ERROR,
                        0x18 => facts.flags &= !FLAG_ERROR,
                        _ => return None,
                    }
                }
            }
            // flags, field 16: the second byte of the tag comes before its four bytes.
            0x85 if message.get(bytes.at) == Some(&1) => drop(bytes.take(5)?),
            _ => return None,
        }
    }
    widened.max_attributes = widened.max_attributes.max(attributes);
    widened.max_span_events = widened.max_span_events.max(events);
    *extremes = widened;
    Some(facts)
}
