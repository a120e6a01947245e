//! What a record means: the rules that turn what a sender wrote into an OTLP log record.
//!
//! A [`Normalizer`] holds the rules (the standard schema, aliases, the receiver's stamp) and is shared. A [`Builder`] belongs to one
//! connection or file; it is given records in msgpack (JSON is transcoded first, [`json`]) and writes rows of a [`Batch`]:
//!
//! ```text
//!   record ──▶ row.rs, one pass, the usual case ──────────────▶ batch.rows + columns
//!                 │ something unusual: the row is taken back           ▲
//!                 └──▶ careful.rs: all fields first, then conflicts ───┘
//! ```
//!
//! A record that another emp-pipe wrote is not normalised again: [`restored`].
//!
//! Both paths give the same row where the first one does not step aside (a property test holds that). Read next: [`table`] for the schema,
//! `row` for the hot path, `careful` for every rule in plain form.

pub mod bytes_map;
pub mod careful;
pub mod copy;
pub mod identity;
pub mod json;
pub mod metadata;
mod names;
pub mod otlp;
pub mod out;
pub mod restored;
pub mod row;
pub mod severity;
pub mod shape;
pub mod table;
#[cfg(test)]
mod tests;
pub mod text;
mod text_row;
pub mod time;
pub mod unfold;
pub mod value;
pub mod wire;

use std::sync::Arc;

use crate::batch::build::NewRow;
use crate::batch::{Batch, Signal, TableEntry};
use crate::fluent::cursor::Fault;
use crate::fluent::restore::is_ours;
use crate::hash::KeyedMap;
use crate::otlp::incoming::keys::Keys;
use identity::{Base, Identities};
use shape::Shapes;
use table::Table;
use time::TimeReader;

/// No message has more entries than its bytes by this: memory is not taken on the word of the last one.
const MIN_ENTRY_BYTES: usize = 16;

/// The rules of a receiver.
#[derive(Clone, Debug)]
pub struct Normalizer {
    table: Table,
    /// Those of its keys that are looked for in OTLP.
    keys: Keys,
    /// Resource attributes that are added where a record's resource lacks them.
    stamp: Vec<(String, String)>,
    /// Whether JSON and logfmt inside the body become fields.
    unfold: bool,
    /// Resources that a batch may have.
    max_resources: usize,
}

impl Normalizer {
    /// Rules with a stamp (resource attributes), a user's aliases (alias to name), and the number of resources that a batch may have.
    pub fn new(stamp: Vec<(String, String)>, aliases: &[(String, String)], unfold: bool, max_resources: usize) -> Self {
        let table = Table::new(aliases.iter().map(|(alias, name)| (alias.as_str(), name.as_str())));
        Self { keys: Keys::new(&table), table, stamp, unfold, max_resources }
    }
}

impl Normalizer {
    /// Whether records in bodies are taken out of them.
    pub(crate) fn unfolds(&self) -> bool {
        self.unfold
    }

    /// The attribute keys that mean more than themselves.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }
}

impl Default for Normalizer {
    fn default() -> Self {
        Self::new(Vec::new(), &[], true, 1024)
    }
}

/// What the envelope of a record says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The entry's time; None means: now.
    pub time_unix_nano: Option<i64>,
    /// What came beside the time (a msgpack map); empty without.
    pub metadata: &'a [u8],
}

/// Writes rows; one per connection or file. Its memory of keys and identities makes the next record cheap.
#[derive(Debug)]
pub struct Builder {
    rules: Arc<Normalizer>,
    max_depth: usize,
    shapes: Shapes,
    times: TimeReader,
    identities: Identities,
    batch: Batch,
    scope: u32,
    /// By tag.
    scopes: KeyedMap<Box<[u8]>, u32>,
    /// The last tag, its encoded scope, and whether `scope` is its place in this batch.
    tag: Vec<u8>,
    tag_scope: Vec<u8>,
    tag_is_set: bool,
    /// The name of the scope: who receives.
    scope_name: &'static str,
    group_scope: Vec<u8>,
    in_group: bool,
    template: NewRow,
    now_unix_nano: i64,
    correction_ns: i64,
    /// A record at the end of its buffer, with room behind it.
    tail: Vec<u8>,
    /// The record's number, for claims.
    record: u32,
    newest_unix_nano: Option<i64>,
    resources_over_limit: u64,
    /// Rows of the last batch: most likely those of the next.
    usual_rows: usize,
    restored: restored::Tables,
    /// The place of the resource that the record came with, where it came with one that has a place already.
    own_resource: Option<u32>,
}

impl Builder {
    /// A builder for a receiver with that scope name.
    pub fn new(rules: Arc<Normalizer>, scope_name: &'static str, max_depth: usize) -> Self {
        let mut new = Self {
            rules,
            max_depth,
            shapes: Shapes::new(),
            times: TimeReader::default(),
            identities: Identities::default(),
            batch: Batch::new(Signal::Logs),
            scope: 0,
            scopes: KeyedMap::default(),
            tag: Vec::new(),
            tag_scope: Vec::new(),
            tag_is_set: false,
            scope_name,
            group_scope: Vec::new(),
            in_group: false,
            template: NewRow::new(0),
            now_unix_nano: 0,
            correction_ns: 0,
            tail: Vec::new(),
            record: 0,
            newest_unix_nano: None,
            resources_over_limit: 0,
            usual_rows: 0,
            restored: restored::Tables::default(),
            own_resource: None,
        };
        new.identities.new_batch();
        new
    }

