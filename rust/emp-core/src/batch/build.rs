//! How a row of logs begins and ends: the fixed fields in front, the length patched in, the columns beside.

use super::{Batch, FLAG_ERROR, View};
use crate::normalize::copy::{SLACK, copy_block};
use crate::normalize::severity;
use crate::normalize::wire::{varint_len, write_varint};

/// Bytes before a row's own fields: `0x12 <2 bytes of length>`.
const PREFIX: usize = 3;
const TIME: usize = PREFIX + 1;
const OBSERVED: usize = TIME + 9;
const SEVERITY: usize = OBSERVED + 9;
/// Bytes that every row begins with: its prefix, time_unix_nano, observed_time_unix_nano, severity_number.
pub const HEAD_BYTES: usize = SEVERITY + 1;

/// The first bytes of a row, to be copied and patched.
#[derive(Clone, Copy, Debug)]
pub struct NewRow([u8; 32]);

impl NewRow {
    /// Rows that arrived at a time.
    pub fn new(observed_time_unix_nano: i64) -> Self {
        let mut bytes = [0; 32];
        bytes[0] = 0x12;
        bytes[TIME - 1] = 0x09;
        bytes[OBSERVED - 1] = 0x59;
        bytes[OBSERVED..OBSERVED + 8].copy_from_slice(&observed_time_unix_nano.to_le_bytes());
        bytes[SEVERITY - 1] = 0x10;
        Self(bytes)
    }

    /// Writes over the beginning of a row that has begun.
    pub fn write_over(&self, row: &mut [u8]) {
        row[..HEAD_BYTES].copy_from_slice(&self.0[..HEAD_BYTES]);
    }

    /// Begins a row; returns where.
    #[inline(always)]
    pub fn begin(&self, rows: &mut Vec<u8>) -> usize {
        let start = rows.len();
        rows.reserve(HEAD_BYTES + SLACK);
        // SAFETY: there is room for HEAD_BYTES + SLACK, of which 32 are written and HEAD_BYTES kept.
        unsafe {
            copy_block(self.0.as_ptr(), rows.as_mut_ptr().add(start));
            rows.set_len(start + HEAD_BYTES);
        }
        start
    }
}

/// What the columns say of a row.
#[derive(Clone, Copy, Debug)]
pub struct RowFacts {
    /// Never 0 unless unknown.
    pub time_unix_nano: i64,
    /// OTLP's.
    pub severity_number: u8,
    /// Index.
    pub resource: u32,
    /// Index.
    pub scope: u32,
    /// [`super::FLAG_EVENT`]; that of an error is added here.
    pub flags: u8,
    /// Zeros when absent.
    pub trace_id: [u8; 16],
    /// Zeros when absent.
    pub span_id: [u8; 8],
    /// Into the row buffer.
    pub body: View,
    /// Into the row buffer.
    pub job_id: View,
    /// Into the row buffer.
    pub event_type: View,
    /// The record's attributes.
    pub attributes: u32,
}

impl RowFacts {
    /// A row of a scope of which nothing else is known yet.
    #[inline(always)]
    pub fn new(scope: u32) -> Self {
        Self {
            time_unix_nano: 0,
            severity_number: 0,
            resource: 0,
            scope,
            flags: 0,
            trace_id: [0; 16],
            span_id: [0; 8],
            body: View::NONE,
            job_id: View::NONE,
            event_type: View::NONE,
            attributes: 0,
        }
    }
}

impl Batch {
    /// Ends the row that [`NewRow::begin`] began at `start`.
    #[inline(always)]
    pub fn finish_row(&mut self, start: usize, mut facts: RowFacts) {
        let len = self.rows.len() - start - PREFIX;
        let head = &mut self.rows[start..start + HEAD_BYTES];
        head[TIME..TIME + 8].copy_from_slice(&facts.time_unix_nano.to_le_bytes());
        head[SEVERITY] = facts.severity_number;
        if (0x80..0x4000).contains(&len) {
            head[1] = len as u8 | 0x80;
            head[2] = (len >> 7) as u8;
        } else {
            let moved = self.set_row_len(start, len);
            for view in [&mut facts.body, &mut facts.job_id, &mut facts.event_type] {
                view.offset = view.offset.wrapping_add_signed(if view.len == View::ABSENT { 0 } else { moved });
            }
        }
        self.row_end.push(self.rows.len() as u32);
        let columns = &mut self.columns;
        columns.time_unix_nano.push(facts.time_unix_nano);
        columns.severity_number.push(facts.severity_number);
        columns.resource.push(facts.resource);
        columns.scope.push(facts.scope);
        columns.flags.push(facts.flags | if facts.severity_number >= severity::ERROR { FLAG_ERROR } else { 0 });
        columns.trace_id.push(facts.trace_id);
        columns.span_id.push(facts.span_id);
        columns.body.push(facts.body);
        columns.job_id.push(facts.job_id);
        columns.event_type.push(facts.event_type);
        self.extremes.max_attributes = self.extremes.max_attributes.max(facts.attributes);
        if facts.body.len != View::ABSENT {
            self.extremes.max_body_bytes = self.extremes.max_body_bytes.max(facts.body.len);
        }
    }

    /// Writes a length that does not take two bytes; returns by how much the row's fields moved.
    #[cold]
    fn set_row_len(&mut self, start: usize, len: usize) -> i32 {
        let width = varint_len(len as u64);
        let (from, to) = (start + PREFIX, start + 1 + width);
        if to > from {
            self.rows.resize(to + len, 0);
        }
        self.rows.copy_within(from..from + len, to);
        self.rows.truncate(to + len);
        write_varint(&mut self.rows[start + 1..], len as u64);
        width as i32 - 2
    }
}
