//! The tick of a tail sampler: what is due is decided, kept rows are gathered, blocks without open traces end, decisions are packed.

use super::blocks::Held;
use super::output::Output;
pub use super::output::OutputSettings;
use super::span::{Written, trace_id_of};
use super::state::Commit;
use super::tail::{MAX_INFLATED_BYTES, TailSampler, Value};
use super::threshold::Threshold;
use super::traces::{Found, Traces};
use super::walk::{Part, walk};
use crate::block::{Block, Header, request_of};
use crate::error::{CoreError, ErrorKind};
use crate::otlp::decode::table_entry;
use crate::otlp::fields::{resource_rows, scope_rows};
use crate::otlp::wire::WireError;

/// Rows that one commit sends at most, before compression: it is built in memory. What is left goes with the next.
const COMMIT_BYTES: usize = 32 << 20;
/// With so many values to delete a commit is made for that alone.
const MANY_DELETES: usize = 64;

/// What one commit does.
#[derive(Debug, Default)]
pub struct Tick {
    /// Blocks that have ended.
    pub acks: Vec<Ended>,
    /// What goes on.
    pub outputs: Vec<Block>,
    /// The number and the value of what a restart has to know.
    pub state: Option<(u64, Vec<u8>)>,
    /// Numbers of values that are needed no more.
    pub deletes: Vec<u64>,
}

/// A block that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub offset: u64,
    /// Its rows that were left out.
    pub skipped: u64,
    /// Its rows that cannot be read.
    pub broken: u64,
}

