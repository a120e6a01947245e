//! What a line is in a trace of Python, Node, Java, Go or Rust, by itself.

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// No text.
    Blank,
    /// Begins with a space or tab.
    Indented,
    /// `    at place`, `\t... 12 more`.
    Frame,
    /// `Traceback (most recent call last):`
    Traceback,
    /// Python's words between two exceptions.
    Chain,
    /// `Caused by: …`
    Cause,
    /// `panic: …`, `fatal error: …`
    GoPanic,
    /// `goroutine 1 [running]:`
    Goroutine,
    /// `thread 'main' panicked at …`
    RustPanic,
    /// `stack backtrace:`
    Backtrace,
    /// `Exception in thread "main" …`, `Uncaught TypeError: …`, `java.io.IOException: …`, `ValueError: …`
    Error,
    /// `/app/index.js:3`, above the line of source that threw.
    Source,
    /// Anything else.
    Other,
}

/// No name of an exception is longer.
const MOST_NAME_BYTES: usize = 200;

/// The look of a line; its time does not depend on how long the line is.
#[inline]
pub fn look(line: &[u8]) -> Look {
    match line.first() {
        None => Look::Blank,
        Some(b'{' | b'[' | b'0'..=b'9' | b'<' | b'"' | 0x80..) => Look::Other,
        Some(b' ' | b'\t') => indented(line),
        _ => word(line),
    }
}

fn indented(line: &[u8]) -> Look {
    let window = &line[..line.len().min(MOST_NAME_BYTES)];
    let text = window.trim_ascii_start();
    if text.is_empty() {
        return if line.trim_ascii().is_empty() { Look::Blank } else { Look::Indented };
    }
    if text.starts_with(b"at ") || text.starts_with(b"... ") {
        return Look::Frame;
    }
    if text.starts_with(b"+ Exception Group Traceback") { Look::Traceback } else { Look::Indented }
}

fn word(line: &[u8]) -> Look {
    let begins = |text: &[u8]| line.starts_with(text);
    let head = &line[..line.len().min(MOST_NAME_BYTES)];
    match line[0] {
        b'T' if begins(b"Traceback (most recent call last):") => Look::Traceback,
        b'T' if begins(b"The above exception was the direct cause") => Look::Chain,
        b'D' if begins(b"During handling of the above exception") => Look::Chain,
        b'C' if begins(b"Caused by:") => Look::Cause,
        b'p' if begins(b"panic: ") => Look::GoPanic,
        b'f' if begins(b"fatal error: ") => Look::GoPanic,
        b'S' if begins(b"SIGSEGV: ") || begins(b"SIGABRT: ") => Look::GoPanic,
        b'g' if begins(b"goroutine ") && line.ends_with(b"]:") => Look::Goroutine,
        b't' if begins(b"thread '") && memchr::memmem::find(head, b"panicked at").is_some() => Look::RustPanic,
        b's' | b'S' if line[1..].starts_with(b"tack backtrace:") => Look::Backtrace,
        b'E' if begins(b"Exception in thread ") => Look::Error,
        b'U' if begins(b"Uncaught ") => Look::Error,
        b'/' | b'f' | b'n' | b'A'..=b'Z' if is_source(line) => Look::Source,
        _ if error_name(line).is_some() => Look::Error,
        _ => Look::Other,
    }
}

/// `/app/index.js:3`, the whole line.
fn is_source(line: &[u8]) -> bool {
    let is_path = line[0] == b'/' || line.starts_with(b"file:///") || line.starts_with(b"node:") || line[1..].starts_with(b":\\");
    if !is_path || line.len() > 4096 {
        return false;
    }
    let Some(colon) = memchr::memrchr(b':', line) else { return false };
    let number = &line[colon + 1..];
    (1..=7).contains(&number.len()) && number.iter().all(u8::is_ascii_digit) && memchr::memchr2(b' ', b'\t', line).is_none()
}

/// The exception's name with which a line begins: letters, digits, dots, ending as such names do, before a colon or the line's end, maybe
/// with a code (`TypeError [ERR_X]: …`).
pub fn error_name(line: &[u8]) -> Option<&[u8]> {
    let name = identifier(line)?;
    let ends = [&b"Error"[..], b"Exception", b"Warning", b"Interrupt", b"Exit", b"Throwable", b"Failure", b"Errno"];
    if !ends.iter().any(|end| name.ends_with(end)) {
        return None;
    }
    let rest = &line[name.len()..];
    let is_name = matches!(rest, [] | [b':'] | [b':', b' ', ..]) || rest.starts_with(b" [");
    is_name.then_some(name)
}

/// The dotted name with which a line begins.
pub fn identifier(line: &[u8]) -> Option<&[u8]> {
    let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$');
    let len = line.iter().take(MOST_NAME_BYTES).take_while(|byte| is_inside(byte)).count();
    line.first().filter(|byte| byte.is_ascii_alphabetic() || **byte == b'_').map(|_| &line[..len])
}
