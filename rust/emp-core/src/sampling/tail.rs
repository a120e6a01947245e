//! The tail sampler: takes blocks in, keeps a summary of each trace, and says at a tick which blocks have ended and what of them goes on.
//!
//! ```text
//! take(block) ─▶ per trace: error, root, times, matches, spans          decide: policies ─▶ verdict, threshold
//!                per block: open traces, a link for each of them ─────────▶ the trace's blocks are due, or one trace nearer to their end
//! tick(now)   ─▶ due blocks are opened once more, rows of kept traces gathered ─▶ outputs, acks, one packed value of decisions
//! ```
//! Rows are not kept in memory: blocks stay compressed where they lie. A restart is the same blocks again after [`TailSampler::restore`]:
//! what was decided stays so, and no row goes out twice. Time is an argument. The rest of it is in [`super::tick`].

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::blocks::{Blocks, Held};
use super::policy::{Policies, TraceFacts};
use super::rate::Bucket;
use super::settings::{Counts, TailSettings, Why};
use super::span::{SpanFacts, read_span};
use super::state::Commit;
use super::threshold::randomness_of;
use super::traces::{Found, NONE, TraceId, Traces};
use super::walk::{Part, walk};
use crate::block::{Header, request_of};
use crate::error::{CoreError, ErrorKind};
use crate::otlp::fields::resource_rows;
use crate::otlp::scan::key_value;
use crate::otlp::wire::{Reader, WireError, for_each_field};

/// What a block may inflate to.
pub const MAX_INFLATED_BYTES: usize = 256 << 20;

/// Opening a block twice costs a quarter of a microsecond a row: with few spans nobody notices, and with many their blocks wait until all
/// traces in them are decided.
const EARLY_ROWS_PER_S: f64 = 10_000.0;

/// The value of a commit that is in the log.
pub(super) struct Value {
    pub(super) through_offset: u64,
    pub(super) live: usize,
}

/// See the module's head.
pub struct TailSampler {
    pub(super) settings: TailSettings,
    pub(super) policies: Policies,
    pub(super) traces: Traces,
    pub(super) blocks: Blocks,
    /// The sampler's time: that of the caller's clock, but it never goes back.
    pub(super) time_ns: i64,
    last_now: Option<i64>,
    /// The commit that is being made; it has no value in the log yet.
    pub(super) seq: u64,
    pub(super) decisions: Vec<(TraceId, Option<Option<super::threshold::Threshold>>)>,
    pub(super) last_taken: Option<u64>,
    /// Of blocks that a restart will bring: see [`Held::passed_seq`].
    passed: HashMap<u64, u64>,
    /// The commits whose values are in the log.
    pub(super) values: BTreeMap<u64, Value>,
    roots: VecDeque<(i64, TraceId)>,
    flagged: Vec<(TraceId, Why)>,
    pub(super) counts: Counts,
    /// Of blocks with open traces that are opened for the few rows in them that are due.
    pub(super) early_rows: Bucket,
}

impl TailSampler {
    /// A sampler that knows nothing yet. Errors (`config_invalid`) name the policy.
    pub fn new(settings: TailSettings) -> Result<Self, CoreError> {
        let policies = Policies::new(&settings.policies)?;
        let counts = Counts { by_policy: vec![(0, 0); policies.names().len() + 1], ..Counts::default() };
        Ok(Self {
            settings,
            policies,
            traces: Traces::default(),
            blocks: Blocks::default(),
            time_ns: 0,
            last_now: None,
            seq: 1,
            decisions: Vec::new(),
            last_taken: None,
            passed: HashMap::new(),
            values: BTreeMap::new(),
            roots: VecDeque::new(),
            flagged: Vec::new(),
            counts,
            early_rows: Bucket::new(EARLY_ROWS_PER_S)?,
        })
    }

