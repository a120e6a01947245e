//! HTTP/2's frames (RFC 9113): kinds, flags, settings, error codes, and how each is written.

/// The kinds of frames.
pub(super) mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// The flags of frames.
pub(super) mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// The settings that are read or written.
pub(super) mod setting {
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// The error codes of RST_STREAM and GOAWAY.
pub mod code {
    /// Nothing is wrong.
    pub const NO_ERROR: u32 = 0;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// More bytes than were granted.
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    /// A frame of a length that it cannot have.
    pub const FRAME_SIZE_ERROR: u32 = 6;
    /// The stream was not begun.
    pub const REFUSED_STREAM: u32 = 7;
    /// Nobody waits for it any more.
    pub const CANCEL: u32 = 8;
    /// A header block that cannot be read.
    pub const COMPRESSION_ERROR: u32 = 9;
    /// The peer asks for too much work.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// What a client begins with.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const HEAD_BYTES: usize = 9;
/// The longest frame that either side may send unless told otherwise; we tell nothing else.
pub(super) const MOST_FRAME_BYTES: usize = 16_384;
pub(super) const FIRST_WINDOW: i64 = 65_535;
pub(super) const MOST_WINDOW: i64 = 0x7FFF_FFFF;

#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHead {
    pub size_bytes: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl FrameHead {
    pub fn parse(bytes: &[u8; HEAD_BYTES]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        Self { size_bytes: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags, stream: u32::from_be_bytes(stream) & 0x7FFF_FFFF }
    }

    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

pub(super) fn put_head(out: &mut Vec<u8>, size_bytes: usize, kind: u8, flags: u8, stream: u32) {
    let [_, size @ ..] = (size_bytes as u32).to_be_bytes();
    out.extend_from_slice(&size);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

pub(super) fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    put_head(out, payload.len(), kind, flags, stream);
    out.extend_from_slice(payload);
}

/// A header block, in as many frames as it needs.
pub(super) fn put_headers(out: &mut Vec<u8>, stream: u32, end_stream: bool, block: &[u8]) {
    let mut kind = kind::HEADERS;
    let mut flags = if end_stream { flag::END_STREAM } else { 0 };
    let mut rest = block;
    loop {
        let (part, after) = rest.split_at(rest.len().min(MOST_FRAME_BYTES));
        if after.is_empty() {
            return put_frame(out, kind, flags | flag::END_HEADERS, stream, part);
        }
        put_frame(out, kind, flags, stream, part);
        (kind, flags, rest) = (kind::CONTINUATION, 0, after);
    }
}

pub(super) fn put_reset(out: &mut Vec<u8>, stream: u32, code: u32) {
    put_frame(out, kind::RST_STREAM, 0, stream, &code.to_be_bytes());
}

pub(super) fn put_window_update(out: &mut Vec<u8>, stream: u32, more_bytes: u32) {
    put_frame(out, kind::WINDOW_UPDATE, 0, stream, &more_bytes.to_be_bytes());
}

pub(super) fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_head(out, 6 * settings.len(), kind::SETTINGS, 0, 0);
    for (name, value) in settings {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn put_goaway(out: &mut Vec<u8>, last_stream: u32, code: u32, debug: &[u8]) {
    put_head(out, 8 + debug.len(), kind::GOAWAY, 0, 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(debug);
}

/// The number that begins a payload.
pub(super) fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|&number| u32::from_be_bytes(number))
}
