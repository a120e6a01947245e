//! Kept rows out of many blocks, gathered into few: each at most 1 MiB before compression, like those that the log's writer makes.

use super::span::{Written, write_with_threshold};
use super::threshold::Threshold;
use crate::batch::{Batch, Signal, TableEntry};
use crate::block::{Block, encode_block};
use crate::compress::Codec;
use crate::error::CoreError;
use crate::otlp::decode::Interner;
use crate::otlp::wire::WireError;

/// Before compression; a single larger row alone.
const BLOCK_BYTES: usize = 1 << 20;
/// Room for lengths and headers.
const HEAD_BYTES: usize = 4096;

/// How output blocks are made.
#[derive(Clone, Debug)]
pub struct OutputSettings {
    /// Theirs.
    pub codec: Codec,
    /// Of the codec.
    pub level: i32,
    /// Block ids are this and a number; unique, made once.
    pub id_prefix: String,
    /// The first number.
    pub first_number: u64,
}

/// Where a row belongs, in the batch that is being filled.
#[derive(Clone, Copy)]
struct Place {
    resource: u32,
    scope: u32,
}

/// One stream of outputs.
pub struct Output<'a> {
    settings: &'a OutputSettings,
    red_done: bool,
    batch: Batch,
    resources: Interner,
    scopes: Interner,
    /// Of resources and scopes.
    table_bytes: usize,
    place: Option<Place>,
    message: Vec<u8>,
}

impl<'a> Output<'a> {
    /// An empty one.
    pub fn new(settings: &'a OutputSettings, red_done: bool) -> Self {
        Self {
            settings,
            red_done,
            batch: Batch::new(Signal::Traces),
            resources: Interner::default(),
            scopes: Interner::default(),
            table_bytes: 0,
            place: None,
            message: Vec::new(),
        }
    }

    /// The rows that come next have another resource or scope.
    pub fn leave_scope(&mut self) {
        self.place = None;
    }

    /// Appends a row. `enclosing` gives its resource and scope, asked for when they are not those of the row before.
    pub fn push(
        &mut self,
        message: &[u8],
        threshold: Option<Threshold>,
        enclosing: impl FnOnce() -> Result<(TableEntry, TableEntry), WireError>,
        made: &mut Vec<Block>,
    ) -> Result<Result<Written, WireError>, CoreError> {
        if !self.batch.is_empty() && self.batch.rows.len() + self.table_bytes + message.len() + HEAD_BYTES > BLOCK_BYTES {
            self.flush(made)?;
        }
        Ok(self.append(message, threshold, enclosing))
    }

    fn append(
        &mut self,
        message: &[u8],
        threshold: Option<Threshold>,
        enclosing: impl FnOnce() -> Result<(TableEntry, TableEntry), WireError>,
    ) -> Result<Written, WireError> {
        let place = match self.place {
            Some(place) => place,
            None => {
                let (resource, scope) = enclosing()?;
                self.table_bytes += resource.message.len() + scope.message.len() + 64;
                *self.place.insert(Place { resource: self.resources.intern(resource), scope: self.scopes.intern(scope) })
            }
        };
        let Some(threshold) = threshold else {
            self.batch.push_message(message, place.resource, place.scope)?;
            return Ok(Written::Kept);
        };
        self.message.clear();
        let written = write_with_threshold(message, threshold, &mut self.message)?;
        self.batch.push_message(&self.message, place.resource, place.scope)?;
        Ok(written)
    }

    /// Makes a block of what is there.
    pub fn flush(&mut self, made: &mut Vec<Block>) -> Result<(), CoreError> {
        self.place = None;
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch.resources = std::mem::take(&mut self.resources).entries;
        self.batch.scopes = std::mem::take(&mut self.scopes).entries;
        self.table_bytes = 0;
        let settings = self.settings;
        let block_id = format!("{}{:010x}", settings.id_prefix, settings.first_number + made.len() as u64);
        let mut block = encode_block(&[&self.batch], settings.codec, settings.level, "traces", &block_id)?;
        block.header.decided = true;
        block.header.red_done = self.red_done;
        made.push(block);
        self.batch = Batch::new(Signal::Traces);
        Ok(())
    }
}
