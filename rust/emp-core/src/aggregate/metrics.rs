//! Metrics: which ones are the same (resource, scope, name, unit, type, temporality, monotonicity), and what encloses their points.

use super::fields::{data, metric, temporality};
use super::kept::Rule;
use super::point::Shape;
use super::streams::with_sorted_attributes;
use crate::batch::TableEntry;
use crate::hash::KeyedMap;
use crate::otlp::fields::{resource, scope};
use crate::otlp::wire::{Field, Reader, WireError, for_each_field};

/// No metric, resource, scope.
pub const NONE: u32 = u32::MAX;

/// Resources or scopes of all batches of a window; equal are those whose attributes are, in whatever order.
#[derive(Default)]
pub struct Entries {
    /// Each as it came first.
    pub all: Vec<TableEntry>,
    raw: KeyedMap<TableEntry, u32>,
    sorted: KeyedMap<TableEntry, u32>,
    bytes: usize,
}

fn size_of_entry(entry: &TableEntry) -> usize {
    size_of::<TableEntry>() + 8 + entry.message.len() + entry.schema_url.len() + entry.unknown.len()
}

impl Entries {
    /// The number of an entry, new or known; `attributes` is the field of its message.
    pub fn intern(&mut self, entry: &TableEntry, attributes: u32) -> u32 {
        if let Some(known) = self.raw.get(entry) {
            return *known;
        }
        let sorted = TableEntry { message: with_sorted_attributes(&entry.message, attributes), ..entry.clone() };
        let index = *self.sorted.entry(sorted).or_insert_with(|| {
            self.all.push(entry.clone());
            self.bytes += 2 * size_of_entry(entry);
            self.all.len() as u32 - 1
        });
        self.bytes += size_of_entry(entry);
        self.raw.insert(entry.clone(), index);
        index
    }

    /// About how many bytes they take.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }
}

/// One metric of one scope of one resource.
pub struct Metric {
    /// Of [`Entries`].
    pub resource: u32,
    /// Of [`Entries`].
    pub scope: u32,
    /// The field of its data.
    pub data_field: u32,
    /// What its points are.
    pub shape: Shape,
    /// What becomes of them.
    pub rule: Rule,
    /// The metric's own fields: name, description, unit, metadata, unknown ones; those that came last.
    pub head: Vec<u8>,
    /// The data's fields beside the points: temporality, monotonicity, unknown ones; those that came last.
    pub tail: Vec<u8>,
    /// Its streams.
    pub streams: Vec<u32>,
    /// The one for what is past the limit.
    pub overflow: u32,
    /// Points that went there, or were left out, in this window.
    pub overflowed: u64,
    /// The window in which it came last.
    pub seen: u32,
    /// It came in this window, maybe without a point.
    pub present: bool,
}

/// All metrics, by identity.
#[derive(Default)]
pub struct Metrics {
    /// In order of first use.
    pub all: Vec<Metric>,
    by_key: KeyedMap<Vec<u8>, u32>,
    key: Vec<u8>,
    head: Vec<u8>,
    tail: Vec<u8>,
    bytes: usize,
}

/// A row: the metric that it is, and where its points are.
pub struct Row<'a> {
    /// Of [`Metrics`]; None where it has no data that we know: nothing to aggregate.
    pub metric: Option<u32>,
    /// The message of its data.
    pub data: Reader<'a>,
    /// Where a sender split it: the other parts.
    pub more: Vec<Reader<'a>>,
}

