//! Every rule in plain form: all fields of a record first, then who gets which name, then the row.
//!
//! For one output name (say `duration_ms`) several fields may ask (`duration_ms`, `durationMs`, `duration`). The record's own fields go
//! before unfolded ones, the canonical spelling before others, these in the table's order. Who loses keeps its own name, so nothing is
//! lost; of a key that occurs twice in a map the last one counts, as in every language's decoder. An unfolded field that loses its own
//! name too is kept as `<body key>.<key>`, unless it says the same.

use std::borrow::Cow;
use std::collections::HashMap;

use super::identity::Identity;
use super::metadata::{self, Metadata};
use super::names::Names;
use super::table::{IDENTITY, Meaning, Role};
use super::value::put_any;
use super::wire::{close, open, payload_len, put_bytes, put_varint, repaired, varint_len};
use super::{Builder, Envelope, copy::hex, severity, text, unfold};
use crate::batch::build::{NewRow, RowFacts};
use crate::batch::{FLAG_EVENT, View};
use crate::fluent::cursor::{Cursor, Fault, Head};

/// A field on its way to the row.
pub(super) struct Field<'a> {
    pub(super) key: Cow<'a, [u8]>,
    /// The msgpack value.
    pub(super) value: &'a [u8],
    /// The `AnyValue` that it was, where it came as OTLP.
    pub(super) otlp: Option<&'a [u8]>,
    pub(super) meaning: Meaning,
    /// Came out of the body, or out of an error map: gives way to the record's own.
    pub(super) inner: bool,
}

impl Field<'_> {
    pub(super) fn text(&self) -> Option<&[u8]> {
        let mut cursor = Cursor::new(self.value, 0);
        match cursor.head() {
            Ok(Head::Str(_) | Head::Bin(_)) => Some(&self.value[cursor.pos..]),
            _ => None,
        }
    }

    fn is_number(&self) -> bool {
        text::of_number(self.value).is_some()
    }

    fn order(&self, index: usize) -> (bool, u16, usize) {
        (self.inner, self.meaning.rank, index)
    }
}

/// The parts of an error map and the attributes that they become.
const ERROR_PARTS: [(&[u8], &[u8], u16); 6] = [
    (b"message", b"exception.message", 1),
    (b"msg", b"exception.message", 2),
    (b"stack", b"exception.stacktrace", 10),
    (b"stacktrace", b"exception.stacktrace", 11),
    (b"name", b"exception.type", 1),
    (b"type", b"exception.type", 2),
];

impl Builder {
    /// Writes any record; a fault means that it cannot be one (no map, torn, nested too deep).
    #[cold]
    #[inline(never)]
    pub(super) fn push_careful(&mut self, envelope: &Envelope<'_>, data: &[u8], pos: usize) -> Result<usize, Fault> {
        let start = self.batch.rows.len();
        let extremes = self.batch.extremes;
        let result = self.careful(envelope, data, pos);
        if result.is_err() {
            self.batch.rows.truncate(start);
            self.batch.extremes = extremes;
        }
        result
    }

    fn careful(&mut self, envelope: &Envelope<'_>, data: &[u8], pos: usize) -> Result<usize, Fault> {
        let mut cursor = Cursor::new(data, pos);
        let mut fields = self.collect(&mut cursor, false)?;
        let unfolded;
        if let Some((index, map)) = self.folded(&fields) {
            unfolded = map;
            let inner = self.collect(&mut Cursor::new(&unfolded, 0), true)?;
            let body_key = fields[index].key.to_vec();
            if inner.iter().any(|field| field.meaning.role == Role::Body && field.text().is_some()) {
                fields.remove(index);
            }
            add_unfolded(&mut fields, inner, &body_key);
        }
        let metadata = Metadata::read(envelope.metadata)?;
        add_metadata(&mut fields, &metadata);
        self.settle(envelope.time_unix_nano.or(metadata.time_unix_nano), &metadata, fields)?;
        Ok(cursor.pos)
    }

