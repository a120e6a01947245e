//! The server's end of a connection that carries unary calls: bytes in, events out; answers in, bytes out.
//!
//! `next` stops at everything that needs a decision, so a call is judged by its headers before a byte of its message is taken, and a
//! message gets its memory as it is granted. Of a call the first message is taken; what follows is read away.

use std::collections::BTreeMap;

use super::frame::{self, code, setting};
use super::header_block::{HeaderList, MOST_HEADER_LIST_BYTES};
use super::hpack::put_field;
use super::incoming::{Incoming, Message, Step};
use super::outgoing::Outgoing;
use super::request::{Call, judge, percent_encoded};
use super::wire::{Broken, Part, Pings, Wire};

/// What a stream may send before it is heard, and then at a time.
const STREAM_WINDOW: i64 = 1 << 20;
/// What a message gets of memory by telling its length.
pub const FIRST_GRANT_BYTES: usize = 512 << 10;
/// So many answers may wait for a peer that does not let them through.
const MOST_WAITING_ANSWERS: usize = 100;

/// What a server can be told about its peers.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Calls under way at once.
    pub max_concurrent_streams: u32,
    /// Pings that come more often are too many.
    pub min_ping_interval_s: f64,
}

/// What happened on a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A call begins: without a word against it (`fail`, `reject`) its message is read.
    Call(Call),
    /// A message needs memory: `grant` it, or end the call.
    Wants {
        /// The call.
        stream: u32,
        /// How long the message says it is.
        size_bytes: usize,
        /// What has been granted.
        granted_bytes: usize,
        /// What is asked for now.
        more_bytes: usize,
    },
    /// The message of a call is whole.
    Message {
        /// The call, which waits for its answer.
        stream: u32,
        /// Its message.
        message: Message,
    },
    /// The peer has ended a call before its message was whole; it waits for an answer.
    NoMessage {
        /// The call.
        stream: u32,
        /// Some of the message had come.
        is_torn: bool,
    },
    /// The peer has given a call up.
    Gone {
        /// The call.
        stream: u32,
    },
}

#[derive(Default)]
struct Stream {
    incoming: Incoming,
    /// The message is with the caller, or will never come.
    is_read: bool,
    has_turn: bool,
    peer_ended: bool,
    receive_window: i64,
    send_window: i64,
    answer: Option<(Outgoing<Vec<u8>>, Vec<u8>)>,
}

/// The server's end.
pub struct ServerConnection {
    wire: Wire,
    limits: ServerLimits,
    streams: BTreeMap<u32, Stream>,
    last_stream: u32,
    /// A call that ended with its headers: that is told after them.
    ended: Option<u32>,
    is_draining: bool,
}

impl ServerConnection {
    /// A connection whose first bytes are in `output`.
    pub fn new(limits: ServerLimits) -> Self {
        let mut wire = Wire::new(true, Pings::EverySeconds(limits.min_ping_interval_s));
        wire.greet(&[
            (setting::MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams),
            (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW as u32),
            (setting::MAX_HEADER_LIST_SIZE, MOST_HEADER_LIST_BYTES as u32),
        ]);
        Self { wire, limits, streams: BTreeMap::new(), last_stream: 0, ended: None, is_draining: false }
    }

    /// The next event; None when `input` is used up from `at` on. After an error nothing more is read; `output` says why.
    pub fn next(&mut self, input: &[u8], at: &mut usize, now_s: f64) -> Result<Option<Event>, Broken> {
        self.step(input, at, now_s).inspect_err(|broken| self.goaway(broken.code, broken.why))
    }

