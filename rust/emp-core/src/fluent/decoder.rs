//! [`Decoder`]: the sans-IO reader of one Fluent Forward connection.
//!
//! ```text
//!   Start ──▶ Waiting ──(all of it is here)──▶ Body ──▶ Start        chunk, ack
//!                │                              ▲
//!                └──(too long to wait for)──────┘ entry by entry, options and ack at the end
//! ```
//!
//! Every byte is scanned once while a message arrives and decoded once; nothing is begun again at the next read. All frames of a read
//! give one batch. Whole messages are in [`super::frame`], their entries in [`super::body`], JSON in [`super::json`].

use std::sync::Arc;

use super::body::{Body, Form, Step};
use super::buffer::Buffer;
use super::cursor::{Cursor, Scan};
use super::inflate::sniff;
use super::json::{self, JsonScan};
use super::message::{self, BLOCK_TAG};
use super::read::{Read, Rejected};
use crate::error::ErrorKind;
use crate::normalize::{Builder, Normalizer};

/// What a connection may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A longer frame ends the connection.
    pub max_frame_bytes: usize,
    /// The rest of a body that inflates to more is rejected.
    pub max_inflated_bytes: usize,
    /// A longer entry is rejected.
    pub max_entry_bytes: usize,
    /// How deep maps and arrays of a record may be nested.
    pub max_depth: usize,
    /// Longer frames are decoded as they arrive.
    pub stream_above_bytes: usize,
    /// Whether the peer may send blocks.
    pub accept_blocks: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_frame_bytes: 256 << 20,
            max_inflated_bytes: 256 << 20,
            max_entry_bytes: 64 << 20,
            max_depth: 64,
            stream_above_bytes: 8 << 20,
            accept_blocks: false,
        }
    }
}

/// Rows of more bytes than this end a read.
pub const BATCH_BYTES: usize = 32 << 20;
/// More rejected records than this end a read too: a bomb of bad entries must not keep others waiting.
const REJECTED_RECORDS: u64 = 1 << 18;
/// The options behind a body are no place for data.
const MAX_OPTIONS_BYTES: usize = 1 << 20;
/// JSON is for people and small senders; what is larger is a mistake.
const MAX_JSON_BYTES: usize = 16 << 20;

/// Whether what was read is to be looked at before more is read. Rows are added to `received` at the end: it counts the others here.
pub fn read_is_full(builder: &Builder, read: &Read) -> bool {
    builder.row_bytes() > BATCH_BYTES || read.received > REJECTED_RECORDS
}

pub(super) enum State {
    /// At the first byte of a message.
    Start,
    /// Within a message; positions count from its first byte.
    Waiting(Scan),
    /// In the entries of a message.
    Body(Box<Body>),
    /// Behind the entries of a message that was not waited for: its options.
    Tail(Box<Body>, Scan),
    /// Within a JSON text.
    Json(JsonScan),
    /// Nothing can be read any more.
    Dead,
}

/// The reader of one connection.
pub struct Decoder {
    buffer: Buffer,
    core: Core,
}

pub(super) struct Core {
    pub(super) limits: Limits,
    pub(super) builder: Builder,
    pub(super) state: State,
    /// From the connection's first byte to the first one that is pending.
    pub(super) offset: u64,
    /// Whether the connection speaks JSON; known from its first byte.
    pub(super) json: Option<bool>,
}

impl Decoder {
    /// A reader at the first byte of a connection.
    pub fn new(rules: Arc<Normalizer>, limits: Limits) -> Self {
        let builder = Builder::new(rules, "emp-pipe/forward", limits.max_depth);
        Self { buffer: Buffer::default(), core: Core { limits, builder, state: State::Start, offset: 0, json: None } }
    }

    /// Makes room for a read (0: gives memory back where nothing is pending); moves what is pending.
    pub fn reserve(&mut self, hint_bytes: usize) {
        self.buffer.reserve(hint_bytes, self.core.wanted_bytes());
    }

    /// The room for the next read.
    pub fn free(&mut self) -> &mut [u8] {
        self.buffer.free()
    }

