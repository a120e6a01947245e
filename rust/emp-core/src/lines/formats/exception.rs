//! The exception that the lines of a trace tell of: its type, message and stack.

use super::look::{Look, error_name, identifier, look};

/// What became of an exception, as `exception.*` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exception<'a> {
    /// Its type; empty where nothing names it.
    pub kind: &'a [u8],
    /// Its message, maybe of several lines.
    pub message: &'a [u8],
    /// The trace from its first line on.
    pub stacktrace: &'a [u8],
    /// The line of the log above the trace; empty where there is none.
    pub head: &'a [u8],
    /// The line that says it best where there is no head.
    pub summary: &'a [u8],
}

/// A line and where it begins.
#[derive(Clone, Copy)]
struct Line<'a> {
    start: usize,
    text: &'a [u8],
    look: Look,
}

impl Line<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut start = 0;
    text.split(|byte| *byte == b'\n').map(move |line| {
        let found = Line { start, text: line, look: look(line) };
        start += line.len() + 1;
        found
    })
}

/// The exception of a group's text.
pub fn of(text: &[u8]) -> Exception<'_> {
    let text = text.trim_ascii_end();
    let is_start = |line: &Line<'_>| !matches!(line.look, Look::Other | Look::Blank | Look::Indented | Look::Frame | Look::Cause);
    let Some(first) = lines(text).find(is_start) else { return of_head(text) };
    let head = text[..first.start].trim_ascii_end();
    let trace = &text[first.start..];
    let mut found = match first.look {
        Look::Traceback | Look::Chain => of_python(trace),
        Look::GoPanic => of_go(trace),
        Look::Goroutine => of_goroutine(head, trace),
        Look::RustPanic | Look::Backtrace => of_rust(trace),
        Look::Source => of_source(trace),
        _ => of_error(trace),
    };
    found.head = head;
    found
}

/// The frames are right below a line of a log: that names the exception, somewhere.
fn of_head(text: &[u8]) -> Exception<'_> {
    let end = memchr::memchr(b'\n', text).unwrap_or(text.len());
    let head = &text[..end];
    if matches!(look(head), Look::Frame | Look::Cause) {
        return Exception { stacktrace: text, summary: head.trim_ascii(), ..Exception::default() };
    }
    // The first word that is an exception's name, at the beginning or behind a space.
    let mut at = 0;
    let start = loop {
        if error_name(&head[at..]).is_some_and(|name| head.get(at + name.len()) == Some(&b':') || at + name.len() == head.len()) {
            break Some(at);
        }
        match memchr::memchr(b' ', &head[at..]) {
            Some(space) => at += space + 1,
            None => break None,
        }
    };
    match start {
        Some(start) => Exception { head, ..of_error(&text[start..]) },
        None => {
            // `Oops: it broke` with frames below is an exception of a name of its own.
            let (kind, message) = split(head);
            Exception { kind, message, stacktrace: text, head, summary: head }
        }
    }
}

/// `Type: message`; without such a name all of it is the message.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    let Some(name) = identifier(line) else { return (b"", line) };
    let mut rest = &line[name.len()..];
    // `TypeError [ERR_X]: …`
    if rest.starts_with(b" [")
        && let Some(end) = memchr::memchr(b']', rest)
    {
        rest = &rest[end + 1..];
    }
    match rest {
        [] => (name, b""),
        [b':', message @ ..] if matches!(message.first(), None | Some(b' ')) => (name, message.trim_ascii_start()),
        _ => (b"", line),
    }
}

/// Node's and Java's: the name and the message are on the first line, and on those that follow up to the frames.
fn of_error(trace: &[u8]) -> Exception<'_> {
    let mut skipped = 0;
    if trace.starts_with(b"Exception in thread \"")
        && let Some(end) = memchr::memmem::find(trace, b"\" ")
    {
        skipped = end + 2;
    } else if trace.starts_with(b"Uncaught ") {
        skipped = 9;
    }
    let is_end = |line: &Line<'_>| line.start > 0 && matches!(line.look, Look::Frame | Look::Blank | Look::Cause);
    let end = lines(trace).find(is_end).map_or(trace.len(), |line| line.start);
    let (kind, message) = split(trace.get(skipped..end).unwrap_or_default().trim_ascii_end());
    let summary = &trace[..memchr::memchr(b'\n', trace).unwrap_or(trace.len())];
    Exception { kind, message, stacktrace: trace, head: b"", summary }
}