    /// Decides who gets which name, and writes the row.
    pub(super) fn settle<'a>(&mut self, time: Option<i64>, metadata: &Metadata<'_>, mut fields: Vec<Field<'a>>) -> Result<(), Fault> {
        if let Some((index, parts)) = self.error_parts(&fields) {
            fields.splice(index..=index, parts);
        }
        let winners = self.winners(&fields);
        self.write(time, metadata, &fields, &winners)
    }

    /// The fields of the map at the cursor, the last one of equal keys.
    pub(super) fn collect<'a>(&self, cursor: &mut Cursor<'a>, inner: bool) -> Result<Vec<Field<'a>>, Fault> {
        let Head::Map(count) = cursor.head()? else { return Err(Fault::NoMap) };
        let mut fields: Vec<Field<'a>> = Vec::with_capacity(count.min(64));
        let mut places: HashMap<Cow<'a, [u8]>, usize> = HashMap::new();
        for _ in 0..count {
            let key = text::of_key(cursor.value()?);
            let key = match repaired(&key) {
                Cow::Borrowed(_) => key,
                Cow::Owned(repaired) => Cow::Owned(repaired),
            };
            let value = cursor.value()?;
            match places.get(&key) {
                Some(index) => fields[*index].value = value,
                None => {
                    places.insert(key.clone(), fields.len());
                    let meaning = self.rules.table.meaning(&key);
                    fields.push(Field { key, value, otlp: None, meaning, inner });
                }
            }
        }
        Ok(fields)
    }

    /// The field that is the body and holds a record, with that as a msgpack map.
    fn folded(&self, fields: &[Field<'_>]) -> Option<(usize, Vec<u8>)> {
        if !self.rules.unfold {
            return None;
        }
        let bodies = fields.iter().enumerate().filter(|(_, field)| field.meaning.role == Role::Body && field.text().is_some());
        let (index, body) = bodies.min_by_key(|(index, field)| field.order(*index))?;
        let text = body.text()?;
        if !unfold::may_be_folded(text) {
            return None;
        }
        Some((index, unfold::unfold(text)?))
    }

    /// The parts of an error map as fields, and which field they replace.
    fn error_parts<'a>(&self, fields: &[Field<'a>]) -> Option<(usize, Vec<Field<'a>>)> {
        let errors = fields.iter().enumerate().filter(|(_, field)| field.meaning.role == Role::Error);
        let (index, error) = errors.min_by_key(|(index, field)| field.order(*index))?;
        let mut cursor = Cursor::new(error.value, 0);
        let Ok(Head::Map(1..)) = cursor.head() else { return None };
        cursor.pos = 0;
        let mut parts = self.collect(&mut cursor, true).ok()?;
        for part in &mut parts {
            let known = ERROR_PARTS.iter().find(|(key, _, _)| *key == &*part.key);
            let own = [b"error.", &*part.key].concat();
            let (canonical, rank) = known.map_or((&own[..], 0), |(_, name, rank)| (*name, *rank));
            part.meaning = Meaning { canonical: canonical.into(), role: Role::Attribute, rank };
            part.key = Cow::Owned(own);
        }
        Some((index, parts))
    }

    /// By field: whether it gets the canonical name that it asks for.
    fn winners(&mut self, fields: &[Field<'_>]) -> Vec<bool> {
        let mut best: HashMap<&[u8], usize> = HashMap::new();
        for (index, field) in fields.iter().enumerate().filter(|(_, field)| self.is_usable(field)) {
            let holder = best.entry(&field.meaning.canonical).or_insert(index);
            if field.order(index) < fields[*holder].order(*holder) {
                *holder = index;
            }
        }
        let mut winners = vec![false; fields.len()];
        best.values().for_each(|index| winners[*index] = true);
        winners
    }

    /// Whether the value is what its role expects. What is not usable is kept under its own name (an id under the canonical one).
    fn is_usable(&mut self, field: &Field<'_>) -> bool {
        match field.meaning.role {
            Role::Attribute | Role::JobId | Role::EventType | Role::TraceId | Role::SpanId | Role::Traceparent | Role::Error => true,
            Role::Millis => field.meaning.rank == 0 || field.is_number(),
            Role::Time => self.times.of_value(field.value, 0).is_some(),
            Role::Level => field.text().is_some() || field.is_number(),
            Role::SeverityNumber => matches!(field.value, [1..=24]),
            Role::Body => field.value != [0xc0],
            Role::Identity(index) => {
                let some = field.text().is_some_and(|text| !text.is_empty()) || field.is_number();
                some && self.identities.liftable[usize::from(index)]
            }
        }
    }

    fn write(&mut self, time: Option<i64>, metadata: &Metadata<'_>, fields: &[Field<'_>], winners: &[bool]) -> Result<(), Fault> {
        let start = self.template.begin(&mut self.batch.rows);
        if let Some(observed) = metadata.observed_time_unix_nano {
            NewRow::new(observed).write_over(&mut self.batch.rows[start..]);
        }
        let mut row = RowFacts::new(self.scope);
        let (mut time, mut has_level, mut explicit_severity, mut traceparent) = (time, false, 0, None);
        let mut lifted: [Vec<u8>; 5] = Default::default();
        let mut names = Names::new(fields, winners);
        for (field, wins) in fields.iter().zip(winners) {
            if !wins {
                let name = names.own(field);
                self.put_attribute(&mut row, &name, field)?;
                continue;
            }
            let rows = &mut self.batch.rows;
            let content = field.text();
            match field.meaning.role {
                Role::Time => time = self.times.of_value(field.value, 0),
                Role::SeverityNumber => explicit_severity = field.value[0],
                Role::Level => {
                    has_level = true;
                    let number = text::of_number(field.value);
                    let level = content.or(number.as_deref().map(str::as_bytes)).unwrap_or_default();
                    row.severity_number = severity::of_text(level);
                    put_bytes(rows, 0x1a, &repaired(level));
                }
                Role::Body => match content {
                    Some(content) => {
                        let content = repaired(content);
                        rows.push(0x2a);
                        put_varint(rows, (1 + varint_len(content.len() as u64) + content.len()) as u64);
                        put_bytes(rows, 0x0a, &content);
                        row.body = last(rows, content.len());
                    }
                    None => {
                        let before = rows.len();
                        put_value(rows, 0x2a, field, self.max_depth)?;
                        let body_bytes = payload_len(rows.len() - before) as u32;
                        self.batch.extremes.max_body_bytes = self.batch.extremes.max_body_bytes.max(body_bytes);
                    }
                },
                Role::Identity(index) => {
                    let number = text::of_number(field.value);
                    lifted[usize::from(index)] = content.or(number.as_deref().map(str::as_bytes)).unwrap_or_default().to_vec();
                }
                Role::TraceId => match content.and_then(hex::<16>).filter(|id| *id != [0; 16]) {
                    Some(id) => {
                        row.trace_id = id;
                        put_bytes(rows, 0x4a, &id);
                    }
                    None => {
                        self.put_attribute(&mut row, &field.meaning.canonical, field)?;
                    }
                },
                Role::SpanId => match content.and_then(hex::<8>).filter(|id| *id != [0; 8]) {
                    Some(id) => {
                        row.span_id = id;
                        put_bytes(rows, 0x52, &id);
                    }
                    None => {
                        self.put_attribute(&mut row, &field.meaning.canonical, field)?;
                    }
                },
                role => {
                    let view = self.put_attribute(&mut row, &field.meaning.canonical, field)?;
                    match role {
                        Role::JobId => row.job_id = view,
                        Role::EventType if content.is_some() => {
                            row.event_type = view;
                            row.flags |= FLAG_EVENT;
                        }
                        Role::Traceparent => traceparent = content,
                        _ => {}
                    }
                }
            }
        }
        metadata.put_fields(&mut self.batch.rows, &mut row, has_level || explicit_severity > 0);
        let time = time.or(metadata.fallback_time_unix_nano);
        if let Some(header) = traceparent {
            fill_ids(&mut self.batch.rows, header, &mut row.trace_id, &mut row.span_id);
        }
        if explicit_severity > 0 {
            row.severity_number = explicit_severity;
        }
        row.resource = match self.resource_of(&lifted) {
            Some(index) => index,
            None => {
                self.resources_over_limit += 1;
                for (key, text) in IDENTITY.iter().zip(&lifted).filter(|(_, text)| !text.is_empty()) {
                    self.put_text_attribute(&mut row, key.as_bytes(), text);
                }
                self.resource_of(&Default::default()).unwrap_or_default()
            }
        };
        self.end_row(start, row, time);
        Ok(())
    }

    /// The resource of an identity (empty text for a part that it lacks); None when the batch may have no more.
    fn resource_of(&mut self, lifted: &[Vec<u8>; 5]) -> Option<u32> {
        if let Some(resource) = self.own_resource
            && lifted.iter().all(Vec::is_empty)
        {
            return Some(resource);
        }
        let mut identity = Identity::default();
        for (index, text) in lifted.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            identity = identity.with(index as u8, self.identities.look_up_part(index as u8, text)?);
        }
        self.identities.resource(&self.rules, &mut self.batch.resources, identity)
    }

    fn put_attribute(&mut self, row: &mut RowFacts, name: &[u8], field: &Field<'_>) -> Result<View, Fault> {
        let mut cursor = Cursor::new(field.value, 0);
        if let Head::Str(_) = cursor.head()? {
            return Ok(self.put_text_attribute(row, name, &field.value[cursor.pos..]));
        }
        let rows = &mut self.batch.rows;
        let pair = open(rows, 0x32);
        put_bytes(rows, 0x0a, name);
        let before = rows.len();
        put_value(rows, 0x12, field, self.max_depth)?;
        let value_bytes = payload_len(rows.len() - before);
        close(rows, pair);
        row.attributes += 1;
        let extremes = &mut self.batch.extremes;
        extremes.max_key_bytes = extremes.max_key_bytes.max(name.len() as u32);
        extremes.max_value_bytes = extremes.max_value_bytes.max(value_bytes as u32);
        Ok(View::NONE)
    }

    fn put_text_attribute(&mut self, row: &mut RowFacts, name: &[u8], text: &[u8]) -> View {
        let text = repaired(text);
        super::wire::put_text_attribute(&mut self.batch.rows, 0x32, name, &text);
        row.attributes += 1;
        let extremes = &mut self.batch.extremes;
        extremes.max_key_bytes = extremes.max_key_bytes.max(name.len() as u32);
        extremes.max_value_bytes = extremes.max_value_bytes.max(text.len() as u32);
        last(&self.batch.rows, text.len())
    }
}

