//! What a destination accepts, proved by a block's header or enforced on rows: old rows are set apart, long values are shortened and
//! marked, excess attributes and events are left out and counted, as OTLP says.
//!
//! A point's attributes are its stream's identity: a shortened one ends with a hash of the whole, so that streams stay apart.

mod metric;
mod row;
mod text;

use std::collections::{BTreeMap, HashMap};

use crate::batch::{Batch, Extremes, Signal};
use crate::block::Header;
use crate::error::{CoreError, ErrorKind};
use crate::otlp::scan::scan_row;

/// The limits; 0 means none. Lengths are bytes: a limit in characters is kept as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DestinationLimits {
    /// Older logs and spans are refused.
    pub max_age_ns: i64,
    /// So are those further ahead.
    pub max_ahead_ns: i64,
    /// A log's body.
    pub max_body_bytes: u32,
    /// Attributes of a log, resource and scope apart.
    pub max_log_attributes: u32,
    /// Attributes of a span.
    pub max_span_attributes: u32,
    /// Events of a span.
    pub max_span_events: u32,
    /// Spans of a trace in one batch.
    pub max_trace_spans: u32,
    /// An attribute's key.
    pub max_key_bytes: u32,
    /// An attribute's value.
    pub max_value_bytes: u32,
}

/// How often each limit applied, by its name.
pub type Applied = BTreeMap<&'static str, u64>;

/// A batch made to fit.
#[derive(Clone, Debug)]
pub struct Limited {
    /// What passes; None when nothing does.
    pub batch: Option<Batch>,
    /// Too old or too far ahead for the destination. None when nothing is.
    pub expired: Option<Batch>,
    /// Spans past those that it takes of a trace. None when there are none.
    pub trace_too_large: Option<Batch>,
    /// How often a limit applied, by its name; rows set apart are counted too.
    pub applied: Applied,
}

/// What becomes of a row before anything of it is shortened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passes,
    OutOfTime,
    PastItsTrace,
}

fn exceeds(value: u32, limit: u32) -> bool {
    limit != 0 && value > limit
}

impl DestinationLimits {
    /// Whether a header proves that no limit applies to the block.
    pub fn block_passes(&self, header: &Header, now_unix_nano: i64) -> bool {
        let extremes = Extremes {
            max_body_bytes: header.max_body_bytes,
            max_attributes: header.max_attributes,
            max_value_bytes: header.max_value_bytes,
            max_key_bytes: header.max_key_bytes,
            max_span_events: header.max_span_events,
            max_trace_spans: header.max_trace_spans,
        };
        let a_limit_applies = self.out_of_time(header.min_time_unix_nano, now_unix_nano)
            || self.out_of_time(header.max_time_unix_nano, now_unix_nano)
            || exceeds(header.max_trace_spans, self.max_trace_spans)
            || self.row_exceeds(header.signal, &extremes);
        !a_limit_applies
    }

    fn row_exceeds(&self, signal: Signal, extremes: &Extremes) -> bool {
        let attributes = match signal {
            Signal::Logs => self.max_log_attributes,
            Signal::Traces => self.max_span_attributes,
            Signal::Metrics => 0,
        };
        exceeds(extremes.max_attributes, attributes)
            || exceeds(extremes.max_body_bytes, self.max_body_bytes)
            || exceeds(extremes.max_value_bytes, self.max_value_bytes)
            || exceeds(extremes.max_key_bytes, self.max_key_bytes)
            || exceeds(extremes.max_span_events, self.max_span_events)
    }

    /// Too old or too far ahead; a row without a time (0) is neither.
    fn out_of_time(&self, time_unix_nano: i64, now_unix_nano: i64) -> bool {
        time_unix_nano != 0
            && ((self.max_age_ns != 0 && now_unix_nano.saturating_sub(time_unix_nano) > self.max_age_ns)
                || (self.max_ahead_ns != 0 && time_unix_nano.saturating_sub(now_unix_nano) > self.max_ahead_ns))
    }

    /// The rows made to fit.
    pub fn apply(&self, batch: &Batch, now_unix_nano: i64) -> Result<Limited, CoreError> {
        let mut applied = Applied::new();
        let fates = self.fates(batch, now_unix_nano, &mut applied);
        let of_fate = |fate| some(batch.filter(|row| fates[row] == fate));
        let (kept, expired, trace_too_large) = if fates.iter().all(|fate| *fate == Fate::Passes) {
            (some(batch.clone()), None, None)
        } else {
            (of_fate(Fate::Passes), of_fate(Fate::OutOfTime), of_fate(Fate::PastItsTrace))
        };
        let kept = match kept {
            Some(kept) if self.row_exceeds(kept.signal, &kept.extremes) => some(self.shortened(&kept, &mut applied)?),
            kept => kept,
        };
        Ok(Limited { batch: kept, expired, trace_too_large, applied })
    }

    fn fates(&self, batch: &Batch, now_unix_nano: i64, applied: &mut Applied) -> Vec<Fate> {
        let mut count = |name| *applied.entry(name).or_default() += 1;
        let mut spans: HashMap<[u8; 16], u32> = HashMap::new();
        (0..batch.len())
            .map(|row| {
                let time = batch.columns.time_unix_nano[row];
                if self.out_of_time(time, now_unix_nano) {
                    count(if time < now_unix_nano { "max_age_s" } else { "max_ahead_s" });
                    return Fate::OutOfTime;
                }
                if batch.signal == Signal::Traces && self.max_trace_spans != 0 {
                    let spans = spans.entry(batch.columns.trace_id[row]).or_default();
                    *spans += 1;
                    if *spans > self.max_trace_spans {
                        count("max_trace_spans");
                        return Fate::PastItsTrace;
                    }
                }
                Fate::Passes
            })
            .collect()
    }

    fn shortened(&self, batch: &Batch, applied: &mut Applied) -> Result<Batch, CoreError> {
        batch.rewritten(|_, message, out| {
            let mut extremes = Extremes::default();
            scan_row(batch.signal, message, 0, &mut extremes)?;
            if self.row_exceeds(batch.signal, &extremes) {
                match batch.signal {
                    Signal::Metrics => metric::shorten(self, message, out, applied)?,
                    signal => row::shorten(self, signal, message, out, applied)?,
                }
                Ok(true)
            } else {
                out.extend_from_slice(message);
                Ok(false)
            }
        })
    }

    /// Checks what was set: a mark must fit into every length.
    pub fn checked(self) -> Result<Self, CoreError> {
        for (name, limit) in
            [("max_body_bytes", self.max_body_bytes), ("max_value_bytes", self.max_value_bytes), ("max_key_bytes", self.max_key_bytes)]
        {
            if limit != 0 && (limit as usize) < text::MARK.len() {
                return Err(CoreError::new(
                    ErrorKind::ConfigInvalid,
                    0,
                    format!("{name} must be 0 (no limit) or at least {}", text::MARK.len()),
                ));
            }
        }
        Ok(self)
    }
}

fn some(batch: Batch) -> Option<Batch> {
    (!batch.is_empty()).then_some(batch)
}
