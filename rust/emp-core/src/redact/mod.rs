//! [`Redactor`]: secrets out of rows, texts and bytes, by key names and by what values look like.
//!
//! Of rows everything that OTLP calls a string or bytes is looked at: bodies, attributes at any depth, span names, events, links, status
//! messages, attributes of data points, resources, scopes. A value that is masked is replaced; in bytes that are no rows it is written
//! over, so that offsets stay what they were. Rows without a secret are not touched, and what can hold none is not even walked through: the
//! texts of a whole batch are asked for clues in one pass, and of each row only the names of its attributes.
//! Read next: [`keys`], [`patterns`], [`clues`], [`usual`].

mod cards;
mod clues;
mod fingerprint;
mod keys;
mod patterns;
mod replacement;
mod usual;

pub use patterns::names as pattern_names;

use std::sync::Mutex;

use crate::batch::{Batch, Signal, TableEntry};
use crate::error::CoreError;
use crate::otlp::descriptors::{ANY_VALUE, Descriptor, KEY_VALUE, Kind, LOG, METRIC, RESOURCE, SCOPE, SPAN};
use crate::otlp::fields::{any_value as any_value_fields, key_value as key_value_fields};
use crate::otlp::scan::key_value;
use crate::otlp::value::{AnyValue, any_value};
use crate::otlp::wire::{Field, Reader, WireError, put_bytes, put_message};
use keys::{KeyMatch, KeyMemo, Keys};
use patterns::{Found, Patterns};
use replacement::Replacement;
use usual::Layout;

/// Messages nested deeper are masked as bytes.
const MAX_DEPTH: usize = 128;

/// What is a secret, and what takes its place.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Names of secrets: whole words of attribute keys.
    pub keys: Vec<String>,
    /// Whole keys that are none.
    pub kept_keys: Vec<String>,
    /// Names of built-in patterns; see [`pattern_names`].
    pub patterns: Vec<String>,
    /// Further patterns with a name each; a capture group is the secret, else the whole match.
    pub own_patterns: Vec<(String, String)>,
    /// What takes the place of a secret in rows, and of one that is hashed in texts that are no rows.
    pub mask: String,
    /// With a key secrets in rows are hashed in place of masked.
    pub hash_key: Option<Vec<u8>>,
}

/// How many values each rule masked, in the order of [`Redactor::rules`].
pub type Counts = Vec<u64>;

/// Compiled rules; see the module's head.
pub struct Redactor {
    keys: Keys,
    patterns: Patterns,
    replacement: Replacement,
    /// Of the last batch, for the next one; batches at the same time have one each.
    memo: Mutex<KeyMemo>,
}

/// What is known while one row, or one value, is worked on.
struct Work {
    memo: KeyMemo,
    /// The rules that masked something, one by one, so that a part's can be taken back.
    masked: Vec<usize>,
    counts: Counts,
}

impl Work {
    /// Count what was masked, once a whole row is done: no longer than a row's masks are they kept one by one.
    fn count(&mut self) {
        for rule in self.masked.drain(..) {
            self.counts[rule] += 1;
        }
    }
}

/// What became of a batch.
pub struct Redacted {
    /// None where nothing was masked.
    pub batch: Option<Batch>,
    /// See [`Counts`].
    pub counts: Counts,
}

impl Redactor {
    /// Compiled rules. CoreError (config_invalid) names the pattern that cannot be one.
    pub fn new(rules: &Rules) -> Result<Self, CoreError> {
        let keys = Keys::new(rules.keys.iter().map(String::as_str), rules.kept_keys.iter().map(String::as_str));
        Ok(Self {
            patterns: Patterns::new(&rules.patterns, &rules.own_patterns, &rules.keys)?,
            keys,
            replacement: Replacement::new(&rules.mask, rules.hash_key.as_deref()),
            memo: Mutex::default(),
        })
    }

    /// The names that counts are kept under: `key`, then the patterns.
    pub fn rules(&self) -> impl Iterator<Item = &str> {
        std::iter::once("key").chain(self.patterns.names().iter().map(String::as_str))
    }

    fn work(&self, memo: KeyMemo) -> Work {
        Work { memo, masked: Vec::new(), counts: vec![0; 1 + self.patterns.names().len()] }
    }

    /// Bytes of whatever kind with their secrets written over with `*`: as long as before.
    pub fn bytes(&self, data: &[u8]) -> (Vec<u8>, Counts) {
        let mut work = self.work(KeyMemo::default());
        let out = self.written_over(data, &mut work).unwrap_or_else(|| data.to_vec());
        work.count();
        (out, work.counts)
    }

