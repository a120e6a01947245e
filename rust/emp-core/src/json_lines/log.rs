//! A log row as the fleet writes it: `timestamp`, `level`, `message`, who and where, then every other attribute under its own key.
//!
//! A key occurs once on a line. Where two sources have the same, the row's own fields come first, then its attributes, then the
//! resource's and the scope's; the later one is written as `attributes.<key>`, `resource.<key>`, `scope.<key>` (and a number if it must).

use std::collections::HashSet;

use super::text::{put_hex, put_i64, put_string, put_time};
use super::value::put_value;
use crate::batch::keys::KeySet;
use crate::batch::{Batch, TableEntry};
use crate::otlp::fields::{log, resource, scope};
use crate::otlp::value::for_each_pair;
use crate::otlp::wire::{Reader, WireError, for_each_field};

/// The fleet's standard fields that come right after `message`, wherever they are from. Source: the job queue's log schema.
const LEADING: [&[u8]; 11] = [
    b"machine_id",
    b"worker_id",
    b"service_type",
    b"connector_id",
    b"job_id",
    b"session_id",
    b"trace_id",
    b"span_id",
    b"event_type",
    b"duration_ms",
    b"source",
];

/// The level's name of a severity number; None for 0.
pub fn level_name(severity_number: u8) -> Option<&'static str> {
    Some(match severity_number {
        1..=4 => "trace",
        5..=8 => "debug",
        9..=12 => "info",
        13..=16 => "warn",
        17..=20 => "error",
        21..=24 => "fatal",
        _ => return None,
    })
}

/// Where a member of the line is from; the order is that of precedence.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Attribute,
    Resource,
    Scope,
}

impl Source {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Attribute => b"attributes.",
            Self::Resource => b"resource.",
            Self::Scope => b"scope.",
        }
    }
}

struct Member<'a> {
    source: Source,
    key: &'a [u8],
    value: Reader<'a>,
}

/// The members that a table entry adds to each of its rows.
fn members_of<'a>(entry: &'a TableEntry, number: u32, source: Source) -> Result<Vec<Member<'a>>, WireError> {
    let mut members = Vec::new();
    for_each_pair(Reader::new(&entry.message), number, |pair| {
        members.push(Member { source, key: pair.key, value: pair.value });
        Ok::<(), WireError>(())
    })?;
    Ok(members)
}

/// The lines of a batch of logs.
pub fn lines(batch: &Batch) -> Result<Vec<u8>, WireError> {
    let resources =
        batch.resources.iter().map(|entry| members_of(entry, resource::ATTRIBUTES, Source::Resource)).collect::<Result<Vec<_>, _>>()?;
    let scopes = batch.scopes.iter().map(|entry| members_of(entry, scope::ATTRIBUTES, Source::Scope)).collect::<Result<Vec<_>, _>>()?;
    let mut out = Vec::with_capacity(batch.rows.len() * 3 / 2);
    for row in 0..batch.len() {
        let of_resource = &resources[batch.columns.resource[row] as usize];
        let of_scope = &scopes[batch.columns.scope[row] as usize];
        put_line(&mut out, batch.message(row), of_resource, of_scope)?;
        out.push(b'\n');
    }
    Ok(out)
}

#[derive(Default)]
struct Fields<'a> {
    time: i64,
    observed: i64,
    severity_number: u8,
    severity_text: &'a [u8],
    body: Option<Reader<'a>>,
    trace_id: &'a [u8],
    span_id: &'a [u8],
    event_name: &'a [u8],
    dropped_attributes: u64,
}