/// Appends a value as a field `tag`: as it came where it was OTLP's.
fn put_value(rows: &mut Vec<u8>, tag: u8, field: &Field<'_>, max_depth: usize) -> Result<(), Fault> {
    match field.otlp {
        Some(any) => {
            put_bytes(rows, tag, any);
            Ok(())
        }
        None => put_any(rows, tag, &mut Cursor::new(field.value, 0), max_depth),
    }
}

/// The view of the last `len` bytes.
fn last(rows: &[u8], len: usize) -> View {
    View { offset: (rows.len() - len) as u32, len: len as u32 }
}

/// Adds what the body held to the record's own fields.
pub(super) fn add_unfolded<'a>(fields: &mut Vec<Field<'a>>, inner: Vec<Field<'a>>, body_key: &[u8]) {
    let own: HashMap<Vec<u8>, &'a [u8]> = fields.iter().map(|field| (field.key.to_vec(), field.value)).collect();
    for mut field in inner {
        match own.get(&*field.key) {
            Some(value) if *value == field.value => continue,
            Some(_) => {
                let name = [body_key, b".", &field.key].concat();
                field.meaning = Meaning { canonical: name.clone().into(), role: Role::Attribute, rank: 0 };
                field.key = Cow::Owned(name);
            }
            None => {}
        }
        fields.push(field);
    }
}