    /// A text with its secrets replaced.
    pub fn text(&self, text: &[u8]) -> Vec<u8> {
        self.replaced(text, &mut self.work(KeyMemo::default())).unwrap_or_else(|| text.to_vec())
    }

    /// A batch with its secrets replaced.
    pub fn batch(&self, batch: &Batch) -> Result<Redacted, CoreError> {
        let memo = self.memo.lock().map(|mut last| std::mem::take(&mut *last)).unwrap_or_default();
        let mut work = self.work(memo);
        let row: &[Descriptor] = match batch.signal {
            Signal::Logs => &LOG,
            Signal::Traces => &SPAN,
            Signal::Metrics => &METRIC,
        };
        let layout = Layout::of_rows(batch.signal);
        let mut marks = vec![false; batch.len()];
        self.patterns.mark(batch, &mut marks);
        let mut rows: Vec<(usize, Vec<u8>)> = Vec::new();
        for (index, marked) in marks.into_iter().enumerate() {
            let message = batch.message(index);
            if (marked || !self.names_nothing(message, layout, &mut work))
                && let Some(masked) = self.whole(message, row, &mut work)
            {
                rows.push((index, masked));
            }
        }
        let resources = self.table(&batch.resources, &RESOURCE, &usual::RESOURCE, &mut work);
        let scopes = self.table(&batch.scopes, &SCOPE, &usual::SCOPE, &mut work);
        let Work { memo, counts, .. } = work;
        if let Ok(mut last) = self.memo.lock() {
            *last = memo;
        }
        if rows.is_empty() && resources.is_none() && scopes.is_none() {
            return Ok(Redacted { batch: None, counts });
        }
        let mut out = if rows.is_empty() {
            batch.clone()
        } else {
            let mut masked = rows.iter().peekable();
            batch.rewritten(|index, message, out| {
                let changed = masked.next_if(|(row, _)| *row == index);
                out.extend_from_slice(changed.map_or(message, |(_, masked)| masked));
                Ok(changed.is_some())
            })?
        };
        out.resources = resources.unwrap_or(out.resources);
        out.scopes = scopes.unwrap_or(out.scopes);
        Ok(Redacted { batch: Some(out), counts })
    }

    fn table(&self, entries: &[TableEntry], descriptors: &[Descriptor], layout: &Layout, work: &mut Work) -> Option<Vec<TableEntry>> {
        let mut masked = |entry: &TableEntry| {
            let suspect = self.patterns.may_hold(&entry.message) || !self.names_nothing(&entry.message, Some(layout), work);
            if suspect { self.whole(&entry.message, descriptors, work) } else { None }
        };
        let masked: Vec<_> = entries.iter().map(&mut masked).collect();
        masked.iter().any(Option::is_some).then(|| {
            let pairs = entries.iter().zip(masked);
            pairs
                .map(|(entry, message)| TableEntry { message: message.unwrap_or_else(|| entry.message.clone()), ..entry.clone() })
                .collect()
        })
    }

    /// Whether no attribute's name makes a secret of its value; false where that cannot be told without a walk.
    fn names_nothing(&self, message: &[u8], layout: Option<&Layout>, work: &mut Work) -> bool {
        layout.is_some_and(|layout| usual::names_nothing(message, layout, &self.keys, |text| self.replacement.is_one(text), &mut work.memo))
    }

    /// A row, or an entry of a table, walked through and counted.
    fn whole(&self, data: &[u8], descriptors: &[Descriptor], work: &mut Work) -> Option<Vec<u8>> {
        let masked = self.message(data, descriptors, MAX_DEPTH, work);
        work.count();
        masked
    }

    /// A message with its secrets replaced; None where it has none. What cannot be followed is masked as bytes, which keeps its lengths.
    fn message(&self, data: &[u8], descriptors: &[Descriptor], depth: usize, work: &mut Work) -> Option<Vec<u8>> {
        let before = work.masked.len();
        let masked = if depth == 0 {
            Err(WireError { offset: 0, detail: "nested too deep" })
        } else if std::ptr::eq(descriptors.as_ptr(), KEY_VALUE.as_ptr()) {
            self.pair(data, depth, work)
        } else {
            self.fields(data, descriptors, depth, work)
        };
        masked.unwrap_or_else(|_| {
            work.masked.truncate(before);
            self.written_over(data, work)
        })
    }

