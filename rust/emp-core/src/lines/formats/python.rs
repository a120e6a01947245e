//! Python's `logging` in its usual layouts, loguru, uvicorn, and other loggers that begin with a time and have a level behind it (Logback).

use super::Found;
use super::bracketed::{Leading, leading_level};
use super::stamp::{Times, level, put_level, put_time};
use crate::lines::Fields;

/// Levels as Python writes them: nothing else begins a line of `logging.basicConfig()`.
const NAMES: [&[u8]; 5] = [b"DEBUG", b"INFO", b"WARNING", b"ERROR", b"CRITICAL"];
/// No logger's name is longer.
const MOST_NAME_BYTES: usize = 128;

/// The fields of a line.
pub fn parse<'a>(line: &'a [u8], times: &mut Times, fields: &mut Fields) -> Option<Found<'a>> {
    match line.first()? {
        b'0'..=b'9' => stamped(line, times, fields),
        b'A'..=b'Z' => basic(line, fields),
        _ => None,
    }
}

/// `LEVEL:name:message`, and uvicorn's `LEVEL:     message`.
fn basic<'a>(line: &'a [u8], fields: &mut Fields) -> Option<Found<'a>> {
    let word = NAMES.iter().find(|name| line.starts_with(name) && line.get(name.len()) == Some(&b':'))?;
    let rest = &line[word.len() + 1..];
    let severity = put_level(fields, word);
    if rest.starts_with(b" ") {
        return Some(Found { message: Some(rest.trim_ascii_start()), severity });
    }
    match memchr::memchr(b':', &rest[..rest.len().min(MOST_NAME_BYTES)]).filter(|at| *at > 0 && is_name(&rest[..*at])) {
        Some(at) => {
            fields.text(b"logger", &rest[..at]);
            Some(Found { message: Some(&rest[at + 1..]), severity })
        }
        None => Some(Found { message: Some(rest), severity }),
    }
}

/// A time, and a level among the next few words.
fn stamped<'a>(line: &'a [u8], times: &mut Times, fields: &mut Fields) -> Option<Found<'a>> {
    let stamp = times.at(line)?;
    let rest = &line[stamp.len..];
    put_time(fields, stamp.time_unix_nano);
    if let Some(rest) = rest.strip_prefix(b" - ") {
        return dashed(rest, fields);
    }
    if let Some(rest) = rest.strip_prefix(b" | ") {
        return barred(rest, fields);
    }
    let mut rest = rest.trim_ascii_start();
    // What may stand before the level: a thread or process in brackets, the logger's name.
    let mut logger = None;
    for _ in 0..3 {
        if let Some(leading) = leading_level(rest) {
            let severity = put_level(fields, leading.word);
            return Some(Found { message: Some(named(&leading, logger, fields)), severity });
        }
        if rest.first() == Some(&b'[') {
            let end = memchr::memchr(b']', &rest[..rest.len().min(MOST_NAME_BYTES)])?;
            fields.text(b"thread.name", &rest[1..end]);
            rest = rest[end + 1..].trim_ascii_start();
        } else {
            let end = memchr::memchr(b' ', &rest[..rest.len().min(MOST_NAME_BYTES)])?;
            if logger.is_some() || !is_name(&rest[..end]) {
                return None;
            }
            logger = Some(&rest[..end]);
            rest = rest[end..].trim_ascii_start();
        }
    }
    None
}

/// The message behind the level, with the logger's name written where one stands: before the level, right behind its colon
/// (`LEVEL:name:message`), or before a dash or colon of its own (`LEVEL name - message`, `[LEVEL] name: message`).
fn named<'a>(leading: &Leading<'a>, logger: Option<&[u8]>, fields: &mut Fields) -> &'a [u8] {
    let after = leading.rest;
    if let Some(name) = logger {
        fields.text(b"logger", name);
        return after;
    }
    let window = &after[..after.len().min(MOST_NAME_BYTES)];
    let colon = memchr::memchr(b':', window).filter(|at| *at > 0 && is_name(&window[..*at]));
    if leading.tied
        && let Some(at) = colon
    {
        fields.text(b"logger", &after[..at]);
        return after[at + 1..].trim_ascii_start();
    }
    if let Some(at) = memchr::memchr(b' ', window).filter(|at| *at > 1) {
        let (name, behind) = (&after[..at], after[at..].trim_ascii_start());
        if is_name(name)
            && let Some(message) = behind.strip_prefix(b"- ").or(behind.strip_prefix(b": "))
        {
            fields.text(b"logger", name);
            return message.trim_ascii_start();
        }
        // A word and a colon are a name only where it is dotted, as modules are: `error: message` is a message.
        if let Some(name) = name.strip_suffix(b":")
            && is_name(name)
            && name.contains(&b'.')
        {
            fields.text(b"logger", name);
            return behind;
        }
    }
    after
}

