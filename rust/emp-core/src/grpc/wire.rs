//! What both ends of a connection share: bytes to frames, settings, pings, header blocks, the window of the connection.
//!
//! It answers by itself what needs no decision, and hands on the rest one part at a time, so that nothing queues up here. What a peer can
//! make it hold: one frame's rest or one header block, and HPACK's table. Not here: streams (`server.rs`, `client.rs`).

use super::frame::{self, FrameHead, HEAD_BYTES, MOST_FRAME_BYTES, PREFACE, code, flag, kind, read_u32};
use super::header_block::{Blocks, HeaderList};

/// What the peer may send without being told that it was read.
const RECEIVE_WINDOW: i64 = 4 << 20;
/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The HTTP/2 error code that the peer is told.
    pub code: u32,
    /// The words that the peer is told, and that callers count by.
    pub why: &'static str,
}

impl Broken {
    /// The peer broke the protocol.
    pub(super) fn protocol(why: &'static str) -> Self {
        Self { code: code::PROTOCOL_ERROR, why }
    }

    pub(super) fn calm(why: &'static str) -> Self {
        Self { code: code::ENHANCE_YOUR_CALM, why }
    }

    pub(super) fn size(why: &'static str) -> Self {
        Self { code: code::FRAME_SIZE_ERROR, why }
    }

    pub(super) fn flow(why: &'static str) -> Self {
        Self { code: code::FLOW_CONTROL_ERROR, why }
    }
}

/// What needs a decision of one end.
pub(super) enum Part<'a> {
    Headers {
        stream: u32,
        list: HeaderList,
        end_stream: bool,
    },
    /// A piece of a DATA frame. `flow_bytes`: what the frame takes of the stream's window, at its first piece.
    Data {
        stream: u32,
        bytes: &'a [u8],
        flow_bytes: usize,
        end_stream: bool,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    GoAway {
        last_stream: u32,
        code: u32,
        debug: Vec<u8>,
    },
    /// A stream's window has grown.
    Window {
        stream: u32,
        more_bytes: u32,
    },
    /// The windows of all streams have changed by so much.
    Windows {
        change_bytes: i64,
    },
}

enum Reading {
    Preface(usize),
    Head,
    Frame(FrameHead),
    Padding(FrameHead),
    Data { stream: u32, left: usize, padding: usize, flow_bytes: usize, end_stream: bool },
}

/// What the peer has told.
pub(super) struct PeerSettings {
    pub max_concurrent_streams: u32,
    pub initial_window: i64,
    pub max_frame_bytes: usize,
}

/// How a connection treats pings.
#[derive(Clone, Copy)]
pub(super) enum Pings {
    /// They may not come more often than so.
    EverySeconds(f64),
    /// They count as frames that move nothing on.
    Useless,
}

pub(super) struct Wire {
    pub out: Vec<u8>,
    pub peer: PeerSettings,
    /// What may be sent on all streams together.
    pub send_window: i64,
    /// What the peer may still send on all streams together.
    receive_window: i64,
    reading: Reading,
    partial: Vec<u8>,
    blocks: Blocks,
    pub has_settings: bool,
    pub useless_frames: u32,
    pub useless_since_s: f64,
    pub now_s: f64,
    pub pings: Pings,
    pub ping_strikes: u32,
    pub last_ping_s: f64,
    pub awaits_pong: bool,
}

impl Wire {
    /// `expects_preface`: this is the server's end.
    pub fn new(expects_preface: bool, pings: Pings) -> Self {
        Self {
            out: Vec::new(),
            peer: PeerSettings { max_concurrent_streams: u32::MAX, initial_window: frame::FIRST_WINDOW, max_frame_bytes: MOST_FRAME_BYTES },
            send_window: frame::FIRST_WINDOW,
            receive_window: RECEIVE_WINDOW,
            reading: if expects_preface { Reading::Preface(0) } else { Reading::Head },
            partial: Vec::new(),
            blocks: Blocks::default(),
            has_settings: false,
            useless_frames: 0,
            useless_since_s: f64::NEG_INFINITY,
            now_s: f64::NEG_INFINITY,
            pings,
            ping_strikes: 0,
            last_ping_s: f64::NEG_INFINITY,
            awaits_pong: false,
        }
    }