    fn fields(&self, data: &[u8], descriptors: &[Descriptor], depth: usize, work: &mut Work) -> Result<Option<Vec<u8>>, WireError> {
        let mut out = Vec::new();
        let mut copied = 0;
        let mut reader = Reader::new(data);
        while let Some(field) = reader.next_field()? {
            if let Some(masked) = self.field(&field, descriptors, depth, work) {
                out.extend_from_slice(&data[copied..field.offset]);
                put_bytes(&mut out, field.number, &masked);
                copied = field.offset + field.raw.len();
            }
        }
        if copied == 0 {
            return Ok(None);
        }
        out.extend_from_slice(&data[copied..]);
        Ok(Some(out))
    }

    /// What takes the place of a field's bytes, if anything does. Fields that OTLP does not know are opaque.
    fn field(&self, field: &Field<'_>, descriptors: &[Descriptor], depth: usize, work: &mut Work) -> Option<Vec<u8>> {
        let bytes = field.bytes()?;
        let Some(descriptor) = descriptors.iter().find(|descriptor| descriptor.number == field.number) else {
            return self.written_over(bytes, work);
        };
        match descriptor.kind {
            Kind::String => self.replaced(bytes, work),
            Kind::Base64 => self.written_over(bytes, work),
            Kind::Message(inner) => self.message(bytes, inner, depth - 1, work),
            _ => None,
        }
    }

    fn pair(&self, data: &[u8], depth: usize, work: &mut Work) -> Result<Option<Vec<u8>>, WireError> {
        let pair = key_value(Reader::new(data))?;
        let found = self.keys.remembered(pair.key, &mut work.memo);
        if found != KeyMatch::No {
            let whole = pair.value.rest();
            let secret = match any_value(pair.value.clone())? {
                AnyValue::Empty | AnyValue::Bool(_) => None,
                AnyValue::Int(_) | AnyValue::Double(_) => (found == KeyMatch::AtEnd).then_some(whole),
                // The same text is hashed alike wherever it is found.
                AnyValue::String(text) => (!text.is_empty() && !self.replacement.is_one(text)).then_some(text),
                AnyValue::Bytes(bytes) => (!bytes.is_empty()).then_some(bytes),
                AnyValue::Array(values) | AnyValue::KvList(values) => (!values.rest().is_empty()).then_some(whole),
            };
            if let Some(secret) = secret {
                work.masked.push(0);
                let (mut instead, mut out) = (Vec::new(), Vec::with_capacity(pair.key.len() + 40));
                self.replacement.put(secret, &mut instead);
                put_bytes(&mut out, key_value_fields::KEY, pair.key);
                put_message(&mut out, key_value_fields::VALUE, |out| put_bytes(out, any_value_fields::STRING, &instead));
                return Ok(Some(out));
            }
        }
        self.fields(data, &PAIR, depth, work)
    }

    fn replaced(&self, text: &[u8], work: &mut Work) -> Option<Vec<u8>> {
        let found = self.found(text, false, work)?;
        let mut out = Vec::with_capacity(text.len() + 32);
        let mut copied = 0;
        for one in &found {
            out.extend_from_slice(&text[copied..one.range.start]);
            self.replacement.put(&text[one.range.clone()], &mut out);
            copied = one.range.end;
        }
        out.extend_from_slice(&text[copied..]);
        Some(out)
    }

    fn written_over(&self, data: &[u8], work: &mut Work) -> Option<Vec<u8>> {
        let found = self.found(data, true, work)?;
        let mut out = data.to_vec();
        for one in &found {
            out[one.range.clone()].fill(b'*');
        }
        Some(out)
    }

    /// The secrets of a text, counted; None where there are none. What a mask of ours has taken the place of is none.
    fn found(&self, text: &[u8], binary: bool, work: &mut Work) -> Option<Vec<Found>> {
        let mut found = self.patterns.find(text, binary);
        found.retain(|one| !self.replacement.covers(text, one.range.start, one.range.end));
        for one in &found {
            work.masked.push(1 + one.rule);
        }
        (!found.is_empty()).then_some(found)
    }
}

/// KeyValue as fields: its key is no secret.
static PAIR: [Descriptor; 2] = [
    Descriptor { number: key_value_fields::KEY, name: "key", kind: Kind::TraceId, repeated: false, presence: false },
    Descriptor { number: key_value_fields::VALUE, name: "value", kind: Kind::Message(&ANY_VALUE), repeated: false, presence: false },
];

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
