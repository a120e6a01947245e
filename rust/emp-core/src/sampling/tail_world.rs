//! A log in memory with one sampler on it, for tests.
#![allow(missing_docs, reason = "a support of tests")]

use std::collections::BTreeMap;

use super::super::super::tick::{OutputSettings, Tick};
use super::super::*;
use crate::batch::{Batch, Signal, TableEntry};
use crate::block::{Block, decode_block, encode_block};
use crate::compress::Codec;
use crate::otlp::fields::{span, status};
use crate::otlp::wire::{put_bytes, put_fixed64, put_message, put_uint};

pub const SECOND_NS: i64 = 1_000_000_000;
const START_NS: i64 = 1_760_000_000 * SECOND_NS;

/// A span of trace `trace`, with a number that no other has.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub trace: u8,
    pub number: u64,
    pub is_error: bool,
}

pub fn id_of(trace: u8) -> TraceId {
    let mut id = [trace.wrapping_mul(37); 16];
    id[0] = 1;
    id
}

pub fn block_of(rows: &[Row], number: u64) -> Block {
    let mut batch = Batch::new(Signal::Traces);
    batch.scopes = vec![TableEntry::default()];
    for row in rows {
        let service = row.number % 3;
        let entry = TableEntry { schema_url: vec![b'a' + service as u8], ..TableEntry::default() };
        let resource = batch.resources.iter().position(|known| *known == entry).unwrap_or_else(|| {
            batch.resources.push(entry);
            batch.resources.len() - 1
        });
        let mut message = Vec::new();
        put_bytes(&mut message, span::TRACE_ID, &id_of(row.trace));
        put_bytes(&mut message, span::SPAN_ID, &row.number.to_be_bytes());
        put_bytes(&mut message, span::PARENT_SPAN_ID, &[1; 8]);
        put_fixed64(&mut message, span::START_TIME_UNIX_NANO, START_NS as u64);
        put_fixed64(&mut message, span::END_TIME_UNIX_NANO, START_NS as u64 + 1);
        if row.is_error {
            put_message(&mut message, span::STATUS, |out| put_uint(out, status::CODE, status::CODE_ERROR));
        }
        batch.push_message(&message, resource as u32, 0).unwrap();
    }
    encode_block(&[&batch], Codec::Zstd, 1, "traces.in", &format!("in-{number}")).unwrap()
}

pub fn settings(policies: &str) -> TailSettings {
    TailSettings::parse(&format!(
        r#"{{"policies": {policies}, "decision_wait_ns": {wait}, "decide_on_error": true, "decide_after_root_ns": null,
            "max_trace_spans": 1000, "late_ns": {late}, "max_held_bytes": 1000000, "max_open_bytes": 1000000,
            "max_decided_bytes": 1000000, "red_done": false}}"#,
        wait = 30 * SECOND_NS,
        late = 5000 * SECOND_NS,
    ))
    .unwrap()
}

pub const FLEET: &str = r#"[{"name": "errors", "type": "error"}, {"name": "normal", "type": "probability", "percent": 50}]"#;

/// A log with one sampler on it.
pub struct World {
    pub settings: TailSettings,
    pub sampler: TailSampler,
    pub log: BTreeMap<u64, Block>,
    pub values: BTreeMap<u64, Vec<u8>>,
    pub taken_through: u64,
    pub sent: Vec<u64>,
    pub skipped: u64,
    pub made: u64,
    pub now_ns: i64,
}

impl World {
    pub fn new(settings: TailSettings) -> Self {
        let sampler = TailSampler::new(settings.clone()).unwrap();
        Self {
            settings,
            sampler,
            log: BTreeMap::new(),
            values: BTreeMap::new(),
            taken_through: 0,
            sent: Vec::new(),
            skipped: 0,
            made: 0,
            now_ns: START_NS,
        }
    }

    pub fn append(&mut self, rows: &[Row], offset: u64) {
        if !rows.is_empty() {
            self.log.insert(offset, block_of(rows, offset));
        }
    }

    pub fn take(&mut self) {
        for (offset, block) in self.log.range(self.taken_through + 1..) {
            self.sampler.take(*offset, &block.header, &block.payload, self.now_ns).unwrap();
            self.taken_through = *offset;
        }
    }

    pub fn tick(&mut self, at_once: bool) -> Option<Tick> {
        let outputs = OutputSettings { codec: Codec::Zstd, level: 1, id_prefix: "out-".to_owned(), first_number: self.made };
        let log = &self.log;
        self.sampler
            .tick(self.now_ns, at_once, &outputs, |offset| log.get(&offset).map(|block| (&block.header, &block.payload[..])))
            .unwrap()
    }

    pub fn commit(&mut self, tick: Tick) {
        for ended in &tick.acks {
            assert!(self.log.remove(&ended.offset).is_some(), "a block ended twice");
            self.skipped += ended.skipped;
            assert_eq!(ended.broken, 0);
        }
        for block in &tick.outputs {
            assert!(block.header.decided && block.header.topic == "traces" && block.header.uncompressed_bytes <= 1 << 20);
            let batch = decode_block(&block.header, &block.payload, 1 << 30).unwrap();
            for row in 0..batch.len() {
                let number = u64::from_be_bytes(batch.columns.span_id[row]);
                let service = &batch.resources[batch.columns.resource[row] as usize].schema_url;
                assert_eq!(service, &[b'a' + (number % 3) as u8], "a span came out under another resource");
                self.sent.push(number);
            }
        }
        self.made += tick.outputs.len() as u64;
        for number in tick.deletes {
            assert!(self.values.remove(&number).is_some(), "a value was deleted that is not there");
        }
        if let Some((number, value)) = tick.state {
            assert!(self.values.insert(number, value).is_none(), "a value was written over");
        }
    }

    /// A kill and a start.
    pub fn restart(&mut self) {
        self.sampler = TailSampler::new(self.settings.clone()).unwrap();
        self.restore();
    }

    /// A commit that was stale: everything was taken back.
    pub fn restore(&mut self) {
        self.sampler.restore(self.values.values().map(Vec::as_slice)).unwrap();
        self.taken_through = 0;
    }

    pub fn run_out(&mut self) {
        for _ in 0..400 {
            self.take();
            self.now_ns += SECOND_NS;
            if let Some(tick) = self.tick(false) {
                self.commit(tick);
            }
        }
        assert!(self.log.is_empty(), "blocks were never ended: {:?}", self.log.keys());
        assert_eq!(self.sampler.blocks.pending_bytes(), 0, "blocks that have ended count as held");
    }
}
