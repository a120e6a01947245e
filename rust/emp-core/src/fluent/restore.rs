//! The reverse of [`super::record`]: a record that another emp-pipe wrote becomes the row, the resource and the scope that it was.
//!
//! Flat fields hold: what a peer on the way changed or added is kept. Members of the reserved map that are of a wrong type are as if they
//! were not there; the map comes from outside like everything else.

use std::borrow::Cow;
use std::collections::HashMap;

use super::cursor::{Cursor, Fault, Head};
use super::meta;
use crate::batch::TableEntry;
use crate::normalize::copy::hex;
use crate::normalize::text::of_key;
use crate::normalize::value::put_any;
use crate::normalize::wire::{FIELD_1, RECORD_ATTRIBUTE, SCOPE_ATTRIBUTE, close, open, put_text_attribute, repaired};
use crate::otlp::fields::{log, scope};
use crate::otlp::wire::{Reader, put_bytes, put_fixed64, put_uint};

/// The field `body` of a LogRecord, as [`put_any`] wants it.
const BODY: u8 = 0x2a;
/// The field `value` of a KeyValue.
const VALUE: u8 = 0x12;

/// What a record was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The encoded LogRecord.
    pub message: Vec<u8>,
    /// Its resource.
    pub resource: TableEntry,
    /// Its scope.
    pub scope: TableEntry,
}

/// Whether the map at `pos` begins with the reserved key.
#[inline]
pub fn is_ours(data: &[u8], pos: usize) -> bool {
    let head = match data.get(pos) {
        Some(0x81..=0x8f) => 1,
        Some(0xde) => 3,
        Some(0xdf) => 5,
        _ => return false,
    };
    matches!(data.get(pos + head..), Some([0xa4, b'_', b'e', b'm', b'p', 0x80..=0x8f | 0xde | 0xdf, ..]))
}

/// What surrounds a record.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The entry's time, or that of its arrival.
    pub time_unix_nano: i64,
    /// The message's tag.
    pub tag: &'a [u8],
    /// How deep values may be nested.
    pub max_depth: usize,
}

/// Restores the record at `pos`, for which [`is_ours`] was true, into `out`; returns where it ends.
pub fn restore(data: &[u8], pos: usize, around: &Surroundings<'_>, out: &mut Restored) -> Result<usize, Fault> {
    let mut cursor = Cursor::new(data, pos);
    let Head::Map(count) = cursor.head()? else { return Err(Fault::NoMap) };
    cursor.skip()?;
    let meta = Members::of_map(cursor.value()?)?;
    let flat = fields(&mut cursor, count.saturating_sub(1))?;

    out.message.clear();
    out.resource = TableEntry::default();
    out.scope = TableEntry::default();
    let claims = meta.int(meta::CLAIMS).and_then(|claims| u8::try_from(claims).ok()).unwrap_or(0);
    let time = meta.int(meta::TIME).unwrap_or(around.time_unix_nano);
    let severity = meta.int(meta::SEVERITY_NUMBER).filter(|number| (1..=24).contains(number));
    let observed = meta.int(meta::OBSERVED_TIME).filter(|time| *time > 0);
    let message = &mut out.message;
    if time > 0 {
        put_fixed64(message, log::TIME_UNIX_NANO, time as u64);
    }
    if let Some(severity) = severity {
        put_uint(message, log::SEVERITY_NUMBER, severity as u64);
    }
    if let Some(text) = meta.text(meta::SEVERITY_TEXT) {
        put_bytes(message, log::SEVERITY_TEXT, &repaired(text));
    }
    let of_resource: Vec<&[u8]> = meta.texts(meta::RESOURCE_KEYS);
    for (key, value) in &flat {
        let claim = meta::CLAIMED.iter().find(|(claim, name)| claims & claim != 0 && *name == &**key).map_or(0, |(claim, _)| *claim);
        match claim {
            meta::CLAIM_LEVEL => {}
            meta::CLAIM_BODY => put_any(message, BODY, &mut Cursor::new(value, 0), around.max_depth)?,
            meta::CLAIM_TRACE_ID => put_id::<16>(message, log::TRACE_ID, key, value, around)?,
            meta::CLAIM_SPAN_ID => put_id::<8>(message, log::SPAN_ID, key, value, around)?,
            _ if of_resource.contains(&&**key) => put_attribute(&mut out.resource.message, FIELD_1, key, value, around.max_depth)?,
            _ => put_attribute(message, RECORD_ATTRIBUTE, key, value, around.max_depth)?,
        }
    }
    put_extra(message, RECORD_ATTRIBUTE, meta.get(meta::ROW_EXTRA), around.max_depth)?;
    if let Some(observed) = observed {
        put_fixed64(message, log::OBSERVED_TIME_UNIX_NANO, observed as u64);
    }
    put_protobuf(message, meta.text(meta::ROW_OTHER));

    put_extra(&mut out.resource.message, FIELD_1, meta.get(meta::RESOURCE_EXTRA), around.max_depth)?;
    put_protobuf(&mut out.resource.message, meta.text(meta::RESOURCE_OTHER));
    put_protobuf(&mut out.resource.unknown, meta.text(meta::RESOURCE_UNKNOWN));
    out.resource.schema_url = meta.text(meta::RESOURCE_SCHEMA_URL).map(|url| repaired(url).into_owned()).unwrap_or_default();
    if let Some(members) = meta.get(meta::SCOPE) {
        restore_scope(&Members::of_map(members)?, around, &mut out.scope)?;
    }
    Ok(cursor.pos)
}

