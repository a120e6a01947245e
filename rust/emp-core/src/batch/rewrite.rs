//! New batches with attributes set or removed. A row, a resource: in both the edit is done on the encoded message, in one pass.
//!
//! Nothing is laid over a batch and applied later: see `docs/decisions/002-no-overlays.md`.

use std::collections::HashMap;

use super::values::{Attribute, Values};
use super::{Batch, Signal, TableEntry};
use crate::error::{CoreError, ErrorKind};
use crate::otlp::decode::Interner;
use crate::otlp::fields::{log, resource, span};
use crate::otlp::scan::key_value;
use crate::otlp::value::put_key_value;
use crate::otlp::wire::{Reader, WireError};

/// A batch has at most this many resources.
pub const MAX_RESOURCES: usize = 1024;

/// Where attributes are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// On the resource: what describes the sender; destinations do not count it against a record's limits.
    Resource,
    /// On each row.
    Record,
}

/// What becomes of an attribute key of one message.
pub(super) struct Edit<'a> {
    pub(super) key: &'a [u8],
    /// The new `AnyValue`; None removes the attribute.
    pub(super) value: Option<&'a [u8]>,
}

/// Appends `message` with edits done on its attributes (field `number`); returns whether it differs. A key occurs once after it, in the
/// place of its first occurrence; keys that were absent come last.
pub(super) fn edit(message: &[u8], number: u32, edits: &[Edit<'_>], overwrite: bool, out: &mut Vec<u8>) -> Result<bool, WireError> {
    let mut done = 0u64;
    let mut copied = 0;
    let before = out.len();
    let mut changed = false;
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field()? {
        if field.number != number {
            continue;
        }
        let key = key_value(field.message())?.key;
        let Some(index) = edits.iter().position(|edit| edit.key == key) else { continue };
        let first = done & (1 << index) == 0;
        done |= 1 << index;
        if !overwrite {
            continue;
        }
        out.extend_from_slice(&message[copied..field.offset]);
        copied = field.offset + field.raw.len();
        changed = true;
        if let (true, Some(value)) = (first, edits[index].value) {
            put_key_value(out, number, key, value);
        }
    }
    out.extend_from_slice(&message[copied..]);
    for (index, edit) in edits.iter().enumerate() {
        if let (0, Some(value)) = (done & (1 << index), edit.value) {
            put_key_value(out, number, edit.key, value);
            changed = true;
        }
    }
    debug_assert!(out.len() >= before);
    Ok(changed)
}

/// Edits in one pass are counted in the bits of a u64.
const MAX_EDITS: usize = 64;

fn attributes_field(signal: Signal) -> Result<u32, CoreError> {
    match signal {
        Signal::Logs => Ok(log::ATTRIBUTES),
        Signal::Traces => Ok(span::ATTRIBUTES),
        // The attributes of a point are its stream's identity; adding one makes another stream.
        Signal::Metrics => {
            Err(CoreError::new(ErrorKind::ConfigInvalid, 0, "a metric has no attributes of its own; use target=\"resource\""))
        }
    }
}

pub(super) fn check_edits(len: usize) -> Result<(), CoreError> {
    if len > MAX_EDITS {
        return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, format!("at most {MAX_EDITS} attributes in one call, not {len}")));
    }
    Ok(())
}

fn broken_row(error: WireError) -> CoreError {
    error.of_kind(ErrorKind::BodyInvalid)
}

