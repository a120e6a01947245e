//! Fluent Bit's OTLP groups: a start marker that carries resource and scope, for the entries up to the end marker.
//!
//! The marker's record is `{"resource": {"attributes": {…}}, "scope": {"name": …, "version": …, "attributes": {…}}, "schema_url": …}`; its
//! metadata names the schema. Either map may carry the two keys.

use super::cursor::{Cursor, Head};
use crate::batch::TableEntry;
use crate::normalize::identity::Base;
use crate::normalize::value::put_any;
use crate::normalize::wire::{FIELD_1, SCOPE_ATTRIBUTE, close, open, put_bytes, put_varint, repaired};
use crate::normalize::{Builder, text};

/// How deep a resource's or scope's values may be nested.
const MAX_DEPTH: usize = 16;

/// The value of a key in a msgpack map; None when `map` is no map or lacks it.
pub fn get<'a>(map: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let mut cursor = Cursor::new(map, 0);
    let Ok(Head::Map(count)) = cursor.head() else { return None };
    let mut found = None;
    for _ in 0..count {
        let this = cursor.value().ok()?;
        let value = cursor.value().ok()?;
        if &*text::of_key(this) == key.as_bytes() {
            found = Some(value);
        }
    }
    found
}

/// The text of a str or bin value.
pub fn text_of(value: &[u8]) -> Option<&[u8]> {
    Cursor::new(value, 0).text().ok().flatten()
}

/// The integer of a value.
pub fn int_of(value: &[u8]) -> Option<i64> {
    match Cursor::new(value, 0).head() {
        Ok(Head::Int(number)) => Some(number),
        _ => None,
    }
}

/// Begins a group.
pub fn start(builder: &mut Builder, metadata: &[u8], record: &[u8]) {
    let find = |key| get(record, key).or_else(|| get(metadata, key));
    let mut base = TableEntry::default();
    if let Some(resource) = find("resource") {
        base.message = attributes(FIELD_1, get(resource, "attributes"));
        if let Some(count) = get(resource, "dropped_attributes_count").and_then(int_of).filter(|count| *count > 0) {
            base.message.push(0x10);
            put_varint(&mut base.message, count as u64);
        }
        let url = get(resource, "schema_url").or_else(|| find("schema_url")).and_then(text_of);
        base.schema_url = url.map(|url| repaired(url).into_owned()).unwrap_or_default();
    }
    let mut encoded = Vec::new();
    if let Some(scope) = find("scope") {
        for (tag, key) in [(0x0a, "name"), (0x12, "version")] {
            if let Some(text) = get(scope, key).and_then(text_of).filter(|text| !text.is_empty()) {
                put_bytes(&mut encoded, tag, &repaired(text));
            }
        }
        encoded.extend(attributes(SCOPE_ATTRIBUTE, get(scope, "attributes")));
        if let Some(count) = get(scope, "dropped_attributes_count").and_then(int_of).filter(|count| *count > 0) {
            encoded.push(0x20);
            put_varint(&mut encoded, count as u64);
        }
    }
    builder.set_group(Base::new(base), encoded);
}

/// The pairs of a map as encoded attributes; of equal keys the last counts.
fn attributes(tag: u8, map: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(map) = map else { return out };
    let mut cursor = Cursor::new(map, 0);
    let Ok(Head::Map(count)) = cursor.head() else { return out };
    let mut pairs: Vec<(Vec<u8>, &[u8])> = Vec::new();
    for _ in 0..count {
        let (Ok(key), Ok(value)) = (cursor.value(), cursor.value()) else { break };
        pairs.push((repaired(&text::of_key(key)).into_owned(), value));
    }
    let mut seen = std::collections::HashMap::new();
    for (index, (key, _)) in pairs.iter().enumerate() {
        seen.insert(key.clone(), index);
    }
    for (index, (key, value)) in pairs.into_iter().enumerate() {
        if seen.get(&key) != Some(&index) {
            continue;
        }
        let start = out.len();
        let pair = open(&mut out, tag);
        put_bytes(&mut out, 0x0a, &key);
        if put_any(&mut out, 0x12, &mut Cursor::new(value, 0), MAX_DEPTH).is_err() {
            out.truncate(start);
            continue;
        }
        close(&mut out, pair);
    }
    out
}
