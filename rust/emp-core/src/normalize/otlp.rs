//! Log records that came as OTLP, by the same rules as all others: what OTLP has a field for and the record has set goes before what its
//! attributes say, and nothing is lost. Which records need it at all is decided where they are read ([`crate::otlp::incoming`]).

use std::borrow::Cow;
use std::collections::HashMap;

use super::careful::{Field, add_unfolded};
use super::identity::Base;
use super::metadata::Metadata;
use super::table::{Meaning, Role};
use super::{Builder, severity, unfold};
use crate::batch::{Batch, TableEntry};
use crate::fluent::cursor::{Cursor, Head};
use crate::fluent::record::put_value;
use crate::otlp::fields::{list, log};
use crate::otlp::scan::{KeyValue, key_value, string_value};
use crate::otlp::value::{AnyValue, MAX_DEPTH, any_value, for_each_pair};
use crate::otlp::wire::{Field as WireField, Reader, WireError, put_bytes};

/// Where a record came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Its resource as it came.
    pub entry: &'a TableEntry,
    /// The place that this has in the batch.
    pub resource: u32,
    /// The place of its scope.
    pub scope: u32,
}

/// The name that a body goes by among attributes: none that is likely to be one's key.
const OWN_BODY: &[u8] = b"\0body";
/// What a field of the body is called where the record has one of that name: as if the body had been a field of this name.
const BODY_KEY: &[u8] = b"message";

/// A log record, taken apart.
#[derive(Default)]
struct Record<'a> {
    time_unix_nano: u64,
    observed_time_unix_nano: u64,
    severity_number: u64,
    severity_text: &'a [u8],
    body: Option<Reader<'a>>,
    attributes: Vec<KeyValue<'a>>,
    trace_id: Option<[u8; 16]>,
    span_id: Option<[u8; 8]>,
    is_event: bool,
    /// All other fields.
    others: Vec<u8>,
}

impl<'a> Record<'a> {
    fn read(mut message: Reader<'a>) -> Result<Self, WireError> {
        let mut record = Self::default();
        while let Some(field) = message.next_field()? {
            record.field(&field)?;
        }
        Ok(record)
    }

    fn field(&mut self, field: &WireField<'a>) -> Result<(), WireError> {
        let (number, bytes) = (field.scalar().unwrap_or(0), field.bytes().unwrap_or_default());
        match field.number {
            log::TIME_UNIX_NANO => self.time_unix_nano = number,
            log::OBSERVED_TIME_UNIX_NANO => self.observed_time_unix_nano = number,
            log::SEVERITY_NUMBER => self.severity_number = number,
            log::SEVERITY_TEXT => self.severity_text = bytes,
            log::BODY => self.body = Some(field.message()).filter(|body| !body.rest().is_empty()),
            log::ATTRIBUTES => self.attributes.push(key_value(field.message())?),
            log::TRACE_ID => self.trace_id = bytes.try_into().ok().filter(|id| *id != [0; 16]),
            log::SPAN_ID => self.span_id = bytes.try_into().ok().filter(|id| *id != [0; 8]),
            _ => {
                self.is_event |= field.number == log::EVENT_NAME && !bytes.is_empty();
                self.others.extend_from_slice(field.raw);
            }
        }
        Ok(())
    }

    /// Whether OTLP's own field says already what a role would fill in.
    fn has(&self, role: Role) -> bool {
        match role {
            Role::Time => self.time_unix_nano != 0,
            Role::Level | Role::SeverityNumber => self.severity_number != 0 || !self.severity_text.is_empty(),
            Role::Body => self.body.is_some(),
            Role::TraceId => self.trace_id.is_some(),
            Role::SpanId => self.span_id.is_some(),
            _ => false,
        }
    }

    /// What a key means in this record.
    fn meaning(&self, key: &[u8], meaning: Meaning) -> Meaning {
        if self.has(meaning.role) { Meaning { canonical: key.into(), role: Role::Attribute, rank: 0 } } else { meaning }
    }

    /// The record in the body as a msgpack map, where there is one.
    fn folded(&self, unfold: bool) -> Option<Vec<u8>> {
        let body = self.body.clone().filter(|_| unfold)?;
        match any_value(body.clone()).ok()? {
            AnyValue::String(text) if unfold::may_be_folded(text) => unfold::unfold(text),
            AnyValue::KvList(pairs) if holds_a_record(pairs.clone()) => {
                let mut map = Vec::new();
                put_value(&mut map, body, MAX_DEPTH).ok()?;
                Some(map)
            }
            _ => None,
        }
    }
}

/// Whether a list of pairs is a record: it has a message. Any other one is what its sender meant to be the body.
pub fn holds_a_record(pairs: Reader<'_>) -> bool {
    let mut found = false;
    let _ = for_each_pair(pairs, list::VALUES, |pair| {
        found |= matches!(pair.key, b"message" | b"msg" | b"log") && string_value(pair.value)?.is_some();
        Ok::<(), WireError>(())
    });
    found
}

impl Builder {
    /// Appends a log record to `batch` as the rules have it; false, and nothing appended, where they leave it as it is.
    #[inline(never)]
    pub fn push_otlp(&mut self, batch: &mut Batch, message: &[u8], origin: &Origin<'_>) -> bool {
        if self.own_resource != Some(origin.resource) {
            self.identities.set_base(Base::new(origin.entry.clone()));
            self.own_resource = Some(origin.resource);
        }
        self.scope = origin.scope;
        std::mem::swap(&mut self.batch, batch);
        let (start, extremes) = (self.batch.rows.len(), self.batch.extremes);
        let done = self.try_otlp(message);
        if done.is_none() {
            self.batch.rows.truncate(start);
            self.batch.extremes = extremes;
        }
        std::mem::swap(&mut self.batch, batch);
        done.is_some()
    }

