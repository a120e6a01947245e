//! What the core answers when bytes or arguments cannot be used: a kind, an offset, a short detail.

use std::fmt;

/// The kinds; the names are those of Python's `ErrorKind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The outer frame is no Fluent Forward.
    FrameInvalid,
    /// A frame, a body or an inflated body is over its limit.
    FrameTooLarge,
    /// One entry cannot be read; its neighbours can.
    EntryInvalid,
    /// A compressed or encoded body cannot be read.
    BodyInvalid,
    /// A block's header or payload cannot be read.
    BlockInvalid,
    /// A block of a newer format version.
    LogNewer,
    /// A request is over its limit, compressed or inflated.
    TooLarge,
    /// An argument of the caller is wrong.
    ConfigInvalid,
}

impl ErrorKind {
    /// The name by which Python knows the kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::FrameInvalid => "frame_invalid",
            Self::FrameTooLarge => "frame_too_large",
            Self::EntryInvalid => "entry_invalid",
            Self::BodyInvalid => "body_invalid",
            Self::BlockInvalid => "block_invalid",
            Self::LogNewer => "log_newer",
            Self::TooLarge => "too_large",
            Self::ConfigInvalid => "config_invalid",
        }
    }
}

/// An error of the core. Callers add the frame, the peer, the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreError {
    /// What went wrong.
    pub kind: ErrorKind,
    /// The byte at which it was seen, from the start of what the caller gave.
    pub offset: u64,
    /// What was seen there, in a few words.
    pub detail: String,
}

impl CoreError {
    /// An error at an offset.
    pub fn new(kind: ErrorKind, offset: usize, detail: impl Into<String>) -> Self {
        Self { kind, offset: offset as u64, detail: detail.into() }
    }
}

impl fmt::Display for CoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.detail, self.offset)
    }
}

impl std::error::Error for CoreError {}
