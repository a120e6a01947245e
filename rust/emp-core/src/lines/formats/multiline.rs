//! Which lines belong together: a trace, with the line of the log above it. A state machine over one line after the other; it keeps no
//! text.
//!
//! ```text
//!   begin(first line) ──▶ Group ──next(line)──▶ true: belongs; false: the group has ended, and the line begins something of its own
//! ```

use std::sync::LazyLock;

use regex::bytes::Regex;

pub use super::look::{Look, look};
use super::look::{error_name, identifier};

/// A line of a log that says one of these may have a trace below it.
static MAY_BE_A_HEAD: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i-u)err|exception|panic|fail|fatal|warn|crit|abort|uncaught|unhandled|crash|traceback|reject").ok());
/// Bytes of a line that are searched for them.
const SEARCHED_BYTES: usize = 1024;
/// A group has no more lines.
pub const MOST_LINES: u32 = 2000;

/// What a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A line of a log under which a trace may come.
    Head,
    /// The same after a line that names an exception.
    Error,
    /// Above the source that threw: how many of its lines have come.
    Source(u8),
    /// Node's and Java's frames.
    Frames,
    /// In Python's frames.
    Traceback,
    /// After the line that names Python's exception.
    Raised,
    /// Between two of Python's exceptions.
    Between,
    /// Go's panic and its goroutines.
    Go,
    /// Rust's panic; true while its message is to come.
    Rust(bool),
}

/// The lines of a group so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    kind: Kind,
    /// The last line was blank.
    blank: bool,
    lines: u32,
}

/// Whether a line may belong to the one right above it; false for nearly all that do not.
#[inline]
pub fn may_belong(above: Look, line: Look) -> bool {
    let leads = !matches!(above, Look::Other | Look::Blank | Look::Indented);
    leads || !matches!(line, Look::Other | Look::Source | Look::RustPanic | Look::GoPanic)
}

/// The group that may begin with a line; None where it stands alone.
pub fn begin(line: &[u8]) -> Option<Group> {
    let kind = match look(line) {
        Look::Blank | Look::Indented => return None,
        Look::Frame | Look::Cause => Kind::Frames,
        Look::Traceback => Kind::Traceback,
        Look::GoPanic | Look::Goroutine => Kind::Go,
        Look::RustPanic => Kind::Rust(line.ends_with(b":")),
        Look::Backtrace => Kind::Rust(false),
        Look::Error => Kind::Error,
        Look::Source => Kind::Source(0),
        Look::Chain => Kind::Between,
        Look::Other => {
            let searched = &line[..line.len().min(SEARCHED_BYTES)];
            if line.first() == Some(&b'{') || !MAY_BE_A_HEAD.as_ref().is_some_and(|head| head.is_match(searched)) {
                return None;
            }
            Kind::Head
        }
    };
    Some(Group { kind, blank: false, lines: 1 })
}

impl Group {
    /// Whether a line belongs to the group.
    pub fn next(&mut self, line: &[u8]) -> bool {
        let found = look(line);
        if self.lines >= MOST_LINES {
            return false;
        }
        let next = if found == Look::Blank { self.blank() } else { self.after(found, line) };
        let Some(kind) = next else { return false };
        *self = Self { kind, blank: found == Look::Blank, lines: self.lines + 1 };
        true
    }

    /// Whether there is a trace: more than a line that may have one below it.
    pub fn is_trace(&self) -> bool {
        match self.kind {
            Kind::Head => false,
            Kind::Error | Kind::Source(_) | Kind::Between => self.lines > 1 + u32::from(self.blank),
            _ => true,
        }
    }

    /// A blank line: it is known with the next one whether it belongs.
    fn blank(&self) -> Option<Kind> {
        match self.kind {
            Kind::Rust(_) => Some(Kind::Rust(false)),
            kind => (!self.blank || kind == Kind::Go).then_some(kind),
        }
    }

