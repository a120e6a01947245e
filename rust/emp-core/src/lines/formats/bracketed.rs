//! `[timestamp] LEVEL: message` and its kin: `[timestamp] [LEVEL] message`, `[LEVEL] message`, `[timestamp] message`.

use super::Found;
use super::stamp::{Times, is_level, level, put_level, put_time};
use crate::lines::Fields;

/// No time and no level is longer.
const MOST_INSIDE_BYTES: usize = 64;

/// What the brackets hold, and what follows them.
fn brackets(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b"[")?;
    let end = memchr::memchr(b']', &text[..text.len().min(MOST_INSIDE_BYTES)])?;
    Some((text[..end].trim_ascii(), text[end + 1..].trim_ascii_start()))
}

/// The fields of a line.
pub fn parse<'a>(line: &'a [u8], times: &mut Times, fields: &mut Fields) -> Option<Found<'a>> {
    let (inside, mut rest) = brackets(line)?;
    let mut severity = 0;
    if let Some(time) = times.whole(inside) {
        put_time(fields, time);
        if let Some(leading) = leading_level(rest) {
            severity = put_level(fields, leading.word);
            rest = leading.rest;
        }
    } else if is_level(inside) {
        severity = put_level(fields, inside);
        if let Some((inside, after)) = brackets(rest)
            && let Some(time) = times.whole(inside)
        {
            put_time(fields, time);
            rest = after;
        }
        rest = after_separator(rest);
    } else {
        return None;
    }
    Some(Found { message: Some(rest), severity })
}

/// A level at the beginning of a text.
pub struct Leading<'a> {
    /// The level.
    pub word: &'a [u8],
    /// What follows it, behind a separator.
    pub rest: &'a [u8],
    /// A colon ties it to what follows: `LEVEL:name`.
    pub tied: bool,
}

/// A level in brackets, in capitals, or before a colon, and what follows it.
pub fn leading_level(text: &[u8]) -> Option<Leading<'_>> {
    if let Some((inside, rest)) = brackets(text) {
        return is_level(inside).then(|| Leading { word: inside, rest: after_separator(rest), tied: false });
    }
    let word = level(text)?;
    let rest = &text[word.len()..];
    let in_capitals = word.iter().all(u8::is_ascii_uppercase);
    match rest.trim_ascii_start() {
        [b':' | b'|', ..] => {}
        [b'-', b' ', ..] => {}
        _ if in_capitals && rest.first().is_none_or(u8::is_ascii_whitespace) => {}
        _ => return None,
    }
    let tied = matches!(rest, [b':', next, ..] if *next != b' ');
    Some(Leading { word, rest: after_separator(rest), tied })
}

/// The text behind spaces and one colon, bar or dash.
fn after_separator(text: &[u8]) -> &[u8] {
    match text.trim_ascii_start() {
        [b':' | b'|', rest @ ..] | [b'-', b' ', rest @ ..] => rest.trim_ascii_start(),
        rest => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{T, parsed};
    use super::*;

    #[test]
    fn every_form_gives_time_level_and_message() {
        let time = format!(r#""timestamp":{T},"#);
        for (line, fields, message) in [
            ("[2025-10-09T08:53:20Z] INFO: job started", format!(r#"{time}"level":"INFO""#), "job started"),
            ("[2025-10-09 08:53:20] error: boom: bad", format!(r#"{time}"level":"error""#), "boom: bad"),
            ("[2025-10-09 08:53:20] [WARN] hot", format!(r#"{time}"level":"WARN""#), "hot"),
            ("[2025-10-09 08:53:20][DEBUG] - x", format!(r#"{time}"level":"DEBUG""#), "x"),
            ("[1760000000000] FATAL gone", format!(r#"{time}"level":"FATAL""#), "gone"),
            ("[2025-10-09 08:53:20.000] got prompt", format!(r#""timestamp":{T}"#), "got prompt"),
            ("[2025-10-09 08:53:20] errors: 3", format!(r#""timestamp":{T}"#), "errors: 3"),
            ("[2025-10-09 08:53:20] warn of this", format!(r#""timestamp":{T}"#), "warn of this"),
            ("[INFO] [2025-10-09 08:53:20] x", format!(r#""level":"INFO","timestamp":{T}"#), "x"),
            ("[ERROR]: x", r#""level":"ERROR""#.to_owned(), "x"),
            ("[2025-10-09 08:53:20] INFO:", format!(r#"{time}"level":"INFO""#), ""),
        ] {
            assert_eq!(parsed(parse, line), Some((format!("{{{fields}}}"), Some(message.to_owned()))), "{line}");
        }
    }

    #[test]
    fn other_brackets_are_text() {
        for line in
            ["[ComfyUI-Manager] loaded", "[", "[]", "[1,2]", "[http] x", "[2025-10-09 08:53:20", "x [INFO] y", "[START] Security scan"]
        {
            assert_eq!(parsed(parse, line), None, "{line}");
        }
    }
}
