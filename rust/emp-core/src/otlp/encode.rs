//! Batches to one export request, by gather: headers, then copies of row ranges.
//!
//! Rows are grouped by resource and scope over all batches (equal ones are merged by their bytes); a run of rows of one resource and
//! scope is one copy. All sizes are known before the first byte is written, so nothing is moved or patched.

use super::fields::{request, resource_rows, scope_rows};
use super::wire::{field_len, put_bytes, put_header};
use crate::batch::{Batch, TableEntry};
use crate::hash::KeyedMap;

/// No index.
const NONE: u32 = u32::MAX;
/// Pairs of resource and scope of a batch up to which their places are looked up by index.
const MAX_DENSE: usize = 1 << 16;

/// A run of rows that lie together: bytes `start..end` of batch `batch`.
#[derive(Clone, Copy, Default)]
struct Run {
    batch: u32,
    start: u32,
    end: u32,
}

/// A scope under a resource.
struct ScopeGroup<'a> {
    entry: &'a TableEntry,
    rows_len: usize,
    /// How many runs it has, then where the next one goes.
    runs: u32,
    /// The resource's next scope.
    next: u32,
}

struct ResourceGroup<'a> {
    entry: &'a TableEntry,
    first: u32,
    last: u32,
    len: usize,
}

/// How the rows of some batches lie in one request.
pub struct Plan<'a> {
    batches: &'a [&'a Batch],
    resources: Vec<ResourceGroup<'a>>,
    scopes: Vec<ScopeGroup<'a>>,
    /// By scope, in the order of rows.
    runs: Vec<Run>,
    len: usize,
}

/// Where a (resource, scope) of one batch goes: an index into [`Plan::scopes`].
enum Places {
    /// At resource * scopes + scope.
    Dense(Vec<u32>, u32),
    /// A batch with so many of both that most pairs do not occur.
    Sparse(KeyedMap<(u32, u32), u32>),
}

impl Places {
    fn of(batch: &Batch) -> Self {
        let pairs = batch.resources.len().saturating_mul(batch.scopes.len());
        if pairs <= MAX_DENSE { Self::Dense(vec![NONE; pairs], batch.scopes.len() as u32) } else { Self::Sparse(KeyedMap::default()) }
    }

    #[inline(always)]
    fn place(&mut self, (resource, scope): (u32, u32)) -> &mut u32 {
        match self {
            Self::Dense(places, scopes) => &mut places[(resource * *scopes + scope) as usize],
            Self::Sparse(places) => places.entry((resource, scope)).or_insert(NONE),
        }
    }
}

impl<'a> Plan<'a> {
    /// Groups the rows of `batches`.
    pub fn new(batches: &'a [&'a Batch]) -> Self {
        let mut plan = Self { batches, resources: Vec::new(), scopes: Vec::new(), runs: Vec::new(), len: 0 };
        let mut known = KeyedMap::default();
        let mut in_order: Vec<(u32, Run)> = Vec::new();
        for (number, batch) in batches.iter().enumerate() {
            let mut places = Places::of(batch);
            for_each_run(batch, |pair, start, end| {
                let place = places.place(pair);
                if *place == NONE {
                    *place = plan.add(&mut known, batch, pair);
                }
                let scope = &mut plan.scopes[*place as usize];
                scope.rows_len += (end - start) as usize;
                scope.runs += 1;
                in_order.push((*place, Run { batch: number as u32, start, end }));
            });
        }
        plan.sort(&in_order);
        plan.measure();
        plan
    }

    /// The place of a pair that this batch has not used yet.
    fn add(&mut self, known: &mut KeyedMap<&'a TableEntry, u32>, batch: &'a Batch, pair: (u32, u32)) -> u32 {
        let entry = &batch.resources[pair.0 as usize];
        let resource = *known.entry(entry).or_insert_with(|| {
            self.resources.push(ResourceGroup { entry, first: NONE, last: NONE, len: 0 });
            self.resources.len() as u32 - 1
        });
        let entry = &batch.scopes[pair.1 as usize];
        let group = &mut self.resources[resource as usize];
        let mut at = group.first;
        while at != NONE {
            if self.scopes[at as usize].entry == entry {
                return at;
            }
            at = self.scopes[at as usize].next;
        }
        let new = self.scopes.len() as u32;
        self.scopes.push(ScopeGroup { entry, rows_len: 0, runs: 0, next: NONE });
        if group.last == NONE {
            group.first = new;
        } else {
            self.scopes[group.last as usize].next = new;
        }
        group.last = new;
        new
    }

    /// Puts the runs in the order of scopes.
    fn sort(&mut self, in_order: &[(u32, Run)]) {
        let mut next = 0;
        for scope in &mut self.scopes {
            let count = scope.runs;
            scope.runs = next;
            next += count;
        }
        self.runs = vec![Run::default(); in_order.len()];
        for (scope, run) in in_order {
            let at = &mut self.scopes[*scope as usize].runs;
            self.runs[*at as usize] = *run;
            *at += 1;
        }
    }

    fn measure(&mut self) {
        for index in 0..self.resources.len() {
            let group = &self.resources[index];
            let scopes: usize = self.scopes_of(group).map(|at| field_len(scope_len(&self.scopes[at]))).sum();
            let len = entry_len(group.entry) + scopes;
            self.resources[index].len = len;
            self.len += field_len(len);
        }
    }

    fn scopes_of(&self, group: &ResourceGroup<'_>) -> impl Iterator<Item = usize> {
        let mut at = group.first;
        std::iter::from_fn(move || {
            (at != NONE).then(|| {
                let this = at as usize;
                at = self.scopes[this].next;
                this
            })
        })
    }

    /// The resources that rows have, each once.
    pub fn resources(&self) -> impl Iterator<Item = &'a TableEntry> {
        self.resources.iter().map(|group| group.entry)
    }

    /// The scopes that rows have; one may occur under several resources.
    pub fn scopes(&self) -> impl Iterator<Item = &'a TableEntry> {
        self.scopes.iter().map(|scope| scope.entry)
    }

    /// The size of the request.
    pub fn encoded_len(&self) -> usize {
        self.len
    }

    /// Appends the request.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.reserve(self.len);
        for group in &self.resources {
            put_header(out, request::RESOURCE_ROWS, group.len);
            put_entry(out, group.entry, resource_rows::RESOURCE, resource_rows::SCHEMA_URL);
            for at in self.scopes_of(group) {
                let scope = &self.scopes[at];
                put_header(out, resource_rows::SCOPE_ROWS, scope_len(scope));
                put_entry(out, scope.entry, scope_rows::SCOPE, scope_rows::SCHEMA_URL);
                // After the sort a scope's `runs` is where its last one ends, and the next scope's first begins.
                let first = if at == 0 { 0 } else { self.scopes[at - 1].runs };
                for run in &self.runs[first as usize..scope.runs as usize] {
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

/// The export request of some batches of one signal.
pub fn encode(batches: &[&Batch]) -> Vec<u8> {
    let plan = Plan::new(batches);
    let mut out = Vec::with_capacity(plan.encoded_len());
    plan.write(&mut out);
    out
}
