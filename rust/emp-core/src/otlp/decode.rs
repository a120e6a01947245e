//! An export request to a [`Batch`]: every row keeps its own bytes, unknown fields included; only what the columns need is read.

use std::collections::HashMap;

use super::descriptors;
use super::fields::{request, resource_rows, scope_rows};
use super::validate::{MAX_MESSAGE_DEPTH, validate};
use super::wire::{Reader, WireError, for_each_field, put_bytes, varint_len};
use crate::batch::{Batch, Signal, TableEntry};
use crate::compress::{Codec, decompress};
use crate::error::{CoreError, ErrorKind};

/// The batch of an Export{Logs,Trace,Metrics}ServiceRequest. Equal resources and scopes become one. Errors carry `kind` and the offset.
pub fn decode(signal: Signal, data: &[u8], kind: ErrorKind) -> Result<Batch, CoreError> {
    if u32::try_from(data.len().saturating_mul(2)).is_err() {
        return Err(CoreError::new(kind, 0, "an export request of over 2 GiB"));
    }
    let mut decoder = Decoder { batch: Batch::new(signal), resources: Interner::default(), scopes: Interner::default() };
    decoder.batch.rows.reserve(data.len());
    for_each_field(Reader::new(data), |field| match field.number {
        request::RESOURCE_ROWS => decoder.resource_rows(field.message()),
        _ => Ok(()),
    })
    .map_err(|error| error.of_kind(kind))?;
    let mut batch = decoder.batch;
    batch.resources = decoder.resources.entries;
    batch.scopes = decoder.scopes.entries;
    Ok(batch)
}

/// [`decode`] of a request from outside: it may be compressed, is inflated to at most `max_inflated_bytes`, and checked in full.
pub fn decode_foreign(signal: Signal, data: &[u8], codec: Codec, max_inflated_bytes: usize, kind: ErrorKind) -> Result<Batch, CoreError> {
    let inflated;
    let request = if codec == Codec::None && data.len() <= max_inflated_bytes {
        data
    } else {
        inflated = decompress(codec, data, max_inflated_bytes, None, kind)?;
        &inflated
    };
    validate(Reader::new(request), descriptors::request(signal), MAX_MESSAGE_DEPTH).map_err(|error| error.of_kind(kind))?;
    decode(signal, request, kind)
}

/// Distinct table entries in order of first use.
#[derive(Default)]
pub struct Interner {
    /// The entries so far.
    pub entries: Vec<TableEntry>,
    index: HashMap<TableEntry, u32>,
}

impl Interner {
    /// The index of an entry, new or known.
    pub fn intern(&mut self, entry: TableEntry) -> u32 {
        // Most batches have one resource after another that is the same: no hashing for those.
        if self.entries.last() == Some(&entry) {
            return self.entries.len() as u32 - 1;
        }
        if let Some(&index) = self.index.get(&entry) {
            return index;
        }
        let index = self.entries.len() as u32;
        self.index.insert(entry.clone(), index);
        self.entries.push(entry);
        index
    }
}

struct Decoder {
    batch: Batch,
    resources: Interner,
    scopes: Interner,
}

impl Decoder {
    fn resource_rows(&mut self, message: Reader<'_>) -> Result<(), WireError> {
        const KNOWN: [u32; 3] = [resource_rows::RESOURCE, resource_rows::SCHEMA_URL, resource_rows::SCOPE_ROWS];
        let resource = self.resources.intern(table_entry(message.clone(), KNOWN)?);
        for_each_field(message, |field| match field.number {
            resource_rows::SCOPE_ROWS => self.scope_rows(field.message(), resource),
            _ => Ok(()),
        })
    }

    fn scope_rows(&mut self, message: Reader<'_>, resource: u32) -> Result<(), WireError> {
        const KNOWN: [u32; 3] = [scope_rows::SCOPE, scope_rows::SCHEMA_URL, scope_rows::ROW];
        let scope = self.scopes.intern(table_entry(message.clone(), KNOWN)?);
        for_each_field(message, |field| {
            if let (scope_rows::ROW, Some(row)) = (field.number, field.bytes()) {
                self.batch.push_message(row, resource, scope).map_err(|error| {
                    // `push_message` counts in the row buffer; the caller wants the place in the request.
                    let row_base = self.batch.rows.len() + 1 + varint_len(row.len() as u64);
                    WireError { offset: field.bytes_offset() + error.offset.saturating_sub(row_base), ..error }
                })?;
            }
            Ok(())
        })
    }
}

/// What encloses rows: `known` are the numbers of the message, of its schema_url and of its children (neither kept as unknown).
pub(crate) fn table_entry(enclosing: Reader<'_>, known: [u32; 3]) -> Result<TableEntry, WireError> {
    let mut entry = TableEntry::default();
    for_each_field(enclosing, |field| {
        match field.number {
            // A message field that occurs twice is merged by concatenation, as protobuf says.
            number if number == known[0] => entry.message.extend_from_slice(field.bytes().unwrap_or_default()),
            number if number == known[1] => entry.schema_url = field.bytes().unwrap_or_default().to_vec(),
            number if number == known[2] => {}
            _ => entry.unknown.extend_from_slice(field.raw),
        }
        Ok::<(), WireError>(())
    })?;
    Ok(entry)
}

/// The value of a string attribute of an encoded `Resource` (`attributes_field` 1) or `InstrumentationScope` (3); None where absent.
pub fn string_attribute<'a>(message: &'a [u8], attributes_field: u32, key: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    // Bytes that cannot be read end the search: they were kept as they came and prove nothing.
    let _ = for_each_field(Reader::new(message), |field| {
        if field.number == attributes_field {
            let attribute = super::scan::key_value(field.message())?;
            if attribute.key == key {
                found = super::scan::string_value(attribute.value)?.map(|(bytes, _)| bytes);
            }
        }
        Ok::<(), WireError>(())
    });
    found
}

/// A resource or scope message with one string attribute more; for tests and for stamping.
pub fn with_string_attribute(message: &mut Vec<u8>, attributes_field: u32, key: &[u8], value: &[u8]) {
    super::wire::put_message(message, attributes_field, |out| {
        put_bytes(out, super::fields::key_value::KEY, key);
        super::wire::put_message(out, super::fields::key_value::VALUE, |out| put_bytes(out, super::fields::any_value::STRING, value));
    });
}