    /// How many records' identity stayed on them for want of room in the batch's resources.
    pub fn resources_over_limit(&self) -> u64 {
        self.resources_over_limit
    }

    fn try_otlp(&mut self, message: &[u8]) -> Option<()> {
        let record = Record::read(Reader::new(message)).ok()?;
        // Numbers that no row of ours has room for stay where they are.
        let time = i64::try_from(record.time_unix_nano).ok()?;
        let observed = i64::try_from(record.observed_time_unix_nano).ok()?;
        let severity_number = u8::try_from(record.severity_number).ok().filter(|number| *number < 0x80)?;

        let (values, ends) = values_of(&record)?;
        let value = |index: usize| &values[if index == 0 { 0 } else { ends[index - 1] }..ends[index]];
        let mut fields: Vec<Field<'_>> = Vec::with_capacity(record.attributes.len() + 1);
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        for (index, attribute) in record.attributes.iter().enumerate() {
            let (value, otlp) = (value(index), Some(attribute.value.rest()));
            // Of equal keys, which OTLP forbids, the last one counts.
            match places.get(attribute.key) {
                Some(place) => (fields[*place].value, fields[*place].otlp) = (value, otlp),
                None => {
                    places.insert(attribute.key, fields.len());
                    let meaning = record.meaning(attribute.key, self.rules.table.meaning(attribute.key));
                    fields.push(Field { key: Cow::Borrowed(attribute.key), value, otlp, meaning, inner: false });
                }
            }
        }
        let folded = record.folded(self.rules.unfold);
        let severity_is_in_text = severity_number == 0 && severity::of_text(record.severity_text) != 0;
        if folded.is_none() && !severity_is_in_text && !fields.iter().any(|field| self.changes(&record, field)) {
            return None;
        }
        let mut encoded = record.others.clone();
        let mut has_body = false;
        if let Some(map) = &folded {
            let mut inner = self.collect(&mut Cursor::new(map, 0), true).ok()?;
            has_body = take_body(&mut inner);
            for field in inner.iter_mut().filter(|field| *field.key != *OWN_BODY) {
                let meaning = std::mem::replace(&mut field.meaning, Meaning { canonical: Box::default(), role: Role::Attribute, rank: 0 });
                field.meaning = record.meaning(&field.key, meaning);
            }
            add_unfolded(&mut fields, inner, BODY_KEY);
        }
        if let Some(body) = record.body.as_ref().filter(|_| !has_body) {
            match value(record.attributes.len()) {
                // A kind of value that we do not know.
                [0xc0] => put_bytes(&mut encoded, log::BODY, body.rest()),
                value => {
                    let (key, otlp) = (Cow::Borrowed(OWN_BODY), Some(body.rest()));
                    fields.push(Field { key, value, otlp, meaning: own_body(), inner: false });
                }
            }
        }
        let metadata = Metadata {
            severity_number: Some(severity_number),
            severity_text: Some(record.severity_text).filter(|text| !text.is_empty()),
            trace_id: record.trace_id,
            span_id: record.span_id,
            observed_time_unix_nano: Some(observed).filter(|time| *time != 0),
            fallback_time_unix_nano: Some(observed).filter(|time| *time != 0),
            encoded,
            is_event: record.is_event,
            ..Metadata::default()
        };
        self.settle(Some(time).filter(|time| *time != 0), &metadata, fields).ok()
    }
}

impl Builder {
    /// Whether a field of a record does not simply stay where it is.
    fn changes(&self, record: &Record<'_>, field: &Field<'_>) -> bool {
        match field.meaning.role {
            Role::Attribute | Role::JobId | Role::EventType | Role::Millis => *field.meaning.canonical != *field.key,
            Role::Identity(index) => self.identities.liftable[usize::from(index)],
            Role::Traceparent => record.trace_id.is_none() && record.span_id.is_none(),
            Role::Error => *field.meaning.canonical != *field.key || matches!(Cursor::new(field.value, 0).head(), Ok(Head::Map(_))),
            Role::Time | Role::Level | Role::SeverityNumber | Role::Body | Role::TraceId | Role::SpanId => true,
        }
    }
}

fn own_body() -> Meaning {
    Meaning { canonical: OWN_BODY.into(), role: Role::Body, rank: 0 }
}

/// The values of a record's attributes and of its body in msgpack, one after another, and where each ends.
fn values_of(record: &Record<'_>) -> Option<(Vec<u8>, Vec<usize>)> {
    let (mut values, mut ends) = (Vec::new(), Vec::with_capacity(record.attributes.len() + 1));
    for value in record.attributes.iter().map(|attribute| &attribute.value).chain(&record.body) {
        put_value(&mut values, value.clone(), MAX_DEPTH).ok()?;
        ends.push(values.len());
    }
    Some((values, ends))
}

/// Makes the best message of an unfolded record its body; false where it has none.
fn take_body(inner: &mut [Field<'_>]) -> bool {
    let messages = inner.iter_mut().filter(|field| field.meaning.role == Role::Body && field.text().is_some());
    match messages.min_by_key(|field| field.meaning.rank) {
        Some(field) => {
            field.meaning = own_body();
            field.key = Cow::Borrowed(OWN_BODY);
            true
        }
        None => false,
    }
}