/// Adds what stood beside the time: it gives way to the record's own fields, and its attributes have no other spellings.
fn add_metadata<'a>(fields: &mut Vec<Field<'a>>, metadata: &'a Metadata<'a>) {
    let mut add = |key: &'a [u8], value: &'a [u8]| {
        let meaning = Meaning { canonical: key.into(), role: Role::Attribute, rank: u16::MAX };
        fields.push(Field { key: Cow::Borrowed(key), value, otlp: None, meaning, inner: true });
    };
    for (key, value) in &metadata.attributes {
        add(key, value);
    }
    if let Some(value) = &metadata.other {
        add(metadata::OTHER, value);
    }
}

/// Fills ids that are absent from a W3C traceparent header.
pub(super) fn fill_ids(rows: &mut Vec<u8>, header: &[u8], trace_id: &mut [u8; 16], span_id: &mut [u8; 8]) {
    let [b'0', b'0', b'-', rest @ ..] = header else { return };
    let (Some(trace), Some(b'-'), Some(span), Some(b'-')) = (rest.get(..32), rest.get(32), rest.get(33..49), rest.get(49)) else { return };
    let (Some(trace), Some(span)) = (hex::<16>(trace), hex::<8>(span)) else { return };
    if *trace_id != [0; 16] || *span_id != [0; 8] || trace == [0; 16] || span == [0; 8] {
        return;
    }
    (*trace_id, *span_id) = (trace, span);
    put_bytes(rows, 0x4a, &trace);
    put_bytes(rows, 0x52, &span);
}