    /// Bytes that are held back for the rest of their frame.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.filled().len() + self.core.inflated_bytes()
    }

    /// What is added to the times of the following rows.
    pub fn set_time_correction_ns(&mut self, correction_ns: i64) {
        self.core.builder.set_time_correction_ns(correction_ns);
    }

    /// `len` bytes have landed in [`Self::free`]: what they complete. Moves nothing.
    pub fn received(&mut self, len: usize, now_unix_nano: i64) -> Read {
        self.buffer.landed(len);
        let mut read = Read::default();
        let consumed = self.core.read(self.buffer.filled(), now_unix_nano, &mut read);
        self.buffer.consume(consumed);
        read
    }

    /// The connection has ended. What was pending belonged to a frame that never came whole: no error, and nothing of it to acknowledge.
    pub fn eof(&mut self) -> Read {
        self.core.state = State::Dead;
        let pending = self.buffer.filled().len();
        self.buffer.consume(pending);
        Read::default()
    }

    /// The same for bytes that lie elsewhere; only what is left of them is copied.
    pub fn feed(&mut self, data: &[u8], now_unix_nano: i64) -> Read {
        let mut read = Read::default();
        if self.buffer.filled().is_empty() {
            let consumed = self.core.read(data, now_unix_nano, &mut read);
            if consumed < data.len() {
                self.buffer.extend(&data[consumed..]);
            }
        } else {
            self.buffer.extend(data);
            let consumed = self.core.read(self.buffer.filled(), now_unix_nano, &mut read);
            self.buffer.consume(consumed);
        }
        read
    }
}

impl Core {
    /// The size of the message that has begun, as far as it is known.
    fn wanted_bytes(&self) -> usize {
        match &self.state {
            State::Waiting(scan) => scan.pos.min(self.limits.stream_above_bytes),
            _ => 0,
        }
    }

    fn inflated_bytes(&self) -> usize {
        match &self.state {
            State::Body(body) => body.inflated_bytes(),
            _ => 0,
        }
    }

    /// Reads what is there; returns how many bytes are done with.
    fn read(&mut self, data: &[u8], now_unix_nano: i64, read: &mut Read) -> usize {
        self.builder.set_now(now_unix_nano);
        if let State::Body(body) | State::Tail(body, _) = &mut self.state {
            body.row_start = 0;
            self.builder.set_tag(&body.tag);
        }
        let mut at = 0;
        loop {
            if read_is_full(&self.builder, read) {
                read.more = true;
                break;
            }
            match self.step(&data[at..], at, read) {
                Some(consumed) => at += consumed,
                None => break,
            }
        }
        self.offset += at as u64;
        read.min_age_ns = self.builder.min_age_ns();
        read.received += self.builder.len() as u64;
        let (batch, over_limit) = self.builder.take();
        read.resources_over_limit = over_limit;
        read.batch = (!batch.is_empty()).then_some(batch);
        at
    }

    /// One step; returns how many bytes are done with, None when more bytes are needed (or none ever again). `at` is where `data` begins
    /// in this read.
    fn step(&mut self, data: &[u8], at: usize, read: &mut Read) -> Option<usize> {
        let here = self.offset + at as u64;
        match &mut self.state {
            State::Start => {
                let first = *data.first()?;
                if self.json.get_or_insert(matches!(first, b'{' | b'[')).to_owned() {
                    return self.start_json(data, here, read);
                }
                match first {
                    0xc0 => Some(1),
                    0x93 if let Some(size) = self.message_at_once(data, read) => Some(size),
                    0x90..=0x9f | 0xdc | 0xdd => {
                        self.state = State::Waiting(Scan::value(0));
                        Some(0)
                    }
                    _ => self.die(ErrorKind::FrameInvalid, "not Fluent Forward: a message is an array", here, data, read),
                }
            }
            State::Waiting(scan) => {
                let looked_at = scan.pos;
                let whole = match scan.advance(data) {
                    Ok(whole) => whole,
                    Err(fault) => return self.die(ErrorKind::FrameInvalid, fault.detail(), here, data, read),
                };
                let size = scan.pos;
                read.looked_at_bytes += size.min(data.len()).saturating_sub(looked_at) as u64;
                if size > self.limits.max_frame_bytes {
                    return self.die(ErrorKind::FrameTooLarge, "a frame is longer than max_frame_bytes", here, data, read);
                }
                if whole {
                    self.builder.reserve_first(data.len());
                    return Some(self.whole(&data[..size], here, read));
                }
                if size.max(data.len()) > self.limits.stream_above_bytes {
                    return self.stream(data);
                }
                None
            }
            State::Body(body) => {
                let was = (body.left(), body.inflated_bytes());
                let step = body.read(&mut self.builder, &self.limits, data, here, read);
                match step {
                    Step::Unfollowable(used, detail) => self.die(ErrorKind::FrameInvalid, detail, here + used as u64, &data[used..], read),
                    Step::Done(used) => {
                        let State::Body(body) = std::mem::replace(&mut self.state, State::Start) else { return None };
                        Some(used + self.body_done(body, read))
                    }
                    // Nothing happened: wait. A full batch is looked at before the next step.
                    Step::Partly(0) if was == (body.left(), body.inflated_bytes()) && !read_is_full(&self.builder, read) => None,
                    Step::Partly(used) => Some(used),
                }
            }
            State::Tail(_, scan) => {
                match scan.advance(data) {
                    Ok(true) => {}
                    Ok(false) if scan.pos.max(data.len()) <= MAX_OPTIONS_BYTES => return None,
                    Ok(false) => return self.die(ErrorKind::FrameTooLarge, "a frame's options are longer than 1 MiB", here, data, read),
                    Err(fault) => return self.die(ErrorKind::FrameInvalid, fault.detail(), here, data, read),
                }
                let end = scan.pos;
                let State::Tail(body, _) = std::mem::replace(&mut self.state, State::Start) else { return None };
                let options = message::options(&mut Cursor::new(&data[..end], 0)).unwrap_or_default();
                self.finish(options.chunk, body.row_start, None, read);
                Some(end)
            }
            State::Json(scan) => match scan.advance(data) {
                Ok(Some(end)) => {
                    self.state = State::Start;
                    self.json_text(&data[..end], here, read);
                    Some(end)
                }
                Ok(None) if data.len() > self.limits.max_frame_bytes.min(MAX_JSON_BYTES) => {
                    self.die(ErrorKind::FrameTooLarge, "a message in JSON is longer than 16 MiB", here, data, read)
                }
                Ok(None) => None,
                Err(detail) => self.die(ErrorKind::FrameInvalid, detail, here, data, read),
            },
            State::Dead => (!data.is_empty()).then_some(data.len()),
        }
    }

