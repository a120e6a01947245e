//! Messages to rows: of datagrams, and of streams.

use std::sync::Arc;

use super::fields::{Record, Value};
use super::frames::{Frame, Frames, Framing};
use super::{Message, Parser, When, trimmed};
use crate::error::ErrorKind;
use crate::fluent::read::set_aside;
use crate::normalize::{Builder, Envelope, Normalizer};
use crate::otlp::incoming::Read;

/// The number of a part of a message that was too long for one row, from 1.
const PART: &[u8] = b"line.part";
/// Whether more parts follow.
const CONTINUES: &[u8] = b"line.continues";
/// A longer header is not repeated with the parts of its message.
const MOST_HEADER_BYTES: usize = 4096;
const MAX_DEPTH: usize = 32;

/// What a decoder is told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How streams are cut.
    pub framing: Framing,
    /// Longer messages become several rows.
    pub max_message_bytes: usize,
}

/// What was seen beside rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows.
    pub rows: u64,
    /// Messages of RFC 5424 whose header breaks off.
    pub malformed: u64,
    /// Messages without a priority.
    pub without_priority: u64,
    /// Rows that are parts of messages that were too long.
    pub split: u64,
    /// Messages with nothing in them.
    pub blank: u64,
    /// Messages of a stream that should have had a length and had none.
    pub misframed: u64,
    /// Messages that ended before their length was reached.
    pub torn: u64,
}

/// One connection.
#[derive(Debug)]
pub struct Stream {
    pub(super) frames: Frames,
    /// The header of a message that comes in parts, with one letter behind it.
    header: Vec<u8>,
}

impl Stream {
    /// Bytes that are in no row yet.
    pub fn pending_bytes(&self) -> usize {
        self.frames.pending_bytes()
    }
}

/// Writes the rows of a receiver.
#[derive(Debug)]
pub struct Decoder {
    settings: Settings,
    parser: Parser,
    builder: Builder,
    record: Record,
    counts: Counts,
    read: Read,
    ages: Vec<(Vec<u8>, i64)>,
}

impl Decoder {
    /// A decoder with a receiver's rules.
    pub fn new(rules: Arc<Normalizer>, settings: Settings) -> Self {
        Self {
            settings,
            parser: Parser::default(),
            builder: Builder::new(rules, "emp-pipe/syslog", MAX_DEPTH),
            record: Record::default(),
            counts: Counts::default(),
            read: Read::default(),
            ages: Vec::new(),
        }
    }

    /// The state of a new connection.
    pub fn stream(&self) -> Stream {
        Stream { frames: Frames::new(self.settings.framing, self.settings.max_message_bytes), header: Vec::new() }
    }

    /// What was seen so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes one datagram, which is one message. `peer`: the address that it came from.
    pub fn datagram(&mut self, peer: &[u8], data: &[u8], when: &When) {
        self.builder.set_now(when.now_unix_nano);
        self.builder.set_tag(b"");
        let mut header = Vec::new();
        let mut rest = data;
        let mut frames = Frames::new(Framing::Newline, self.settings.max_message_bytes);
        // A datagram may hold line feeds; only one that is too long is cut, as a stream would be.
        if data.len() <= self.settings.max_message_bytes {
            self.frame(&mut header, peer, Frame { text: rest, part: 0, continues: false }, when);
            return;
        }
        let clean: Vec<u8>;
        if memchr::memchr2(b'\n', b'\0', data).is_some() {
            clean = data.iter().map(|byte| if matches!(byte, b'\n' | b'\0') { b' ' } else { *byte }).collect();
            rest = &clean;
        }
        frames.feed(rest, |frame| self.frame(&mut header, peer, frame, when));
        frames.flush(|frame| self.frame(&mut header, peer, frame, when));
    }

    /// Takes what has come on a connection.
    pub fn feed(&mut self, stream: &mut Stream, peer: &[u8], data: &[u8], when: &When) {
        self.builder.set_now(when.now_unix_nano);
        self.builder.set_tag(b"");
        self.builder.reserve_first(data.len());
        let Stream { frames, header } = stream;
        frames.feed(data, |frame| self.frame(header, peer, frame, when));
        self.counts.misframed += std::mem::take(&mut frames.misframed);
    }

    /// Nothing follows on a connection, or nothing has for long: what is there of a message is one.
    pub fn flush(&mut self, stream: &mut Stream, peer: &[u8], when: &When) {
        self.builder.set_now(when.now_unix_nano);
        self.builder.set_tag(b"");
        let Stream { frames, header } = stream;
        frames.flush(|frame| self.frame(header, peer, frame, when));
        self.counts.torn += std::mem::take(&mut frames.torn);
    }

    /// The rows so far, and by address of those that said a time the least of arrival minus time.
    pub fn take(&mut self) -> (Read, Vec<(Vec<u8>, i64)>) {
        let (batch, over_limit) = self.builder.take();
        let mut read = std::mem::take(&mut self.read);
        read.received = batch.len() as u64 + read.rejected_items;
        read.resources_over_limit = over_limit;
        read.batch = (!batch.is_empty()).then_some(batch);
        (read, std::mem::take(&mut self.ages))
    }

    fn frame(&mut self, header: &mut Vec<u8>, peer: &[u8], frame: Frame<'_>, when: &When) {
        let text = if frame.continues { frame.text } else { trimmed(frame.text) };
        if frame.part > 1 {
            let mut parser = std::mem::take(&mut self.parser);
            let message = Message { body: text, ..parser.untrimmed(header, when) };
            self.parser = parser;
            self.row(peer, &message, &frame, when);
            return;
        }
        if text.is_empty() {
            self.counts.blank += 1;
            return;
        }
        let message = self.parser.untrimmed(text, when);
        self.counts.malformed += u64::from(message.malformed);
        self.counts.without_priority += u64::from(message.priority.is_none());
        self.row(peer, &message, &frame, when);
        if frame.continues {
            header.clear();
            let len = text.len() - message.body.len();
            if (1..=MOST_HEADER_BYTES).contains(&len) {
                header.extend_from_slice(&text[..len]);
                header.push(b'x');
            }
        }
    }

    fn row(&mut self, peer: &[u8], message: &Message<'_>, frame: &Frame<'_>, when: &When) {
        self.record.begin();
        if frame.part > 0 {
            self.counts.split += 1;
            self.record.put(PART, Value::Int(i64::from(frame.part)));
            self.record.put_bool(CONTINUES, frame.continues);
        }
        let record = &mut self.record;
        message.fields(|name, value| record.put(name, value));
        if !peer.is_empty() {
            record.put(b"network.peer.address", Value::Text(peer));
            // Else it would be taken for this machine's.
            if message.host.is_empty() && !is_loopback(peer) {
                record.put(b"host.name", Value::Text(peer));
            }
        }
        let envelope = Envelope { time_unix_nano: message.time_unix_nano, metadata: &[] };
        match self.builder.push_alone(&envelope, record.end()) {
            Ok(()) => self.counts.rows += 1,
            Err(fault) => {
                self.read.rejected_items += 1;
                set_aside(&mut self.read.rejected, ErrorKind::EntryInvalid, fault.detail(), 0, frame.text, 1);
            }
        }
        if let Some(time) = message.time_unix_nano {
            let age = when.now_unix_nano.saturating_sub(time);
            match self.ages.iter_mut().rev().take(8).find(|(known, _)| known == peer) {
                Some((_, least)) => *least = age.min(*least),
                None => self.ages.push((peer.to_vec(), age)),
            }
        }
    }
}

fn is_loopback(peer: &[u8]) -> bool {
    peer.starts_with(b"127.") || peer == b"::1"
}
