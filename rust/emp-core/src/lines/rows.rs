//! Records of lines as rows: which format a text has, what its exception is, what of a progress bar is kept.

use std::sync::Arc;

use super::fields::Fields;
use super::formats::exception::{self, Exception};
use super::formats::progress::{Bar, Pace, bar};
use super::formats::{Format, Parser, ansi, json};
use super::join::Record;
use super::{CONTINUES, Counts, PART, Settings};
use crate::batch::{Batch, TableEntry};
use crate::http_json::MAX_DEPTH;
use crate::http_json::transcode::Transcoder;
use crate::normalize::identity::Base;
use crate::normalize::json::to_msgpack;
use crate::normalize::wire::{FIELD_1, put_bytes, put_text_attribute};
use crate::normalize::{Builder, Envelope, Normalizer};
use crate::otlp::json::text::Text;

/// Writes the rows of one source.
#[derive(Debug)]
pub(super) struct Rows {
    format: Format,
    tag: Vec<u8>,
    builder: Builder,
    transcoder: Transcoder,
    fields: Fields,
    pub(super) parser: Parser,
    clean: Vec<u8>,
    bare: Vec<u8>,
    pub(super) counts: Counts,
    pace: Pace,
    progress_interval_ns: i64,
    now_unix_nano: i64,
}

