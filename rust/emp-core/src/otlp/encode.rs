//! Batches to one export request, by gather: headers, then copies of row ranges.
//!
//! Rows are grouped by resource and scope over all batches (equal ones are merged by their bytes); a run of rows of one resource and
//! scope is one copy. All sizes are known before the first byte is written, so nothing is moved or patched.

use std::collections::HashMap;

use super::fields::{request, resource_rows, scope_rows};
use super::wire::{field_len, put_bytes, put_header};
use crate::batch::{Batch, TableEntry};

/// A run of rows that lie together: bytes `start..end` of batch `batch`.
struct Run {
    batch: u32,
    start: u32,
    end: u32,
}

struct ScopeGroup<'a> {
    entry: &'a TableEntry,
    rows_len: usize,
    runs: Vec<Run>,
}

struct ResourceGroup<'a> {
    entry: &'a TableEntry,
    scopes: Vec<ScopeGroup<'a>>,
}

/// How the rows of some batches lie in one request.
pub struct Plan<'a> {
    batches: &'a [&'a Batch],
    groups: Vec<ResourceGroup<'a>>,
}

impl<'a> Plan<'a> {
    /// Groups the rows of `batches`.
    pub fn new(batches: &'a [&'a Batch]) -> Self {
        let mut plan = Self { batches, groups: Vec::new() };
        let mut resources: HashMap<&TableEntry, usize> = HashMap::new();
        let mut scopes: HashMap<(usize, &TableEntry), usize> = HashMap::new();
        // Where the rows of a (resource, scope) of this batch go.
        let mut places: HashMap<(u32, u32), (usize, usize)> = HashMap::new();
        for (number, batch) in batches.iter().enumerate() {
            places.clear();
            for_each_run(batch, |pair, start, end| {
                let (resource, scope) = *places.entry(pair).or_insert_with(|| {
                    let entry = &batch.resources[pair.0 as usize];
                    let resource = *resources.entry(entry).or_insert_with(|| {
                        plan.groups.push(ResourceGroup { entry, scopes: Vec::new() });
                        plan.groups.len() - 1
                    });
                    let entry = &batch.scopes[pair.1 as usize];
                    let groups = &mut plan.groups[resource].scopes;
                    let scope = *scopes.entry((resource, entry)).or_insert_with(|| {
                        groups.push(ScopeGroup { entry, rows_len: 0, runs: Vec::new() });
                        groups.len() - 1
                    });
                    (resource, scope)
                });
                let group = &mut plan.groups[resource].scopes[scope];
                group.rows_len += (end - start) as usize;
                group.runs.push(Run { batch: number as u32, start, end });
            });
        }
        plan
    }

    /// The resources that rows have, each once.
    pub fn resources(&self) -> impl Iterator<Item = &'a TableEntry> {
        self.groups.iter().map(|group| group.entry)
    }

    /// The scopes that rows have; one may occur under several resources.
    pub fn scopes(&self) -> impl Iterator<Item = &'a TableEntry> {
        self.groups.iter().flat_map(|group| group.scopes.iter().map(|scope| scope.entry))
    }

    /// The size of the request.
    pub fn encoded_len(&self) -> usize {
        self.groups.iter().map(|group| field_len(resource_len(group))).sum()
    }

    /// Appends the request.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.reserve(self.encoded_len());
        for group in &self.groups {
            put_header(out, request::RESOURCE_ROWS, resource_len(group));
            put_entry(out, group.entry, resource_rows::RESOURCE, resource_rows::SCHEMA_URL);
            for scope in &group.scopes {
                put_header(out, resource_rows::SCOPE_ROWS, scope_len(scope));
                put_entry(out, scope.entry, scope_rows::SCOPE, scope_rows::SCHEMA_URL);
                for run in &scope.runs {
                    out.extend_from_slice(&self.batches[run.batch as usize].rows[run.start as usize..run.end as usize]);
                }
            }
        }
    }
}

/// Calls `visit` with (resource, scope) and the byte range of each run of rows that share them.
fn for_each_run(batch: &Batch, mut visit: impl FnMut((u32, u32), u32, u32)) {
    let Some(&last_end) = batch.row_end.last() else { return };
    let columns = &batch.columns;
    if batch.resources.len() == 1 && batch.scopes.len() == 1 {
        return visit((0, 0), 0, last_end);
    }
    let mut pair = (columns.resource[0], columns.scope[0]);
    let mut start = 0;
    for row in 1..batch.len() {
        let next = (columns.resource[row], columns.scope[row]);
        if next != pair {
            let end = batch.row_end[row - 1];
            visit(pair, start, end);
            (pair, start) = (next, end);
        }
    }
    visit(pair, start, last_end);
}

fn entry_len(entry: &TableEntry) -> usize {
    let schema_url = if entry.schema_url.is_empty() { 0 } else { field_len(entry.schema_url.len()) };
    field_len(entry.message.len()) + schema_url + entry.unknown.len()
}

fn put_entry(out: &mut Vec<u8>, entry: &TableEntry, message: u32, schema_url: u32) {
    put_bytes(out, message, &entry.message);
    if !entry.schema_url.is_empty() {
        put_bytes(out, schema_url, &entry.schema_url);
    }
    out.extend_from_slice(&entry.unknown);
}

fn scope_len(group: &ScopeGroup<'_>) -> usize {
    entry_len(group.entry) + group.rows_len
}

fn resource_len(group: &ResourceGroup<'_>) -> usize {
    entry_len(group.entry) + group.scopes.iter().map(|scope| field_len(scope_len(scope))).sum::<usize>()
}

/// The export request of some batches of one signal.
pub fn encode(batches: &[&Batch]) -> Vec<u8> {
    let plan = Plan::new(batches);
    let mut out = Vec::with_capacity(plan.encoded_len());
    plan.write(&mut out);
    out
}
