//! Messages that are there as a whole: what they are, what is wrong with them, and how they end.

use super::body::{Body, Form, TOO_LONG};
use super::cursor::{Cursor, Fault};
use super::decoder::{Core, State};
use super::entry::{Time, time};
use super::inflate::{Compression, sniff};
use super::message::{self, BLOCK_TAG, Options, Start};
use super::read::{Chunk, IdForm, Read, ack};
use crate::block::{Block, Header};
use crate::error::ErrorKind;
use crate::normalize::Envelope;

impl Core {
    /// A frame that cannot be used, but stepped over; it is dead-lettered, so it is acknowledged.
    pub(super) fn reject_frame(
        &mut self,
        kind: ErrorKind,
        detail: &str,
        offset: u64,
        frame: &[u8],
        options: Option<Options>,
        read: &mut Read,
    ) -> usize {
        let records = options.as_ref().and_then(|options| options.size).unwrap_or(1).clamp(1, frame.len() as u64);
        read.reject(kind, detail, offset, frame, records);
        self.finish(options.and_then(|options| options.chunk), self.builder.len(), None, read);
        self.state = State::Start;
        frame.len()
    }

    /// A message is there as a whole. Returns how much of it is done with.
    pub(super) fn whole(&mut self, frame: &[u8], here: u64, read: &mut Read) -> usize {
        let start = match message::start(frame, 0) {
            Ok(Ok(start)) => start,
            Ok(Err(detail)) => return self.reject_frame(ErrorKind::FrameInvalid, detail, here, frame, None, read),
            Err(fault) => return self.reject_frame(ErrorKind::FrameInvalid, fault.detail(), here, frame, None, read),
        };
        let options = match whole_options(frame, &start) {
            Ok(options) => options,
            Err(fault) => return self.reject_frame(ErrorKind::FrameInvalid, fault.detail(), here, frame, None, read),
        };
        if start.tag == BLOCK_TAG
            && let message::Body::Packed(len) = start.body
            && let Some(header) = &options.block_header
        {
            let payload = &frame[start.body_at..start.body_at + len];
            return self.block(header.clone(), payload, options, here, frame, read);
        }
        if options.other_signal {
            let detail = "the frame holds Fluent Bit metrics or traces (fluent_signal), not logs";
            return self.reject_frame(ErrorKind::BodyInvalid, detail, here, frame, Some(options), read);
        }
        self.builder.set_tag(start.tag);
        let form = match start.body {
            message::Body::Message => return self.message(frame, &start, options, here, read),
            message::Body::Forward(count) => Form::Entries(count),
            message::Body::Packed(len) => Form::Bytes(len),
        };
        let content = &frame[start.body_at..];
        let mut compression = None;
        if let Form::Bytes(len) = form {
            let content = &content[..len];
            compression = compression_of(content, options.compression);
            if compression.is_none() && options.unknown_compression && !is_entry(content) {
                let detail = "the body is compressed in a way that is neither gzip nor zstd";
                return self.reject_frame(ErrorKind::BodyInvalid, detail, here, frame, Some(options), read);
            }
        }
        self.builder.reserve(frame.len());
        let mut body = Body::new(start.tag, form, compression, self.builder.len());
        body.tail_bytes = match form {
            Form::Bytes(len) => Some(frame.len() - start.body_at - len),
            // The options of a list of entries are behind it; they are found when the entries have been stepped over once.
            Form::Entries(_) => None,
        };
        body.options_at_end = start.elements > 2;
        body.options = matches!(form, Form::Bytes(_)).then_some(options);
        self.state = State::Body(Box::new(body));
        start.body_at
    }

    /// A frame has ended.
    pub(super) fn finish(&mut self, chunk: Option<(Vec<u8>, IdForm)>, row_start: usize, block_index: Option<usize>, read: &mut Read) {
        read.frames += 1;
        if let Some((id, form)) = chunk {
            let form = if self.json == Some(true) { IdForm::Json } else { form };
            let ack = ack(&id, form);
            read.chunks.push(Chunk { id, ack, row_start, row_end: self.builder.len(), block_index });
        }
    }