impl Rows {
    pub(super) fn new(rules: Arc<Normalizer>, settings: &Settings) -> Self {
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
            tag: settings.tag.clone(),
            builder,
            transcoder: Transcoder::default(),
            fields: Fields::default(),
            parser: Parser::new(settings.format, settings.pattern.clone(), settings.utc_offset_s),
            clean: Vec::new(),
            bare: Vec::new(),
            counts: Counts::default(),
            pace: Pace::default(),
            progress_interval_ns: settings.progress_interval_ns,
            now_unix_nano: 0,
        }
    }

    pub(super) fn begin(&mut self, input_bytes: usize, now_unix_nano: i64) {
        self.now_unix_nano = now_unix_nano;
        self.parser.set_now(now_unix_nano);
        self.builder.set_now(now_unix_nano);
        self.builder.set_tag(&self.tag);
        // Rows are longer than short lines by what each begins with.
        self.builder.reserve_first(input_bytes + input_bytes / 4);
    }

    pub(super) fn take(&mut self) -> Option<Batch> {
        (!self.builder.is_empty()).then(|| self.builder.take().0)
    }

    /// A record as a row.
    pub(super) fn put(&mut self, record: &Record<'_>) {
        if record.is_trace {
            return self.trace(record);
        }
        if memchr::memchr(b'\r', record.text).is_some() && self.format != Format::Json && has_bars(record.text) {
            return self.redrawn(record, record.text, None);
        }
        self.one(record, record.text, None);
    }

    /// A line as a row.
    #[inline]
    pub(super) fn line(&mut self, line: &[u8]) {
        match line.first() {
            None => self.counts.blank += 1,
            Some(b'{') if self.format.may_be_json() && self.json(&Record::line(line), line) => self.counts.rows += 1,
            Some(_) if self.format == Format::Plain && memchr::memchr2(b'\r', 0x1b, line).is_none() && self.builder.push_text(line) => {
                self.counts.rows += 1;
            }
            Some(_) => self.put(&Record::line(line)),
        }
    }

    /// A text of one or several lines, by its format.
    fn one(&mut self, record: &Record<'_>, text: &[u8], exception: Option<&Exception<'_>>) {
        if exception.is_none() && text.first() == Some(&b'{') && self.format.may_be_json() && self.json(record, text) {
            self.counts.rows += 1;
            return;
        }
        let (mut clean, mut bare) = (std::mem::take(&mut self.clean), std::mem::take(&mut self.bare));
        let text = without_nul(text, &mut clean, &mut self.counts.nul_bytes);
        let text = ansi::without(text, &mut bare);
        if text.trim_ascii().is_empty() && exception.is_none() && record.part.is_none() {
            self.counts.blank += 1;
        } else {
            self.text(record, text, exception);
        }
        (self.clean, self.bare) = (clean, bare);
    }

    fn text(&mut self, record: &Record<'_>, text: &[u8], exception: Option<&Exception<'_>>) {
        let fields = &mut self.fields;
        fields.clear();
        // A user's pattern may reach over lines; all others read the first.
        let head_len = if self.format == Format::Regex { None } else { memchr::memchr(b'\n', text) };
        let (head, rest) = text.split_at(head_len.unwrap_or(text.len()));
        let mut severity = 0;
        let found = if record.part.is_some() { None } else { self.parser.text(head, fields) };
        match found {
            Some(found) => {
                severity = found.severity;
                match found.message {
                    Some(message) if rest.is_empty() => fields.text(b"message", message),
                    Some(message) => fields.text(b"message", &[message, rest].concat()),
                    None => {}
                }
            }
            None => {
                let is_unparsed =
                    self.parser.is_unparsed() && record.part.is_none() && exception.is_none_or(|found| !found.head.is_empty());
                self.counts.unparsed += u64::from(is_unparsed);
                let is_bare = exception.is_none() && record.part.is_none() && record.time_unix_nano.is_none();
                if is_bare && record.stream.name().is_none() && self.builder.push_text(text) {
                    self.counts.rows += 1;
                    return;
                }
                fields.clear();
                fields.text(b"message", text);
            }
        }
        if let Some(exception) = exception {
            if severity == 0 {
                fields.text(b"level", b"error");
            }
            put_exception(fields, exception);
        }
        put_origin(fields, record);
        self.push(record);
    }

    /// A JSON object as a row; false, and nothing written, where the line is none.
    fn json(&mut self, record: &Record<'_>, line: &[u8]) -> bool {
        let mut text = Text::new(line);
        let Ok(object) = self.transcoder.record(&mut text, MAX_DEPTH) else { return false };
        text.peek();
        if text.offset() < line.len() {
            return false;
        }
        let envelope = Envelope { time_unix_nano: record.time_unix_nano, metadata: b"" };
        let is_dialect = json::may_be_dialect(line);
        if !is_dialect && record.stream.name().is_none() && record.attributes.is_empty() {
            return self.builder.push_alone(&envelope, object).is_ok();
        }
        self.fields.clear();
        if !is_dialect || !json::rewrite(object, &mut self.fields) {
            self.fields.set(object);
        }
        put_origin(&mut self.fields, record);
        self.builder.push_alone(&envelope, self.fields.record()).is_ok()
    }

    #[cold]
    fn trace(&mut self, record: &Record<'_>) {
        let mut bare = Vec::new();
        let text = ansi::without(record.text, &mut bare);
        let found = exception::of(text);
        let said = if found.head.is_empty() { found.summary } else { found.head };
        if !found.head.is_empty() {
            return self.one(record, said, Some(&found));
        }
        // No line of a log is above the trace: what it says is no format's.
        self.fields.clear();
        self.fields.text(b"message", said);
        self.fields.text(b"level", b"error");
        put_exception(&mut self.fields, &found);
        put_origin(&mut self.fields, record);
        self.push(record);
    }

    /// The states of bars, and the lines between them; `next` is the state that follows, where the line goes on.
    #[cold]
    pub(super) fn redrawn(&mut self, record: &Record<'_>, text: &[u8], next: Option<&[u8]>) {
        let mut bare = Vec::new();
        let text = ansi::without(text, &mut bare);
        let mut states = text.split(|byte| *byte == b'\r').filter(|state| !state.trim_ascii().is_empty()).peekable();
        while let Some(state) = states.next() {
            let Some(found) = bar(state) else {
                self.one(record, state.trim_ascii_end(), None);
                continue;
            };
            let following = states.peek().copied().or(next).and_then(bar);
            let is_last = !following.is_some_and(|next| found.is_same(&next));
            if is_last {
                self.pace.end();
            } else if !self.pace.is_due(self.now_unix_nano, self.progress_interval_ns) {
                self.counts.redrawn += 1;
                continue;
            }
            self.bar(record, state, &found);
        }
    }

    fn bar(&mut self, record: &Record<'_>, text: &[u8], found: &Bar<'_>) {
        self.fields.clear();
        self.fields.text(b"message", text.trim_ascii());
        found.put(&mut self.fields);
        put_origin(&mut self.fields, record);
        self.push(record);
    }

    /// The fields as a row.
    fn push(&mut self, record: &Record<'_>) {
        let envelope = Envelope { time_unix_nano: record.time_unix_nano, metadata: b"" };
        // Fields that were written here are always a record.
        if self.builder.push_alone(&envelope, self.fields.record()).is_ok() {
            self.counts.rows += 1;
            self.counts.split += u64::from(record.part.is_some());
        }
    }
}

/// Whether a text that has carriage returns is bars that were redrawn.
pub(super) fn has_bars(text: &[u8]) -> bool {
    memchr::memmem::find(text, b"%|").is_some() && text.split(|byte| *byte == b'\r').any(|state| bar(state).is_some())
}

fn put_exception(fields: &mut Fields, exception: &Exception<'_>) {
    if !exception.kind.is_empty() {
        fields.text(b"exception.type", exception.kind);
    }
    if !exception.message.is_empty() {
        fields.text(b"exception.message", exception.message);
    }
    fields.text(b"exception.stacktrace", exception.stacktrace);
}

fn put_origin(fields: &mut Fields, record: &Record<'_>) {
    if let Some(name) = record.stream.name() {
        fields.text(b"log.iostream", name);
    }
    let mut attributes = Vec::new();
    if !record.attributes.is_empty() && to_msgpack(record.attributes, &mut attributes).is_ok() {
        fields.raw(b"attrs", &attributes);
    }
    if let Some((number, continues)) = record.part {
        fields.int(PART, i64::from(number));
        fields.bool(CONTINUES, continues);
    }
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
