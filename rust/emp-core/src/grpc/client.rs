//! The client's end of a connection that carries unary calls: calls in, bytes out; bytes in, answers out.

use std::collections::BTreeMap;

use super::answer::Answer;
use super::frame::{self, PREFACE, code, setting};
use super::header_block::{HeaderList, MOST_HEADER_LIST_BYTES};
use super::hpack::put_field;
use super::outgoing::Outgoing;
use super::wire::{Broken, Part, Pings, Wire};

/// What an answer may have of bytes. Its window is larger, so that one over the limit is seen to be.
pub const MOST_ANSWER_BYTES: usize = 64 << 10;
const STREAM_WINDOW: u32 = 128 << 10;
const LAST_STREAM: u32 = 0x7FFF_FFFF;

/// What happened on a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A call has ended.
    Answer {
        /// The call.
        stream: u32,
        /// What the server says.
        answer: Answer,
    },
    /// The server ended a call without an answer.
    Reset {
        /// The call.
        stream: u32,
        /// The HTTP/2 error code.
        code: u32,
        /// The server has done nothing about it.
        is_untouched: bool,
    },
    /// The server takes no more calls on this connection. Those that it says it has not touched are told by `Reset` as well.
    GoAway {
        /// The HTTP/2 error code.
        code: u32,
        /// What the server says about it.
        debug: Vec<u8>,
    },
}

struct Stream<B> {
    outgoing: Option<Outgoing<B>>,
    answer: Answer,
    has_headers: bool,
    send_window: i64,
    receive_window: i64,
}

/// The client's end. `B` is what a message's bytes are kept in until they are sent.
pub struct ClientConnection<B> {
    wire: Wire,
    streams: BTreeMap<u32, Stream<B>>,
    next_stream: u32,
    is_leaving: bool,
    untouched: Vec<u32>,
}

impl<B: AsRef<[u8]>> Default for ClientConnection<B> {
    fn default() -> Self {
        let mut wire = Wire::new(false, Pings::Useless);
        wire.out.extend_from_slice(PREFACE);
        wire.greet(&[
            (setting::ENABLE_PUSH, 0),
            (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (setting::MAX_HEADER_LIST_SIZE, MOST_HEADER_LIST_BYTES as u32),
        ]);
        Self { wire, streams: BTreeMap::new(), next_stream: 1, is_leaving: false, untouched: Vec::new() }
    }
}

impl<B: AsRef<[u8]>> ClientConnection<B> {
    /// Begins a call and returns its stream; None where the server takes no more now, or the message is too long for any.
    pub fn call(&mut self, fields: &[(String, String)], body: B, is_compressed: bool) -> Option<u32> {
        if !self.has_room() {
            return None;
        }
        let outgoing = Outgoing::new(body, is_compressed, true)?;
        let stream = self.next_stream;
        self.next_stream += 2;
        let mut head = Vec::new();
        for (name, value) in fields {
            put_field(&mut head, name.as_bytes(), value.as_bytes(), name == "authorization");
        }
        frame::put_headers(&mut self.wire.out, stream, false, &head);
        let send_window = self.wire.peer.initial_window;
        let receive_window = STREAM_WINDOW.into();
        let begun = Stream { outgoing: Some(outgoing), answer: Answer::default(), has_headers: false, send_window, receive_window };
        self.streams.insert(stream, begun);
        Some(stream)
    }

    /// A call may begin now.
    pub fn has_room(&self) -> bool {
        !self.is_leaving && self.next_stream < LAST_STREAM && self.streams.len() < self.wire.peer.max_concurrent_streams as usize
    }

    /// No call will begin on it any more.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving || self.next_stream >= LAST_STREAM
    }

    /// Gives a call up.
    pub fn cancel(&mut self, stream: u32) {
        if self.streams.remove(&stream).is_some() {
            frame::put_reset(&mut self.wire.out, stream, code::CANCEL);
        }
    }

    /// The next event; None when `input` is used up from `at` on. After an error nothing more is read.
    pub fn next(&mut self, input: &[u8], at: &mut usize, now_s: f64) -> Result<Option<Event>, Broken> {
        self.step(input, at, now_s).inspect_err(|broken| frame::put_goaway(&mut self.wire.out, 0, broken.code, broken.why.as_bytes()))
    }