/// The same below the source that threw.
fn of_source(trace: &[u8]) -> Exception<'_> {
    let error = lines(trace).skip(2).find(|line| matches!(line.look, Look::Other | Look::Error));
    match error {
        Some(line) => Exception { stacktrace: trace, ..of_error(&trace[line.start..]) },
        None => Exception { stacktrace: trace, summary: trace, ..Exception::default() },
    }
}

/// Python's: the last exception of the chain is the one that was raised.
fn of_python(trace: &[u8]) -> Exception<'_> {
    let mut raised: Option<Line<'_>> = None;
    let mut in_frames = false;
    for line in lines(trace) {
        match line.look {
            Look::Traceback => in_frames = true,
            Look::Other | Look::Error | Look::Cause | Look::Source if in_frames => {
                raised = Some(line);
                in_frames = false;
            }
            _ => {}
        }
    }
    if let Some(line) = raised {
        let (kind, message) = split(&trace[line.start..]);
        return Exception { kind, message: message.trim_ascii_end(), stacktrace: trace, head: b"", summary: line.text };
    }
    // A group of exceptions is drawn behind bars.
    let summary = lines(trace).find_map(behind_bars).unwrap_or_default();
    let (kind, message) = split(summary);
    Exception { kind, message, stacktrace: trace, head: b"", summary: if summary.is_empty() { first_line(trace) } else { summary } }
}

fn of_go(trace: &[u8]) -> Exception<'_> {
    let summary = first_line(trace);
    let (kind, message) = match memchr::memmem::find(summary, b": ") {
        Some(at) => (&summary[..at], &summary[at + 2..]),
        None => (&b""[..], summary),
    };
    Exception { kind, message, stacktrace: trace, head: b"", summary }
}

/// A goroutine's stack below a line of a log, such as `http: panic serving 10.0.0.7:5: boom`.
fn of_goroutine<'a>(head: &'a [u8], trace: &'a [u8]) -> Exception<'a> {
    let mut found = Exception { stacktrace: trace, summary: first_line(trace), ..Exception::default() };
    if let Some(at) = memchr::memmem::find(head, b"panic") {
        let said = &head[at..];
        found.kind = &said[..5];
        found.message = memchr::memmem::find(said, b": ").map_or(said, |at| &said[at + 2..]);
    }
    found
}

fn of_rust(trace: &[u8]) -> Exception<'_> {
    let first = first_line(trace);
    let mut found = Exception { stacktrace: trace, summary: first, ..Exception::default() };
    if look(first) == Look::Backtrace {
        return found;
    }
    found.kind = b"panic";
    if first.ends_with(b":") {
        let is_end = |line: &Line<'_>| line.look == Look::Blank || line.look == Look::Backtrace || line.text.starts_with(b"note: ");
        let end = lines(trace).skip(1).find(is_end).map_or(trace.len(), |line| line.start);
        found.message = trace.get(first.len() + 1..end).unwrap_or_default().trim_ascii_end();
        // Both say something: where, and what.
        found.summary = trace[..end].trim_ascii_end();
    } else if let Some(at) = memchr::memmem::find(first, b"panicked at '")
        && let Some(end) = memchr::memmem::rfind(first, b"', ")
        && at + 13 <= end
    {
        found.message = &first[at + 13..end];
    }
    found
}

fn first_line(text: &[u8]) -> &[u8] {
    lines(text).next().map_or(text, |line| &text[..line.end()])
}

/// `  | ValueError: 1`, as groups of exceptions are drawn.
fn behind_bars(line: Line<'_>) -> Option<&[u8]> {
    let text = line.text.trim_ascii_start().strip_prefix(b"| ")?;
    (error_name(text).is_some() || text.starts_with(b"ExceptionGroup:")).then_some(text)
}
