//! One log record or span of a request.

use super::Walk;
use crate::batch::Signal;
use crate::otlp::validate::{MAX_MESSAGE_DEPTH, validate};
use crate::otlp::wire::{Field, WireError};

/// A request, its resource and its scope enclose an item.
pub(super) const ITEM_DEPTH: usize = MAX_MESSAGE_DEPTH - 3;

impl Walk<'_> {
    /// Appends an item, or sets it aside.
    pub(super) fn item(&mut self, field: &Field<'_>, resource: u32, scope: u32) {
        if let Err(error) = self.try_item(field, resource, scope) {
            self.read.reject(error.detail, error.offset, field.bytes().unwrap_or_default(), 1);
        } else {
            self.read.received += 1;
        }
    }

    fn try_item(&mut self, field: &Field<'_>, resource: u32, scope: u32) -> Result<(), WireError> {
        validate(field.message(), self.row, ITEM_DEPTH)?;
        self.batch.push_message(field.bytes().unwrap_or_default(), resource, scope)?;
        // A log record without ids, or with ids of zeros, belongs to no trace: so says the data model. A span must have both.
        if self.batch.signal == Signal::Traces {
            let columns = &self.batch.columns;
            let missing = |detail| WireError { offset: field.bytes_offset(), detail };
            let error = match (columns.trace_id.last(), columns.span_id.last()) {
                (Some([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), _) => Some(missing("the span's trace_id is missing or all zero")),
                (_, Some([0, 0, 0, 0, 0, 0, 0, 0])) => Some(missing("the span's span_id is missing or all zero")),
                _ => None,
            };
            if let Some(error) = error {
                self.batch.pop_row();
                return Err(error);
            }
        }
        Ok(())
    }
}