    /// Begins anew with the values of the commits that were made. Counts go on.
    pub fn restore<'a>(&mut self, values: impl Iterator<Item = &'a [u8]>) -> Result<(), CoreError> {
        let mut commits = values.map(Commit::parse).collect::<Result<Vec<_>, _>>()?;
        commits.sort_by_key(|commit| commit.seq);
        let counts = std::mem::take(&mut self.counts);
        *self = Self { counts, ..Self::new(self.settings.clone())? };
        for commit in commits {
            let live = commit.decisions.len();
            for (id, kept) in commit.decisions {
                if let Some(Found::Decided(slot)) = self.traces.find(&id) {
                    self.forget(slot);
                }
                self.traces.remember(id, kept, commit.seq, commit.through_offset, commit.time_ns);
            }
            for offset in commit.passed {
                self.passed.insert(offset, commit.seq);
            }
            self.values.insert(commit.seq, Value { through_offset: commit.through_offset, live });
            self.seq = commit.seq + 1;
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, slot: u32) {
        let decided = self.traces.forget_decided(slot);
        if let Some(value) = self.values.get_mut(&decided.seq) {
            value.live = value.live.saturating_sub(1);
        }
    }

    pub(super) fn advance(&mut self, now_unix_nano: i64) {
        // A clock that is set back makes nothing wait for longer; one that is set forward cannot be told from time that passed.
        self.time_ns = match self.last_now {
            None => now_unix_nano,
            Some(last) => self.time_ns.saturating_add(now_unix_nano.saturating_sub(last).max(0)),
        };
        self.last_now = Some(now_unix_nano);
    }

    /// Takes a block in, in the order of offsets. An error of kind `block_invalid` gives it back: it is not held.
    pub fn take(&mut self, offset: u64, header: &Header, payload: &[u8], now_unix_nano: i64) -> Result<(), CoreError> {
        self.advance(now_unix_nano);
        self.last_taken = Some(self.last_taken.map_or(offset, |last| last.max(offset)));
        let request = request_of(header, payload, MAX_INFLATED_BYTES)?;
        let block = self.blocks.add(Held {
            offset,
            payload_bytes: payload.len(),
            records: header.records,
            red_done: header.red_done || self.settings.red_done,
            taken_ns: self.time_ns,
            passed_seq: self.passed.remove(&offset).unwrap_or(0),
            ..Held::default()
        });
        let walked = self.enter(block, &request);
        self.blocks.get(block).unreadable = walked.is_err();
        self.blocks.settle(block);
        for (id, why) in std::mem::take(&mut self.flagged) {
            if let Some(Found::Open(slot)) = self.traces.find(&id) {
                self.decide(slot, why);
            }
        }
        while self.open_bytes() > self.settings.max_open_bytes
            && let Some(slot) = self.traces.oldest_open()
        {
            self.decide(slot, Why::Memory);
        }
        // Roots of traces that were decided otherwise are in nobody's way until they are most of the queue.
        if self.roots.len() > 2 * self.traces.open_len() + 1024 {
            let traces = &self.traces;
            self.roots.retain(|(_, id)| matches!(traces.find(id), Some(Found::Open(_))));
        }
        walked.map_err(|error| error.of_kind(ErrorKind::BlockInvalid))
    }

    fn enter(&mut self, block: u32, request: &[u8]) -> Result<(), WireError> {
        let leaves = self.policies.leaves().to_vec();
        let on_spans = leaves.iter().any(super::attribute::Leaf::on_spans);
        let mut of_resource = 0;
        let mut last: Option<(TraceId, Found)> = None;
        walk(request, |part| match part {
            Part::Resource(message) => {
                of_resource = 0;
                if leaves.is_empty() {
                    return Ok(());
                }
                for_each_field(message, |field| {
                    if field.number == resource_rows::RESOURCE {
                        for (bit, leaf) in leaves.iter().enumerate() {
                            of_resource |= u32::from(leaf.matches_resource(field.bytes().unwrap_or_default())?) << bit;
                        }
                    }
                    Ok(())
                })
            }
            Part::Scope(_) => Ok(()),
            Part::Span(message) => {
                let mut matched = of_resource;
                let attribute = |pair: Reader<'_>| {
                    if on_spans {
                        let pair = key_value(pair)?;
                        for (bit, leaf) in leaves.iter().enumerate().filter(|(_, leaf)| leaf.on_spans()) {
                            matched |= u32::from(leaf.matches(&pair)?) << bit;
                        }
                    }
                    Ok(())
                };
                let facts = read_span(message, attribute)?;
                if facts.trace_id == [0; 16] {
                    self.enter_without_id(block);
                    return Ok(());
                }
                let found = match last {
                    Some((id, found)) if id == facts.trace_id => found,
                    _ => self.traces.find(&facts.trace_id).unwrap_or_else(|| Found::Open(self.traces.begin(facts.trace_id, self.time_ns))),
                };
                last = Some((facts.trace_id, found));
                match found {
                    Found::Open(slot) => self.enter_span(block, slot, &facts, matched),
                    Found::Decided(slot) => self.enter_late(block, slot),
                }
                Ok(())
            }
        })
    }

    fn enter_without_id(&mut self, block: u32) {
        let time_ns = self.time_ns;
        let block = self.blocks.get(block);
        self.counts.without_trace_id += 1;
        if block.passed_seq > 0 {
            block.kept_rows += 1;
        } else {
            block.set_due(time_ns);
        }
    }

    fn enter_late(&mut self, block: u32, slot: u32) {
        let decided = *self.traces.decided(slot);
        let time_ns = self.time_ns;
        let block = self.blocks.get(block);
        self.traces.touch(slot, block.offset);
        match decided.kept {
            None => self.counts.late.1 += 1,
            Some(_) if decided.seq <= block.passed_seq => block.kept_rows += 1, // a restart: it was sent before
            Some(_) => {
                block.set_due(time_ns);
                self.counts.late.0 += 1;
            }
        }
    }

    fn enter_span(&mut self, block: u32, slot: u32, facts: &SpanFacts, matched: u32) {
        let trace = self.traces.open(slot);
        trace.spans = trace.spans.saturating_add(1);
        trace.matched |= matched;
        if facts.start_unix_nano > 0 {
            trace.start_unix_nano = trace.start_unix_nano.min(facts.start_unix_nano);
        }
        trace.end_unix_nano = trace.end_unix_nano.max(facts.end_unix_nano);
        trace.randomness = trace.randomness.min(facts.randomness.unwrap_or(u64::MAX));
        if trace.last_link.0 != block {
            let held = self.blocks.get(block);
            held.links.push(trace.last_link);
            held.pending += 1;
            trace.last_link = (block, held.links.len() as u32 - 1);
        }
        if facts.is_error && !trace.is_error {
            trace.is_error = true;
            if self.settings.decide_on_error {
                self.flagged.push((trace.id, Why::Error));
            }
        }
        if facts.is_root && !trace.has_root {
            trace.has_root = true;
            match self.settings.decide_after_root_ns {
                Some(0) => self.flagged.push((trace.id, Why::Root)),
                Some(after_ns) => self.roots.push_back((self.time_ns.saturating_add(after_ns), trace.id)),
                None => {}
            }
        }
        if trace.spans == self.settings.max_trace_spans {
            self.flagged.push((trace.id, Why::Spans));
        }
    }

    /// Decides an open trace; by an error only where that keeps it: what else may still come must not be lost.
    pub(super) fn decide(&mut self, slot: u32, why: Why) {
        let trace = *self.traces.open(slot);
        let facts = TraceFacts {
            is_error: trace.is_error,
            duration_ns: if trace.start_unix_nano == u64::MAX { 0 } else { trace.end_unix_nano.saturating_sub(trace.start_unix_nano) },
            matched: trace.matched,
            spans: trace.spans,
            randomness: if trace.randomness == u64::MAX { randomness_of(&trace.id) } else { trace.randomness },
        };
        let kept = self.policies.decide(&facts, self.time_ns);
        if why == Why::Error && kept.is_none() {
            return;
        }
        self.traces.end_open(slot);
        let touched = self.blocks.get(trace.last_link.0).offset;
        self.traces.remember(trace.id, kept.map(|kept| kept.threshold), self.seq, touched, self.time_ns);
        self.decisions.push((trace.id, kept.map(|kept| kept.threshold)));
        let mut link = trace.last_link;
        while link.0 != NONE {
            link = self.blocks.decided(link, kept.map(|_| self.time_ns));
        }
        let of_policy = self.counts.by_policy.len() - 1;
        let count = &mut self.counts.by_policy[kept.map_or(of_policy, |kept| kept.policy)];
        count.0 += 1;
        count.1 += u64::from(trace.spans);
        *self.counts.by_why.entry(why).or_default() += 1;
    }

    /// Decides what is due by time.
    pub(super) fn decide_due(&mut self) {
        while let Some(slot) = self.traces.oldest_open()
            && self.time_ns.saturating_sub(self.traces.open(slot).first_ns) >= self.settings.decision_wait_ns
        {
            self.decide(slot, Why::Wait);
        }
        while let Some((due_ns, id)) = self.roots.front().copied()
            && due_ns <= self.time_ns
        {
            self.roots.pop_front();
            if let Some(Found::Open(slot)) = self.traces.find(&id) {
                self.decide(slot, Why::Root);
            }
        }
        if self.blocks.pending_bytes() > self.settings.max_held_bytes {
            // Some way below the limit, so that not every tick has to.
            let enough = self.settings.max_held_bytes / 4 * 3;
            while self.blocks.pending_bytes() > enough
                && let Some(slot) = self.traces.oldest_open()
            {
                self.decide(slot, Why::Memory);
            }
        }
    }

    fn open_bytes(&self) -> usize {
        self.traces.open_len() * Traces::OPEN_BYTES + self.blocks.memory_bytes()
    }

    /// Traces that are not decided.
    pub fn open_traces(&self) -> usize {
        self.traces.open_len()
    }

    /// Decisions that are remembered.
    pub fn decided_traces(&self) -> usize {
        self.traces.decided_len()
    }

    /// Blocks that have not ended.
    pub fn held_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// What all summaries take; the blocks' payload is with their deliveries.
    pub fn memory_bytes(&self) -> usize {
        self.traces.memory_bytes() + self.blocks.memory_bytes() + self.decisions.capacity() * 32 + self.roots.capacity() * 24
    }

    /// The names of the policies, in their order.
    pub fn policy_names(&self) -> &[String] {
        self.policies.names()
    }

    /// What has been counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
