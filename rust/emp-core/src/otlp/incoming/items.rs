//! One log record or span of a request.

use super::keys::{ALIAS, BODY, ERROR, IDENTITY, LEVEL, SPAN_ID, TIME, TRACE_ID, TRACEPARENT};
use super::usual::{self, Log};
use super::{Place, Walk};
use crate::batch::View;
use crate::normalize::otlp::Origin;
use crate::otlp::fields::{log, scope_rows};
use crate::otlp::scan::{RowFacts, scan_row};
use crate::otlp::validate::{MAX_MESSAGE_DEPTH, validate};
use crate::otlp::wire::{Field, Reader, WireError, put_fixed64, put_header};

/// A request, its resource and its scope enclose an item.
pub(super) const ITEM_DEPTH: usize = MAX_MESSAGE_DEPTH - 3;
/// Bytes of a time with its tag.
const TIME_BYTES: usize = 9;

impl Walk<'_> {
    /// Appends a span, or sets it aside.
    #[inline]
    pub(super) fn span(&mut self, field: &Field<'_>, place: &Place) {
        let message = field.bytes().unwrap_or_default();
        let start = self.batch.rows.len();
        put_header(&mut self.batch.rows, scope_rows::ROW, message.len());
        let base = self.batch.rows.len();
        let extremes = self.batch.extremes;
        let read = match usual::span(message, base, &mut self.batch.extremes) {
            Some(facts) => Ok(facts),
            None => self.read_by_descriptors(message, base),
        };
        match read.and_then(|facts| with_ids(facts, base)) {
            Ok(facts) => {
                self.batch.rows.extend_from_slice(message);
                self.batch.push_facts(&facts, place.resource, place.scope);
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

    /// Appends a log record as it came, or as the rules of normalisation have it, or sets it aside.
    #[inline]
    pub(super) fn log(&mut self, field: &Field<'_>, place: &Place) {
        let message = field.bytes().unwrap_or_default();
        let base = field.bytes_offset();
        let extremes = self.batch.extremes;
        let (mut facts, log) = match usual::log(message, base, self.rules.keys(), &mut self.batch.extremes) {
            Some(read) => read,
            None => match self.read_by_descriptors(message, base) {
                Ok(facts) => (facts, Log::of(field.message(), self.rules.keys())),
                Err(error) => {
                    self.batch.extremes = extremes;
                    return self.reject(field, error, message, 1);
                }
            },
        };
        self.read.received += 1;
        if self.has_work(&facts, &log, place) {
            let ours = std::mem::replace(&mut self.batch.extremes, extremes);
            if self.normalize(message, place) {
                return;
            }
            self.batch.extremes = ours;
        }
        let has_no_time = facts.time_unix_nano == 0;
        let added = TIME_BYTES * (usize::from(has_no_time) + usize::from(log.observed_time_unix_nano == 0));
        put_header(&mut self.batch.rows, scope_rows::ROW, message.len() + added);
        let start = self.batch.rows.len();
        self.batch.rows.extend_from_slice(message);
        if added > 0 {
            self.put_times(&mut facts, &log);
        }
        for view in [&mut facts.body, &mut facts.job_id, &mut facts.event_type] {
            view.offset = if view.len == View::ABSENT { 0 } else { view.offset.wrapping_sub(base as u32).wrapping_add(start as u32) };
        }
        self.batch.push_facts(&facts, place.resource, place.scope);
    }

    /// Appends the times that a record lacks: of a field that comes twice the last one counts.
    #[cold]
    fn put_times(&mut self, facts: &mut RowFacts, log: &Log) {
        let now = self.now_unix_nano.max(1) as u64;
        let observed = if log.observed_time_unix_nano == 0 { now } else { log.observed_time_unix_nano };
        if facts.time_unix_nano == 0 {
            put_fixed64(&mut self.batch.rows, log::TIME_UNIX_NANO, observed);
            facts.time_unix_nano = i64::try_from(observed).unwrap_or(i64::MAX);
        }
        if log.observed_time_unix_nano == 0 {
            put_fixed64(&mut self.batch.rows, log::OBSERVED_TIME_UNIX_NANO, now);
        }
    }

    /// Whether the rules of normalisation may find something to do.
    #[inline(always)]
    fn has_work(&self, facts: &RowFacts, log: &Log, place: &Place) -> bool {
        if log.roles == 0 && !log.may_be_folded && (facts.severity_number != 0 || !log.has_severity_text) {
            return false;
        }
        let mut fillable = ALIAS | ERROR | place.liftable << IDENTITY;
        for (is_absent, roles) in [
            (facts.time_unix_nano == 0, TIME),
            (!log.has_body, BODY),
            (facts.severity_number == 0 && !log.has_severity_text, LEVEL),
            (facts.trace_id == [0; 16], TRACE_ID),
            (facts.span_id == [0; 8], SPAN_ID),
            (facts.trace_id == [0; 16] && facts.span_id == [0; 8], TRACEPARENT),
        ] {
            fillable |= if is_absent { roles } else { 0 };
        }
        log.roles & fillable != 0 || (log.may_be_folded && self.rules.unfolds()) || (facts.severity_number == 0 && log.has_severity_text)
    }

    #[inline(never)]
    fn normalize(&mut self, message: &[u8], place: &Place) -> bool {
        let builder = super::builder(&mut self.builder, self.rules, self.now_unix_nano);
        let origin = Origin { entry: &place.entry, resource: place.resource, scope: place.scope };
        builder.push_otlp(&mut self.batch, message, &origin)
    }

    /// Checks and reads any item; also says what is wrong.
    #[inline(never)]
    fn read_by_descriptors(&mut self, message: &[u8], base: usize) -> Result<RowFacts, WireError> {
        validate(Reader::at(message, base), self.row, ITEM_DEPTH)?;
        scan_row(self.batch.signal, message, base, &mut self.batch.extremes)
    }
}

/// A span must have both ids. (A log record without ids, or with ids of zeros, belongs to no trace, says the data model: it is kept.)
#[inline]
fn with_ids(facts: RowFacts, base: usize) -> Result<RowFacts, WireError> {
    let missing = |detail| Err(WireError { offset: base, detail });
    if facts.trace_id == [0; 16] {
        return missing("the span's trace_id is missing or all zero");
    }
    if facts.span_id == [0; 8] {
        return missing("the span's span_id is missing or all zero");
    }
    Ok(facts)
}
