//! A window as blocks: metrics with their points, cut where a row or a block would grow too large.

use super::fields::data;
use super::metrics::{Metric, NONE};
use super::{Aggregator, Passed};
use crate::batch::{Batch, Signal, TableEntry};
use crate::block::{Block, encode_block};
use crate::compress::Codec;
use crate::error::{CoreError, ErrorKind};
use crate::hash::KeyedMap;
use crate::otlp::value::{Scalar, put_key_value, put_scalar};
use crate::otlp::wire::{field_len, put_bytes, put_header};

/// A block holds at most this much before compression; a single larger point is a block of its own.
pub const BLOCK_BYTES: usize = 1 << 20;
/// Points of a metric past this go into another row, so that rows pack well into blocks.
const ROW_BYTES: usize = 128 << 10;
/// Tags and lengths around a row, a resource, a scope.
const FRAME_BYTES: usize = 16;

/// The attributes of the stream for what is past the limit, as field `number` of a point.
pub fn overflow_attributes(number: u32) -> Vec<u8> {
    let (mut value, mut out) = (Vec::new(), Vec::new());
    put_scalar(&mut value, Scalar::Bool(true));
    put_key_value(&mut out, number, b"otel.metric.overflow", &value);
    out
}

/// A flushed window.
#[derive(Debug, Default)]
pub struct Flushed {
    /// At most [`BLOCK_BYTES`] each, flagged as aggregated.
    pub blocks: Vec<Block>,
    /// Points in them.
    pub points: u64,
    /// By metric name: points past the limit.
    pub overflowed: Vec<(String, u64)>,
}

/// How blocks are made.
#[derive(Clone, Copy, Debug)]
pub struct BlockForm<'a> {
    /// Of the payload.
    pub codec: Codec,
    /// Its level.
    pub level: i32,
    /// Where they are filed.
    pub topic: &'a str,
    /// What their ids begin with; a number follows.
    pub id_prefix: &'a str,
}

/// Collects rows into blocks.
pub(crate) struct Blocks<'a> {
    form: BlockForm<'a>,
    batch: Batch,
    batch_bytes: usize,
    resources: KeyedMap<u32, u32>,
    scopes: KeyedMap<u32, u32>,
    pub(crate) done: Vec<Block>,
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(form: BlockForm<'a>) -> Self {
        let (resources, scopes) = (KeyedMap::default(), KeyedMap::default());
        Self { form, batch: Batch::new(Signal::Metrics), batch_bytes: 0, resources, scopes, done: Vec::new() }
    }

    /// Adds a row: a `Metric` message.
    pub(crate) fn push(&mut self, message: &[u8], resource: (u32, &TableEntry), scope: (u32, &TableEntry)) -> Result<(), CoreError> {
        let entry_len = |entry: &TableEntry| entry.message.len() + entry.schema_url.len() + entry.unknown.len() + FRAME_BYTES;
        // Every row is counted as if it began a resource and a scope of its own: rows of several may come in any order.
        let row = field_len(message.len()) + FRAME_BYTES;
        let entries = |blocks: &Self| {
            let mut bytes = 0;
            if !blocks.resources.contains_key(&resource.0) {
                bytes += entry_len(resource.1);
            }
            // A scope is written once under each resource: counted for each.
            bytes + entry_len(scope.1)
        };
        if !self.batch.is_empty() && self.batch_bytes + row + entries(self) > BLOCK_BYTES {
            self.close()?;
        }
        self.batch_bytes += row + entries(self);
        let batch = &mut self.batch;
        let resource = *self.resources.entry(resource.0).or_insert_with(|| {
            batch.resources.push(resource.1.clone());
            batch.resources.len() as u32 - 1
        });
        let scope = *self.scopes.entry(scope.0).or_insert_with(|| {
            batch.scopes.push(scope.1.clone());
            batch.scopes.len() as u32 - 1
        });
        batch.push_message(message, resource, scope).map_err(|error| error.of_kind(ErrorKind::BodyInvalid))
    }

    /// Ends the block that rows are being put into.
    pub(crate) fn close(&mut self) -> Result<(), CoreError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let id = format!("{}{:x}", self.form.id_prefix, self.done.len());
        let block = encode_block(&[&self.batch], self.form.codec, self.form.level, self.form.topic, &id)?;
        self.done.push(block);
        self.batch = Batch::new(Signal::Metrics);
        self.batch_bytes = 0;
        self.resources.clear();
        self.scopes.clear();
        Ok(())
    }
}