    /// Message mode without options, a usual record that is there as a whole: read in one pass. None, and nothing done, for anything else.
    pub(super) fn message_at_once(&mut self, data: &[u8], read: &mut Read) -> Option<usize> {
        let start = message::start(data, 0).ok()?.ok()?;
        if start.body != message::Body::Message || data.len() > self.limits.max_frame_bytes.min(self.limits.max_entry_bytes) {
            return None;
        }
        let mut cursor = Cursor::new(data, start.body_at);
        let Time::At(time_unix_nano) = time(&mut cursor).ok()? else { return None };
        self.builder.reserve_first(data.len());
        self.builder.set_tag(start.tag);
        let end = self.builder.push_if_usual(time_unix_nano, data, cursor.pos)?;
        read.looked_at_bytes += end as u64;
        read.frames += 1;
        Some(end)
    }

    /// Message mode: one entry that is not in an array of its own.
    pub(super) fn message(&mut self, frame: &[u8], start: &Start<'_>, options: Options, here: u64, read: &mut Read) -> usize {
        let row_start = self.builder.len();
        let mut cursor = Cursor::new(frame, start.body_at);
        let detail = match time(&mut cursor) {
            Ok(_) if self.is_over_long(frame, start.body_at) => Some(TOO_LONG),
            Ok(Time::At(time_unix_nano)) => {
                let envelope = Envelope { time_unix_nano, metadata: options.metadata.as_deref().unwrap_or_default() };
                self.builder.push(&envelope, frame, cursor.pos).err().map(Fault::detail)
            }
            Ok(Time::GroupStart | Time::GroupEnd) => None,
            Ok(Time::Bad(detail)) => Some(detail),
            Err(fault) => Some(fault.detail()),
        };
        if let Some(detail) = detail {
            return self.reject_frame(ErrorKind::EntryInvalid, detail, here, frame, Some(options), read);
        }
        self.finish(options.chunk, row_start, None, read);
        self.state = State::Start;
        frame.len()
    }

    /// Whether the entry (time and record) at `pos` is longer than one may be; it is stepped over only where the frame leaves room for that.
    fn is_over_long(&self, frame: &[u8], pos: usize) -> bool {
        let most = self.limits.max_entry_bytes;
        let mut cursor = Cursor::new(frame, pos);
        frame.len() - pos > most && (cursor.skip().is_err() || cursor.skip().is_err() || cursor.pos - pos > most)
    }

    /// A block from another emp-pipe.
    pub(super) fn block(&mut self, header: Vec<u8>, payload: &[u8], options: Options, here: u64, frame: &[u8], read: &mut Read) -> usize {
        if !self.limits.accept_blocks {
            read.foreign_blocks += 1;
            read.frames += 1;
            self.state = State::Start;
            return frame.len();
        }
        match Header::parse(&header) {
            Ok(header) => {
                read.received += header.records;
                read.blocks.push(Block { header, payload: payload.to_vec() });
                let index = read.blocks.len() - 1;
                self.finish(options.chunk, self.builder.len(), Some(index), read);
                self.state = State::Start;
                frame.len()
            }
            // The peer is newer than we are: its block stays with it until this side is upgraded.
            Err(error) if error.kind == ErrorKind::LogNewer => {
                self.die(error.kind, &error.detail, here, frame, read).unwrap_or(frame.len())
            }
            Err(error) => self.reject_frame(error.kind, &error.detail, here, frame, Some(options), read),
        }
    }
}

/// The options of a message that is there as a whole.
fn whole_options(frame: &[u8], start: &Start<'_>) -> Result<Options, Fault> {
    let mut cursor = Cursor::new(frame, start.body_at);
    let has_options = match start.body {
        message::Body::Message => {
            if start.elements < 4 {
                return Ok(Options::default());
            }
            cursor.skip()?;
            cursor.skip()?;
            true
        }
        // They come behind the entries, which are stepped over once only; see `body_done`.
        message::Body::Forward(_) => return Ok(Options::default()),
        message::Body::Packed(len) => {
            cursor.take(len)?;
            start.elements > 2
        }
    };
    if has_options { message::options(&mut cursor) } else { Ok(Options::default()) }
}

fn is_entry(content: &[u8]) -> bool {
    matches!(content.first(), None | Some(0x90..=0x9f | 0xdc | 0xdd))
}

/// How a body is compressed: its first bytes go before what the sender says.
fn compression_of(content: &[u8], said: Option<Compression>) -> Option<Compression> {
    sniff(content).or_else(|| said.filter(|_| !is_entry(content)))
}