fn restore_scope(meta: &Members<'_>, around: &Surroundings<'_>, out: &mut TableEntry) -> Result<(), Fault> {
    for (number, name) in [(scope::NAME, meta::SCOPE_NAME), (scope::VERSION, meta::SCOPE_VERSION)] {
        if let Some(text) = meta.text(name) {
            put_bytes(&mut out.message, number, &repaired(text));
        }
    }
    if meta.get(meta::SCOPE_HAS_TAG).is_some() {
        put_text_attribute(&mut out.message, SCOPE_ATTRIBUTE, b"fluent.tag", &repaired(around.tag));
    }
    put_extra(&mut out.message, SCOPE_ATTRIBUTE, meta.get(meta::SCOPE_ATTRIBUTES), around.max_depth)?;
    put_protobuf(&mut out.message, meta.text(meta::SCOPE_OTHER));
    put_protobuf(&mut out.unknown, meta.text(meta::SCOPE_UNKNOWN));
    out.schema_url = meta.text(meta::SCOPE_SCHEMA_URL).map(|url| repaired(url).into_owned()).unwrap_or_default();
    Ok(())
}

/// The members of the reserved map.
struct Members<'a>(Vec<Member<'a>>);

/// A key's text and the msgpack value.
type Member<'a> = (Cow<'a, [u8]>, &'a [u8]);

impl<'a> Members<'a> {
    fn of_map(map: &'a [u8]) -> Result<Self, Fault> {
        let mut cursor = Cursor::new(map, 0);
        match cursor.head()? {
            Head::Map(count) => fields(&mut cursor, count).map(Self),
            _ => Ok(Self(Vec::new())),
        }
    }

    fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.0.iter().find(|(key, _)| **key == *name).map(|(_, value)| *value)
    }

    fn int(&self, name: &[u8]) -> Option<i64> {
        match Cursor::new(self.get(name)?, 0).head() {
            Ok(Head::Int(value)) => Some(value),
            _ => None,
        }
    }

    fn text(&self, name: &[u8]) -> Option<&'a [u8]> {
        Cursor::new(self.get(name)?, 0).text().ok().flatten()
    }

    fn texts(&self, name: &[u8]) -> Vec<&'a [u8]> {
        let mut cursor = Cursor::new(self.get(name).unwrap_or_default(), 0);
        let Ok(Head::Array(count)) = cursor.head() else { return Vec::new() };
        (0..count).map_while(|_| cursor.text().ok()).flatten().collect()
    }
}

const FEW: usize = 32;

/// The next `count` pairs; of a key that comes twice the last value counts, at the place of the first.
fn fields<'a>(cursor: &mut Cursor<'a>, count: usize) -> Result<Vec<Member<'a>>, Fault> {
    let mut fields: Vec<Member<'a>> = Vec::with_capacity(count.min(64));
    // Few keys are compared one by one, which is faster than hashing them.
    let mut places: HashMap<Cow<'a, [u8]>, usize> = HashMap::new();
    for _ in 0..count {
        let key = match of_key(cursor.value()?) {
            Cow::Borrowed(key) => repaired(key),
            Cow::Owned(key) => Cow::Owned(repaired(&key).into_owned()),
        };
        let value = cursor.value()?;
        let place = if count <= FEW { fields.iter().position(|(known, _)| *known == key) } else { places.get(&key).copied() };
        match place {
            Some(place) => fields[place].1 = value,
            None => {
                if count > FEW {
                    places.insert(key.clone(), fields.len());
                }
                fields.push((key, value));
            }
        }
    }
    Ok(fields)
}

fn put_attribute(out: &mut Vec<u8>, tag: u8, key: &[u8], value: &[u8], max_depth: usize) -> Result<(), Fault> {
    let pair = open(out, tag);
    crate::normalize::wire::put_bytes(out, 0x0a, key);
    put_any(out, VALUE, &mut Cursor::new(value, 0), max_depth)?;
    close(out, pair);
    Ok(())
}

/// An id of `N` bytes in hex; what a peer made something else of stays as an attribute.
fn put_id<const N: usize>(out: &mut Vec<u8>, number: u32, key: &[u8], value: &[u8], around: &Surroundings<'_>) -> Result<(), Fault> {
    match Cursor::new(value, 0).text()?.and_then(hex::<N>).filter(|id| *id != [0; N]) {
        Some(id) => {
            put_bytes(out, number, &id);
            Ok(())
        }
        None => put_attribute(out, RECORD_ATTRIBUTE, key, value, around.max_depth),
    }
}

/// `[[key, value], …]` as attributes.
fn put_extra(out: &mut Vec<u8>, tag: u8, list: Option<&[u8]>, max_depth: usize) -> Result<(), Fault> {
    let mut cursor = Cursor::new(list.unwrap_or(&[0x90]), 0);
    let Head::Array(count) = cursor.head()? else { return Ok(()) };
    for _ in 0..count {
        let mut pair = Cursor::new(cursor.value()?, 0);
        if pair.head()? != Head::Array(2) {
            continue;
        }
        let key = of_key(pair.value()?);
        put_attribute(out, tag, &repaired(&key), pair.value()?, max_depth)?;
    }
    Ok(())
}

/// Raw protobuf fields in base64; what is none is left out.
fn put_protobuf(out: &mut Vec<u8>, base64: Option<&[u8]>) {
    let Some(raw) = base64.and_then(from_base64) else { return };
    let mut reader = Reader::new(&raw);
    loop {
        match reader.next_field() {
            Ok(Some(_)) => {}
            Ok(None) => return out.extend_from_slice(&raw),
            Err(_) => return,
        }
    }
}

/// Standard base64 with padding; None for anything else.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for four in text[..text.len() - padding.min(2)].chunks(4) {
        let mut bits = 0u32;
        for byte in four {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(digit);
        }
        bits <<= 6 * (4 - four.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    Some(out)
}
