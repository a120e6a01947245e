//! Export requests from outside: checked item by item, so that one bad item costs itself and not its request.
//!
//! A broken resource, scope or framing makes the whole request unreadable ([`CoreError`] with the offset). A broken item (a log record, a
//! span, a data point) is set aside with its offset and bytes; its neighbours are kept. What passes, any OTLP parser can read. Spans and
//! metrics keep their bytes; resources get the receiver's stamp where they lack it. Trusted requests, our own: [`super::decode`].

mod items;
pub(crate) mod keys;
mod metrics;
#[cfg(test)]
mod tests;
mod usual;
mod usual_point;

use std::collections::HashMap;
use std::sync::Arc;

use super::decode::table_entry;
use super::descriptors::{self, Descriptor, inner};
use super::fields::{request, resource_rows, scope_rows};
use super::json;
use super::validate::{MAX_MESSAGE_DEPTH, check};
use super::value::MAX_DEPTH;
use super::wire::{Field, Reader, WireError};
use crate::batch::{Batch, Signal, TableEntry};
use crate::compress::{Codec, decompress};
use crate::error::{CoreError, ErrorKind};
use crate::fluent::read::{Rejected, set_aside};
use crate::normalize::identity::Base;
use crate::normalize::{Builder, Normalizer};

/// A request may hold an item, a resource or a scope for so many bytes of its limit: each takes memory beside its bytes, and a few kilobytes
/// inflate to millions of empty ones.
const BYTES_AN_ENTRY: usize = 32;
/// So many are always allowed.
const FEWEST_ENTRIES: usize = 1 << 16;
const TOO_MANY: &str = "the request has too many items, resources and scopes for its limit in bytes";

/// The most items, resources and scopes of a request that may inflate to so many bytes.
pub(crate) const fn most_entries(max_inflated_bytes: usize) -> usize {
    let most = max_inflated_bytes / BYTES_AN_ENTRY;
    if most < FEWEST_ENTRIES { FEWEST_ENTRIES } else { most }
}

/// What a request held.
#[derive(Debug, Default)]
pub struct Read {
    /// The good items; None where there is none.
    pub batch: Option<Batch>,
    /// Items (of metrics: data points), the rejected ones included.
    pub received: u64,
    /// The items that could not be used; the bytes of many of them may lie in one piece.
    pub rejected: Vec<Rejected>,
    /// How many they are.
    pub rejected_items: u64,
    /// Log records whose identity stayed on them because the batch had too many resources.
    pub resources_over_limit: u64,
}

impl Read {
    fn reject(&mut self, detail: &str, offset: usize, data: &[u8], items: u64) {
        self.received += items;
        self.rejected_items += items;
        set_aside(&mut self.rejected, ErrorKind::EntryInvalid, detail, offset as u64, data, items);
    }
}

/// How a request is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Binary.
    Protobuf,
    /// OTLP's JSON.
    Json,
}

/// A receiver's decoder of one signal; shared by its requests.
#[derive(Debug)]
pub struct Decoder {
    rules: Arc<Normalizer>,
    signal: Signal,
    max_inflated_bytes: usize,
}

impl Decoder {
    /// A decoder with a receiver's rules; requests may inflate to `max_inflated_bytes`.
    pub fn new(rules: Arc<Normalizer>, signal: Signal, max_inflated_bytes: usize) -> Self {
        Self { rules, signal, max_inflated_bytes }
    }

    /// Reads a request that arrived now.
    pub fn decode(&self, data: &[u8], codec: Codec, encoding: Encoding, now_unix_nano: i64) -> Result<Read, CoreError> {
        let inflated;
        let request = if codec == Codec::None && data.len() <= self.max_inflated_bytes {
            data
        } else {
            inflated = decompress(codec, data, self.max_inflated_bytes, None, ErrorKind::BodyInvalid)?;
            &inflated
        };
        if u32::try_from(request.len().saturating_mul(2)).is_err() {
            return Err(CoreError::new(ErrorKind::TooLarge, 0, "an export request of over 2 GiB"));
        }
        let mut walk = Walk::new(&self.rules, self.signal, now_unix_nano);
        walk.entries_left = most_entries(self.max_inflated_bytes);
        match encoding {
            Encoding::Protobuf => walk.run(request),
            Encoding::Json => {
                let mut transcoded = json::transcode(self.signal, request, self.max_inflated_bytes)?;
                let protobuf = std::mem::take(&mut transcoded.request);
                walk.json = Some(Json { text: request, transcoded });
                walk.run(&protobuf)
            }
        }
    }
}

