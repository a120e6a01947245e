//! Protobuf out: the few shapes of OTLP that rows, resources and scopes are made of.
//!
//! Lengths are minimal varints. Text that is not UTF-8 is repaired here, with U+FFFD for what is broken: protobuf strings must be UTF-8.

use std::borrow::Cow;

/// `attributes` of a LogRecord.
pub const RECORD_ATTRIBUTE: u8 = 0x32;
/// `attributes` of a Resource; `values` of a list of pairs or of an array.
pub const FIELD_1: u8 = 0x0a;
/// `attributes` of an InstrumentationScope.
pub const SCOPE_ATTRIBUTE: u8 = 0x1a;

/// Bytes of `value` as a varint.
#[inline(always)]
pub fn varint_len(value: u64) -> usize {
    ((70 - (value | 1).leading_zeros() as usize) * 37) >> 8
}

/// Appends a varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length-delimited field.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.reserve(bytes.len() + 6);
    out.push(tag);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The text of bytes that should be UTF-8; what is broken becomes U+FFFD.
#[inline]
pub fn repaired(bytes: &[u8]) -> Cow<'_, [u8]> {
    if simdutf8::basic::from_utf8(bytes).is_ok() {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned(String::from_utf8_lossy(bytes).into_owned().into_bytes())
}

/// Appends an attribute with a text value (both valid UTF-8): `tag` is the field of the enclosing message.
pub fn put_text_attribute(out: &mut Vec<u8>, tag: u8, key: &[u8], text: &[u8]) {
    let any = 1 + varint_len(text.len() as u64) + text.len();
    put_key(out, tag, key, any);
    put_bytes(out, 0x0a, text);
}

/// Appends the head of an attribute whose encoded AnyValue has `any` bytes; they have to follow.
pub fn put_key(out: &mut Vec<u8>, tag: u8, key: &[u8], any: usize) {
    let pair = 1 + varint_len(key.len() as u64) + key.len() + 1 + varint_len(any as u64) + any;
    out.reserve(pair + 12);
    out.push(tag);
    put_varint(out, pair as u64);
    put_bytes(out, 0x0a, key);
    out.push(0x12);
    put_varint(out, any as u64);
}

/// Opens a length-delimited field whose length is not known yet: one byte is kept for it. Give the result to [`close`].
#[inline]
pub fn open(out: &mut Vec<u8>, tag: u8) -> usize {
    out.extend_from_slice(&[tag, 0]);
    out.len()
}

/// Closes what [`open`] opened: writes the length, and makes room where it needs more than its one byte.
#[inline]
pub fn close(out: &mut Vec<u8>, start: usize) {
    let len = out.len() - start;
    if len < 0x80 {
        out[start - 1] = len as u8;
        return;
    }
    let width = varint_len(len as u64);
    let end = out.len();
    out.resize(end + width - 1, 0);
    out.copy_within(start..end, start + width - 1);
    write_varint(&mut out[start - 1..], len as u64);
}

/// The length of the payload of a field with a one-byte tag that has `field` bytes in all.
pub fn payload_len(field: usize) -> usize {
    (1..=5).map(|width| field.saturating_sub(1 + width)).find(|len| 1 + varint_len(*len as u64) + len == field).unwrap_or_default()
}

/// Writes a varint over the first bytes of `at`.
#[inline]
pub fn write_varint(at: &mut [u8], mut value: u64) {
    for byte in at {
        if value < 0x80 {
            *byte = value as u8;
            return;
        }
        *byte = value as u8 | 0x80;
        value >>= 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_minimal_varints() {
        for value in (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit]).chain([u64::MAX]) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
    }

    #[test]
    fn a_field_of_any_length_closes_with_its_length() {
        for len in [0, 1, 127, 128, 16383, 16384, 2_097_152] {
            let mut out = vec![9];
            let start = open(&mut out, 0x32);
            out.extend((0..len).map(|i| i as u8));
            close(&mut out, start);
            let mut expected = vec![9];
            put_bytes(&mut expected, 0x32, &(0..len).map(|i| i as u8).collect::<Vec<_>>());
            assert!(out == expected, "{len}");
            assert_eq!(payload_len(out.len() - 1), len);
        }
    }
}