fn put_line(out: &mut Vec<u8>, message: &[u8], of_resource: &[Member<'_>], of_scope: &[Member<'_>]) -> Result<(), WireError> {
    let mut fields = Fields::default();
    let mut attributes = Vec::new();
    for_each_field(Reader::new(message), |field| {
        let bytes = field.bytes().unwrap_or_default();
        let scalar = field.scalar().unwrap_or(0);
        match field.number {
            log::TIME_UNIX_NANO => fields.time = scalar as i64,
            log::OBSERVED_TIME_UNIX_NANO => fields.observed = scalar as i64,
            log::SEVERITY_NUMBER => fields.severity_number = u8::try_from(scalar).unwrap_or(0),
            log::SEVERITY_TEXT => fields.severity_text = bytes,
            log::BODY => fields.body = Some(field.message()),
            log::TRACE_ID => fields.trace_id = bytes,
            log::SPAN_ID => fields.span_id = bytes,
            log::EVENT_NAME => fields.event_name = bytes,
            log::DROPPED_ATTRIBUTES_COUNT => fields.dropped_attributes = scalar,
            log::ATTRIBUTES => {
                let pair = crate::otlp::scan::key_value(field.message())?;
                attributes.push(Member { source: Source::Attribute, key: pair.key, value: pair.value });
            }
            _ => {}
        }
        Ok::<(), WireError>(())
    })?;

    let mut line = Line { out, keys: KeySet::default(), renamed: HashSet::new() };
    line.out.push(b'{');
    put_own_fields(&mut line, &fields)?;
    let members = || attributes.iter().chain(of_resource).chain(of_scope).enumerate();
    let mut written = [usize::MAX; LEADING.len()];
    for (key, written) in LEADING.into_iter().zip(&mut written) {
        let own_id = match key {
            b"trace_id" => fields.trace_id,
            b"span_id" => fields.span_id,
            _ => b"",
        };
        if !own_id.is_empty() {
            line.member(key, |out| quoted(out, |out| put_hex(out, own_id)));
        } else if let Some((index, member)) = members().find(|(_, member)| member.key == key) {
            line.value(key, member.value.clone())?;
            *written = index;
        }
    }
    for (index, member) in members() {
        if !written.contains(&index) {
            line.attribute(member)?;
        }
    }
    line.out.push(b'}');
    Ok(())
}

fn put_own_fields(line: &mut Line<'_, '_>, fields: &Fields<'_>) -> Result<(), WireError> {
    let time = if fields.time != 0 { fields.time } else { fields.observed };
    if time != 0 {
        line.member(b"timestamp", |out| quoted(out, |out| put_time(out, time)));
    }
    let level = level_name(fields.severity_number).map_or(fields.severity_text, str::as_bytes);
    if !level.is_empty() {
        line.member(b"level", |out| put_string(out, level));
    }
    if !fields.severity_text.is_empty() && !level.eq_ignore_ascii_case(fields.severity_text) {
        line.member(b"severity_text", |out| put_string(out, fields.severity_text));
    }
    if let Some(body) = &fields.body {
        line.value(b"message", body.clone())?;
    }
    if !fields.event_name.is_empty() {
        line.member(b"event_name", |out| put_string(out, fields.event_name));
    }
    if fields.dropped_attributes != 0 {
        line.member(b"dropped_attributes_count", |out| put_i64(out, fields.dropped_attributes as i64));
    }
    Ok(())
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

/// A line under way and the keys that it has.
struct Line<'o, 'k> {
    out: &'o mut Vec<u8>,
    keys: KeySet<'k>,
    /// Keys that were made longer because theirs was taken.
    renamed: HashSet<Vec<u8>>,
}

impl<'k> Line<'_, 'k> {
    fn member(&mut self, key: &'k [u8], write: impl FnOnce(&mut Vec<u8>)) {
        self.put_key(key);
        self.keys.insert(key);
        write(self.out);
    }

    fn value(&mut self, key: &'k [u8], value: Reader<'_>) -> Result<(), WireError> {
        self.put_key(key);
        self.keys.insert(key);
        put_value(self.out, value)
    }

    fn put_key(&mut self, key: &[u8]) {
        if !self.keys.is_empty() {
            self.out.push(b',');
        }
        put_string(self.out, key);
        self.out.push(b':');
    }

    fn attribute(&mut self, member: &Member<'k>) -> Result<(), WireError> {
        if !self.is_taken(member.key) {
            return self.value(member.key, member.value.clone());
        }
        let mut key = [member.source.prefix(), member.key].concat();
        while self.is_taken(&key) {
            // A number that no other has: a row of equal keys costs no more than one of different keys.
            key.extend_from_slice(format!("_{}", self.renamed.len() + 1).as_bytes());
        }
        self.put_key(&key);
        self.renamed.insert(key);
        put_value(self.out, member.value.clone())
    }

    fn is_taken(&self, key: &[u8]) -> bool {
        self.keys.contains(key) || (!self.renamed.is_empty() && self.renamed.contains(key))
    }
}
