//! One message on its way in: five bytes that say how long it is, then its bytes, in memory that is granted before it is taken.

use super::frame::read_u32;

const PREFIX_BYTES: usize = 5;

/// A message of gRPC.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The first byte of its prefix: 1 where it is compressed.
    pub flag: u8,
    /// The message as it came.
    pub data: Vec<u8>,
}

/// What is to be done about a message after some of its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait for more.
    More,
    /// Nothing more is taken before memory is granted. So many bytes of the input were taken.
    Wants { taken_bytes: usize },
    /// It is whole. What follows belongs to nothing.
    Whole,
}

#[derive(Default)]
pub(super) struct Incoming {
    prefix: Vec<u8>,
    pub size_bytes: usize,
    pub granted_bytes: usize,
    data: Vec<u8>,
    is_asked: bool,
}

impl Incoming {
    /// Some bytes of it have come.
    pub fn is_begun(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// How much of it has not come yet, as far as that is known.
    pub fn missing_bytes(&self) -> usize {
        self.size_bytes - self.data.len()
    }

    /// The most that may be granted now: as much again as has been, so that a length that is only told holds little.
    pub fn more_bytes(&self, first_bytes: usize) -> usize {
        (self.size_bytes - self.granted_bytes).min(self.granted_bytes.max(first_bytes))
    }

    pub fn grant(&mut self, more_bytes: usize) {
        let more_bytes = more_bytes.min(self.size_bytes - self.granted_bytes);
        self.granted_bytes += more_bytes;
        self.data.reserve_exact(self.granted_bytes - self.data.len());
    }

    pub fn push(&mut self, bytes: &[u8]) -> Step {
        let mut rest = bytes;
        if self.prefix.len() < PREFIX_BYTES {
            let (part, after) = rest.split_at(rest.len().min(PREFIX_BYTES - self.prefix.len()));
            self.prefix.extend_from_slice(part);
            rest = after;
            let Some(size) = self.prefix.get(1..).and_then(read_u32) else { return Step::More };
            self.size_bytes = size as usize;
        }
        let part = &rest[..rest.len().min(self.granted_bytes - self.data.len())];
        self.data.extend_from_slice(part);
        if self.data.len() == self.size_bytes && (self.is_asked || self.size_bytes == 0) {
            return Step::Whole;
        }
        // The length is told at once, also where no byte behind it has come: it may be refused for that alone.
        if part.len() < rest.len() || !self.is_asked {
            self.is_asked = true;
            return Step::Wants { taken_bytes: bytes.len() - rest.len() + part.len() };
        }
        Step::More
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.data.capacity()
    }

    pub fn take(&mut self) -> Message {
        Message { flag: self.prefix.first().copied().unwrap_or_default(), data: std::mem::take(&mut self.data) }
    }
}