/// The way through one request.
struct Walk<'a> {
    rules: &'a Arc<Normalizer>,
    now_unix_nano: i64,
    batch: Batch,
    read: Read,
    /// Places of resources and scopes, by what they were before the stamp.
    resources: Places,
    scopes: Places,
    /// The fields of what encloses rows, and of a row.
    enclosing: [&'static [Descriptor]; 3],
    row: &'static [Descriptor],
    entries_left: usize,
    /// A metric without its bad points.
    scratch: Vec<u8>,
    /// For log records that are not as the rules of normalisation have them.
    builder: Option<Box<Builder>>,
    /// Where the request came from, when it was no protobuf.
    json: Option<Json<'a>>,
}

/// A request that was JSON.
struct Json<'a> {
    text: &'a [u8],
    transcoded: json::Transcoded,
}

impl Json<'_> {
    /// Where the row whose message lies at an offset of the protobuf was in the text.
    fn item(&self, at: usize) -> Option<(usize, &[u8])> {
        let items = &self.transcoded.items;
        let item = items.binary_search_by_key(&at, |item| item.at).ok().map(|index| items[index])?;
        Some((item.start, &self.text[item.start..item.end]))
    }

    /// Adds the items that did not get into the protobuf.
    fn set_aside(&self, read: &mut Read) {
        for bad in &self.transcoded.bad {
            read.reject(&bad.detail, bad.offset, &self.text[bad.start..bad.end], bad.items);
        }
    }
}

impl<'a> Walk<'a> {
    fn new(rules: &'a Arc<Normalizer>, signal: Signal, now_unix_nano: i64) -> Self {
        let request = descriptors::request(signal);
        let resource_rows = inner(request, request::RESOURCE_ROWS);
        let scope_rows = inner(resource_rows, resource_rows::SCOPE_ROWS);
        Self {
            rules,
            now_unix_nano,
            builder: None,
            batch: Batch::new(signal),
            read: Read::default(),
            resources: Places::default(),
            scopes: Places::default(),
            enclosing: [request, resource_rows, scope_rows],
            row: inner(scope_rows, scope_rows::ROW),
            entries_left: 0,
            scratch: Vec::new(),
            json: None,
        }
    }

    fn run(mut self, request: &[u8]) -> Result<Read, CoreError> {
        self.batch.rows.reserve(request.len());
        self.request(request).map_err(|error| {
            let kind = if error.detail == TOO_MANY { ErrorKind::TooLarge } else { ErrorKind::BodyInvalid };
            error.of_kind(kind)
        })?;
        self.read.batch = (!self.batch.is_empty()).then_some(self.batch);
        self.read.resources_over_limit = self.builder.map_or(0, |builder| builder.resources_over_limit());
        if let Some(json) = self.json {
            json.set_aside(&mut self.read);
        }
        Ok(self.read)
    }

    /// Sets aside a row, or a piece of one, that lies in the request as `data`.
    fn reject(&mut self, row: &Field<'_>, error: WireError, data: &[u8], items: u64) {
        match self.json.as_ref().and_then(|json| json.item(row.bytes_offset())) {
            Some((start, text)) => self.read.reject(error.detail, start, text, items),
            None => self.read.reject(error.detail, error.offset, data, items),
        }
    }

    /// Counts an item, a resource or a scope.
    #[inline]
    fn entry(&mut self, field: &Field<'_>) -> Result<(), WireError> {
        self.entries_left = self.entries_left.checked_sub(1).ok_or(WireError { offset: field.offset, detail: TOO_MANY })?;
        Ok(())
    }

    fn request(&mut self, data: &[u8]) -> Result<(), WireError> {
        let mut message = Reader::new(data);
        while let Some(field) = message.next_field()? {
            if field.number == request::RESOURCE_ROWS {
                self.entry(&field)?;
                self.resource_rows(enclosed(&field)?)?;
            }
        }
        Ok(())
    }

