//! Records as JSON in the body of an HTTP request: one object, an array of them, or one after another, each usually on a line of its own.
//!
//! ```text
//!   body ──▶ inflate ──▶ form field ──▶ texts (this file) ──▶ msgpack of one record (transcode) ──▶ normaliser's row
//! ```
//!
//! What is no record costs itself: it is set aside with its offset, its neighbours are kept. In lines, a line that is torn ends at its end.
//! A body of which nothing can be used, or an array that cannot be followed, is an error with the offset. Offsets count from the body's
//! first byte, inflated, and of a form from the first byte of its field, decoded.

mod form;
pub(crate) mod transcode;

use std::sync::{Arc, Mutex, PoisonError};

use crate::compress::{Codec, decompress};
use crate::error::{CoreError, ErrorKind};
use crate::fluent::read::set_aside;
use crate::normalize::time::TimeReader;
use crate::normalize::{Builder, Envelope, Normalizer};
use crate::otlp::incoming::{Read, most_entries};
use crate::otlp::json::fault::Fault;
use crate::otlp::json::text::Text;
use transcode::Transcoder;

pub use form::Form;

/// How deep maps and arrays may be nested, the record itself counted: a map takes three levels of OTLP's messages, of which parsers allow 100.
pub const MAX_DEPTH: usize = 32;
const TOO_MANY: &str = "the body has too many records for its limit in bytes";
/// Requests after which what was learned of keys is forgotten: one sender's many keys are not to be in the way of others for good.
const MOST_USES: u32 = 256;
/// Builders kept for the next requests.
const MOST_KEPT: usize = 4;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// A codec of ours.
    Codec(Codec),
    /// HTTP's `deflate`: RFC 1950, or the bare RFC 1951 that some clients send.
    Deflate,
}

/// What a request says beside its body.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// How the body is compressed.
    pub coding: Coding,
    /// How the body is laid out.
    pub form: Form,
    /// The tag of its records.
    pub tag: &'a [u8],
    /// Their time as the sender wrote it; empty without one.
    pub time: &'a [u8],
    /// When it arrived.
    pub now_unix_nano: i64,
}

/// A receiver's decoder; shared by its requests and by threads.
#[derive(Debug)]
pub struct Decoder {
    rules: Arc<Normalizer>,
    max_inflated_bytes: usize,
    builders: Mutex<Vec<(Builder, u32)>>,
}

impl Decoder {
    /// A decoder with a receiver's rules; bodies may inflate to `max_inflated_bytes`.
    pub fn new(rules: Arc<Normalizer>, max_inflated_bytes: usize) -> Self {
        Self { rules, max_inflated_bytes, builders: Mutex::default() }
    }

    /// Reads a body that arrived now.
    pub fn decode(&self, data: &[u8], request: &Request<'_>) -> Result<Read, CoreError> {
        let inflated;
        let body = match request.coding {
            Coding::Codec(Codec::None) if data.len() <= self.max_inflated_bytes => data,
            Coding::Codec(codec) => {
                inflated = decompress(codec, data, self.max_inflated_bytes, None, ErrorKind::BodyInvalid)?;
                &inflated
            }
            Coding::Deflate => {
                inflated = form::inflate(data, self.max_inflated_bytes)?;
                &inflated
            }
        };
        let (of_form, form_time);
        let (text, time) = if request.form == Form::UrlEncoded && !form::is_json(body) {
            (of_form, form_time) = form::fields(body)?;
            (of_form.as_slice(), if form_time.is_empty() { request.time } else { form_time.as_slice() })
        } else {
            (body, request.time)
        };
        let time_unix_nano = match time {
            [] => None,
            time => Some(form::time(&mut TimeReader::default(), time)?),
        };
        let (mut builder, uses) = self.builder();
        builder.set_now(request.now_unix_nano);
        builder.set_tag(request.tag);
        let mut walk = Walk {
            builder: &mut builder,
            text,
            lines: request.form == Form::Lines,
            envelope: Envelope { time_unix_nano, metadata: &[] },
            read: Read::default(),
            transcoder: Transcoder::default(),
            entries_left: most_entries(self.max_inflated_bytes),
            first_fault: None,
        };
        let done = walk.run();
        let (mut read, first_fault) = (walk.read, walk.first_fault);
        let (batch, over_limit) = builder.take();
        if uses + 1 < MOST_USES {
            self.keep(builder, uses + 1);
        }
        done?;
        match first_fault {
            Some(fault) if batch.is_empty() => return Err(fault),
            _ => {}
        }
        read.received += batch.len() as u64;
        read.resources_over_limit = over_limit;
        read.batch = (!batch.is_empty()).then_some(batch);
        Ok(read)
    }

    fn builder(&self) -> (Builder, u32) {
        let kept = self.builders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| (Builder::new(self.rules.clone(), "emp-pipe/http_json", MAX_DEPTH), 0))
    }

    fn keep(&self, builder: Builder, uses: u32) {
        let mut builders = self.builders.lock().unwrap_or_else(PoisonError::into_inner);
        if builders.len() < MOST_KEPT {
            builders.push((builder, uses));
        }
    }
}