    /// Sets the time at which the following records arrived.
    pub fn set_now(&mut self, now_unix_nano: i64) {
        self.now_unix_nano = now_unix_nano;
        self.template = NewRow::new(now_unix_nano);
    }

    /// What is added to the times of the following rows.
    pub fn set_time_correction_ns(&mut self, correction_ns: i64) {
        self.correction_ns = correction_ns;
    }

    /// The rows so far.
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Bytes of the rows so far.
    pub fn row_bytes(&self) -> usize {
        self.batch.rows.len()
    }

    /// Makes room for rows of about that many bytes of input, where there is no row yet.
    pub fn reserve_first(&mut self, input_bytes: usize) {
        if self.batch.rows.capacity() == 0 {
            self.reserve(input_bytes);
        }
    }

    /// Makes room for rows of about that many bytes of input.
    pub fn reserve(&mut self, input_bytes: usize) {
        self.batch.rows.reserve(input_bytes + input_bytes / 8 + 1024);
        self.batch.reserve_columns(self.usual_rows.min(input_bytes / MIN_ENTRY_BYTES));
    }

    /// Sets the tag of the following records: an attribute of their scope.
    pub fn set_tag(&mut self, tag: &[u8]) {
        let same = self.tag == tag;
        if same && self.tag_is_set {
            return;
        }
        if !same {
            self.tag.clear();
            self.tag.extend_from_slice(tag);
        }
        self.tag_is_set = true;
        if let Some(index) = self.scopes.get(tag) {
            self.scope = *index;
            return;
        }
        if !same || self.tag_scope.is_empty() {
            self.tag_scope.clear();
            self.tag_scope.extend_from_slice(&self.group_scope);
            if self.group_scope.is_empty() {
                wire::put_bytes(&mut self.tag_scope, 0x0a, self.scope_name.as_bytes());
            }
            if !tag.is_empty() {
                wire::put_text_attribute(&mut self.tag_scope, wire::SCOPE_ATTRIBUTE, b"fluent.tag", &wire::repaired(tag));
            }
        }
        self.scope = self.batch.scopes.len() as u32;
        self.batch.scopes.push(TableEntry { message: self.tag_scope.clone(), ..TableEntry::default() });
        self.scopes.insert(tag.into(), self.scope);
    }

    /// Scopes are new: those of another batch or group have no place.
    fn forget_scopes(&mut self) {
        self.scopes.clear();
        self.tag_is_set = false;
    }

    /// Sets what the following records share beyond their tag (an OTLP group): resource attributes and an encoded scope.
    pub fn set_group(&mut self, base: Base, scope: Vec<u8>) {
        self.identities.set_base(base);
        self.group_scope = scope;
        self.tag_scope.clear();
        self.forget_scopes();
        self.in_group = true;
    }

    /// Ends the group, if there is one.
    pub fn end_group(&mut self) {
        if self.in_group {
            self.set_group(Base::default(), Vec::new());
            self.in_group = false;
        }
    }

    /// Writes the record (a msgpack map at `pos` of `data`) as a row; returns where it ends. On a fault nothing is written.
    #[inline]
    pub fn push(&mut self, envelope: &Envelope<'_>, data: &[u8], pos: usize) -> Result<usize, Fault> {
        if is_ours(data, pos) {
            return self.push_restored(envelope, data, pos);
        }
        // One byte of metadata is an empty map.
        if envelope.metadata.len() <= 1
            && let Some(end) = self.push_usual(envelope.time_unix_nano, data, pos)
        {
            return Ok(end);
        }
        self.push_careful(envelope, data, pos)
    }

    /// The same for a record that has its buffer to itself, as one that was written for this; the buffer is left as it was.
    #[inline]
    pub fn push_alone(&mut self, envelope: &Envelope<'_>, record: &mut Vec<u8>) -> Result<(), Fault> {
        if is_ours(record, 0) {
            return self.push_restored(envelope, record, 0).map(drop);
        }
        if envelope.metadata.len() <= 1 && self.push_usual_alone(envelope.time_unix_nano, record) {
            return Ok(());
        }
        self.push_careful(envelope, record, 0).map(drop)
    }

    /// Writes the record when it is there as a whole and a usual one; None, and nothing written, when not.
    #[inline]
    pub fn push_if_usual(&mut self, time_unix_nano: Option<i64>, data: &[u8], pos: usize) -> Option<usize> {
        if is_ours(data, pos) {
            return None;
        }
        self.push_usual(time_unix_nano, data, pos)
    }

    /// The least of arrival minus record time over the rows since the last [`Self::take`], before any correction; 0 without such rows.
    pub fn min_age_ns(&self) -> i64 {
        self.newest_unix_nano.map_or(0, |newest| self.now_unix_nano.saturating_sub(newest))
    }

    /// The rows so far, and the number of records whose identity found no place in the batch's resources.
    pub fn take(&mut self) -> (Batch, u64) {
        let batch = std::mem::replace(&mut self.batch, Batch::new(Signal::Logs));
        self.usual_rows = batch.len();
        self.identities.new_batch();
        self.forget_scopes();
        self.restored.clear();
        self.newest_unix_nano = None;
        (batch, std::mem::take(&mut self.resources_over_limit))
    }
}
