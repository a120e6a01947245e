//! A row as a Fluent record: flat fields for every peer, and the reserved map that makes it the same row again ([`super::meta`]).

use super::encode::event_time;
use super::meta;
use super::msgpack::{put_array_head, put_bin, put_bool, put_f64, put_int, put_map_head, put_nil, put_str};
use crate::batch::keys::KeySet;
use crate::batch::{Batch, TableEntry};
use crate::json_lines::log::level_name;
use crate::json_lines::text::{put_base64, put_hex};
use crate::otlp::fields::{list, log, resource, scope};
use crate::otlp::scan::key_value;
use crate::otlp::value::{AnyValue, MAX_DEPTH, any_value, for_each_element, for_each_pair};
use crate::otlp::wire::{Reader, WireError, for_each_field};

struct Pair<'a> {
    key: &'a [u8],
    value: Reader<'a>,
}

/// What the records of a resource share.
struct Resource<'a> {
    pairs: Vec<Pair<'a>>,
    /// The members `ru`, `rs`, `rw` of the reserved map, and how many they are.
    meta: Vec<u8>,
    meta_len: usize,
}

/// Writes the records of a batch's rows.
pub struct Records<'a> {
    batch: &'a Batch,
    resources: Vec<Resource<'a>>,
    /// The value of the member `s`, by scope.
    scopes: Vec<Vec<u8>>,
    row: Row<'a>,
}

/// One row, read; kept between rows for its memory.
#[derive(Default)]
struct Row<'a> {
    attributes: Vec<Pair<'a>>,
    body: Option<Reader<'a>>,
    severity_number: u8,
    severity_text: &'a [u8],
    time: i64,
    observed: i64,
    trace_id: &'a [u8],
    span_id: &'a [u8],
    other: Vec<u8>,
}

impl<'a> Records<'a> {
    /// A writer of the rows of `batch`.
    pub fn new(batch: &'a Batch) -> Result<Self, WireError> {
        Ok(Self {
            batch,
            resources: batch.resources.iter().map(resource_of).collect::<Result<_, _>>()?,
            scopes: batch.scopes.iter().map(scope_of).collect::<Result<_, _>>()?,
            row: Row::default(),
        })
    }

    /// Appends the record of a row.
    pub fn put(&mut self, out: &mut Vec<u8>, row: usize) -> Result<(), WireError> {
        self.row.read(self.batch.message(row))?;
        let resource = &self.resources[self.batch.columns.resource[row] as usize];
        let scope = &self.scopes[self.batch.columns.scope[row] as usize];
        let row = &self.row;
        let level = level_name(row.severity_number).map_or(row.severity_text, str::as_bytes);
        let mut claims = 0;
        for (claim, holds) in [
            (meta::CLAIM_BODY, row.body.is_some()),
            (meta::CLAIM_LEVEL, !level.is_empty()),
            (meta::CLAIM_TRACE_ID, !row.trace_id.is_empty()),
            (meta::CLAIM_SPAN_ID, !row.span_id.is_empty()),
        ] {
            claims |= if holds { claim } else { 0 };
        }
        let mut taken = KeySet::default();
        taken.insert(meta::KEY);
        for (_, key) in meta::CLAIMED.iter().filter(|(claim, _)| claims & claim != 0) {
            taken.insert(key);
        }
        // The row's own attributes get their key before the resource's.
        let (flat, extra): (Vec<&Pair<'_>>, Vec<&Pair<'_>>) = row.attributes.iter().partition(|pair| taken.insert(pair.key));
        let (resource_flat, resource_extra): (Vec<&Pair<'_>>, Vec<&Pair<'_>>) =
            resource.pairs.iter().partition(|pair| taken.insert(pair.key));

        put_map_head(out, 1 + claims.count_ones() as usize + flat.len() + resource_flat.len());
        put_str(out, meta::KEY);
        row.put_meta(out, claims, &extra, (resource, &resource_flat, &resource_extra), scope)?;
        if let Some(body) = &row.body {
            put_str(out, b"message");
            put_value(out, body.clone(), MAX_DEPTH)?;
        }
        if claims & meta::CLAIM_LEVEL != 0 {
            put_str(out, b"level");
            put_str(out, level);
        }
        for (key, id) in [(b"trace_id".as_slice(), row.trace_id), (b"span_id", row.span_id)] {
            if !id.is_empty() {
                put_str(out, key);
                put_text(out, |text| put_hex(text, id));
            }
        }
        put_pairs(out, resource_flat.into_iter().chain(flat))
    }
}

