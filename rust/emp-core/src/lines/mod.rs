//! Lines of text to rows: what a file, a container or a journal writes, in any cut of bytes.
//!
//! ```text
//!   bytes ──▶ split (this file): lines, the last one kept until it is whole ──▶ format ──▶ Fields or JSON ──▶ normaliser's row
//! ```
//!
//! A [`Source`] is the state of one file or stream. It never drops a byte of text: a line that is longer than the limit becomes several
//! rows that say so, what no format knows is the body of a row. [`Source::pending_bytes`] says how many of the bytes at the end of what
//! was fed are in no row yet: a position to go on from after a restart is what was fed less that.
//! Not here: files and positions (`receivers/tail.py`), what fields mean ([`crate::normalize`]).

mod fields;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::batch::{Batch, TableEntry};
use crate::http_json::MAX_DEPTH;
use crate::http_json::transcode::Transcoder;
use crate::normalize::identity::Base;
use crate::normalize::wire::{FIELD_1, put_bytes, put_text_attribute};
use crate::normalize::{Builder, Envelope, Normalizer};
use crate::otlp::json::text::Text;

pub use fields::Fields;

/// The number of a line's part, from 1 on; only on rows of lines that were longer than the limit.
pub const PART: &[u8] = b"line.part";
/// Whether the rest of the line follows in the next row.
pub const CONTINUES: &[u8] = b"line.continues";
/// A line may be split at any length from here on.
const LEAST_LINE_BYTES: usize = 64;

/// How lines are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Each line by its own look.
    #[default]
    Auto,
    /// The line is the body.
    Plain,
    /// A JSON object a line; a line that is none is a body.
    Json,
}

impl Format {
    /// The format of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "plain" => Some(Self::Plain),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

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
}

/// The state of one file or stream.
#[derive(Debug)]
pub struct Source {
    format: Format,
    max_line_bytes: usize,
    tag: Vec<u8>,
    builder: Builder,
    transcoder: Transcoder,
    fields: Fields,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// Parts of the present line that are rows already.
    parts: u32,
    clean: Vec<u8>,
    counts: Counts,
}