impl TailSampler {
    /// What is due now; None where nothing is. `payload_of` gives a held block's header and payload. `at_once`: kept rows do not wait
    /// for the rest of their block. What is returned counts as done: the caller commits it, or begins anew with [`Self::restore`].
    pub fn tick<'a>(
        &mut self,
        now_unix_nano: i64,
        at_once: bool,
        outputs: &OutputSettings,
        payload_of: impl Fn(u64) -> Option<(&'a Header, &'a [u8])>,
    ) -> Result<Option<Tick>, CoreError> {
        self.advance(now_unix_nano);
        self.decide_due();
        let mut tick = Tick::default();
        let passed = self.pass_due(at_once, outputs, payload_of, &mut tick.outputs)?;
        self.end_blocks(&mut tick);
        let passed: Vec<u64> =
            passed.into_iter().filter(|offset| tick.acks.binary_search_by_key(offset, |ended| ended.offset).is_err()).collect();
        let has_state = !self.decisions.is_empty() || !passed.is_empty();
        self.forget_old();
        tick.deletes = self.deletable();
        if !has_state && tick.acks.is_empty() && tick.outputs.is_empty() && tick.deletes.len() < MANY_DELETES {
            return Ok(None);
        }
        for seq in &tick.deletes {
            self.values.remove(seq);
        }
        if has_state {
            tick.state = Some(self.packed(passed));
        }
        self.seq += 1;
        Ok(Some(tick))
    }

    fn packed(&mut self, passed: Vec<u64>) -> (u64, Vec<u8>) {
        let commit = Commit {
            seq: self.seq,
            time_ns: self.time_ns,
            through_offset: self.last_taken.unwrap_or(0),
            decisions: std::mem::take(&mut self.decisions),
            passed,
        };
        self.values.insert(self.seq, Value { through_offset: commit.through_offset, live: commit.decisions.len() });
        (self.seq, commit.to_bytes())
    }

    /// Sends the kept rows that wait for it; returns the offsets of their blocks, in order.
    fn pass_due<'a>(
        &mut self,
        at_once: bool,
        settings: &OutputSettings,
        payload_of: impl Fn(u64) -> Option<(&'a Header, &'a [u8])>,
        made: &mut Vec<Block>,
    ) -> Result<Vec<u64>, CoreError> {
        let mut due: Vec<(u64, u32)> = Vec::new();
        for (offset, slot) in self.blocks.in_order().collect::<Vec<_>>() {
            let block = self.blocks.get(slot);
            let early = block.pending > 0 && !at_once;
            if block.pass_is_due(self.time_ns, at_once) && (!early || self.early_rows.take(block.records as f64, self.time_ns)) {
                due.push((offset, slot));
            }
        }
        let mut streams = [Output::new(settings, false), Output::new(settings, true)];
        let mut passed = Vec::new();
        let mut sent_bytes = 0;
        for (offset, slot) in due {
            if sent_bytes >= COMMIT_BYTES {
                break;
            }
            let (header, payload) = payload_of(offset)
                .ok_or_else(|| CoreError::new(ErrorKind::ConfigInvalid, 0, format!("block {offset} was taken and is not there")))?;
            let stream = &mut streams[usize::from(self.blocks.get(slot).red_done)];
            sent_bytes += self.pass(slot, header, payload, stream, made)?;
            passed.push(offset);
        }
        for stream in &mut streams {
            stream.flush(made)?;
        }
        Ok(passed)
    }

    fn pass(
        &mut self,
        slot: u32,
        header: &Header,
        payload: &[u8],
        out: &mut Output<'_>,
        made: &mut Vec<Block>,
    ) -> Result<usize, CoreError> {
        let request = request_of(header, payload, MAX_INFLATED_BYTES)?;
        let passed_seq = self.blocks.get(slot).passed_seq;
        let (mut kept_rows, mut broken_rows, mut sent_bytes, mut malformed) = (0, 0, 0, 0);
        let (mut resource, mut scope) = (None, None);
        let mut failed = None;
        let traces = &self.traces;
        let walked = walk(&request, |part| {
            match part {
                Part::Resource(message) => resource = Some(message),
                Part::Scope(message) => {
                    scope = Some(message);
                    out.leave_scope();
                }
                Part::Span(message) => {
                    let message = message.rest();
                    let Some(threshold) = due_row(traces, message, passed_seq)? else { return Ok(()) };
                    let enclosing = || {
                        const RESOURCE: [u32; 3] = [resource_rows::RESOURCE, resource_rows::SCHEMA_URL, resource_rows::SCOPE_ROWS];
                        const SCOPE: [u32; 3] = [scope_rows::SCOPE, scope_rows::SCHEMA_URL, scope_rows::ROW];
                        let missing = WireError { offset: 0, detail: "a span outside of a scope" };
                        Ok((table_entry(resource.clone().ok_or(missing)?, RESOURCE)?, table_entry(scope.clone().ok_or(missing)?, SCOPE)?))
                    };
                    match out.push(message, threshold, enclosing, made) {
                        Ok(Ok(written)) => {
                            kept_rows += 1;
                            malformed += u64::from(written == Written::Malformed);
                            sent_bytes += message.len();
                        }
                        Ok(Err(_)) => broken_rows += 1,
                        Err(error) => failed = Some(error),
                    }
                }
            }
            Ok(())
        });
        out.leave_scope();
        if let Some(error) = failed {
            return Err(error);
        }
        walked.map_err(|error| error.of_kind(ErrorKind::BlockInvalid))?;
        let (seq, block) = (self.seq, self.blocks.get(slot));
        block.kept_rows += kept_rows;
        block.broken_rows += broken_rows;
        block.passed_seq = seq;
        block.due_since_ns = None;
        self.counts.malformed_tracestate += malformed;
        Ok(sent_bytes)
    }

    fn end_blocks(&mut self, tick: &mut Tick) {
        for (offset, slot) in self.blocks.in_order().collect::<Vec<_>>() {
            let block = self.blocks.get(slot);
            if block.pending == 0 && block.due_since_ns.is_none() {
                let Held { records, kept_rows, broken_rows: broken, .. } = self.blocks.end(slot);
                tick.acks.push(Ended { offset, skipped: records.saturating_sub(kept_rows + broken), broken });
            }
        }
    }

    /// Below this every block has ended: what was decided of their traces is needed for late spans alone.
    fn ended_below(&self) -> u64 {
        self.blocks.first_offset().unwrap_or_else(|| self.last_taken.map_or(0, |last| last + 1))
    }

    fn forget_old(&mut self) {
        let ended_below = self.ended_below();
        while let Some(slot) = self.traces.least_used() {
            let decided = self.traces.decided(slot);
            let is_old = self.time_ns.saturating_sub(decided.time_ns) > self.settings.late_ns;
            let too_many = self.traces.decided_len() * Traces::DECIDED_BYTES > self.settings.max_decided_bytes;
            // What is being committed now is not forgotten before it has been written once.
            if decided.touched_offset >= ended_below || decided.seq == self.seq || !(is_old || too_many) {
                return;
            }
            self.forget(slot);
        }
    }

    fn deletable(&self) -> Vec<u64> {
        let ended_below = self.ended_below();
        self.values.iter().filter(|(_, value)| value.live == 0 && value.through_offset < ended_below).map(|(seq, _)| *seq).collect()
    }
}

/// Whether a row is to be sent: then the threshold that it shall say.
fn due_row(traces: &Traces, message: &[u8], passed_seq: u64) -> Result<Option<Option<Threshold>>, WireError> {
    let id = trace_id_of(message)?;
    if id == [0; 16] {
        return Ok((passed_seq == 0).then_some(None));
    }
    Ok(match traces.find(&id) {
        Some(Found::Decided(slot)) => {
            let decided = traces.decided(slot);
            if decided.seq > passed_seq { decided.kept } else { None }
        }
        _ => None,
    })
}