impl Aggregator {
    /// Everything taken since the last flush, and a new window.
    pub fn flush(&mut self, form: BlockForm<'_>) -> Result<Flushed, CoreError> {
        let mut blocks = Blocks::new(form);
        let mut flushed = Flushed::default();
        for Passed { resource, scope, message } in std::mem::take(&mut self.passed) {
            let entries = ((resource, &self.resources.all[resource as usize]), (scope, &self.scopes.all[scope as usize]));
            blocks.push(&message, entries.0, entries.1)?;
        }
        let (mut points, mut row) = (Vec::new(), Vec::new());
        for index in 0..self.metrics.all.len() {
            if self.metrics.all[index].present {
                self.flush_metric(index, &mut blocks, &mut flushed, &mut points, &mut row)?;
            }
        }
        blocks.close()?;
        flushed.blocks = blocks.done;
        flushed.blocks.iter_mut().for_each(|block| block.header.aggregated = true);
        self.end_window();
        Ok(flushed)
    }

    fn flush_metric(
        &mut self,
        index: usize,
        blocks: &mut Blocks<'_>,
        flushed: &mut Flushed,
        points: &mut Vec<u8>,
        row: &mut Vec<u8>,
    ) -> Result<(), CoreError> {
        let metric = &self.metrics.all[index];
        let resource = (metric.resource, &self.resources.all[metric.resource as usize]);
        let scope = (metric.scope, &self.scopes.all[metric.scope as usize]);
        if metric.overflowed > 0 {
            flushed.overflowed.push((metric.name(), metric.overflowed));
        }
        points.clear();
        let mut wrote = false;
        let mut point = Vec::new();
        for &number in &metric.streams {
            let kept = std::mem::take(&mut self.streams.get_mut(number).points);
            let latest = kept.iter().filter(|kept| kept.recorded).map(|kept| kept.time_unix_nano).max();
            for kept in kept.iter().filter(|kept| kept.recorded || latest.is_none_or(|latest| kept.time_unix_nano >= latest)) {
                point.clear();
                point.extend_from_slice(self.streams.attributes(number));
                kept.put(&mut point);
                flushed.points += 1;
                if !points.is_empty() && points.len() + field_len(point.len()) > ROW_BYTES {
                    write_row(metric, points, row);
                    blocks.push(row, resource, scope)?;
                    points.clear();
                    wrote = true;
                }
                put_header(points, data::POINTS, point.len());
                points.extend_from_slice(&point);
            }
        }
        // A metric that came without a point goes without one.
        if !points.is_empty() || !wrote {
            write_row(metric, points, row);
            blocks.push(row, resource, scope)?;
        }
        debug_assert_ne!(metric.resource, NONE);
        Ok(())
    }
}

/// Adds a metric made here: points that lie together, cut into rows.
pub(crate) fn put_points_row(
    blocks: &mut Blocks<'_>,
    head: &[u8],
    data_field: u32,
    tail: &[u8],
    points: impl Iterator<Item = Vec<u8>>,
    resource: (u32, &TableEntry),
    scope: (u32, &TableEntry),
) -> Result<(), CoreError> {
    let mut points_data: Vec<u8> = Vec::new();
    let close = |data: &mut Vec<u8>, blocks: &mut Blocks<'_>| {
        let mut row = head.to_vec();
        put_header(&mut row, data_field, data.len() + tail.len());
        row.append(data);
        row.extend_from_slice(tail);
        blocks.push(&row, resource, scope)
    };
    for point in points {
        if !points_data.is_empty() && points_data.len() + field_len(point.len()) > ROW_BYTES {
            close(&mut points_data, blocks)?;
        }
        put_bytes(&mut points_data, data::POINTS, &point);
    }
    if points_data.is_empty() { Ok(()) } else { close(&mut points_data, blocks) }
}

fn write_row(metric: &Metric, points: &[u8], row: &mut Vec<u8>) {
    row.clear();
    row.extend_from_slice(&metric.head);
    put_header(row, metric.data_field, points.len() + metric.tail.len());
    row.extend_from_slice(points);
    row.extend_from_slice(&metric.tail);
}