impl Metrics {
    /// Reads what is not points, finds the metric or makes it.
    pub fn read<'a>(&mut self, message: &'a [u8], resource: u32, scope: u32) -> Result<Row<'a>, WireError> {
        self.head.clear();
        self.tail.clear();
        let (mut name, mut unit): (&[u8], &[u8]) = (&[], &[]);
        let mut found: Option<Field<'a>> = None;
        let mut more: Vec<Field<'a>> = Vec::new();
        for_each_field(Reader::new(message), |field| {
            if let (Some(_), Some(_)) = (shape_of(field.number), field.bytes()) {
                // A oneof: the last kind of data counts, and what came twice of one kind is one message.
                match &found {
                    Some(known) if known.number == field.number => more.push(field),
                    _ => {
                        more.clear();
                        found = Some(field);
                    }
                }
                return Ok(());
            }
            match field.number {
                metric::NAME => name = field.bytes().unwrap_or_default(),
                metric::UNIT => unit = field.bytes().unwrap_or_default(),
                _ => {}
            }
            self.head.extend_from_slice(field.raw);
            Ok::<(), WireError>(())
        })?;
        let Some(first) = found else { return Ok(Row { metric: None, data: Reader::new(&[]), more: Vec::new() }) };
        let data_field = first.number;
        let (mut temporality, mut monotonic) = (0, 0);
        for field in std::iter::once(&first).chain(&more) {
            for_each_field(field.message(), |field| {
                if is_point(&field) {
                    return Ok(());
                }
                match (field.number, field.scalar()) {
                    (data::AGGREGATION_TEMPORALITY, Some(value)) if data_field != metric::GAUGE => temporality = value,
                    (data::IS_MONOTONIC, Some(value)) if data_field == metric::SUM => monotonic = u64::from(value != 0),
                    _ => {}
                }
                self.tail.extend_from_slice(field.raw);
                Ok::<(), WireError>(())
            })?;
        }
        self.key.clear();
        for number in [resource, scope, data_field, temporality.min(3) as u32, monotonic as u32, name.len() as u32] {
            self.key.extend_from_slice(&number.to_le_bytes());
        }
        self.key.extend_from_slice(name);
        self.key.extend_from_slice(unit);
        let metric = match self.by_key.get(&self.key) {
            Some(known) => *known,
            None => self.add(resource, scope, data_field, rule_of(data_field, temporality, monotonic)),
        };
        let known = &mut self.all[metric as usize];
        for (ours, theirs) in [(&mut known.head, &self.head), (&mut known.tail, &self.tail)] {
            if ours != theirs {
                self.bytes = (self.bytes + theirs.len()).saturating_sub(ours.len());
                ours.clone_from(theirs);
            }
        }
        Ok(Row { metric: Some(metric), data: first.message(), more: more.iter().map(Field::message).collect() })
    }

    fn add(&mut self, resource: u32, scope: u32, data_field: u32, rule: Rule) -> u32 {
        let index = self.all.len() as u32;
        self.all.push(Metric {
            resource,
            scope,
            data_field,
            shape: shape_of(data_field).unwrap_or(Shape::Number),
            rule,
            head: Vec::new(),
            tail: Vec::new(),
            streams: Vec::new(),
            overflow: NONE,
            overflowed: 0,
            seen: 0,
            present: false,
        });
        self.bytes += size_of::<Metric>() + self.key.len() + 40;
        self.by_key.insert(self.key.clone(), index);
        index
    }

    /// About how many bytes they take.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets the metrics for which `keep` is false, and the resources and scopes that no other one has; returns the new number of each,
    /// [`NONE`] where it was forgotten.
    pub fn retain(&mut self, resources: &mut Entries, scopes: &mut Entries, keep: impl Fn(&Metric) -> bool) -> Vec<u32> {
        let mut renumbered = vec![NONE; self.all.len()];
        let mut next = 0;
        for (new, metric) in renumbered.iter_mut().zip(&self.all) {
            if keep(metric) {
                *new = next;
                next += 1;
            }
        }
        let mut number = 0;
        self.all.retain(|_| {
            number += 1;
            renumbered[number - 1] != NONE
        });
        self.by_key.retain(|_, metric| {
            *metric = renumbered[*metric as usize];
            *metric != NONE
        });
        let old_resources = std::mem::take(resources);
        let old_scopes = std::mem::take(scopes);
        for metric in &mut self.all {
            metric.resource = resources.intern(&old_resources.all[metric.resource as usize], resource::ATTRIBUTES);
            metric.scope = scopes.intern(&old_scopes.all[metric.scope as usize], scope::ATTRIBUTES);
        }
        self.bytes = 0;
        for (mut key, number) in std::mem::take(&mut self.by_key) {
            let metric = &self.all[number as usize];
            key[..4].copy_from_slice(&metric.resource.to_le_bytes());
            key[4..8].copy_from_slice(&metric.scope.to_le_bytes());
            self.bytes += size_of::<Metric>() + key.len() + 40 + metric.head.len() + metric.tail.len();
            self.by_key.insert(key, number);
        }
        renumbered
    }
}

impl Metric {
    /// Its name, for counters.
    pub fn name(&self) -> String {
        let mut name = &[][..];
        let _ = for_each_field(Reader::new(&self.head), |field| {
            if field.number == metric::NAME {
                name = field.bytes().unwrap_or_default();
            }
            Ok::<(), WireError>(())
        });
        String::from_utf8_lossy(name).into_owned()
    }
}

/// Whether a field of the data is a point.
#[inline]
pub fn is_point(field: &Field<'_>) -> bool {
    field.number == data::POINTS && field.bytes().is_some()
}

fn shape_of(data_field: u32) -> Option<Shape> {
    Some(match data_field {
        metric::GAUGE | metric::SUM => Shape::Number,
        metric::HISTOGRAM => Shape::Histogram,
        metric::EXPONENTIAL_HISTOGRAM => Shape::Exponential,
        metric::SUMMARY => Shape::Summary,
        _ => return None,
    })
}

fn rule_of(data_field: u32, temporality: u64, monotonic: u64) -> Rule {
    match (data_field, temporality) {
        (metric::GAUGE, _) => Rule::Latest,
        // A summary has no temporality: it is cumulative by its origin, and where it is not its count falls.
        (metric::SUMMARY, _) => Rule::Cumulative { falls: true },
        (metric::SUM, temporality::CUMULATIVE) => Rule::Cumulative { falls: monotonic != 0 },
        (_, temporality::CUMULATIVE) => Rule::Cumulative { falls: true },
        (_, temporality::DELTA) => Rule::Delta,
        _ => Rule::Pass,
    }
}
