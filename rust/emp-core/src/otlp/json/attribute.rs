//! The hot path of JSON: attributes and bodies with a scalar value, written without white space, as SDKs do. Anything else is read by
//! descriptors.

use super::fields::Writer;
use crate::normalize::wire::{put_bytes, put_key};
use crate::otlp::wire::{put_varint, varint_len};

/// Whether `expected` lies at a place.
#[inline(always)]
fn is_at<const N: usize>(bytes: &[u8], at: usize, expected: &[u8; N]) -> bool {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()) == Some(expected)
}

/// A scalar of an `AnyValue`, and where its object ends.
#[derive(Clone, Copy)]
enum Scalar<'a> {
    Text(&'a [u8]),
    Int(u64),
    Bool(u8),
}

impl Scalar<'_> {
    #[inline(always)]
    fn encoded_len(self) -> usize {
        match self {
            Self::Text(text) => 1 + varint_len(text.len() as u64) + text.len(),
            Self::Int(value) => 1 + varint_len(value),
            Self::Bool(_) => 2,
        }
    }

    #[inline(always)]
    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => put_bytes(out, 0x0a, text),
            Self::Int(value) => {
                out.push(0x18);
                put_varint(out, value);
            }
            Self::Bool(value) => out.extend_from_slice(&[0x10, value]),
        }
    }
}

impl<'a> Writer<'a> {
    /// Appends the attribute that is next as a field `tag` where it is a usual one; false, and nothing done, where not.
    #[inline]
    pub fn usual_attribute(&mut self, tag: u8) -> bool {
        let Some((bytes, start)) = self.text.utf8_bytes() else { return false };
        if !is_at(bytes, start, br#"{"key":""#) {
            return false;
        }
        let key_start = start + 8;
        let key_end = self.text.plain_end(key_start);
        if key_end == key_start || !is_at(bytes, key_end, br#"","value":"#) {
            return false;
        }
        let Some((scalar, end)) = self.usual_scalar(bytes, key_end + 10).filter(|(_, end)| bytes.get(*end) == Some(&b'}')) else {
            return false;
        };
        put_key(&mut self.out, tag, &bytes[key_start..key_end], scalar.encoded_len());
        scalar.put(&mut self.out);
        self.text.go_to(end + 1);
        true
    }

    /// Appends the `AnyValue` that is next as a field `tag` where it is a usual one; false, and nothing done, where not.
    #[inline]
    pub fn usual_value(&mut self, tag: u8) -> bool {
        let Some((bytes, start)) = self.text.utf8_bytes() else { return false };
        let Some((scalar, end)) = self.usual_scalar(bytes, start) else { return false };
        self.out.push(tag);
        put_varint(&mut self.out, scalar.encoded_len() as u64);
        scalar.put(&mut self.out);
        self.text.go_to(end);
        true
    }

    /// The scalar in the object at a place, and where that ends.
    #[inline(always)]
    fn usual_scalar(&self, bytes: &'a [u8], at: usize) -> Option<(Scalar<'a>, usize)> {
        if is_at(bytes, at, br#"{"stringValue":""#) {
            let start = at + 16;
            let end = self.text.plain_end(start);
            return is_at(bytes, end, br#""}"#).then(|| (Scalar::Text(&bytes[start..end]), end + 2));
        }
        if is_at(bytes, at, br#"{"intValue":"#) {
            let is_quoted = bytes.get(at + 12) == Some(&b'"');
            let number = bytes.get(at + 12 + usize::from(is_quoted)..)?;
            let digits = number.iter().take(19).take_while(|byte| byte.is_ascii_digit()).count();
            let end = at + 12 + usize::from(is_quoted) + digits;
            // Few enough digits for 64 bits; a zero in front is no number unless it is the only one.
            if digits == 0 || digits > 18 || (number[0] == b'0' && digits > 1) {
                return None;
            }
            let value = number[..digits].iter().fold(0u64, |value, digit| value * 10 + u64::from(digit - b'0'));
            let end = match is_quoted {
                true if is_at(bytes, end, br#""}"#) => end + 2,
                false if is_at(bytes, end, b"}") => end + 1,
                _ => return None,
            };
            return Some((Scalar::Int(value), end));
        }
        if is_at(bytes, at, br#"{"boolValue":true}"#) {
            return Some((Scalar::Bool(1), at + 18));
        }
        is_at(bytes, at, br#"{"boolValue":false}"#).then_some((Scalar::Bool(0), at + 19))
    }
}
