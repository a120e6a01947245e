//! Single rows of logs made into something else by whoever knows what they say: a level and attributes put over them.

use std::collections::HashMap;

use super::rewrite::{Edit, edit};
use super::values::Attribute;
use super::{Batch, Signal};
use crate::error::{CoreError, ErrorKind};
use crate::otlp::fields::log;
use crate::otlp::wire::{Reader, WireError, put_bytes, put_uint};

/// The level that marked rows have.
#[derive(Clone, Copy, Debug)]
pub struct Level<'a> {
    /// OTLP's severity number.
    pub number: u8,
    /// Its text.
    pub text: &'a [u8],
}

impl Batch {
    /// The rows that hold these bytes, ascending.
    pub fn rows_with(&self, needle: &[u8]) -> Vec<usize> {
        let mut found = Vec::new();
        if needle.is_empty() {
            return found;
        }
        for at in memchr::memmem::find_iter(&self.rows, needle) {
            let row = self.row_end.partition_point(|end| *end as usize <= at);
            let is_within = self.row_end.get(row).is_some_and(|end| at + needle.len() <= *end as usize);
            if is_within && found.last() != Some(&row) {
                found.push(row);
            }
        }
        found
    }

    /// A copy in which some rows have another level, and attributes put over their own. Rows that there are not are passed over.
    pub fn marked(&self, marks: &[(usize, Vec<Attribute>)], level: Level<'_>) -> Result<Self, CoreError> {
        if self.signal != Signal::Logs {
            return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, "only logs have a level"));
        }
        super::rewrite::check_edits(marks.iter().map(|(_, attributes)| attributes.len()).max().unwrap_or(0))?;
        let marks: HashMap<usize, &[Attribute]> = marks.iter().map(|(row, attributes)| (*row, attributes.as_slice())).collect();
        let mut levelled = Vec::new();
        self.rewritten(|row, message, out| {
            let Some(attributes) = marks.get(&row) else {
                out.extend_from_slice(message);
                return Ok(false);
            };
            levelled.clear();
            with_level(message, level, &mut levelled)?;
            // A column of values would be one of the whole batch: it has none for a row alone.
            let edits: Vec<_> =
                attributes.iter().filter_map(|attribute| Some(Edit { key: &attribute.key, value: Some(attribute.value(row)?) })).collect();
            edit(&levelled, log::ATTRIBUTES, &edits, true, out)
        })
    }
}

fn with_level(message: &[u8], level: Level<'_>, out: &mut Vec<u8>) -> Result<(), WireError> {
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field()? {
        if !matches!(field.number, log::SEVERITY_NUMBER | log::SEVERITY_TEXT) {
            out.extend_from_slice(field.raw);
        }
    }
    put_uint(out, log::SEVERITY_NUMBER, u64::from(level.number));
    put_bytes(out, log::SEVERITY_TEXT, level.text);
    Ok(())
}