impl Source {
    /// A source with a receiver's rules. `parts`: how many parts of the line that is to come are rows already, after a restart.
    pub fn new(rules: Arc<Normalizer>, settings: &Settings, parts: u32) -> Self {
        let mut builder = Builder::new(rules, "emp-pipe/lines", MAX_DEPTH);
        let mut resource = TableEntry::default();
        for (key, text) in &settings.resource {
            put_text_attribute(&mut resource.message, FIELD_1, key.as_bytes(), text.as_bytes());
        }
        let mut scope = Vec::new();
        put_bytes(&mut scope, 0x0a, &settings.scope);
        builder.set_group(Base::new(resource), scope);
        Self {
            format: settings.format,
            max_line_bytes: settings.max_line_bytes.max(LEAST_LINE_BYTES),
            tag: settings.tag.clone(),
            builder,
            transcoder: Transcoder::default(),
            fields: Fields::default(),
            partial: Vec::new(),
            parts,
            clean: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Takes the next bytes, which arrived now.
    pub fn feed(&mut self, data: &[u8], now_unix_nano: i64) {
        self.begin(data.len(), now_unix_nano);
        let mut rest = data;
        if !self.partial.is_empty() {
            let Some(end) = memchr::memchr(b'\n', rest) else { return self.keep(rest) };
            self.keep(&rest[..end]);
            let line = std::mem::take(&mut self.partial);
            self.whole(&line);
            self.partial = line;
            self.forget_partial();
            rest = &rest[end + 1..];
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', rest) {
            self.whole(&rest[start..end]);
            start = end + 1;
        }
        self.keep(&rest[start..]);
    }

    /// Ends what waits for more: lines that belong together. `at_end`: nothing follows, the last line is whole as it is.
    pub fn flush(&mut self, now_unix_nano: i64, at_end: bool) {
        if at_end && !(self.partial.is_empty() && self.parts == 0) {
            self.begin(self.partial.len(), now_unix_nano);
            let line = std::mem::take(&mut self.partial);
            self.whole(&line);
        }
    }

    /// The rows so far; None without one.
    pub fn take(&mut self) -> Option<Batch> {
        (!self.builder.is_empty()).then(|| self.builder.take().0)
    }

    /// Bytes at the end of what was fed that are in no row yet.
    pub fn pending_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Parts of the line that pends which are rows already.
    pub fn parts(&self) -> u32 {
        self.parts
    }

    /// What became of the lines so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn begin(&mut self, input_bytes: usize, now_unix_nano: i64) {
        self.builder.set_now(now_unix_nano);
        self.builder.set_tag(&self.tag);
        // Rows are longer than short lines by what each begins with.
        self.builder.reserve_first(input_bytes + input_bytes / 4);
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
        self.parts = self.parts.saturating_add(1);
        self.counts.split += 1;
        let text = without_nul(text, &mut self.clean, &mut self.counts.nul_bytes);
        self.fields.clear();
        self.fields.text(b"message", text);
        self.fields.int(PART, i64::from(self.parts));
        self.fields.bool(CONTINUES, continues);
        self.push_fields();
    }

    /// A line that has ended, without its end.
    #[inline]
    fn whole(&mut self, line: &[u8]) {
        let mut line = line;
        if self.parts == 0 && line.first() == Some(&0) {
            line = self.behind_hole(line);
        }
        if self.parts > 0 || line.len() > self.max_line_bytes {
            while line.len() > self.max_line_bytes {
                let cut = self.part(line);
                line = &line[cut..];
            }
            self.put_part(line.strip_suffix(b"\r").unwrap_or(line), false);
            self.parts = 0;
            return;
        }
        self.line(line.strip_suffix(b"\r").unwrap_or(line));
    }

    /// What lies behind the NUL bytes that a line begins with: a hole, which may be longer than any line.
    #[cold]
    fn behind_hole<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let text = data.iter().position(|byte| *byte != 0).unwrap_or(data.len());
        self.counts.nul_bytes += text as u64;
        &data[text..]
    }

    /// A line as a row, in the source's format.
    #[inline]
    fn line(&mut self, line: &[u8]) {
        match line.first() {
            None => self.counts.blank += 1,
            Some(b'{') if self.format != Format::Plain && self.json(line) => self.counts.rows += 1,
            Some(_) => self.body(line),
        }
    }

    /// A JSON object as a row; false, and nothing written, where the line is none.
    fn json(&mut self, line: &[u8]) -> bool {
        let mut text = Text::new(line);
        let Ok(record) = self.transcoder.record(&mut text, MAX_DEPTH) else { return false };
        text.peek();
        text.offset() >= line.len() && self.builder.push(&Envelope::default(), record, 0).is_ok()
    }

    /// A line as the body of a row.
    #[inline]
    fn body(&mut self, line: &[u8]) {
        if self.format == Format::Json {
            self.counts.unparsed += 1;
        }
        if self.builder.push_text(line) {
            self.counts.rows += 1;
            return;
        }
        self.unusual_body(line);
    }

    #[cold]
    #[inline(never)]
    fn unusual_body(&mut self, line: &[u8]) {
        let text = without_nul(line, &mut self.clean, &mut self.counts.nul_bytes);
        if text.trim_ascii().is_empty() {
            self.counts.blank += 1;
            return;
        }
        self.fields.clear();
        self.fields.text(b"message", text);
        self.push_fields();
    }

    /// The fields as a row.
    fn push_fields(&mut self) {
        // Fields that were written here are always a record.
        if self.builder.push(&Envelope::default(), self.fields.record(), 0).is_ok() {
            self.counts.rows += 1;
        }
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

/// A text without NUL bytes, which no text has.
fn without_nul<'a>(text: &'a [u8], clean: &'a mut Vec<u8>, nul_bytes: &mut u64) -> &'a [u8] {
    if memchr::memchr(0, text).is_none() {
        return text;
    }
    clean.clear();
    clean.extend(text.iter().copied().filter(|byte| *byte != 0));
    *nul_bytes += (text.len() - clean.len()) as u64;
    clean
}
