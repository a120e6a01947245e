//! Messages out of a stream, cut anywhere: each with its length in front (RFC 6587's octet counting, which TLS asks for), or ended by a line
//! feed or a NUL. Which of the two is seen anew at each message.
//!
//! Bounded: of a message that is longer than the limit, parts come out as they arrive.

const MOST_DIGITS: usize = 9;

/// How messages are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// By the look of each: digits, a space and `<` are a length.
    #[default]
    Auto,
    /// All have a length; what has none is read to the end of its line.
    OctetCounting,
    /// All end with their line.
    Newline,
}

/// A message, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its bytes.
    pub text: &'a [u8],
    /// 0 where it is whole, else the number of the part, from 1.
    pub part: u32,
    /// More parts follow.
    pub continues: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between two messages.
    Start,
    /// Inside one of which so many bytes are to come.
    Octets(usize),
    /// Inside one that ends with its line.
    Line,
}

/// The stream of one connection.
#[derive(Debug)]
pub struct Frames {
    framing: Framing,
    max_bytes: usize,
    buffer: Vec<u8>,
    state: State,
    parts: u32,
    /// Of the buffer, what has been searched for an end.
    searched: usize,
    /// Messages that should have had a length and had none.
    pub misframed: u64,
    /// Messages that ended before their length was reached.
    pub torn: u64,
}

impl Frames {
    /// A stream whose messages are handed out in parts of at most `max_bytes`.
    pub fn new(framing: Framing, max_bytes: usize) -> Self {
        let max_bytes = max_bytes.max(64);
        Self { framing, max_bytes, buffer: Vec::new(), state: State::Start, parts: 0, searched: 0, misframed: 0, torn: 0 }
    }

    /// Bytes that are in no message yet.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len()
    }

    #[cfg(test)]
    pub(super) fn buffer_capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Takes what has come; `each` is called with every message, or part of one, that it completes.
    pub fn feed(&mut self, mut data: &[u8], mut each: impl FnMut(Frame<'_>)) {
        // So much at once that the buffer stays within its bound, whatever a caller feeds.
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(self.max_bytes));
            self.buffer.extend_from_slice(now);
            data = later;
            let mut buffer = std::mem::take(&mut self.buffer);
            let mut at = 0;
            while let Some(used) = self.step(&buffer[at..], &mut each) {
                at += used;
            }
            buffer.drain(..at);
            if buffer.is_empty() && buffer.capacity() > 16 << 10 {
                buffer = Vec::new(); // a quiet connection keeps little
            }
            self.buffer = buffer;
        }
    }

    /// Nothing follows what has come, or nothing has for long: it is a message.
    pub fn flush(&mut self, mut each: impl FnMut(Frame<'_>)) {
        let buffer = std::mem::take(&mut self.buffer);
        if let State::Octets(left) = self.state
            && left > 0
        {
            self.torn += 1;
        }
        if !buffer.is_empty() || self.parts > 0 {
            self.last(&buffer, &mut each);
        }
        self.state = State::Start;
        self.searched = 0;
    }

    /// Goes one step on; returns how many bytes are done with, None where more are needed.
    fn step(&mut self, text: &[u8], each: &mut impl FnMut(Frame<'_>)) -> Option<usize> {
        match self.state {
            State::Start => {
                let skipped = text.iter().take_while(|byte| matches!(byte, b'\n' | b'\r' | b'\0')).count();
                let rest = &text[skipped..];
                if rest.is_empty() {
                    return (skipped > 0).then_some(skipped);
                }
                match self.length(rest) {
                    Length::Unknown => (skipped > 0).then_some(skipped),
                    Length::Is(octets, digits) => {
                        self.state = State::Octets(octets);
                        Some(skipped + digits)
                    }
                    Length::None => {
                        self.misframed += u64::from(self.framing == Framing::OctetCounting);
                        self.state = State::Line;
                        self.searched = 0;
                        Some(skipped)
                    }
                }
            }
            State::Octets(left) if left <= self.max_bytes => {
                let message = text.get(..left)?;
                self.last(message, each);
                self.state = State::Start;
                Some(left)
            }
            State::Octets(left) => {
                let cut = self.part(text.get(..self.max_bytes)?, each);
                self.state = State::Octets(left - cut);
                Some(cut)
            }
            State::Line => {
                if let Some(len) = memchr::memchr2(b'\n', b'\0', &text[self.searched..]).map(|at| self.searched + at)
                    && len <= self.max_bytes
                {
                    self.last(&text[..len], each);
                    self.state = State::Start;
                    return Some(len + 1);
                }
                if text.len() <= self.max_bytes {
                    self.searched = text.len();
                    return None;
                }
                self.searched = 0;
                Some(self.part(&text[..self.max_bytes], each))
            }
        }
    }

    fn length(&self, text: &[u8]) -> Length {
        if self.framing == Framing::Newline || !matches!(text[0], b'1'..=b'9') {
            return Length::None;
        }
        let digits = text.iter().take(MOST_DIGITS + 1).take_while(|byte| byte.is_ascii_digit()).count();
        if digits > MOST_DIGITS {
            return Length::None;
        }
        match (text.get(digits), text.get(digits + 1)) {
            (None, _) => return Length::Unknown,
            (Some(b' '), None) if self.framing == Framing::Auto => return Length::Unknown,
            (Some(b' '), Some(b'<')) => {}
            (Some(b' '), _) if self.framing == Framing::OctetCounting => {}
            _ => return Length::None,
        }
        let octets = text[..digits].iter().fold(0, |value, digit| value * 10 + usize::from(digit - b'0'));
        Length::Is(octets, digits + 1)
    }

    fn last(&mut self, text: &[u8], each: &mut impl FnMut(Frame<'_>)) {
        let part = if self.parts > 0 { self.parts.saturating_add(1) } else { 0 };
        self.parts = 0;
        self.searched = 0;
        each(Frame { text, part, continues: false });
    }

    /// Hands out the front of a long message, without cutting a character; returns how much.
    fn part(&mut self, text: &[u8], each: &mut impl FnMut(Frame<'_>)) -> usize {
        let begun = text.iter().rev().take(3).position(|byte| byte & 0xc0 == 0xc0).map_or(0, |at| at + 1);
        let needed = text.get(text.len() - begun).map_or(0, |first| match first {
            0xf0.. => 4,
            0xe0.. => 3,
            _ => 2,
        });
        let cut = if begun > 0 && begun < needed { text.len() - begun } else { text.len() };
        self.parts = self.parts.saturating_add(1);
        each(Frame { text: &text[..cut], part: self.parts, continues: true });
        cut
    }
}

enum Length {
    Is(usize, usize),
    None,
    Unknown,
}