impl<'a> Row<'a> {
    fn read(&mut self, message: &'a [u8]) -> Result<(), WireError> {
        let (mut attributes, mut other) = (std::mem::take(&mut self.attributes), std::mem::take(&mut self.other));
        attributes.clear();
        other.clear();
        *self = Self { attributes, other, ..Self::default() };
        for_each_field(Reader::new(message), |field| {
            let (bytes, scalar) = (field.bytes(), field.scalar());
            match (field.number, bytes, scalar) {
                (log::TIME_UNIX_NANO, _, Some(time)) if i64::try_from(time).is_ok() => self.time = time as i64,
                (log::OBSERVED_TIME_UNIX_NANO, _, Some(time)) if i64::try_from(time).is_ok() => self.observed = time as i64,
                (log::SEVERITY_NUMBER, _, Some(number)) if number <= 24 => self.severity_number = number as u8,
                (log::SEVERITY_TEXT, Some(text), _) => self.severity_text = text,
                (log::BODY, Some(_), _) => self.body = Some(field.message()),
                (log::ATTRIBUTES, Some(_), _) => {
                    let pair = key_value(field.message())?;
                    self.attributes.push(Pair { key: pair.key, value: pair.value });
                }
                (log::TRACE_ID, Some(id), _) if id.len() == 16 && id != [0; 16] => self.trace_id = id,
                (log::SPAN_ID, Some(id), _) if id.len() == 8 && id != [0; 8] => self.span_id = id,
                _ => self.other.extend_from_slice(field.raw),
            }
            Ok::<(), WireError>(())
        })
    }

    fn put_meta(
        &self,
        out: &mut Vec<u8>,
        claims: u8,
        extra: &[&Pair<'_>],
        (resource, resource_flat, resource_extra): (&Resource<'_>, &[&Pair<'_>], &[&Pair<'_>]),
        scope: &[u8],
    ) -> Result<(), WireError> {
        // The EventTime says it where it can.
        let time = (event_time(self.time).is_none()).then_some(self.time);
        let members = [
            claims != 0,
            self.severity_number != 0,
            !self.severity_text.is_empty(),
            self.observed != 0,
            time.is_some(),
            !extra.is_empty(),
            !self.other.is_empty(),
            !resource_flat.is_empty(),
            !resource_extra.is_empty(),
        ];
        put_map_head(out, members.iter().filter(|there| **there).count() + resource.meta_len + 1);
        if claims != 0 {
            put_str(out, meta::CLAIMS);
            put_int(out, i64::from(claims));
        }
        if self.severity_number != 0 {
            put_str(out, meta::SEVERITY_NUMBER);
            put_int(out, i64::from(self.severity_number));
        }
        if !self.severity_text.is_empty() {
            put_str(out, meta::SEVERITY_TEXT);
            put_str(out, self.severity_text);
        }
        if self.observed != 0 {
            put_str(out, meta::OBSERVED_TIME);
            put_int(out, self.observed);
        }
        if let Some(time) = time {
            put_str(out, meta::TIME);
            put_int(out, time);
        }
        if !extra.is_empty() {
            put_str(out, meta::ROW_EXTRA);
            put_list(out, extra)?;
        }
        if !self.other.is_empty() {
            put_str(out, meta::ROW_OTHER);
            put_text(out, |text| put_base64(text, &self.other));
        }
        if !resource_flat.is_empty() {
            put_str(out, meta::RESOURCE_KEYS);
            put_array_head(out, resource_flat.len());
            resource_flat.iter().for_each(|pair| put_str(out, pair.key));
        }
        if !resource_extra.is_empty() {
            put_str(out, meta::RESOURCE_EXTRA);
            put_list(out, resource_extra)?;
        }
        out.extend_from_slice(&resource.meta);
        put_str(out, meta::SCOPE);
        out.extend_from_slice(scope);
        Ok(())
    }
}

fn resource_of(entry: &TableEntry) -> Result<Resource<'_>, WireError> {
    let mut resource = Resource { pairs: Vec::new(), meta: Vec::new(), meta_len: 0 };
    let mut other = Vec::new();
    for_each_field(Reader::new(&entry.message), |field| {
        if field.number == resource::ATTRIBUTES {
            let pair = key_value(field.message())?;
            resource.pairs.push(Pair { key: pair.key, value: pair.value });
        } else {
            other.extend_from_slice(field.raw);
        }
        Ok::<(), WireError>(())
    })?;
    resource.meta_len += put_rest(&mut resource.meta, meta::RESOURCE_OTHER, &other);
    if !entry.schema_url.is_empty() {
        put_str(&mut resource.meta, meta::RESOURCE_SCHEMA_URL);
        put_str(&mut resource.meta, &entry.schema_url);
        resource.meta_len += 1;
    }
    resource.meta_len += put_rest(&mut resource.meta, meta::RESOURCE_UNKNOWN, &entry.unknown);
    Ok(resource)
}

/// Appends raw protobuf in base64 where there is any; the number of members written.
fn put_rest(out: &mut Vec<u8>, name: &[u8], raw: &[u8]) -> usize {
    if raw.is_empty() {
        return 0;
    }
    put_str(out, name);
    put_text(out, |text| put_base64(text, raw));
    1
}

fn scope_of(entry: &TableEntry) -> Result<Vec<u8>, WireError> {
    let (mut name, mut version, mut attributes, mut other) = (&b""[..], &b""[..], Vec::new(), Vec::new());
    let mut has_tag = false;
    for_each_field(Reader::new(&entry.message), |field| {
        match (field.number, field.bytes()) {
            (scope::NAME, Some(text)) => name = text,
            (scope::VERSION, Some(text)) => version = text,
            (scope::ATTRIBUTES, Some(_)) => {
                let pair = key_value(field.message())?;
                // A tag that is no string, or a second one, is an attribute like others.
                if pair.key == b"fluent.tag" && !has_tag && matches!(any_value(pair.value.clone())?, AnyValue::String(_)) {
                    has_tag = true;
                } else {
                    attributes.push(Pair { key: pair.key, value: pair.value });
                }
            }
            _ => other.extend_from_slice(field.raw),
        }
        Ok::<(), WireError>(())
    })?;
    let (mut members, mut len) = (Vec::new(), 0);
    for (key, text) in [(meta::SCOPE_NAME, name), (meta::SCOPE_VERSION, version), (meta::SCOPE_SCHEMA_URL, &entry.schema_url)] {
        if !text.is_empty() {
            put_str(&mut members, key);
            put_str(&mut members, text);
            len += 1;
        }
    }
    if !attributes.is_empty() {
        put_str(&mut members, meta::SCOPE_ATTRIBUTES);
        put_list(&mut members, &attributes.iter().collect::<Vec<_>>())?;
        len += 1;
    }
    if has_tag {
        put_str(&mut members, meta::SCOPE_HAS_TAG);
        put_int(&mut members, 1);
        len += 1;
    }
    len += put_rest(&mut members, meta::SCOPE_OTHER, &other);
    len += put_rest(&mut members, meta::SCOPE_UNKNOWN, &entry.unknown);
    let mut out = Vec::with_capacity(members.len() + 1);
    put_map_head(&mut out, len);
    out.append(&mut members);
    Ok(out)
}

fn put_pairs<'p>(out: &mut Vec<u8>, pairs: impl Iterator<Item = &'p Pair<'p>>) -> Result<(), WireError> {
    for pair in pairs {
        put_str(out, pair.key);
        put_value(out, pair.value.clone(), MAX_DEPTH)?;
    }
    Ok(())
}