    /// Writes the first frames of this end.
    pub fn greet(&mut self, settings: &[(u16, u32)]) {
        frame::put_settings(&mut self.out, settings);
        frame::put_window_update(&mut self.out, 0, (RECEIVE_WINDOW - frame::FIRST_WINDOW) as u32);
    }

    /// The peer has said what a client of HTTP/2 begins with.
    pub fn has_begun(&self) -> bool {
        !matches!(self.reading, Reading::Preface(_))
    }

    /// The peer has told its settings.
    pub fn is_greeted(&self) -> bool {
        self.has_settings
    }

    /// The next part that needs a decision; None when `input` is used up from `at` on.
    pub fn next<'a>(&mut self, input: &'a [u8], at: &mut usize, now_s: f64) -> Result<Option<Part<'a>>, Broken> {
        self.now_s = now_s;
        loop {
            match self.reading {
                Reading::Preface(matched) => {
                    let rest = &input[*at..];
                    let size_bytes = rest.len().min(PREFACE.len() - matched);
                    if rest[..size_bytes] != PREFACE[matched..matched + size_bytes] {
                        return Err(Broken::protocol("this is no HTTP/2"));
                    }
                    *at += size_bytes;
                    if matched + size_bytes < PREFACE.len() {
                        self.reading = Reading::Preface(matched + size_bytes);
                        return Ok(None);
                    }
                    self.reading = Reading::Head;
                }
                Reading::Head => {
                    let Some(head) = self.collect(input, at, HEAD_BYTES) else { return Ok(None) };
                    let head = match head {
                        Collected::Whole(bytes) => bytes.first_chunk().map(FrameHead::parse),
                        Collected::Partial(bytes) => bytes.first_chunk().map(FrameHead::parse),
                    };
                    // As many bytes as a head has were collected.
                    let Some(head) = head else { return Ok(None) };
                    self.begin_frame(head)?;
                }
                Reading::Frame(head) => {
                    let Some(payload) = self.collect(input, at, head.size_bytes) else { return Ok(None) };
                    self.reading = Reading::Head;
                    let part = match payload {
                        Collected::Whole(bytes) => self.frame(head, bytes)?,
                        Collected::Partial(bytes) => self.frame(head, &bytes)?,
                    };
                    if part.is_some() {
                        return Ok(part);
                    }
                }
                Reading::Padding(head) => {
                    let Some(&padding) = input.get(*at) else { return Ok(None) };
                    *at += 1;
                    let padding = usize::from(padding);
                    let Some(left) = (head.size_bytes - 1).checked_sub(padding) else {
                        return Err(Broken::protocol("a frame is shorter than its padding"));
                    };
                    self.reading = data(head, left, padding);
                }
                Reading::Data { left: 0, padding, end_stream: false, flow_bytes: 0, .. } => {
                    let size_bytes = padding.min(input.len() - *at);
                    *at += size_bytes;
                    if let Reading::Data { padding, .. } = &mut self.reading {
                        *padding -= size_bytes;
                        if *padding > 0 {
                            return Ok(None);
                        }
                    }
                    self.reading = Reading::Head;
                }
                Reading::Data { stream, left, flow_bytes, end_stream, padding } => {
                    let size_bytes = left.min(input.len() - *at);
                    if size_bytes == 0 && left > 0 {
                        return Ok(None);
                    }
                    let bytes = &input[*at..*at + size_bytes];
                    *at += size_bytes;
                    let is_last = size_bytes == left;
                    // The end is told once; what is left then is padding.
                    let end_later = end_stream && !is_last;
                    self.reading = Reading::Data { stream, left: left - size_bytes, padding, flow_bytes: 0, end_stream: end_later };
                    return Ok(Some(Part::Data { stream, bytes, flow_bytes, end_stream: end_stream && is_last }));
                }
            }
        }
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.partial.len() + self.blocks.held_bytes()
    }

    /// The last bytes of the last piece of data could not be taken: they come again.
    pub fn give_back(&mut self, size_bytes: usize, was_end: bool, at: &mut usize) {
        if let Reading::Data { left, end_stream, .. } = &mut self.reading {
            *left += size_bytes;
            *end_stream |= was_end;
            *at -= size_bytes;
        }
    }

    /// So many bytes in one piece: of the input, or put together of what came before; None until they are there.
    fn collect<'a>(&mut self, input: &'a [u8], at: &mut usize, wanted: usize) -> Option<Collected<'a>> {
        let rest = &input[*at..];
        if self.partial.is_empty() && rest.len() >= wanted {
            *at += wanted;
            return Some(Collected::Whole(&rest[..wanted]));
        }
        let size_bytes = rest.len().min(wanted - self.partial.len());
        self.partial.extend_from_slice(&rest[..size_bytes]);
        *at += size_bytes;
        (self.partial.len() == wanted).then(|| Collected::Partial(std::mem::take(&mut self.partial)))
    }

    fn begin_frame(&mut self, head: FrameHead) -> Result<(), Broken> {
        if head.size_bytes > MOST_FRAME_BYTES {
            return Err(Broken::size("a frame is too long"));
        }
        if !self.has_settings && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(Broken::protocol("the first frame must be SETTINGS"));
        }
        if self.blocks.is_interrupted_by(head) {
            return Err(Broken::protocol("a block of headers was interrupted"));
        }
        if head.kind != kind::DATA {
            self.reading = Reading::Frame(head);
            return Ok(());
        }
        if head.stream == 0 {
            return Err(Broken::protocol("DATA belongs to a stream"));
        }
        self.receive_window -= head.size_bytes as i64;
        if self.receive_window < 0 {
            return Err(Broken::flow("more data than the connection's window"));
        }
        if self.receive_window < RECEIVE_WINDOW / 2 {
            frame::put_window_update(&mut self.out, 0, (RECEIVE_WINDOW - self.receive_window) as u32);
            self.receive_window = RECEIVE_WINDOW;
        }
        if head.size_bytes == 0 && !head.has(flag::END_STREAM) {
            self.useless()?;
        }
        self.reading = if !head.has(flag::PADDED) {
            data(head, head.size_bytes, 0)
        } else if head.size_bytes > 0 {
            Reading::Padding(head)
        } else {
            return Err(Broken::size("a padded frame has no length of its padding"));
        };
        Ok(())
    }

    /// Reads a whole frame that is no DATA.
    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Part<'static>>, Broken> {
        let stream = head.stream;
        match head.kind {
            kind::HEADERS => self.blocks.begin(head, payload),
            kind::CONTINUATION => self.blocks.go_on(head, payload),
            kind::PUSH_PROMISE => Err(Broken::protocol("nobody may push")),
            kind::PRIORITY => {
                if payload.len() != 5 {
                    return Err(Broken::size("PRIORITY has five bytes"));
                }
                self.useless().map(|()| None)
            }
            kind::RST_STREAM => {
                let code = self.four_bytes(payload)?;
                if stream == 0 {
                    return Err(Broken::protocol("RST_STREAM belongs to a stream"));
                }
                Ok(Some(Part::Reset { stream, code }))
            }
            kind::WINDOW_UPDATE => self.window_update(stream, payload),
            kind::SETTINGS | kind::PING | kind::GOAWAY if stream != 0 => Err(Broken::protocol("a frame of the connection names a stream")),
            kind::SETTINGS => self.settings(head, payload),
            kind::PING => self.ping_came(head, payload).map(|()| None),
            kind::GOAWAY => {
                let (Some(last_stream), Some(code)) = (read_u32(payload), payload.get(4..).and_then(read_u32)) else {
                    return Err(Broken::size("GOAWAY has eight bytes at least"));
                };
                let debug = payload[8..payload.len().min(8 + 256)].to_vec();
                Ok(Some(Part::GoAway { last_stream: last_stream & 0x7FFF_FFFF, code, debug }))
            }
            _ => self.useless().map(|()| None),
        }
    }
}

enum Collected<'a> {
    Whole(&'a [u8]),
    Partial(Vec<u8>),
}

fn data(head: FrameHead, left: usize, padding: usize) -> Reading {
    Reading::Data { stream: head.stream, left, padding, flow_bytes: head.size_bytes, end_stream: head.has(flag::END_STREAM) }
}