    fn step(&mut self, input: &[u8], at: &mut usize, now_s: f64) -> Result<Option<Event>, Broken> {
        if let Some(event) = self.ended.take().and_then(|stream| self.peer_ended(stream)) {
            return Ok(Some(event));
        }
        while let Some(part) = self.wire.next(input, at, now_s)? {
            let event = match part {
                Part::Headers { stream, list, end_stream } => self.headers(stream, list, end_stream)?,
                Part::Data { stream, bytes, flow_bytes, end_stream } => self.data(stream, bytes, flow_bytes, end_stream, at)?,
                Part::Reset { stream, .. } => self.reset(stream)?,
                Part::Window { stream, more_bytes } => self.window(stream, more_bytes).map(|()| None)?,
                Part::Windows { change_bytes } => self.windows(change_bytes).map(|()| None)?,
                Part::GoAway { .. } => None, // what is under way ends as usual
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    fn headers(&mut self, stream: u32, list: HeaderList, end_stream: bool) -> Result<Option<Event>, Broken> {
        if stream.is_multiple_of(2) {
            return Err(Broken::protocol("a client's streams are odd"));
        }
        if let Some(open) = self.streams.get_mut(&stream) {
            if !end_stream || open.peer_ended {
                return Err(Broken::protocol("headers in the middle of a call"));
            }
            return Ok(self.peer_ended(stream));
        }
        if stream <= self.last_stream {
            return self.wire.useless().map(|()| None); // of a call that has ended here
        }
        self.last_stream = stream;
        if self.is_draining || self.streams.len() >= self.limits.max_concurrent_streams as usize {
            frame::put_reset(&mut self.wire.out, stream, code::REFUSED_STREAM);
            return self.wire.useless().map(|()| None);
        }
        let Some(problem) = judge(&list) else {
            frame::put_reset(&mut self.wire.out, stream, code::PROTOCOL_ERROR);
            return self.wire.useless().map(|()| None);
        };
        let open = Stream {
            is_read: problem.is_some(),
            receive_window: STREAM_WINDOW,
            send_window: self.wire.peer.initial_window,
            ..Stream::default()
        };
        self.streams.insert(stream, open);
        self.ended = end_stream.then_some(stream);
        let path = String::from_utf8_lossy(list.get(":path").unwrap_or_default()).into_owned();
        Ok(Some(Event::Call(Call { stream, path, headers: list, problem })))
    }

    fn data(&mut self, stream: u32, bytes: &[u8], flow_bytes: usize, end_stream: bool, at: &mut usize) -> Result<Option<Event>, Broken> {
        let Some(open) = self.streams.get_mut(&stream) else {
            // Of a call that has ended here: the peer may not know yet.
            return if stream > self.last_stream { Err(Broken::protocol("DATA of a call that was not begun")) } else { Ok(None) };
        };
        if open.peer_ended {
            return Err(Broken::protocol("DATA after the end of a call"));
        }
        open.receive_window -= flow_bytes as i64;
        if open.receive_window < 0 {
            return Err(Broken::flow("more data than the window of its call"));
        }
        if !open.is_read {
            match open.incoming.push(bytes) {
                Step::More => {}
                Step::Wants { taken_bytes } => {
                    // An end is told again with what was not taken; if all was, with an empty piece.
                    self.wire.give_back(bytes.len() - taken_bytes, end_stream, at);
                    let (size_bytes, granted_bytes) = (open.incoming.size_bytes, open.incoming.granted_bytes);
                    let more_bytes = open.incoming.more_bytes(FIRST_GRANT_BYTES);
                    return Ok(Some(Event::Wants { stream, size_bytes, granted_bytes, more_bytes }));
                }
                Step::Whole => {
                    open.is_read = true;
                    open.peer_ended = end_stream;
                    self.wire.progress();
                    return Ok(Some(Event::Message { stream, message: open.incoming.take() }));
                }
            }
            open.widen(&mut self.wire.out, stream);
        }
        Ok(if end_stream { self.peer_ended(stream) } else { None })
    }

    fn peer_ended(&mut self, stream: u32) -> Option<Event> {
        let open = self.streams.get_mut(&stream)?;
        open.peer_ended = true;
        if open.is_read {
            return None;
        }
        open.is_read = true;
        Some(Event::NoMessage { stream, is_torn: open.incoming.is_begun() })
    }

    fn reset(&mut self, stream: u32) -> Result<Option<Event>, Broken> {
        if stream > self.last_stream {
            return Err(Broken::protocol("RST_STREAM of a call that was not begun"));
        }
        let Some(open) = self.streams.remove(&stream) else { return self.wire.useless().map(|()| None) };
        if !open.is_read {
            self.wire.useless()?;
        }
        Ok(Some(Event::Gone { stream }))
    }

    fn window(&mut self, stream: u32, more_bytes: u32) -> Result<(), Broken> {
        if let Some(open) = self.streams.get_mut(&stream) {
            open.send_window += i64::from(more_bytes);
            if open.send_window > frame::MOST_WINDOW {
                return Err(Broken::flow("a window over its limit"));
            }
        }
        Ok(())
    }

    fn windows(&mut self, change_bytes: i64) -> Result<(), Broken> {
        for open in self.streams.values_mut() {
            open.send_window += change_bytes;
            if open.send_window > frame::MOST_WINDOW {
                return Err(Broken::flow("a window over its limit"));
            }
        }
        Ok(())
    }

    /// Gives a call its turn: as much of its message may come as it has.
    pub fn give_turn(&mut self, stream: u32) {
        if let Some(open) = self.streams.get_mut(&stream) {
            open.has_turn = true;
            open.widen(&mut self.wire.out, stream);
        }
    }

    /// Grants memory to a message.
    pub fn grant(&mut self, stream: u32, more_bytes: usize) {
        if let Some(open) = self.streams.get_mut(&stream) {
            open.incoming.grant(more_bytes);
        }
    }

    /// Answers a call. `MOST_WAITING_ANSWERS` is what a peer may leave unread.
    pub fn respond(&mut self, stream: u32, message: Vec<u8>) -> Result<(), Broken> {
        if !self.streams.contains_key(&stream) {
            return Ok(()); // the peer has given it up
        }
        let mut head = vec![0x88]; // :status 200
        put_field(&mut head, b"content-type", b"application/grpc", false);
        frame::put_headers(&mut self.wire.out, stream, false, &head);
        let mut trailers = Vec::new();
        put_field(&mut trailers, b"grpc-status", b"0", false);
        if let (Some(open), Some(answer)) = (self.streams.get_mut(&stream), Outgoing::new(message, false, false)) {
            open.answer = Some((answer, trailers));
        }
        self.wire.sent();
        self.pump();
        if self.streams.values().filter(|open| open.answer.is_some()).count() > MOST_WAITING_ANSWERS {
            let broken = Broken::calm("answers are not taken");
            self.goaway(broken.code, broken.why);
            return Err(broken);
        }
        Ok(())
    }

    /// Answers a call with a status, a message and more trailers; what still comes of it is read away.
    pub fn fail(&mut self, stream: u32, status: u32, message: &str, trailers: &[(String, String)]) {
        let mut head = vec![0x88];
        put_field(&mut head, b"content-type", b"application/grpc", false);
        put_field(&mut head, b"grpc-status", status.to_string().as_bytes(), false);
        put_field(&mut head, b"grpc-message", &percent_encoded(message), false);
        for (name, value) in trailers {
            put_field(&mut head, name.as_bytes(), value.as_bytes(), false);
        }
        self.end(stream, &head);
    }

    /// Answers a call that is none of gRPC in HTTP's words.
    pub fn reject(&mut self, stream: u32, http_status: u16) {
        let mut head = Vec::new();
        put_field(&mut head, b":status", http_status.to_string().as_bytes(), false);
        self.end(stream, &head);
    }

    fn end(&mut self, stream: u32, head: &[u8]) {
        if let Some(open) = self.streams.remove(&stream) {
            frame::put_headers(&mut self.wire.out, stream, true, head);
            let peer_ended = open.peer_ended || self.ended == Some(stream);
            self.close(stream, peer_ended);
        }
    }

    fn close(&mut self, stream: u32, peer_ended: bool) {
        if !peer_ended {
            frame::put_reset(&mut self.wire.out, stream, code::NO_ERROR); // whatever it still has, it need not send it
        }
        self.wire.sent();
    }

    /// Sends what the peer's windows let through of the answers.
    fn pump(&mut self) {
        let Self { wire, streams, .. } = self;
        let mut done = Vec::new();
        for (&stream, open) in streams.iter_mut() {
            let Some((answer, trailers)) = &mut open.answer else { continue };
            let windows = [&mut wire.send_window, &mut open.send_window];
            answer.pump(&mut wire.out, stream, windows, wire.peer.max_frame_bytes, usize::MAX);
            if answer.is_sent() {
                frame::put_headers(&mut wire.out, stream, true, trailers);
                done.push(stream);
            }
        }
        for stream in done {
            if let Some(open) = self.streams.remove(&stream) {
                self.close(stream, open.peer_ended);
            }
        }
    }

    /// Says that no call is taken any more; those under way go on.
    pub fn drain(&mut self) {
        self.is_draining = true;
        self.goaway(code::NO_ERROR, "");
    }

    fn goaway(&mut self, code: u32, why: &str) {
        frame::put_goaway(&mut self.wire.out, self.last_stream, code, why.as_bytes());
    }

    /// Asks the peer whether it is there.
    pub fn ping(&mut self) {
        self.wire.ping();
    }

    /// A ping has not been answered yet.
    pub fn awaits_pong(&self) -> bool {
        self.wire.awaits_pong
    }

    /// The peer has said what a client of HTTP/2 begins with.
    pub fn has_begun(&self) -> bool {
        self.wire.has_begun()
    }

    /// The peer has told its settings.
    pub fn is_greeted(&self) -> bool {
        self.wire.is_greeted()
    }

    /// Calls under way.
    pub fn open_calls(&self) -> usize {
        self.streams.len()
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.wire.held_bytes() + self.streams.values().map(|open| open.incoming.held_bytes()).sum::<usize>()
    }

    /// What is to be sent.
    pub fn output(&mut self) -> Vec<u8> {
        if self.streams.values().any(|open| open.answer.is_some()) {
            self.pump();
        }
        std::mem::take(&mut self.wire.out)
    }
}

impl Stream {
    /// Lets the peer send on, where it is its turn and it has more than it may send.
    fn widen(&mut self, out: &mut Vec<u8>, stream: u32) {
        let missing_bytes = self.incoming.missing_bytes() as i64;
        if self.has_turn
            && !self.is_read
            && !self.peer_ended
            && missing_bytes > self.receive_window
            && self.receive_window < STREAM_WINDOW / 2
        {
            frame::put_window_update(out, stream, (STREAM_WINDOW - self.receive_window) as u32);
            self.receive_window = STREAM_WINDOW;
        }
    }
}
