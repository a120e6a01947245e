//! What stands beside an entry's time: `[[time, metadata], record]`.
//!
//! Fluent Bit puts what an OTLP record had beyond its body under `otlp`: `{"observed_timestamp": ns, "severity_number": n,
//! "severity_text": …, "trace_id": 16 bytes, "span_id": 8 bytes, "trace_flags": n, "attributes": {…}}`. It becomes what it was, where the
//! record itself does not say otherwise. All other metadata is kept as one attribute, `fluent.metadata`.

use std::borrow::Cow;

use super::copy::hex;
use super::wire::{put_bytes, repaired};
use super::{severity, text};
use crate::batch::FLAG_EVENT;
use crate::batch::build::RowFacts;
use crate::fluent::cursor::{Cursor, Fault, Head};

/// The attribute that holds metadata of other kinds.
pub const OTHER: &[u8] = b"fluent.metadata";

/// An entry's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// Attributes, by their exact names.
    pub attributes: Vec<(Cow<'a, [u8]>, &'a [u8])>,
    /// 1 to 24.
    pub severity_number: Option<u8>,
    /// As it came.
    pub severity_text: Option<&'a [u8]>,
    /// Not all zero.
    pub trace_id: Option<[u8; 16]>,
    /// Not all zero.
    pub span_id: Option<[u8; 8]>,
    /// W3C trace flags.
    pub flags: Option<u32>,
    /// For entries without a time of their own.
    pub time_unix_nano: Option<i64>,
    /// When the sender saw it.
    pub observed_time_unix_nano: Option<i64>,
    /// A msgpack map of everything else, if there is anything.
    pub other: Option<Vec<u8>>,
    /// For records that have no other time at all.
    pub fallback_time_unix_nano: Option<i64>,
    /// Encoded fields of an OTLP record that are kept as they lie.
    pub encoded: Vec<u8>,
    /// The record is an event, whatever its attributes say.
    pub is_event: bool,
}

impl<'a> Metadata<'a> {
    /// Reads metadata; what is no map is kept as it is under [`OTHER`].
    pub fn read(metadata: &'a [u8]) -> Result<Self, Fault> {
        let mut result = Self::default();
        let mut cursor = Cursor::new(metadata, 0);
        let count = match metadata.first().map(|_| cursor.head()) {
            None => return Ok(result),
            Some(Ok(Head::Map(count))) => count,
            Some(Ok(_)) => {
                result.other = Some(metadata.to_vec());
                return Ok(result);
            }
            Some(Err(fault)) => return Err(fault),
        };
        let mut other = (0u32, Vec::new());
        for _ in 0..count {
            let key = cursor.value()?;
            let value = cursor.value()?;
            if &*text::of_key(key) == b"otlp" && matches!(Cursor::new(value, 0).head(), Ok(Head::Map(_))) {
                result.read_otlp(value, &mut other)?;
            } else {
                put_pair(&mut other, key, value);
            }
        }
        if other.0 > 0 {
            result.other = Some(as_map(other));
        }
        Ok(result)
    }

    /// Writes severity, ids and flags, where the record has none of its own.
    pub fn put_fields(&self, rows: &mut Vec<u8>, row: &mut RowFacts, has_severity: bool) {
        if !has_severity {
            row.severity_number = self.severity_number.unwrap_or_default();
            if let Some(text) = self.severity_text {
                put_bytes(rows, 0x1a, &repaired(text));
                if row.severity_number == 0 {
                    row.severity_number = severity::of_text(text);
                }
            }
        }
        if let Some(id) = self.trace_id.filter(|_| row.trace_id == [0; 16]) {
            row.trace_id = id;
            put_bytes(rows, 0x4a, &id);
        }
        if let Some(id) = self.span_id.filter(|_| row.span_id == [0; 8]) {
            row.span_id = id;
            put_bytes(rows, 0x52, &id);
        }
        if self.is_event {
            row.flags |= FLAG_EVENT;
        }
        rows.extend_from_slice(&self.encoded);
        if let Some(flags) = self.flags {
            rows.push(0x45);
            rows.extend_from_slice(&flags.to_le_bytes());
        }
    }

    fn read_otlp(&mut self, map: &'a [u8], other: &mut (u32, Vec<u8>)) -> Result<(), Fault> {
        let mut cursor = Cursor::new(map, 0);
        let Head::Map(count) = cursor.head()? else { return Ok(()) };
        for _ in 0..count {
            let key = cursor.value()?;
            let value = cursor.value()?;
            let mut inner = Cursor::new(value, 0);
            let head = inner.head()?;
            let content = &value[inner.pos..];
            match (&*text::of_key(key), head) {
                (b"attributes", Head::Map(count)) => {
                    for _ in 0..count {
                        let key = match text::of_key(inner.value()?) {
                            Cow::Borrowed(key) => repaired(key),
                            Cow::Owned(key) => Cow::Owned(repaired(&key).into_owned()),
                        };
                        self.attributes.push((key, inner.value()?));
                    }
                }
                (b"severity_number", Head::Int(0)) | (b"severity_text", Head::Str(0)) => {}
                (b"severity_number", Head::Int(number @ 1..=24)) => self.severity_number = Some(number as u8),
                (b"severity_text", Head::Str(_)) => self.severity_text = Some(content),
                (b"trace_id", Head::Str(_) | Head::Bin(_)) if id::<16>(content).is_some() => self.trace_id = id(content),
                (b"span_id", Head::Str(_) | Head::Bin(_)) if id::<8>(content).is_some() => self.span_id = id(content),
                (b"trace_flags", Head::Int(flags)) if u32::try_from(flags).is_ok() => self.flags = u32::try_from(flags).ok(),
                (b"timestamp", Head::Int(time @ 1..)) => self.time_unix_nano = Some(time),
                (b"observed_timestamp", Head::Int(time @ 1..)) => self.observed_time_unix_nano = Some(time),
                // An id of zeros or a time of zero says: none.
                (b"trace_id" | b"span_id", Head::Str(_) | Head::Bin(_)) if content.iter().all(|byte| *byte == 0) => {}
                (b"timestamp" | b"observed_timestamp", Head::Int(0)) => {}
                _ => put_pair(other, key, value),
            }
        }
        Ok(())
    }
}

/// An id of `N` bytes as they are, or in hex; None for others and for zeros.
fn id<const N: usize>(content: &[u8]) -> Option<[u8; N]> {
    content.try_into().ok().or_else(|| hex::<N>(content)).filter(|id| *id != [0; N])
}

fn put_pair(map: &mut (u32, Vec<u8>), key: &[u8], value: &[u8]) {
    map.0 += 1;
    map.1.extend_from_slice(key);
    map.1.extend_from_slice(value);
}

fn as_map((count, pairs): (u32, Vec<u8>)) -> Vec<u8> {
    let mut map = vec![0xdf];
    map.extend_from_slice(&count.to_be_bytes());
    map.extend_from_slice(&pairs);
    map
}
