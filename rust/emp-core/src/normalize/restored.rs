//! Records that another emp-pipe wrote: put together again as they were, not normalised a second time. The receiver's stamp is still
//! added where the resource lacks it, and a batch still has a bounded number of resources.

use std::collections::{HashMap, HashSet};

use super::{Builder, Envelope, Normalizer};
use crate::batch::{TableEntry, tag_of};
use crate::fluent::cursor::Fault;
use crate::fluent::restore::{Restored, Surroundings, restore};
use crate::otlp::decode::{string_attribute, with_string_attribute};
use crate::otlp::fields::{log, resource};
use crate::otlp::value::{for_each_pair, put_key_value};
use crate::otlp::wire::{Reader, WireError};

/// Where restored resources and scopes lie in the batch, by what they were before the stamp.
#[derive(Debug, Default)]
pub struct Tables {
    resources: HashMap<TableEntry, u32>,
    scopes: HashMap<TableEntry, u32>,
    restored: Restored,
}

impl Tables {
    /// To be called when a batch begins.
    pub fn clear(&mut self) {
        self.resources.clear();
        self.scopes.clear();
    }
}

impl Builder {
    /// Writes the record at `pos`, which begins with the reserved key, as the row that it was; returns where it ends.
    #[inline(never)]
    pub(super) fn push_restored(&mut self, envelope: &Envelope<'_>, data: &[u8], pos: usize) -> Result<usize, Fault> {
        let mut tables = std::mem::take(&mut self.restored);
        let result = self.push_with(&mut tables, envelope, data, pos);
        self.restored = tables;
        result
    }

    fn push_with(&mut self, tables: &mut Tables, envelope: &Envelope<'_>, data: &[u8], pos: usize) -> Result<usize, Fault> {
        let Tables { resources, scopes, restored } = tables;
        let time_unix_nano = match envelope.time_unix_nano {
            Some(time) => time.saturating_add(self.correction_ns),
            None => self.now_unix_nano,
        };
        let tag = self.batch.scopes.get(self.scope as usize).and_then(tag_of).unwrap_or_default();
        let end = restore(data, pos, &Surroundings { time_unix_nano, tag, max_depth: self.max_depth }, restored)?;
        // One place is kept for the resource of what is over the limit.
        let is_full = self.batch.resources.len() + 1 >= self.rules.max_resources.max(2);
        if is_full && restored.resource != TableEntry::default() && !resources.contains_key(&restored.resource) {
            self.resources_over_limit += 1;
            keep_on_record(&mut restored.message, &restored.resource.message);
            restored.resource = TableEntry::default();
        }
        let resource = place(resources, &restored.resource, &mut self.batch.resources, |entry| stamped(entry, &self.rules));
        let scope = place(scopes, &restored.scope, &mut self.batch.scopes, |entry| entry);
        self.batch.push_message(&restored.message, resource, scope).map_err(|_| Fault::Unrestorable)?;
        if envelope.time_unix_nano.is_some() {
            self.newest_unix_nano = self.newest_unix_nano.max(envelope.time_unix_nano);
        }
        Ok(end)
    }
}

/// The place of an entry in a table of the batch; a new one is added as `finish` makes it.
fn place(
    known: &mut HashMap<TableEntry, u32>,
    entry: &TableEntry,
    table: &mut Vec<TableEntry>,
    finish: impl FnOnce(TableEntry) -> TableEntry,
) -> u32 {
    if let Some(index) = known.get(entry) {
        return *index;
    }
    let index = table.len() as u32;
    table.push(finish(entry.clone()));
    known.insert(entry.clone(), index);
    index
}

/// The resource with what the receiver stamps on every resource that lacks it.
fn stamped(mut entry: TableEntry, rules: &Normalizer) -> TableEntry {
    for (key, value) in &rules.stamp {
        if string_attribute(&entry.message, resource::ATTRIBUTES, key.as_bytes()).is_none() {
            with_string_attribute(&mut entry.message, resource::ATTRIBUTES, key.as_bytes(), value.as_bytes());
        }
    }
    entry
}

/// Resource attributes that find no place in the batch's resources, added to the record where it lacks them.
fn keep_on_record(message: &mut Vec<u8>, of_resource: &[u8]) {
    let mut keys = HashSet::new();
    let mut added = Vec::new();
    // Both were written by `restore`, so they can be read.
    let _ = for_each_pair(Reader::new(message), log::ATTRIBUTES, |pair| {
        keys.insert(pair.key.to_vec());
        Ok::<(), WireError>(())
    });
    let _ = for_each_pair(Reader::new(of_resource), resource::ATTRIBUTES, |pair| {
        if keys.insert(pair.key.to_vec()) {
            put_key_value(&mut added, log::ATTRIBUTES, pair.key, pair.value.rest());
        }
        Ok::<(), WireError>(())
    });
    message.append(&mut added);
}
