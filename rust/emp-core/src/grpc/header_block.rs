//! Blocks of headers: put together from their frames, decoded, and kept up to a limit.

use super::frame::{FrameHead, code, flag, kind};
use super::hpack::Decoder;
use super::wire::{Broken, Part};

/// The longest list of headers that is kept, as the protocol counts it.
pub const MOST_HEADER_LIST_BYTES: usize = 16_384;
/// The longest block of headers that is read, in bytes and in frames.
const MOST_BLOCK_BYTES: usize = 65_536;
const MOST_BLOCK_FRAMES: usize = 16;
const HEADER_FIELD_BYTES: usize = 32;

/// The decoded fields of a header block.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HeaderList {
    /// Names and values, in order.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Fields were left out because there were too many.
    pub is_cut: bool,
    size_bytes: usize,
}

impl HeaderList {
    fn push(&mut self, name: &[u8], value: &[u8]) {
        self.size_bytes = self.size_bytes.saturating_add(name.len() + value.len() + HEADER_FIELD_BYTES);
        self.is_cut |= self.size_bytes > MOST_HEADER_LIST_BYTES;
        if !self.is_cut {
            self.fields.push((name.to_vec(), value.to_vec()));
        }
    }

    /// The value of the first field of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| &**value)
    }
}

/// A block that has begun.
struct Block {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
    frames: usize,
}

/// The blocks of a connection, one after the other.
#[derive(Default)]
pub(super) struct Blocks {
    open: Option<Block>,
    decoder: Decoder,
}

impl Blocks {
    /// A block that has begun has no other frames between its own.
    pub fn is_interrupted_by(&self, head: FrameHead) -> bool {
        self.open.as_ref().is_some_and(|block| head.kind != kind::CONTINUATION || head.stream != block.stream)
    }

    pub fn begin(&mut self, head: FrameHead, mut payload: &[u8]) -> Result<Option<Part<'static>>, Broken> {
        if head.stream == 0 {
            return Err(Broken::protocol("HEADERS belong to a stream"));
        }
        if head.has(flag::PADDED) {
            let (&padding, rest) = payload.split_first().ok_or(Broken::size("a padded frame has no length of its padding"))?;
            let size_bytes = rest.len().checked_sub(padding.into()).ok_or(Broken::protocol("a frame is shorter than its padding"))?;
            payload = &rest[..size_bytes];
        }
        if head.has(flag::PRIORITY) {
            payload = payload.get(5..).ok_or(Broken::size("a priority has five bytes"))?;
        }
        let end_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.decode(head.stream, end_stream, payload);
        }
        self.open = Some(Block { stream: head.stream, end_stream, bytes: payload.to_vec(), frames: 1 });
        Ok(None)
    }

    pub fn go_on(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Part<'static>>, Broken> {
        let Some(mut block) = self.open.take() else { return Err(Broken::protocol("CONTINUATION of nothing")) };
        block.frames += 1;
        if block.frames > MOST_BLOCK_FRAMES || block.bytes.len() + payload.len() > MOST_BLOCK_BYTES {
            return Err(Broken::calm("a block of headers without end"));
        }
        block.bytes.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.decode(block.stream, block.end_stream, &block.bytes);
        }
        self.open = Some(block);
        Ok(None)
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.decoder.held_bytes() + self.open.as_ref().map_or(0, |block| block.bytes.len())
    }

    fn decode(&mut self, stream: u32, end_stream: bool, block: &[u8]) -> Result<Option<Part<'static>>, Broken> {
        let mut list = HeaderList::default();
        self.decoder
            .decode(block, |name, value| list.push(name, value))
            .map_err(|_| Broken { code: code::COMPRESSION_ERROR, why: "a block of headers cannot be read" })?;
        Ok(Some(Part::Headers { stream, list, end_stream }))
    }
}