    /// Ends the connection: its bytes cannot be followed.
    pub(super) fn die(&mut self, kind: ErrorKind, detail: &str, offset: u64, data: &[u8], read: &mut Read) -> Option<usize> {
        self.state = State::Dead;
        read.received += 1;
        read.fatal = Some(Rejected::new(kind, detail, offset, data));
        Some(data.len())
    }

    /// A message too long to wait for: its entries as they arrive, if it has any.
    fn stream(&mut self, data: &[u8]) -> Option<usize> {
        let Ok(Ok(start)) = message::start(data, 0) else { return None };
        let form = match start.body {
            message::Body::Forward(count) => Form::Entries(count),
            message::Body::Packed(len) => Form::Bytes(len),
            message::Body::Message => return None,
        };
        if start.tag == BLOCK_TAG {
            return None;
        }
        let content = &data[start.body_at..];
        // The first bytes tell how a body is compressed, and whether it is one; its options come last.
        if content.len() < 4 {
            return None;
        }
        let compression = if matches!(form, Form::Bytes(_)) { sniff(content) } else { None };
        self.builder.set_tag(start.tag);
        let mut body = Body::new(start.tag, form, compression, self.builder.len());
        body.options_at_end = start.elements > 2;
        self.state = State::Body(Box::new(body));
        Some(start.body_at)
    }

    /// The entries of a message have ended. Returns how many bytes behind them are done with.
    fn body_done(&mut self, mut body: Box<Body>, read: &mut Read) -> usize {
        self.builder.end_group();
        match (body.options.take(), body.options_at_end) {
            (Some(options), _) if body.tail_bytes.is_some_and(|len| len > 0) || !body.options_at_end => {
                self.finish(options.chunk, body.row_start, None, read);
                body.tail_bytes.unwrap_or_default()
            }
            (_, true) => {
                self.state = State::Tail(body, Scan::value(0));
                0
            }
            (_, false) => {
                self.finish(None, body.row_start, None, read);
                0
            }
        }
    }

    fn start_json(&mut self, data: &[u8], here: u64, read: &mut Read) -> Option<usize> {
        match data[0] {
            b' ' | b'\t' | b'\r' | b'\n' | b',' => Some(1),
            b'{' | b'[' => {
                self.state = State::Json(JsonScan::default());
                Some(0)
            }
            _ => self.die(ErrorKind::FrameInvalid, "not JSON: a message is an array or an object", here, data, read),
        }
    }

    /// A JSON text: a message, or an object, which is a record without tag and time.
    fn json_text(&mut self, text: &[u8], here: u64, read: &mut Read) {
        let frame = match json::message(text) {
            Ok(frame) => frame,
            Err(error) => {
                self.reject_frame(ErrorKind::FrameInvalid, &error.detail, here + error.offset, text, None, read);
                return;
            }
        };
        let mut at = self.whole(&frame, here, read);
        // All of it is here, and its size is bounded: it is decoded at once, however full the batch.
        if let State::Body(body) = &mut self.state {
            body.no_batch_limit = true;
        }
        while matches!(self.state, State::Body(_) | State::Tail(..)) {
            match self.step(&frame[at..], 0, read) {
                Some(used) => at += used,
                None => break,
            }
        }
        if !matches!(self.state, State::Dead) {
            self.state = State::Start;
        }
    }
}