fn put_list(out: &mut Vec<u8>, pairs: &[&Pair<'_>]) -> Result<(), WireError> {
    put_array_head(out, pairs.len());
    for pair in pairs {
        put_array_head(out, 2);
        put_str(out, pair.key);
        put_value(out, pair.value.clone(), MAX_DEPTH)?;
    }
    Ok(())
}

fn put_text(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut text = Vec::new();
    write(&mut text);
    put_str(out, &text);
}

/// Appends a value in msgpack; nested past `depth` it says so instead.
pub(crate) fn put_value(out: &mut Vec<u8>, value: Reader<'_>, depth: usize) -> Result<(), WireError> {
    match any_value(value)? {
        AnyValue::Empty => put_nil(out),
        AnyValue::String(text) => put_str(out, text),
        AnyValue::Bool(value) => put_bool(out, value),
        AnyValue::Int(value) => put_int(out, value),
        AnyValue::Double(value) => put_f64(out, value),
        AnyValue::Bytes(bytes) => put_bin(out, bytes),
        AnyValue::Array(_) | AnyValue::KvList(_) if depth == 0 => put_str(out, b"(nested too deep)"),
        AnyValue::Array(array) => {
            let mut elements = Vec::new();
            for_each_element(array, |element| {
                elements.push(element);
                Ok::<(), WireError>(())
            })?;
            put_array_head(out, elements.len());
            for element in elements {
                put_value(out, element, depth - 1)?;
            }
        }
        AnyValue::KvList(pairs) => {
            let mut members = Vec::new();
            for_each_pair(pairs, list::VALUES, |pair| {
                members.push(Pair { key: pair.key, value: pair.value });
                Ok::<(), WireError>(())
            })?;
            put_map_head(out, members.len());
            for member in &members {
                put_str(out, member.key);
                put_value(out, member.value.clone(), depth - 1)?;
            }
        }
    }
    Ok(())
}
