//! Any msgpack value as an OTLP AnyValue: maps to lists of pairs, arrays to arrays, bin to bytes.
//!
//! Keys that are not text become their text; of equal keys in a map the last one counts (OTLP forbids two). Integers above `i64::MAX` become
//! decimal text, timestamps RFC 3339 text, other ext values bytes: nothing is lost. Lengths of nested values are patched in afterwards.

use std::borrow::Cow;

use super::text;
use super::wire::{close, open, put_bytes, put_varint, repaired, varint_len};
use crate::fluent::cursor::{Cursor, Fault, Head};

/// Appends the value at the cursor as a field `tag` that holds an AnyValue; `depth` is how deep maps and arrays may still lie in it.
pub fn put_any(out: &mut Vec<u8>, tag: u8, cursor: &mut Cursor<'_>, depth: usize) -> Result<(), Fault> {
    match cursor.head()? {
        Head::Nil => out.extend_from_slice(&[tag, 0]),
        Head::Bool(value) => out.extend_from_slice(&[tag, 2, 0x10, u8::from(value)]),
        Head::Int(value) => {
            out.extend_from_slice(&[tag, 1 + varint_len(value as u64) as u8, 0x18]);
            put_varint(out, value as u64);
        }
        Head::Big(value) => put_text(out, tag, value.to_string().as_bytes()),
        Head::Float(value) => {
            out.extend_from_slice(&[tag, 9, 0x21]);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Head::Str(len) => put_text(out, tag, &repaired(cursor.take(len)?)),
        Head::Bin(len) => put_content(out, tag, 0x3a, cursor.take(len)?),
        Head::Ext(kind, len) => {
            let content = cursor.take(len)?;
            match super::time::of_ext(kind, content) {
                Some(time) => put_text(out, tag, text::rfc3339(time).as_bytes()),
                None => put_content(out, tag, 0x3a, content),
            }
        }
        Head::Array(count) => {
            let depth = depth.checked_sub(1).ok_or(Fault::TooDeep)?;
            let (any, values) = (open(out, tag), open(out, 0x2a));
            for _ in 0..count {
                put_any(out, 0x0a, cursor, depth)?;
            }
            close(out, values);
            close(out, any);
        }
        Head::Map(count) => {
            let depth = depth.checked_sub(1).ok_or(Fault::TooDeep)?;
            let (any, values) = (open(out, tag), open(out, 0x32));
            put_pairs(out, cursor, count, depth)?;
            close(out, values);
            close(out, any);
        }
    }
    Ok(())
}

/// Appends a text value (valid UTF-8).
pub fn put_text(out: &mut Vec<u8>, tag: u8, text: &[u8]) {
    put_content(out, tag, 0x0a, text);
}

fn put_content(out: &mut Vec<u8>, tag: u8, kind: u8, content: &[u8]) {
    out.reserve(content.len() + 12);
    out.push(tag);
    put_varint(out, (1 + varint_len(content.len() as u64) + content.len()) as u64);
    put_bytes(out, kind, content);
}

/// Maps up to this size compare their keys with each other while they are written.
const SMALL_MAP: usize = 16;

fn put_pairs(out: &mut Vec<u8>, cursor: &mut Cursor<'_>, count: usize, depth: usize) -> Result<(), Fault> {
    let mut plain = [(&[][..], 0); SMALL_MAP];
    let mut all_plain = count <= SMALL_MAP;
    let mut pairs: Vec<(Cow<'_, [u8]>, usize)> = Vec::new();
    for index in 0..count {
        let start = out.len();
        let pair = open(out, 0x0a);
        let raw = cursor.value()?;
        // Two spellings of one key (a str of another width, 1 and "1") are compared by their text.
        if all_plain && raw[0] & 0xe0 != 0xa0 {
            all_plain = false;
            pairs.extend(plain[..index].iter().map(|(key, start)| (Cow::Borrowed(&key[1..]), *start)));
        }
        if all_plain {
            put_bytes(out, 0x0a, &repaired(&raw[1..]));
            all_plain = !plain[..index].iter().any(|(key, _)| *key == raw);
            plain[index] = (raw, start);
            if !all_plain {
                pairs.extend(plain[..=index].iter().map(|(key, start)| (Cow::Borrowed(&key[1..]), *start)));
            }
        } else {
            let key = text::of_key(raw);
            put_bytes(out, 0x0a, &repaired(&key));
            pairs.push((key, start));
        }
        put_any(out, 0x12, cursor, depth)?;
        close(out, pair);
    }
    if !all_plain {
        keep_last(out, pairs);
    }
    Ok(())
}

/// Takes out of the tail of `out` every pair whose key comes again. Sorts, so that a large map of chosen keys costs no more than any other.
fn keep_last(out: &mut Vec<u8>, pairs: Vec<(Cow<'_, [u8]>, usize)>) {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_unstable_by(|a, b| pairs[*a].0.cmp(&pairs[*b].0).then(a.cmp(b)));
    let mut stays = vec![true; pairs.len()];
    for pair in order.windows(2) {
        stays[pair[0]] = pairs[pair[0]].0 != pairs[pair[1]].0;
    }
    if stays.iter().all(|stays| *stays) {
        return;
    }
    let mut end = pairs[0].1;
    for (index, (_, start)) in pairs.iter().enumerate().filter(|(index, _)| stays[*index]) {
        let until = pairs.get(index + 1).map_or(out.len(), |next| next.1);
        out.copy_within(*start..until, end);
        end += until - start;
    }
    out.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_any(&mut out, 0x12, &mut Cursor::new(value, 0), 8).expect("valid msgpack");
        out
    }

    #[test]
    fn of_equal_keys_the_last_one_counts() {
        let once = any(&[0x82, 0xa1, b'b', 2, 0xa1, b'a', 3]);
        assert_eq!(any(&[0x83, 0xa1, b'a', 1, 0xa1, b'b', 2, 0xa1, b'a', 3]), once);
        assert_eq!(any(&[0x83, 0xa1, b'a', 1, 0xa1, b'b', 2, 0xd9, 1, b'a', 3]), once, "another width");
        let number = any(&[0x81, 0xa1, b'7', 3]);
        assert_eq!(any(&[0x82, 7, 1, 0xa1, b'7', 3]), number, "a number and its text");
        let mut large = vec![0xde, 0, 40];
        let mut expected = vec![0xde, 0, 20];
        for round in 0..2 {
            for key in 0..20 {
                large.extend([0xa1, b'a' + key, round]);
            }
        }
        for key in 0..20 {
            expected.extend([0xa1, b'a' + key, 1]);
        }
        assert_eq!(any(&large), any(&expected));
    }

    #[test]
    fn depth_is_limited_and_not_by_the_stack() {
        let mut data = vec![0x91; 8];
        data.push(1);
        any(&data);
        let mut data = vec![0x91; 100_000];
        data.push(1);
        assert_eq!(put_any(&mut Vec::new(), 0x12, &mut Cursor::new(&data, 0), 64), Err(Fault::TooDeep));
    }
}
