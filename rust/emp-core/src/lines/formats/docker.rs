//! Docker's json-file: `{"log":"text\n","stream":"stdout","attrs":{…},"time":"2025-10-09T08:53:20.1Z"}`. A text that has no newline at its
//! end is a part whose rest follows: Docker cuts at 16 KB.

use std::borrow::Cow;

use super::container::{Part, Stream};
use crate::normalize::time::TimeReader;
use crate::otlp::json::escape::put_unescaped;
use crate::otlp::json::text::{Str, Text};

/// The part that a line is; None where it is no such line.
pub fn parse<'a>(line: &'a [u8], times: &mut TimeReader) -> Option<Part<'a>> {
    if !line.starts_with(b"{\"log\":") {
        return None;
    }
    let mut text = Text::new(line);
    text.eat(b'{');
    let (mut log, mut stream, mut time, mut attributes) = (None, None, None, &b""[..]);
    loop {
        if text.peek() != b'"' {
            return None;
        }
        let key = text.string_of_any_bytes().ok()?;
        if !text.eat(b':') {
            return None;
        }
        match key.raw {
            b"log" | b"stream" | b"time" => {
                if text.peek() != b'"' {
                    return None;
                }
                let value = text.string_of_any_bytes().ok()?;
                match key.raw {
                    b"log" => log = Some(value),
                    b"stream" => stream = Some(Stream::of(value.raw)?),
                    _ => time = Some(times.of_text(value.raw)?),
                }
            }
            b"attrs" if text.peek() == b'{' => {
                let start = text.offset();
                text.skip().ok()?;
                attributes = &line[start..text.offset()];
            }
            _ => return None,
        }
        if !text.more(b'}').ok()? {
            break;
        }
    }
    text.peek();
    if text.offset() < line.len() {
        return None;
    }
    let text = unescaped(log?);
    let ends = text.ends_with(b"\n");
    let text = match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.strip_suffix(b"\n").unwrap_or(text)),
        Cow::Owned(mut text) => {
            text.truncate(text.len() - usize::from(ends));
            if text.last() == Some(&b'\r') && ends {
                text.pop();
            }
            Cow::Owned(text)
        }
    };
    // One of the two others must be there, or it is a record with a field of that name.
    (stream.is_some() && time.is_some()).then(|| Part {
        stream: stream.unwrap_or(Stream::None),
        time_unix_nano: time,
        ends,
        text,
        attributes,
    })
}

fn unescaped(string: Str<'_>) -> Cow<'_, [u8]> {
    if !string.escaped {
        return Cow::Borrowed(string.raw);
    }
    let mut out = Vec::with_capacity(string.raw.len());
    put_unescaped(&mut out, string.raw);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(line: &str) -> Option<(Stream, bool, String)> {
        parse(line.as_bytes(), &mut TimeReader::default())
            .map(|part| (part.stream, part.ends, String::from_utf8_lossy(&part.text).into_owned()))
    }

    #[test]
    fn parts_and_whole_lines_are_told_apart() {
        let time = r#""time":"2025-10-09T08:53:20.123456789Z""#;
        for (log, stream, ends, text) in [
            (r"hello\n", "stdout", true, "hello"),
            (r"tab\t\u00e9 \u001b[0m\r\n", "stderr", true, "tab\té \x1b[0m"),
            ("a part", "stdout", false, "a part"),
            (r"a \\n part", "stdout", false, r"a \n part"),
            ("", "stdout", false, ""),
            (r"\n", "stdout", true, ""),
        ] {
            let line = format!(r#"{{"log":"{log}","stream":"{stream}",{time}}}"#);
            assert_eq!(part(&line), Some((Stream::of(stream.as_bytes()).unwrap(), ends, text.to_owned())), "{line}");
        }
        let line = format!(r#"{{"log":"x\n","stream":"stdout","attrs":{{"tag":"web"}},{time}}}"#);
        assert_eq!(part(&line), Some((Stream::Stdout, true, "x".to_owned())));
        let line = r#"{"log": "x\n", "stream": "stdout", "time": "2025-10-09T08:53:20Z"}"#;
        assert_eq!(part(line), Some((Stream::Stdout, true, "x".to_owned())), "spaces, as other writers of this form have them");
    }

    #[test]
    fn a_record_that_has_a_field_log_is_not_dockers() {
        for line in [
            r#"{"log":"x"}"#,
            r#"{"log":"x","stream":"stdout"}"#,
            r#"{"log":"x","stream":"kafka","time":"2025-10-09T08:53:20Z"}"#,
            r#"{"log":"x","stream":"stdout","time":"2025-10-09T08:53:20Z","level":"info"}"#,
            r#"{"log":"x","stream":"stdout","time":"soon"}"#,
            r#"{"log":"x","stream":"stdout","time":"2025-10-09T08:53:20Z"} x"#,
            r#"{"log":"x","stream":"std"#,
            r#"{"log":{},"stream":"stdout"}"#,
            "",
        ] {
            assert_eq!(part(line), None, "{line}");
        }
    }
}
