//! The frames of a connection that the wire answers by itself: settings, pings, windows; and what a peer may ask for without moving on.

use super::frame::{self, FrameHead, MOST_WINDOW, flag, kind, read_u32, setting};
use super::wire::{Broken, Part, Pings, Wire};

/// After so many frames that move nothing on, within so many seconds, the peer is sent away.
pub const MOST_USELESS_FRAMES: u32 = 1000;
const USELESS_WITHIN_S: f64 = 10.0;
/// So many pings may come too early.
const MOST_PING_STRIKES: u32 = 2;

impl Wire {
    /// A call has moved on: what came before is forgiven.
    pub fn progress(&mut self) {
        self.useless_frames = 0;
    }

    /// Something was sent on a stream: pings in between are no strikes.
    pub fn sent(&mut self) {
        self.ping_strikes = 0;
        self.last_ping_s = f64::NEG_INFINITY;
    }

    /// Counts a frame that moves nothing on.
    pub fn useless(&mut self) -> Result<(), Broken> {
        if self.now_s - self.useless_since_s > USELESS_WITHIN_S {
            (self.useless_since_s, self.useless_frames) = (self.now_s, 0);
        }
        self.useless_frames += 1;
        if self.useless_frames > MOST_USELESS_FRAMES { Err(Broken::calm("too many frames that move nothing on")) } else { Ok(()) }
    }

    pub(super) fn four_bytes(&self, payload: &[u8]) -> Result<u32, Broken> {
        if payload.len() == 4 { read_u32(payload).ok_or(Broken::size("")) } else { Err(Broken::size("a frame of four bytes has others")) }
    }

    pub(super) fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Part<'static>>, Broken> {
        if head.has(flag::ACK) {
            return if payload.is_empty() { self.useless().map(|()| None) } else { Err(Broken::size("an ack of settings has no bytes")) };
        }
        if !payload.len().is_multiple_of(6) {
            return Err(Broken::size("a setting has six bytes"));
        }
        self.useless()?;
        self.has_settings = true;
        let window_before = self.peer.initial_window;
        for entry in payload.chunks_exact(6) {
            let Some(value) = read_u32(&entry[2..]) else { continue };
            match u16::from_be_bytes([entry[0], entry[1]]) {
                setting::MAX_CONCURRENT_STREAMS => self.peer.max_concurrent_streams = value,
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > MOST_WINDOW => return Err(Broken::flow("a window over its limit")),
                setting::INITIAL_WINDOW_SIZE => self.peer.initial_window = value.into(),
                setting::MAX_FRAME_SIZE if !(16_384..=0xFF_FFFF).contains(&value) => {
                    return Err(Broken::protocol("a frame size that none can be"));
                }
                setting::MAX_FRAME_SIZE => self.peer.max_frame_bytes = value as usize,
                _ => {}
            }
        }
        frame::put_frame(&mut self.out, kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(Some(Part::Windows { change_bytes: self.peer.initial_window - window_before }))
    }

    pub(super) fn ping_came(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        if payload.len() != 8 {
            return Err(Broken::size("PING has eight bytes"));
        }
        if head.has(flag::ACK) {
            return if std::mem::take(&mut self.awaits_pong) { Ok(()) } else { self.useless() };
        }
        match self.pings {
            Pings::Useless => self.useless()?,
            Pings::EverySeconds(interval_s) => {
                if self.now_s - self.last_ping_s < interval_s {
                    self.ping_strikes += 1;
                    if self.ping_strikes > MOST_PING_STRIKES {
                        return Err(Broken::calm("too_many_pings"));
                    }
                }
                self.last_ping_s = self.now_s;
            }
        }
        frame::put_frame(&mut self.out, kind::PING, flag::ACK, 0, payload);
        Ok(())
    }

    pub(super) fn window_update(&mut self, stream: u32, payload: &[u8]) -> Result<Option<Part<'static>>, Broken> {
        let more_bytes = self.four_bytes(payload)? & 0x7FFF_FFFF;
        if more_bytes == 0 {
            return Err(Broken::protocol("a window that grows by nothing"));
        }
        self.useless()?;
        if stream != 0 {
            return Ok(Some(Part::Window { stream, more_bytes }));
        }
        self.send_window += i64::from(more_bytes);
        if self.send_window > MOST_WINDOW {
            return Err(Broken::flow("a window over its limit"));
        }
        Ok(None)
    }

    /// Asks the peer whether it is there.
    pub fn ping(&mut self) {
        self.awaits_pong = true;
        frame::put_frame(&mut self.out, kind::PING, 0, 0, b"emp-pipe");
    }
}
