//! What a container's runtime puts around a line: the stream, the time, and whether the line is whole.

use std::borrow::Cow;

/// Where a line was written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// Nobody says.
    #[default]
    None,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How many there are: each has lines of its own that belong together.
pub const STREAMS: usize = 3;

impl Stream {
    /// The stream of a name.
    pub fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"stdout" => Some(Self::Stdout),
            b"stderr" => Some(Self::Stderr),
            _ => None,
        }
    }

    /// Its name as `log.iostream` has it.
    pub fn name(self) -> Option<&'static [u8]> {
        match self {
            Self::None => None,
            Self::Stdout => Some(b"stdout"),
            Self::Stderr => Some(b"stderr"),
        }
    }
}

/// One line of a runtime's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Where it was written to.
    pub stream: Stream,
    /// When.
    pub time_unix_nano: Option<i64>,
    /// The line ends here; else its rest is in the next part of the stream.
    pub ends: bool,
    /// What was written.
    pub text: Cow<'a, [u8]>,
    /// What the runtime says of the container, a JSON object; empty without.
    pub attributes: &'a [u8],
}
