//! Batches to one export request, by gather: headers, then copies of row ranges.
//!
//! Rows are grouped by resource and scope over all batches (equal ones are merged by their bytes); a run of rows of one resource and
//! scope is one copy. All sizes are known before the first byte is written, so nothing is moved or patched.

use super::fields::{request, resource_rows, scope_rows};
use super::wire::{field_len, put_bytes, put_header};
use crate::batch::{Batch, TableEntry};
use crate::hash::KeyedMap;

/// A run of rows that lie together: bytes `start..end` of batch `batch`.
#[derive(Clone, Copy, Default)]
struct Run {
    batch: u32,
    start: u32,
    end: u32,
}

struct ScopeGroup<'a> {
    entry: &'a TableEntry,
    rows_len: usize,
    /// Its runs are `Plan::runs[first_run..end_run]`.
    first_run: usize,
    end_run: usize,
}

struct ResourceGroup<'a> {
    entry: &'a TableEntry,
    scopes: Vec<ScopeGroup<'a>>,
}

/// How the rows of some batches lie in one request.
pub struct Plan<'a> {
    batches: &'a [&'a Batch],
    groups: Vec<ResourceGroup<'a>>,
    runs: Vec<Run>,
}

impl<'a> Plan<'a> {
    /// Groups the rows of `batches`.
    pub fn new(batches: &'a [&'a Batch]) -> Self {
        let mut groups: Vec<ResourceGroup<'a>> = Vec::new();
        let mut resources: KeyedMap<&TableEntry, usize> = KeyedMap::default();
        let mut scopes: KeyedMap<(usize, &TableEntry), usize> = KeyedMap::default();
        // Where the rows of a (resource, scope) of this batch go.
        let mut places: KeyedMap<(u32, u32), (u32, u32)> = KeyedMap::default();
        let mut found: Vec<((u32, u32), Run)> = Vec::with_capacity(batches.iter().map(|batch| batch.len()).sum());
        for (number, batch) in batches.iter().enumerate() {
            places.clear();
            for_each_run(batch, |pair, start, end| {
                let (resource, scope) = *places.entry(pair).or_insert_with(|| {
                    let entry = &batch.resources[pair.0 as usize];
                    let resource = *resources.entry(entry).or_insert_with(|| {
                        groups.push(ResourceGroup { entry, scopes: Vec::new() });
                        groups.len() - 1
                    });
                    let entry = &batch.scopes[pair.1 as usize];
                    let groups = &mut groups[resource].scopes;
                    let scope = *scopes.entry((resource, entry)).or_insert_with(|| {
                        groups.push(ScopeGroup { entry, rows_len: 0, first_run: 0, end_run: 0 });
                        groups.len() - 1
                    });
                    (resource as u32, scope as u32)
                });
                let group = &mut groups[resource as usize].scopes[scope as usize];
                group.rows_len += (end - start) as usize;
                group.end_run += 1; // their number, for now
                found.push(((resource, scope), Run { batch: number as u32, start, end }));
            });
        }
        Self { batches, runs: together(&found, &mut groups), groups }
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
                for run in &self.runs[scope.first_run..scope.end_run] {
                    out.extend_from_slice(&self.batches[run.batch as usize].rows[run.start as usize..run.end as usize]);
                }
            }
        }
    }
}

/// Sorts runs so that those of a scope lie together, in their order, and tells each scope where. One allocation for all of them.
fn together(found: &[((u32, u32), Run)], groups: &mut [ResourceGroup<'_>]) -> Vec<Run> {
    let mut first = 0;
    for scope in groups.iter_mut().flat_map(|group| &mut group.scopes) {
        let number = scope.end_run;
        (scope.first_run, scope.end_run) = (first, first);
        first += number;
    }
    let mut runs = vec![Run::default(); found.len()];
    for &((resource, scope), run) in found {
        let scope = &mut groups[resource as usize].scopes[scope as usize];
        runs[scope.end_run] = run;
        scope.end_run += 1;
    }
    runs
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