/// `name - LEVEL - message` and `LEVEL - message`; more parts may stand before the level.
fn dashed<'a>(mut rest: &'a [u8], fields: &mut Fields) -> Option<Found<'a>> {
    for index in 0..4 {
        let end = memchr::memmem::find(rest, b" - ")?;
        let part = rest[..end].trim_ascii();
        if level(part).is_some_and(|word| word.len() == part.len()) {
            return Some(Found { severity: put_level(fields, part), message: Some(&rest[end + 3..]) });
        }
        if part.len() > MOST_NAME_BYTES {
            return None;
        }
        fields.text([&b"logger"[..], b"logger.part_1", b"logger.part_2", b"logger.part_3"][index], part);
        rest = &rest[end + 3..];
    }
    None
}

/// loguru: `LEVEL    | module:function:line - message`.
fn barred<'a>(rest: &'a [u8], fields: &mut Fields) -> Option<Found<'a>> {
    let end = memchr::memchr(b'|', rest)?;
    let part = rest[..end].trim_ascii();
    if level(part).is_none_or(|word| word.len() != part.len()) {
        return None;
    }
    let severity = put_level(fields, part);
    let rest = rest[end + 1..].trim_ascii_start();
    let mut message = rest;
    if let Some(end) = memchr::memmem::find(&rest[..rest.len().min(2 * MOST_NAME_BYTES)], b" - ") {
        let mut parts = rest[..end].rsplitn(3, |byte| *byte == b':');
        let number = parts.next().and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse::<u32>().ok());
        if let (Some(number), Some(function), Some(module)) = (number, parts.next(), parts.next()) {
            fields.text(b"logger", module);
            fields.text(b"code.function.name", function);
            fields.int(b"code.line.number", i64::from(number));
            message = &rest[end + 3..];
        }
    }
    Some(Found { message: Some(message), severity })
}

/// Whether a word may be a logger's name.
fn is_name(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'/' | b'$' | b'#'))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{T, parsed};
    use super::*;

    #[test]
    fn every_layout_gives_time_level_logger_and_message() {
        for (line, fields, message) in [
            ("2025-10-09 08:53:20,000 - app.web - ERROR - it - failed", r#""logger":"app.web","level":"ERROR""#, "it - failed"),
            ("2025-10-09 08:53:20,000 - INFO - ready", r#""level":"INFO""#, "ready"),
            ("2025-10-09 08:53:20,000 INFO app.web - ready", r#""level":"INFO","logger":"app.web""#, "ready"),
            ("2025-10-09 08:53:20,000 INFO:app:ready: yes", r#""level":"INFO","logger":"app""#, "ready: yes"),
            ("2025-10-09 08:53:20,000 [WARNING] app.web: hot", r#""level":"WARNING","logger":"app.web""#, "hot"),
            ("2025-10-09 08:53:20,000 [WARNING] note: hot", r#""level":"WARNING""#, "note: hot"),
            ("2025-10-09 08:53:20,000 INFO job done", r#""level":"INFO""#, "job done"),
            ("2025-10-09 08:53:20,000 app INFO job done", r#""level":"INFO","logger":"app""#, "job done"),
            ("2025-10-09 08:53:20.000 [main] INFO  c.f.Bar - up", r#""thread.name":"main","level":"INFO","logger":"c.f.Bar""#, "up"),
            (
                "2025-10-09 08:53:20.000 | SUCCESS  | app.web:serve:42 - up",
                r#""level":"SUCCESS","logger":"app.web","code.function.name":"serve","code.line.number":42"#,
                "up",
            ),
            ("2025-10-09 08:53:20.000 | INFO | bare", r#""level":"INFO""#, "bare"),
        ] {
            assert_eq!(parsed(parse, line), Some((format!(r#"{{"timestamp":{T},{fields}}}"#), Some(message.to_owned()))), "{line}");
        }
        for (line, fields, message) in [
            ("ERROR:app.web:it failed: bad", r#"{"level":"ERROR","logger":"app.web"}"#, "it failed: bad"),
            ("WARNING:root:", r#"{"level":"WARNING","logger":"root"}"#, ""),
            ("INFO:     127.0.0.1:5 - \"GET / HTTP/1.1\" 200 OK", r#"{"level":"INFO"}"#, "127.0.0.1:5 - \"GET / HTTP/1.1\" 200 OK"),
        ] {
            assert_eq!(parsed(parse, line), Some((fields.to_owned(), Some(message.to_owned()))), "{line}");
        }
    }

    #[test]
    fn what_has_no_level_is_no_such_line() {
        for line in [
            "",
            "2025-10-09 08:53:20,000 ready",
            "2025-10-09 08:53:20 - x - y",
            "INFO",
            "INFO ready",
            "ERRORS:x:y",
            "2025-10-09 08:53:20 a b INFO x",
        ] {
            assert_eq!(parsed(parse, line), None, "{line}");
        }
    }
}
