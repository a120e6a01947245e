//! What containerd and CRI-O write: `2025-10-09T08:53:20.123456789Z stdout F text`; `P` marks a part whose rest follows.

use super::container::{Part, Stream};
use super::stamp::Times;

/// A cheap look that is true for every such line.
#[inline]
pub fn may_be(line: &[u8]) -> bool {
    memchr::memmem::find(&line[..line.len().min(64)], b" std").is_some()
}

/// The part that a line is; None where it is no such line.
pub fn parse<'a>(line: &'a [u8], times: &mut Times) -> Option<Part<'a>> {
    let stamp = times.at(line)?;
    let rest = line[stamp.len..].strip_prefix(b" ")?;
    let (stream, rest) = match rest.strip_prefix(b"stdout ") {
        Some(rest) => (Stream::Stdout, rest),
        None => (Stream::Stderr, rest.strip_prefix(b"stderr ")?),
    };
    // Tags are separated by colons; the first says whether the line is whole.
    let len = memchr::memchr(b' ', rest).unwrap_or(rest.len());
    let ends = match rest[..len].split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Part {
        stream,
        time_unix_nano: Some(stamp.time_unix_nano),
        ends,
        text: rest.get(len + 1..).unwrap_or_default().into(),
        attributes: b"",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_whole_lines_are_told_apart() {
        let line = "2025-10-09T10:53:20.5+02:00 stderr P first ";
        let part = parse(line.as_bytes(), &mut Times::default()).unwrap();
        assert_eq!((part.stream, part.ends, &*part.text), (Stream::Stderr, false, &b"first "[..]));
        assert_eq!(part.time_unix_nano, Some(1_760_000_000_500_000_000));
        let part = parse(b"2025-10-09T08:53:20Z stdout F:x rest", &mut Times::default()).unwrap();
        assert_eq!((part.stream, part.ends, &*part.text), (Stream::Stdout, true, &b"rest"[..]));
        assert_eq!(&*parse(b"2025-10-09T08:53:20Z stdout F", &mut Times::default()).unwrap().text, b"");
    }

    #[test]
    fn what_only_looks_like_it_is_none() {
        for line in ["", "2025-10-09T08:53:20Z stdout", "2025-10-09T08:53:20Z stdin F x", "2025-10-09T08:53:20Z stdout X x", "x stdout F y"]
        {
            assert!(parse(line.as_bytes(), &mut Times::default()).is_none(), "{line}");
        }
    }
}
