//! logfmt: `key=value key="quoted value" flag`. Where the file is said to be logfmt a line may be one pair, and have bare words.

use super::Found;
use super::stamp::Times;
use crate::lines::Fields;
use crate::normalize::json::{put_str, to_msgpack};

/// The longest key.
const MAX_KEY_BYTES: usize = 128;

/// The fields of a line; None where it has no pair, or what stands before `=` is no key.
pub fn parse<'a>(line: &'a [u8], _: &mut Times, fields: &mut Fields) -> Option<Found<'a>> {
    let mut rest = line.trim_ascii();
    let mut pairs = 0;
    let mut value = Vec::new();
    while !rest.is_empty() {
        let len = rest.iter().take_while(|byte| !matches!(byte, b'=' | b' ' | b'"')).count();
        let key = &rest[..len];
        if key.is_empty() || len > MAX_KEY_BYTES || rest.get(len) == Some(&b'"') {
            return None;
        }
        value.clear();
        match rest.get(len) {
            Some(b'=') if rest.get(len + 1) == Some(&b'"') => {
                let quoted = &rest[len + 1..];
                let end = closing_quote(quoted)?;
                // Escapes are JSON's.
                if to_msgpack(&quoted[..=end], &mut value).is_err() {
                    put_str(&mut value, &quoted[1..end]);
                }
                rest = &quoted[end + 1..];
                pairs += 1;
            }
            Some(b'=') => {
                let text = &rest[len + 1..];
                let end = memchr::memchr(b' ', text).unwrap_or(text.len());
                put_bare(&mut value, &text[..end]);
                rest = &text[end..];
                pairs += 1;
            }
            _ => {
                value.push(0xc3);
                rest = &rest[len..];
            }
        }
        fields.raw(key, &value);
        rest = rest.trim_ascii_start();
    }
    (pairs > 0).then_some(Found { message: None, severity: 0 })
}

fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// A number or truth value where it is written as JSON would write it, else text.
fn put_bare(out: &mut Vec<u8>, value: &[u8]) {
    let number = matches!(value.first(), Some(b'-' | b'0'..=b'9')) && value.len() <= 17;
    if (number || value == b"true" || value == b"false") && to_msgpack(value, out).is_ok() {
        return;
    }
    put_str(out, value);
}

#[cfg(test)]
mod tests {
    use super::super::testing::parsed;
    use super::*;

    #[test]
    fn pairs_quotes_and_flags_are_fields() {
        for (line, fields) in [
            (r#"level=info msg="job \"7\" done" took=35 ratio=0.5"#, r#"{"level":"info","msg":"job \"7\" done","took":35,"ratio":0.5}"#),
            ("level=info", r#"{"level":"info"}"#),
            ("dry-run level=warn id=007 url=http://x/?a=1", r#"{"dry-run":true,"level":"warn","id":"007","url":"http://x/?a=1"}"#),
            ("empty= x=1", r#"{"empty":"","x":1}"#),
            ("grüße=日本 ok=true", r#"{"grüße":"日本","ok":true}"#),
        ] {
            assert_eq!(parsed(parse, line), Some((fields.to_owned(), None)), "{line}");
        }
    }

    #[test]
    fn what_is_no_pair_is_no_logfmt() {
        for line in ["", "plain text", "=x", "a=\"open", "\"quoted\"=1", "a=1 \"b\""] {
            assert_eq!(parsed(parse, line), None, "{line}");
        }
    }
}
