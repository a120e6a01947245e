//! Lines of text to rows: what a file, a container or a journal writes, in any cut of bytes.
//!
//! ```text
//!   bytes ──▶ split (this file): lines, the last one kept until it is whole ──▶ join: those that are one record
//!         ──▶ rows: formats ──▶ Fields or JSON ──▶ normaliser's row
//! ```
//!
//! A [`Source`] is the state of one file or stream. It never drops a byte of text: a line that is longer than the limit becomes several
//! rows that say so, what no format knows is the body of a row. [`Source::pending_bytes`] says how many of the bytes at the end of what
//! was fed are in no row yet: a position to go on from after a restart is what was fed less that.
//! Not here: files and positions (`receivers/tail.py`), what fields mean ([`crate::normalize`]).

mod fields;
pub mod formats;
mod join;
mod rows;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use regex::bytes::Regex;

use crate::batch::Batch;
use crate::normalize::Normalizer;
use formats::container::Part;
use formats::multiline::{Look, begin, look, may_belong};
use formats::pattern::Pattern;
use join::{Joiner, Record, whole};
use rows::{Rows, has_bars};

pub use fields::Fields;
pub use formats::Format;

/// The number of a line's part, from 1 on; only on rows of lines that were longer than the limit.
pub const PART: &[u8] = b"line.part";
/// Whether the rest of the line follows in the next row.
pub const CONTINUES: &[u8] = b"line.continues";
/// A line may be split at any length from here on.
const LEAST_LINE_BYTES: usize = 64;
/// A line that goes on is searched for bars that were drawn over up to this length.
const MOST_REDRAWN_BYTES: usize = 16 << 10;

/// What is the same for all lines of a source.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How lines are read.
    pub format: Format,
    /// Longer lines are split.
    pub max_line_bytes: usize,
    /// The scope's name: who receives.
    pub scope: Vec<u8>,
    /// The tag of the rows.
    pub tag: Vec<u8>,
    /// Attributes of their resource.
    pub resource: Vec<(String, String)>,
    /// The pattern of [`Format::Regex`].
    pub pattern: Option<Pattern>,
    /// Whether the lines of a trace are one row.
    pub multiline: bool,
    /// Lines that match begin a record, all others belong to the one above.
    pub record_start: Option<Regex>,
    /// The zone of times that name none, in seconds east of UTC.
    pub utc_offset_s: i64,
    /// How often a progress bar that redraws itself is a row.
    pub progress_interval_ns: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            format: Format::Auto,
            max_line_bytes: 1 << 20,
            scope: Vec::new(),
            tag: Vec::new(),
            resource: Vec::new(),
            pattern: None,
            multiline: true,
            record_start: None,
            utc_offset_s: 0,
            progress_interval_ns: 10_000_000_000,
        }
    }
}

/// What became of the lines so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows.
    pub rows: u64,
    /// Lines that had no text, of which there is no row.
    pub blank: u64,
    /// Rows that are a part of a line that was longer than the limit.
    pub split: u64,
    /// Lines that are not what the format says; they are the body of their row.
    pub unparsed: u64,
    /// NUL bytes that were left out: a hole that a writer left behind a truncation, or no text.
    pub nul_bytes: u64,
    /// States of progress bars that were redrawn, of which there is no row.
    pub redrawn: u64,
}

/// A line that waits for the one below it, what it looks like, and where it lies.
type Held<'a> = Option<(&'a [u8], Look, Range<u64>)>;

/// The state of one file or stream.
#[derive(Debug)]
pub struct Source {
    max_line_bytes: usize,
    /// Bars may be redrawn.
    redraws: bool,
    rows: Rows,
    joiner: Joiner,
    /// Bytes that were fed.
    fed_bytes: u64,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// Parts of the present line that are rows already.
    parts: u32,
}

