//! One log record or span of a request.

use super::{Walk, usual};
use crate::batch::Signal;
use crate::otlp::fields::scope_rows;
use crate::otlp::scan::{RowFacts, scan_row};
use crate::otlp::validate::{MAX_MESSAGE_DEPTH, validate};
use crate::otlp::wire::{Field, Reader, WireError, put_header};

/// A request, its resource and its scope enclose an item.
pub(super) const ITEM_DEPTH: usize = MAX_MESSAGE_DEPTH - 3;

impl Walk<'_> {
    /// Appends an item, or sets it aside.
    #[inline]
    pub(super) fn item(&mut self, field: &Field<'_>, resource: u32, scope: u32) {
        let message = field.bytes().unwrap_or_default();
        let start = self.batch.rows.len();
        put_header(&mut self.batch.rows, scope_rows::ROW, message.len());
        let base = self.batch.rows.len();
        let extremes = self.batch.extremes;
        let read = match self.batch.signal {
            Signal::Logs => usual::log(message, base, self.rules.keys(), &mut self.batch.extremes).map(|(facts, _)| facts),
            _ => usual::span(message, base, &mut self.batch.extremes),
        };
        let read = match read {
            Some(facts) => Ok(facts),
            None => self.read_by_descriptors(message, base),
        };
        match read.and_then(|facts| self.with_ids(facts, base)) {
            Ok(facts) => {
                self.batch.rows.extend_from_slice(message);
                self.batch.push_facts(&facts, resource, scope);
                self.read.received += 1;
            }
            Err(error) => {
                self.batch.rows.truncate(start);
                self.batch.extremes = extremes;
                let offset = error.offset - base + field.bytes_offset();
                self.reject(field, WireError { offset, ..error }, message, 1);
            }
        }
    }

    /// Checks and reads any item; also says what is wrong.
    #[inline(never)]
    fn read_by_descriptors(&mut self, message: &[u8], base: usize) -> Result<RowFacts, WireError> {
        validate(Reader::at(message, base), self.row, ITEM_DEPTH)?;
        scan_row(self.batch.signal, message, base, &mut self.batch.extremes)
    }

    /// A log record without ids, or with ids of zeros, belongs to no trace: so says the data model, and it is kept. A span must have both.
    #[inline]
    fn with_ids(&self, facts: RowFacts, base: usize) -> Result<RowFacts, WireError> {
        if self.batch.signal != Signal::Traces {
            return Ok(facts);
        }
        let missing = |detail| Err(WireError { offset: base, detail });
        if facts.trace_id == [0; 16] {
            return missing("the span's trace_id is missing or all zero");
        }
        if facts.span_id == [0; 8] {
            return missing("the span's span_id is missing or all zero");
        }
        Ok(facts)
    }
}
