//! Which lines become one record: a runtime's parts, the lines of a trace, or what a user's pattern says.
//!
//! ```text
//!   Part ──▶ open part of its stream (until its line ends) ──▶ open group of its stream (until a line begins something else)
//!        ──▶ ready, in the order of their first byte ──▶ Record
//! ```
//!
//! Records leave in such an order that the bytes before some place are in records, and none behind it: that place is where reading goes
//! on after a restart, and nothing is read twice. So a record of one stream waits while an earlier one of another stream is open.

use std::borrow::Cow;
use std::ops::Range;

use regex::bytes::Regex;

use super::formats::container::{Part, STREAMS, Stream};
use super::formats::multiline::{Group, begin};

/// No more records wait for one that is open.
const MOST_READY: usize = 1024;

/// Lines that are one record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its text, lines separated by newlines.
    pub text: &'a [u8],
    /// It is the trace of an exception.
    pub is_trace: bool,
    /// Where it was written to.
    pub stream: Stream,
    /// When, as the runtime says.
    pub time_unix_nano: Option<i64>,
    /// What the runtime says of its container.
    pub attributes: &'a [u8],
    /// The number of the part, from 1, and whether more follow, where the line was too long.
    pub part: Option<(u32, bool)>,
}

impl<'a> Record<'a> {
    /// A line that nothing is known of.
    pub fn line(text: &'a [u8]) -> Self {
        Self { text, is_trace: false, stream: Stream::None, time_unix_nano: None, attributes: b"", part: None }
    }
}

#[derive(Debug)]
struct Piece {
    text: Vec<u8>,
    is_trace: bool,
    stream: Stream,
    time_unix_nano: Option<i64>,
    attributes: Vec<u8>,
    part: Option<(u32, bool)>,
    span: Range<u64>,
}

impl Piece {
    fn new(part: &Part<'_>, text: Vec<u8>, span: Range<u64>) -> Self {
        let Part { stream, time_unix_nano, attributes, .. } = part;
        Self { text, is_trace: false, stream: *stream, time_unix_nano: *time_unix_nano, attributes: attributes.to_vec(), part: None, span }
    }

    fn record(&self) -> Record<'_> {
        let mut text = &self.text[..];
        if self.is_trace || memchr::memchr(b'\n', text).is_some() {
            text = text.trim_ascii_end();
        }
        let Self { is_trace, stream, time_unix_nano, attributes, part, .. } = self;
        Record { text, is_trace: *is_trace, stream: *stream, time_unix_nano: *time_unix_nano, attributes, part: *part }
    }
}

/// Why lines belong together.
#[derive(Debug)]
enum Together {
    Trace(Group),
    Pattern,
}

/// What is open of one stream.
#[derive(Debug, Default)]
struct Open {
    part: Option<Piece>,
    /// Parts of the present line that are ready already, because it is too long.
    parts: u32,
    group: Option<(Together, Piece)>,
}

/// The open lines of one source.
#[derive(Debug)]
pub struct Joiner {
    open: [Open; STREAMS],
    ready: Vec<Piece>,
    max_bytes: usize,
    joins: bool,
    /// Lines that match begin a record, all others belong to the one above.
    start: Option<Regex>,
}

impl Joiner {
    /// Joins lines while the record has at most so many bytes.
    pub fn new(joins: bool, start: Option<Regex>, max_bytes: usize) -> Self {
        Self { open: Default::default(), ready: Vec::new(), max_bytes, joins: joins || start.is_some(), start }
    }

    /// Whether lines are joined only where their look says so.
    pub fn is_by_look(&self) -> bool {
        self.joins && self.start.is_none()
    }

    /// Whether lines are joined at all.
    pub fn joins(&self) -> bool {
        self.joins
    }