impl Source {
    /// A source with a receiver's rules. `parts`: how many parts of the line that is to come are rows already, after a restart.
    pub fn new(rules: Arc<Normalizer>, settings: &Settings, parts: u32) -> Self {
        let max_line_bytes = settings.max_line_bytes.max(LEAST_LINE_BYTES);
        Self {
            max_line_bytes,
            redraws: settings.format != Format::Json,
            rows: Rows::new(rules, settings),
            joiner: Joiner::new(settings.multiline, settings.record_start.clone(), max_line_bytes),
            fed_bytes: 0,
            partial: Vec::new(),
            parts,
        }
    }

    /// Takes the next bytes, which arrived now.
    pub fn feed(&mut self, data: &[u8], now_unix_nano: i64) {
        self.rows.begin(data.len(), now_unix_nano);
        let base = self.fed_bytes;
        self.fed_bytes += data.len() as u64;
        let mut start = 0;
        if !self.partial.is_empty() {
            let Some(end) = memchr::memchr(b'\n', data) else { return self.keep(data) };
            self.keep(&data[..end]);
            let line = std::mem::take(&mut self.partial);
            let line_start = base + end as u64 - line.len() as u64;
            let mut held = None;
            self.whole(&line, line_start..base + end as u64 + 1, &mut held);
            self.release(held);
            self.partial = line;
            self.forget_partial();
            start = end + 1;
        }
        let (rest, base) = (&data[start..], base + start as u64);
        let mut start = 0;
        let mut held = None;
        for end in memchr::memchr_iter(b'\n', rest) {
            self.whole(&rest[start..end], base + start as u64..base + end as u64 + 1, &mut held);
            start = end + 1;
        }
        self.release(held);
        self.keep(&rest[start..]);
    }

    /// Ends what waits for more: lines that belong together. `at_end`: nothing follows, the last line is whole as it is.
    pub fn flush(&mut self, now_unix_nano: i64, at_end: bool) {
        self.rows.begin(self.partial.len(), now_unix_nano);
        if at_end && !(self.partial.is_empty() && self.parts == 0) {
            let line = std::mem::take(&mut self.partial);
            let mut held = None;
            self.whole(&line, self.fed_bytes - line.len() as u64..self.fed_bytes, &mut held);
            self.release(held);
        }
        self.settle();
    }

    /// The rows so far; None without one.
    pub fn take(&mut self) -> Option<Batch> {
        self.rows.take()
    }

    /// Bytes at the end of what was fed that are in no row yet.
    pub fn pending_bytes(&self) -> usize {
        let joined = self.joiner.pending_from().map_or(0, |from| (self.fed_bytes - from) as usize);
        self.partial.len().max(joined)
    }

    /// Parts of the line that pends which are rows already.
    pub fn parts(&self) -> u32 {
        self.parts
    }

    /// What became of the lines so far.
    pub fn counts(&self) -> Counts {
        self.rows.counts
    }

    /// Keeps the beginning of a line; what is over the limit becomes a row.
    fn keep(&mut self, mut data: &[u8]) {
        if self.partial.is_empty() && self.parts == 0 && data.first() == Some(&0) {
            data = self.behind_hole(data);
        }
        while self.partial.len() + data.len() > self.max_line_bytes {
            let (now, later) = data.split_at(self.max_line_bytes - self.partial.len());
            self.partial.extend_from_slice(now);
            data = later;
            let line = std::mem::take(&mut self.partial);
            let cut = self.part(&line);
            self.partial = line;
            self.partial.drain(..cut);
        }
        self.partial.extend_from_slice(data);
        if self.redraws && memchr::memchr(b'\r', data).is_some() {
            self.redraw();
        }
    }

    /// Takes what was drawn over out of a line that goes on and on.
    #[cold]
    fn redraw(&mut self) {
        if self.parts > 0 || self.partial.len() > MOST_REDRAWN_BYTES {
            return;
        }
        let Some(last) = memchr::memrchr(b'\r', &self.partial) else { return };
        let Some(before) = memchr::memrchr(b'\r', &self.partial[..last]) else { return };
        // The last state that is whole stays: after a restart it is read again, and nobody misses the others.
        let (over, next) = (&self.partial[..before], &self.partial[before + 1..last]);
        if next.trim_ascii().is_empty() || !has_bars(over) {
            return;
        }
        self.joiner.settle(|record| self.rows.put(record));
        self.rows.redrawn(&Record::line(b""), over, Some(next));
        self.partial.drain(..=before);
    }