    fn resource_rows(&mut self, message: Reader<'_>) -> Result<(), WireError> {
        const KNOWN: [u32; 3] = [resource_rows::RESOURCE, resource_rows::SCHEMA_URL, resource_rows::SCOPE_ROWS];
        check_fields(message.clone(), self.enclosing[1], resource_rows::SCOPE_ROWS)?;
        let entry = table_entry(message.clone(), KNOWN)?;
        let rules = self.rules;
        let mut place = Place { resource: 0, scope: 0, liftable: 0, entry };
        if self.batch.signal == Signal::Logs {
            place.liftable = liftable(&place.entry);
        }
        place.resource = self
            .resources
            .place(&place.entry, &mut self.batch.resources, |entry| Base::new(entry.clone()).complete(rules, Default::default()));
        let mut fields = message;
        while let Some(field) = fields.next_field()? {
            if field.number == resource_rows::SCOPE_ROWS {
                self.entry(&field)?;
                self.scope_rows(enclosed(&field)?, &mut place)?;
            }
        }
        Ok(())
    }

    fn scope_rows(&mut self, message: Reader<'_>, place: &mut Place) -> Result<(), WireError> {
        const KNOWN: [u32; 3] = [scope_rows::SCOPE, scope_rows::SCHEMA_URL, scope_rows::ROW];
        check_fields(message.clone(), self.enclosing[2], scope_rows::ROW)?;
        let entry = table_entry(message.clone(), KNOWN)?;
        place.scope = self.scopes.place(&entry, &mut self.batch.scopes, TableEntry::clone);
        let mut fields = message;
        while let Some(field) = fields.next_field()? {
            if field.number == scope_rows::ROW {
                self.entry(&field)?;
                enclosed(&field)?;
                match self.batch.signal {
                    Signal::Logs => self.log(&field, place),
                    Signal::Traces => self.span(&field, place),
                    Signal::Metrics => self.metric(&field, place),
                }
            }
        }
        Ok(())
    }
}

/// Where rows are.
struct Place {
    resource: u32,
    scope: u32,
    /// The parts of an identity that the resource lacks, as bits.
    liftable: u32,
    /// The resource as it came.
    entry: TableEntry,
}

fn liftable(entry: &TableEntry) -> u32 {
    let lacking = Base::new(entry.clone()).lacking();
    lacking.iter().enumerate().fold(0, |bits, (index, lacks)| bits | u32::from(*lacks) << index)
}

/// The builder of a request, made when the first record needs it.
fn builder<'b>(builder: &'b mut Option<Box<Builder>>, rules: &Arc<Normalizer>, now_unix_nano: i64) -> &'b mut Builder {
    builder.get_or_insert_with(|| {
        let mut new = Builder::new(rules.clone(), "", MAX_DEPTH);
        new.set_now(now_unix_nano);
        Box::new(new)
    })
}

/// A message of the framing: of another wire type it cannot be followed.
fn enclosed<'a>(field: &Field<'a>) -> Result<Reader<'a>, WireError> {
    if field.bytes().is_none() {
        return Err(WireError { offset: field.offset, detail: "protobuf: a field has another wire type than it should" });
    }
    Ok(field.message())
}

/// Checks the fields of a message of the framing, but for `children`.
fn check_fields(mut message: Reader<'_>, descriptors: &[Descriptor], children: u32) -> Result<(), WireError> {
    while let Some(field) = message.next_field()? {
        if field.number == children {
            continue;
        }
        if let Some(descriptor) = descriptors.iter().find(|descriptor| descriptor.number == field.number) {
            check(&field, descriptor, MAX_MESSAGE_DEPTH)?;
        }
    }
    Ok(())
}

/// Where table entries lie in a batch, by what they were when they came.
#[derive(Debug, Default)]
struct Places {
    known: HashMap<TableEntry, u32>,
    /// Most requests have the same entry again and again: no hashing for those.
    last: Option<(TableEntry, u32)>,
}

impl Places {
    fn place(&mut self, entry: &TableEntry, table: &mut Vec<TableEntry>, finish: impl FnOnce(&TableEntry) -> TableEntry) -> u32 {
        if let Some((last, index)) = &self.last
            && last == entry
        {
            return *index;
        }
        let index = *self.known.entry(entry.clone()).or_insert_with(|| {
            table.push(finish(entry));
            table.len() as u32 - 1
        });
        self.last = Some((entry.clone(), index));
        index
    }
}