    /// Whether nothing is open or waits.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.open.iter().all(|open| open.part.is_none() && open.group.is_none())
    }

    /// The first byte that is in no record yet; None where all are.
    pub fn pending_from(&self) -> Option<u64> {
        self.first_open().into_iter().chain(self.ready.first().map(|piece| piece.span.start)).min()
    }

    fn first_open(&self) -> Option<u64> {
        let pieces = self.open.iter().flat_map(|open| open.part.iter().chain(open.group.as_ref().map(|(_, piece)| piece)));
        pieces.map(|piece| piece.span.start).min()
    }

    /// Takes one line of a runtime, or a whole line of a file.
    pub fn take(&mut self, part: &Part<'_>, span: Range<u64>, mut put: impl FnMut(&Record<'_>)) {
        let max_bytes = self.max_bytes;
        let open = &mut self.open[part.stream as usize];
        match &mut open.part {
            None if part.ends && open.parts == 0 => self.line(Piece::new(part, part.text.to_vec(), span)),
            begun => {
                let piece = begun.get_or_insert_with(|| Piece::new(part, Vec::new(), span.clone()));
                piece.text.extend_from_slice(&part.text);
                piece.span.end = span.end;
                let is_full = piece.text.len() >= max_bytes;
                if (part.ends || is_full)
                    && let Some(mut piece) = open.part.take()
                {
                    if open.parts > 0 || !part.ends {
                        open.parts = open.parts.saturating_add(1);
                        piece.part = Some((open.parts, !part.ends));
                    }
                    if part.ends {
                        open.parts = 0;
                    }
                    self.line(piece);
                }
            }
        }
        self.drain(&mut put);
    }

    /// Opens the group of a line that is known to have another one below it.
    pub fn open(&mut self, group: Group, text: &[u8], span: Range<u64>) {
        let part = whole(text);
        self.open[Stream::None as usize].group = Some((Together::Trace(group), Piece::new(&part, text.to_vec(), span)));
    }

    /// Ends all that is open.
    pub fn settle(&mut self, mut put: impl FnMut(&Record<'_>)) {
        self.end_all();
        self.drain(&mut put);
    }

    /// A line that has ended.
    fn line(&mut self, piece: Piece) {
        let stream = piece.stream as usize;
        if let Some((together, above)) = &mut self.open[stream].group {
            let fits = piece.part.is_none() && above.text.len() + piece.text.len() < self.max_bytes;
            let belongs = fits
                && match together {
                    Together::Trace(group) => group.next(&piece.text),
                    Together::Pattern => self.start.as_ref().is_some_and(|start| !start.is_match(&piece.text)),
                };
            if belongs {
                above.text.push(b'\n');
                above.text.extend_from_slice(&piece.text);
                above.span.end = piece.span.end;
                return;
            }
            self.end_group(stream);
        }
        let together = match &self.start {
            _ if piece.part.is_some() || !self.joins => None,
            Some(_) => Some(Together::Pattern),
            None => begin(&piece.text).map(Together::Trace),
        };
        match together {
            Some(together) => self.open[stream].group = Some((together, piece)),
            None => self.is_ready(piece),
        }
    }

    fn end_group(&mut self, stream: usize) {
        if let Some((together, mut piece)) = self.open[stream].group.take() {
            piece.is_trace = matches!(together, Together::Trace(group) if group.is_trace());
            self.is_ready(piece);
        }
    }

    fn is_ready(&mut self, piece: Piece) {
        let at = self.ready.partition_point(|other| other.span.start <= piece.span.start);
        self.ready.insert(at, piece);
    }

    fn end_all(&mut self) {
        for stream in 0..STREAMS {
            if let Some(mut piece) = self.open[stream].part.take() {
                let open = &mut self.open[stream];
                if open.parts > 0 {
                    piece.part = Some((open.parts.saturating_add(1), false));
                }
                open.parts = 0;
                self.line(piece);
            }
            self.end_group(stream);
        }
    }

    fn drain(&mut self, put: &mut impl FnMut(&Record<'_>)) {
        let bytes: usize = self.ready.iter().map(|piece| piece.text.len()).sum();
        if self.ready.len() > MOST_READY || bytes > self.max_bytes {
            self.end_all();
        }
        // Up to a place behind which all that is left begins: nothing that leaves may be read again.
        let first_open = self.first_open().unwrap_or(u64::MAX);
        let (mut go, mut end) = (0, 0);
        for (index, piece) in self.ready.iter().enumerate() {
            end = end.max(piece.span.end);
            let left = self.ready.get(index + 1).map_or(first_open, |next| next.span.start.min(first_open));
            if end <= left {
                go = index + 1;
            }
        }
        for piece in self.ready.drain(..go) {
            put(&piece.record());
        }
    }
}

/// A line of a file as a part.
pub fn whole(text: &[u8]) -> Part<'_> {
    Part { stream: Stream::None, time_unix_nano: None, ends: true, text: Cow::Borrowed(text), attributes: b"" }
}