    fn step(&mut self, input: &[u8], at: &mut usize, now_s: f64) -> Result<Option<Event>, Broken> {
        loop {
            if let Some(stream) = self.untouched.pop() {
                return Ok(Some(Event::Reset { stream, code: code::REFUSED_STREAM, is_untouched: true }));
            }
            let Some(part) = self.wire.next(input, at, now_s)? else { return Ok(None) };
            let event = match part {
                Part::Headers { stream, list, end_stream } => self.headers(stream, list, end_stream)?,
                Part::Data { stream, bytes, flow_bytes, end_stream } => self.data(stream, bytes, flow_bytes, end_stream)?,
                Part::Reset { stream, code } => self.reset(stream, code)?,
                Part::Window { stream, more_bytes } => self.window(stream, more_bytes).map(|()| None)?,
                Part::Windows { change_bytes } => self.windows(change_bytes).map(|()| None)?,
                Part::GoAway { last_stream, code, debug } => {
                    self.is_leaving = true;
                    self.untouched = self.streams.split_off(&last_stream.saturating_add(1)).into_keys().collect();
                    Some(Event::GoAway { code, debug })
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// A stream that is not open: one that has ended here, or none at all.
    fn ended<T>(&mut self, stream: u32) -> Result<Option<T>, Broken> {
        if stream.is_multiple_of(2) || stream >= self.next_stream {
            return Err(Broken::protocol("a frame of a call that was not begun"));
        }
        self.wire.useless().map(|()| None)
    }

    fn headers(&mut self, stream: u32, list: HeaderList, end_stream: bool) -> Result<Option<Event>, Broken> {
        let Some(open) = self.streams.get_mut(&stream) else { return self.ended(stream) };
        if !open.has_headers {
            if list.get(":status").is_some_and(|status| status.len() == 3 && status.starts_with(b"1")) && !end_stream {
                return self.wire.useless().map(|()| None); // what comes before the answer
            }
            open.has_headers = true;
            open.answer.read_status(&list);
        } else if !end_stream {
            return Err(Broken::protocol("headers in the middle of an answer"));
        }
        if !end_stream {
            return Ok(None);
        }
        open.answer.read_trailers(&list);
        Ok(self.end(stream))
    }

    fn data(&mut self, stream: u32, bytes: &[u8], flow_bytes: usize, end_stream: bool) -> Result<Option<Event>, Broken> {
        let Some(open) = self.streams.get_mut(&stream) else { return self.ended(stream) };
        open.receive_window -= flow_bytes as i64;
        if !open.has_headers {
            return Err(Broken::protocol("data before the headers"));
        }
        if open.receive_window < 0 {
            return Err(Broken::flow("more data than the window of its call"));
        }
        open.answer.push(bytes);
        Ok(if end_stream || open.answer.is_too_long { self.end(stream) } else { None })
    }

    /// The answer of a call is there, whatever the server has not read of it.
    fn end(&mut self, stream: u32) -> Option<Event> {
        let open = self.streams.remove(&stream)?;
        if open.outgoing.is_some() || open.answer.is_too_long {
            frame::put_reset(&mut self.wire.out, stream, code::CANCEL);
        }
        self.wire.progress();
        Some(Event::Answer { stream, answer: open.answer })
    }

    fn reset(&mut self, stream: u32, code: u32) -> Result<Option<Event>, Broken> {
        if self.streams.remove(&stream).is_none() {
            return self.ended(stream);
        }
        Ok(Some(Event::Reset { stream, code, is_untouched: code == code::REFUSED_STREAM }))
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

    /// What is to be sent: all that is short, and of the messages what the windows let through, in about `most_bytes`.
    pub fn output(&mut self, most_bytes: usize) -> Vec<u8> {
        let Self { wire, streams, .. } = self;
        let before_bytes = wire.out.len();
        for (&stream, open) in streams.iter_mut() {
            let Some(outgoing) = &mut open.outgoing else { continue };
            let left_bytes = most_bytes.saturating_sub(wire.out.len());
            let windows = [&mut wire.send_window, &mut open.send_window];
            outgoing.pump(&mut wire.out, stream, windows, wire.peer.max_frame_bytes, left_bytes);
            if outgoing.is_sent() {
                open.outgoing = None;
            }
        }
        if wire.out.len() > before_bytes {
            wire.progress();
        }
        std::mem::take(&mut wire.out)
    }

    /// Asks the server whether it is there.
    pub fn ping(&mut self) {
        self.wire.ping();
    }

    /// A ping has not been answered yet.
    pub fn awaits_pong(&self) -> bool {
        self.wire.awaits_pong
    }

    /// The server has begun to speak HTTP/2.
    pub fn is_greeted(&self) -> bool {
        self.wire.is_greeted()
    }

    /// Calls under way.
    pub fn open_calls(&self) -> usize {
        self.streams.len()
    }

    /// Says that this end leaves.
    pub fn goaway(&mut self) {
        self.is_leaving = true;
        frame::put_goaway(&mut self.wire.out, 0, code::NO_ERROR, b"");
    }
}
