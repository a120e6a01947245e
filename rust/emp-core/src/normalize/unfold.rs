//! A record inside the body: a JSON object, or text that is logfmt throughout, becomes fields.

use super::json;

/// The longest key of logfmt.
const MAX_KEY_BYTES: usize = 64;

/// A cheap look that is true for everything that [`unfold`] can unfold, and for little else.
#[inline]
pub fn may_be_folded(text: &[u8]) -> bool {
    match text.first() {
        Some(b'{' | b' ' | b'\t' | b'\r' | b'\n') => true,
        Some(byte) if is_key_byte(*byte) => {
            let key = text.iter().take(MAX_KEY_BYTES).take_while(|byte| is_key_byte(**byte)).count();
            text.get(key) == Some(&b'=')
        }
        _ => false,
    }
}

#[inline(always)]
fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'@')
}

/// The fields in `text` as a msgpack map; None when it is neither a JSON object with a key nor logfmt with at least two pairs.
pub fn unfold(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    let mut out = Vec::new();
    if text.first() == Some(&b'{') {
        if text.last() != Some(&b'}') || text.len() <= 2 {
            return None;
        }
        json::to_msgpack(text, &mut out).ok()?;
        // The head is a map32 here.
        return (out.get(1..5) != Some(&[0; 4])).then_some(out);
    }
    logfmt(text, &mut out)?;
    Some(out)
}

fn logfmt(mut text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(&[0xdf, 0, 0, 0, 0]);
    let mut pairs = 0u32;
    while !text.is_empty() {
        let key = text.iter().take_while(|byte| is_key_byte(**byte)).count();
        if key == 0 || key > MAX_KEY_BYTES || text.get(key) != Some(&b'=') {
            return None;
        }
        json::put_str(out, &text[..key]);
        text = &text[key + 1..];
        if text.first() == Some(&b'"') {
            let end = closing_quote(text)?;
            // Escapes are JSON's.
            if json::to_msgpack(&text[..=end], out).is_err() {
                json::put_str(out, &text[1..end]);
            }
            text = &text[end + 1..];
            if text.first().is_some_and(|byte| *byte != b' ') {
                return None;
            }
        } else {
            let end = memchr::memchr(b' ', text).unwrap_or(text.len());
            if memchr::memchr3(b'"', b'=', b'\n', &text[..end]).is_some() {
                return None;
            }
            put_bare(out, &text[..end]);
            text = &text[end..];
        }
        text = text.trim_ascii_start();
        pairs += 1;
    }
    out[1..5].copy_from_slice(&pairs.to_be_bytes());
    (pairs >= 2).then_some(())
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

/// A bare value: a number or truth value where it is written as JSON would write it, else text.
fn put_bare(out: &mut Vec<u8>, value: &[u8]) {
    let number = matches!(value.first(), Some(b'-' | b'0'..=b'9')) && value.len() <= 17;
    if (number || value == b"true" || value == b"false") && json::to_msgpack(value, out).is_ok() {
        return;
    }
    json::put_str(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        json::to_msgpack(text.as_bytes(), &mut out).ok()?;
        Some(out)
    }

    #[test]
    fn logfmt_is_unfolded_where_all_of_it_is_pairs() {
        let text = r#"level=info msg="job \"7\" done" took=35 ratio=0.5 ok=true id=007 empty="#;
        let expected = r#"{"level":"info","msg":"job \"7\" done","took":35,"ratio":0.5,"ok":true,"id":"007","empty":""}"#;
        assert!(may_be_folded(text.as_bytes()));
        assert_eq!(unfold(text.as_bytes()), json(expected));
    }

    #[test]
    fn plain_text_stays_text() {
        for text in [
            "a=1",
            "x = 1 y = 2",
            "Job done in=3s now",
            "GET /?a=1&b=2",
            "a=1 b",
            "a=\"open b=2",
            "{}",
            "{not json}",
            "[1,2]",
            "",
            " ",
            "a==b c=d",
            "url=http://x/?q=1 b=2",
            "k=\"v\"x b=2",
        ] {
            assert_eq!(unfold(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_cheap_look_misses_nothing() {
        for text in [r#"{"a":1}"#, "  {\"a\":1}\n", "a=1 b=2", " a=1 b=2"] {
            assert!(unfold(text.as_bytes()).is_some(), "{text}");
            assert!(may_be_folded(text.as_bytes()), "{text}");
        }
    }
}