    fn forget_partial(&mut self) {
        self.partial.clear();
        // A quiet file keeps little.
        if self.partial.capacity() > 4096 {
            self.partial = Vec::new();
        }
    }

    /// A row of the beginning of a line; returns how many bytes are in it, so that no character is cut.
    #[cold]
    fn part(&mut self, line: &[u8]) -> usize {
        let end = line.len().min(self.max_line_bytes);
        // The same wherever reads cut the line: what follows does not count.
        let cut = end - unfinished(&line[..end]);
        self.put_part(&line[..cut], true);
        cut
    }

    fn put_part(&mut self, text: &[u8], continues: bool) {
        self.settle();
        self.parts = self.parts.saturating_add(1);
        self.rows.put(&Record { part: Some((self.parts, continues)), ..Record::line(text) });
    }

    /// Ends what is open; its rows come before those of what follows.
    fn settle(&mut self) {
        if !self.joiner.is_idle() {
            self.joiner.settle(|record| self.rows.put(record));
        }
    }

    /// A line that has ended, without its end.
    #[inline]
    fn whole<'a>(&mut self, line: &'a [u8], mut span: Range<u64>, held: &mut Held<'a>) {
        let mut line = line;
        if self.parts == 0 && line.first() == Some(&0) {
            let text = self.behind_hole(line);
            span.start += (line.len() - text.len()) as u64;
            line = text;
        }
        if self.parts > 0 || line.len() > self.max_line_bytes {
            self.release(held.take());
            while line.len() > self.max_line_bytes {
                let cut = self.part(line);
                line = &line[cut..];
            }
            self.put_part(line.strip_suffix(b"\r").unwrap_or(line), false);
            self.parts = 0;
            return;
        }
        self.line(line.strip_suffix(b"\r").unwrap_or(line), span, held);
    }

    /// A line, and which others it belongs to. Most belong to none: they are looked at where they lie.
    #[inline]
    fn line<'a>(&mut self, line: &'a [u8], span: Range<u64>, held: &mut Held<'a>) {
        let seen = look(line);
        let part = self.rows.parser.wrapped(line);
        if part.is_some() {
            // It is of a stream of its own: what is above may go on behind it.
            self.release(held.take());
        } else if let Some((above, above_look, above_span)) = held.take() {
            if may_belong(above_look, seen)
                && let Some(group) = begin(above)
            {
                self.joiner.open(group, above, above_span);
            } else {
                self.rows.line(above);
            }
        }
        if part.is_none() && self.joiner.is_idle() {
            match line.first() {
                Some(b'{') => self.rows.line(line),
                _ if self.joiner.is_by_look() => *held = Some((line, seen, span)),
                _ if self.joiner.joins() => self.join(None, line, span),
                _ => self.rows.line(line),
            }
            return;
        }
        self.join(part, line, span);
    }

    fn join(&mut self, part: Option<Part<'_>>, line: &[u8], span: Range<u64>) {
        let part = part.unwrap_or_else(|| whole(line));
        self.joiner.take(&part, span, |record| self.rows.put(record));
    }

    /// The line that no other is below yet.
    fn release(&mut self, held: Held<'_>) {
        let Some((line, _, span)) = held else { return };
        match begin(line) {
            Some(group) => self.joiner.open(group, line, span),
            None => self.rows.line(line),
        }
    }

    /// What lies behind the NUL bytes that a line begins with: a hole, which may be longer than any line.
    #[cold]
    fn behind_hole<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let text = data.iter().position(|byte| *byte != 0).unwrap_or(data.len());
        self.rows.counts.nul_bytes += text as u64;
        &data[text..]
    }
}

/// Bytes at the end that begin a character without ending it.
fn unfinished(text: &[u8]) -> usize {
    for back in 1..=text.len().min(3) {
        let byte = text[text.len() - back];
        if byte & 0xc0 == 0x80 {
            continue;
        }
        let needs = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if needs > back { back } else { 0 };
    }
    0
}