impl Batch {
    /// A copy with attributes set; one that is there already is left alone unless `overwrite`.
    pub fn with_attributes(&self, attributes: &[Attribute], target: Target, overwrite: bool) -> Result<Self, CoreError> {
        check_edits(attributes.len())?;
        if let Some(len) = attributes.iter().find_map(|attribute| match &attribute.values {
            Values::Each(values) if values.len() != self.len() => Some(values.len()),
            _ => None,
        }) {
            let detail = format!("a value for each of {} rows is needed, not {len}", self.len());
            return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, detail));
        }
        match target {
            Target::Resource => self.with_resource_attributes(attributes, overwrite),
            Target::Record => self.with_row_attributes(attributes, overwrite),
        }
    }

    fn with_row_attributes(&self, attributes: &[Attribute], overwrite: bool) -> Result<Self, CoreError> {
        let number = attributes_field(self.signal)?;
        self.rewritten(|row, message, out| {
            let edits: Vec<_> =
                attributes.iter().filter_map(|attribute| Some(Edit { key: &attribute.key, value: Some(attribute.value(row)?) })).collect();
            edit(message, number, &edits, overwrite, out)
        })
    }

    fn with_resource_attributes(&self, attributes: &[Attribute], overwrite: bool) -> Result<Self, CoreError> {
        let mut resources = Interner::default();
        // What decides a row's new resource: its old one, and its own values.
        type Deciding<'a> = (u32, Vec<Option<&'a [u8]>>);
        let mut known: HashMap<Deciding<'_>, u32> = HashMap::new();
        let mut out = self.clone();
        for (row, resource) in out.columns.resource.iter_mut().enumerate() {
            let each = attributes.iter().filter(|attribute| matches!(attribute.values, Values::Each(_)));
            let key = (*resource, each.map(|attribute| attribute.value(row)).collect());
            *resource = match known.get(&key) {
                Some(index) => *index,
                None => {
                    let edits: Vec<_> = attributes
                        .iter()
                        .filter_map(|attribute| Some(Edit { key: &attribute.key, value: Some(attribute.value(row)?) }))
                        .collect();
                    let index = resources.intern(edited_entry(&self.resources[*resource as usize], &edits, overwrite)?);
                    known.insert(key, index);
                    index
                }
            };
        }
        if resources.entries.len() > MAX_RESOURCES.max(self.resources.len()) {
            let detail = format!("a batch has at most {MAX_RESOURCES} resources; set what differs from row to row with target=\"record\"");
            return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, detail));
        }
        out.resources = resources.entries;
        Ok(out)
    }

    /// A copy without attributes of these keys, on rows (of metrics: not on points) and on resources.
    pub fn without_attributes(&self, keys: &[Vec<u8>]) -> Result<Self, CoreError> {
        check_edits(keys.len())?;
        let edits: Vec<_> = keys.iter().map(|key| Edit { key, value: None }).collect();
        let mut out = match attributes_field(self.signal) {
            Ok(number) => self.rewritten(|_, message, out| edit(message, number, &edits, true, out))?,
            Err(_) => self.clone(),
        };
        let mut resources = Interner::default();
        let mut renumbered = Vec::with_capacity(self.resources.len());
        for entry in &self.resources {
            renumbered.push(resources.intern(edited_entry(entry, &edits, true)?));
        }
        for resource in &mut out.columns.resource {
            *resource = renumbered[*resource as usize];
        }
        out.resources = resources.entries;
        Ok(out)
    }

    /// A copy whose rows are what `rewrite` appends for each (row, message); tables are kept.
    pub fn rewritten(&self, mut rewrite: impl FnMut(usize, &[u8], &mut Vec<u8>) -> Result<bool, WireError>) -> Result<Self, CoreError> {
        let mut out = Self::new(self.signal);
        out.rows.reserve(self.rows.len() + self.rows.len() / 8);
        out.reserve_columns(self.len());
        out.resources.clone_from(&self.resources);
        out.scopes.clone_from(&self.scopes);
        let mut message = Vec::new();
        for row in 0..self.len() {
            message.clear();
            rewrite(row, self.message(row), &mut message).map_err(broken_row)?;
            out.push_message(&message, self.columns.resource[row], self.columns.scope[row]).map_err(broken_row)?;
        }
        Ok(out)
    }
}

fn edited_entry(entry: &TableEntry, edits: &[Edit<'_>], overwrite: bool) -> Result<TableEntry, CoreError> {
    let mut message = Vec::with_capacity(entry.message.len() + 64);
    edit(&entry.message, resource::ATTRIBUTES, edits, overwrite, &mut message).map_err(broken_row)?;
    Ok(TableEntry { message, ..entry.clone() })
}