    fn after(&self, found: Look, line: &[u8]) -> Option<Kind> {
        match (self.kind, found) {
            (Kind::Head | Kind::Error, Look::Cause) => Some(Kind::Frames),
            (Kind::Head | Kind::Error, Look::Backtrace) => Some(Kind::Rust(false)),
            (Kind::Head | Kind::Error, _) if self.blank => None,
            (Kind::Head | Kind::Error, Look::Frame) => Some(Kind::Frames),
            (Kind::Head, Look::Traceback) => Some(Kind::Traceback),
            (Kind::Head, Look::Goroutine) => Some(Kind::Go),
            (Kind::Head, Look::Error) => Some(Kind::Error),
            (Kind::Error, Look::Indented) => Some(Kind::Error),
            // What Node says of a module that it does not find, between message and frames.
            (Kind::Error, _) if line == b"Require stack:" || line.starts_with(b"- /") => Some(Kind::Error),
            (Kind::Head | Kind::Error, _) => None,

            (Kind::Source(0), _) => (!self.blank).then_some(Kind::Source(1)),
            (Kind::Source(1), _) => {
                let text = line.trim_ascii();
                (!self.blank && text.iter().all(|byte| *byte == b'^')).then_some(Kind::Source(2))
            }
            (Kind::Source(_), Look::Other | Look::Error) => Some(Kind::Error),
            (Kind::Source(_), _) => None,

            (Kind::Frames, Look::Cause) => Some(Kind::Frames),
            (Kind::Frames, _) if line.starts_with(b"Node.js v") => Some(Kind::Frames),
            (Kind::Frames, Look::Frame | Look::Indented) if !self.blank => Some(Kind::Frames),
            (Kind::Frames, _) => (!self.blank && line.starts_with(b"}")).then_some(Kind::Frames),

            (Kind::Traceback, Look::Indented | Look::Frame | Look::Traceback) => Some(Kind::Traceback),
            (Kind::Traceback, Look::Chain) => Some(Kind::Between),
            (Kind::Traceback, _) => (!self.blank && is_raised(line)).then_some(Kind::Raised),
            (Kind::Raised, Look::Chain) => Some(Kind::Between),
            (Kind::Raised, Look::Indented | Look::Frame) if !self.blank => Some(Kind::Raised),
            (Kind::Raised, _) => (!self.blank && is_of_cuda(line)).then_some(Kind::Raised),
            (Kind::Between, Look::Traceback) => Some(Kind::Traceback),
            (Kind::Between, _) => None,

            (Kind::Go, Look::Goroutine | Look::Indented | Look::Frame) => Some(Kind::Go),
            (Kind::Go, _) => is_of_go(line).then_some(Kind::Go),

            (Kind::Rust(true), _) => Some(Kind::Rust(false)),
            (Kind::Rust(_), Look::Backtrace | Look::Indented | Look::Frame) => Some(Kind::Rust(false)),
            (Kind::Rust(_), _) => line.starts_with(b"note: ").then_some(Kind::Rust(false)),
        }
    }
}

/// Whether a line names what Python raised: any name before a colon or the end, for classes may be called anything.
fn is_raised(line: &[u8]) -> bool {
    error_name(line).is_some() || identifier(line).is_some_and(|name| matches!(&line[name.len()..], [] | [b':'] | [b':', b' ', ..]))
}

/// What PyTorch says below an error of CUDA, which is part of its message.
fn is_of_cuda(line: &[u8]) -> bool {
    [&b"CUDA kernel errors might be"[..], b"For debugging consider passing", b"Compile with `TORCH_USE_CUDA_DSA`", b"Search for `cuda"]
        .iter()
        .any(|begin| line.starts_with(begin))
}

/// Lines of Go's traces that are not indented.
fn is_of_go(line: &[u8]) -> bool {
    let begins = [&b"[signal "[..], b"created by ", b"exit status ", b"runtime stack:", b"...additional frames elided", b"goroutine "];
    if begins.iter().any(|begin| line.starts_with(begin)) {
        return true;
    }
    // A function's name and its arguments, `net/http.(*conn).serve(0xc000, …)`: no space before the bracket.
    let call = &line[..line.len().min(1024)];
    if let Some(open) = memchr::memchr(b'(', call)
        && line.ends_with(b")")
    {
        return memchr::memchr(b'.', call).is_some() && memchr::memchr2(b' ', b':', &call[..open]).is_none();
    }
    // Registers.
    let name = line.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    (2..=6).contains(&name) && line[name..].trim_ascii_start().starts_with(b"0x") && line.len() < 40
}

#[cfg(test)]
#[path = "multiline_tests.rs"]
mod tests;