/// The way through one body.
struct Walk<'a> {
    builder: &'a mut Builder,
    text: &'a [u8],
    /// It is said that each line stands for itself.
    lines: bool,
    envelope: Envelope<'a>,
    read: Read,
    transcoder: Transcoder,
    entries_left: usize,
    /// The first thing that could not be used.
    first_fault: Option<CoreError>,
}

/// Where a piece begins that cannot be followed, and why.
struct Torn {
    start: usize,
    fault: Box<Fault>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), CoreError> {
        self.builder.reserve_first(self.text.len());
        let Err(torn) = self.texts(self.text, 0)? else { return Ok(()) };
        if !self.lines && !is_lines(self.text) {
            return Err(error(&torn.fault, 0));
        }
        // From here on each line by itself: what is torn must not reach into the next one.
        let mut start = torn.start;
        while start < self.text.len() {
            let end = memchr::memchr(b'\n', &self.text[start..]).map_or(self.text.len(), |len| start + len);
            if let Err(torn) = self.texts(&self.text[start..end], start)? {
                self.set_aside(start + torn.start, end, error(&torn.fault, start));
            }
            start = end + 1;
        }
        Ok(())
    }

    /// Reads texts until the end of `part`, which begins at `base`.
    fn texts(&mut self, part: &[u8], base: usize) -> Result<Result<(), Torn>, CoreError> {
        let mut text = Text::new(part);
        loop {
            text.peek();
            if text.offset() >= part.len() {
                return Ok(Ok(()));
            }
            let done = if text.eat(b'[') { self.array(&mut text, base)? } else { self.element(&mut text, base)? };
            if let Err(torn) = done {
                return Ok(Err(torn));
            }
        }
    }

    /// The elements of an array, behind its bracket.
    fn array(&mut self, text: &mut Text<'_>, base: usize) -> Result<Result<(), Torn>, CoreError> {
        if text.eat(b']') {
            return Ok(Ok(()));
        }
        loop {
            if let Err(torn) = self.element(text, base)? {
                return Ok(Err(torn));
            }
            match text.more(b']') {
                Ok(true) => {}
                Ok(false) => return Ok(Ok(())),
                Err(fault) => return Ok(Err(Torn { start: text.offset(), fault })),
            }
        }
    }

    /// A value that should be a record.
    fn element(&mut self, text: &mut Text<'_>, base: usize) -> Result<Result<(), Torn>, CoreError> {
        let is_object = text.peek() == b'{';
        let start = text.offset();
        self.entries_left = match self.entries_left.checked_sub(1) {
            Some(left) => left,
            None => return Err(CoreError::new(ErrorKind::TooLarge, base + start, TOO_MANY)),
        };
        if is_object {
            match self.transcoder.record(text, MAX_DEPTH) {
                Ok(record) => match self.builder.push_alone(&self.envelope, record) {
                    Ok(()) => return Ok(Ok(())),
                    Err(fault) => {
                        self.set_aside(
                            base + start,
                            base + text.offset(),
                            CoreError::new(ErrorKind::EntryInvalid, base + start, fault.detail()),
                        );
                        return Ok(Ok(()));
                    }
                },
                Err(fault) if fault.broken => return Ok(Err(Torn { start, fault })),
                Err(fault) => return Ok(self.step_over(text, start, base, &error(&fault, base))),
            }
        }
        let no_record = CoreError::new(ErrorKind::EntryInvalid, base + start, "a record is a JSON object");
        Ok(self.step_over(text, start, base, &no_record))
    }

    /// Sets aside a value that is no record, when it can be followed.
    #[cold]
    fn step_over(&mut self, text: &mut Text<'_>, start: usize, base: usize, why: &CoreError) -> Result<(), Torn> {
        text.go_to(start);
        match text.skip() {
            Ok(()) => {
                self.set_aside(base + start, base + text.offset(), why.clone());
                Ok(())
            }
            Err(fault) => Err(Torn { start, fault }),
        }
    }

    #[cold]
    fn set_aside(&mut self, start: usize, end: usize, why: CoreError) {
        self.read.received += 1;
        self.read.rejected_items += 1;
        let data = self.text[start..end].trim_ascii_end();
        set_aside(&mut self.read.rejected, ErrorKind::EntryInvalid, &why.detail, why.offset, data, 1);
        self.first_fault.get_or_insert(CoreError { kind: ErrorKind::BodyInvalid, ..why });
    }
}

fn error(fault: &Fault, base: usize) -> CoreError {
    CoreError::new(ErrorKind::BodyInvalid, base + fault.offset, fault.to_string())
}

/// Whether a text is in lines although nobody says so: its first or its last one is a whole object or array by the look of its ends.
fn is_lines(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    let whole = |line: &[u8]| matches!((line.first(), line.last()), (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']')));
    let (Some(first), Some(last)) = (memchr::memchr(b'\n', text), memchr::memrchr(b'\n', text)) else { return false };
    whole(text[..first].trim_ascii()) || whole(text[last + 1..].trim_ascii())
}

#[cfg(test)]
mod tests;
