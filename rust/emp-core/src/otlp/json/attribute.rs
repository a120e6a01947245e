//! The hot path of JSON: an attribute with a scalar value, written without white space, as SDKs do. Anything else is read by descriptors.

use super::fields::Writer;
use crate::normalize::wire::{put_bytes, put_key};
use crate::otlp::wire::{put_varint, varint_len};

const KEY: &[u8] = br#"{"key":""#;
const VALUE: &[u8] = br#"","value":{""#;
const STRING: &[u8] = br#"stringValue":""#;
const INT: &[u8] = br#"intValue":"#;
const BOOL: &[u8] = br#"boolValue":"#;

impl Writer<'_> {
    /// Appends the attribute that is next as a field `tag` where it is a usual one; false, and nothing done, where not.
    #[inline]
    pub fn usual_attribute(&mut self, tag: u8) -> bool {
        let Some((bytes, start)) = self.text.utf8_bytes() else { return false };
        let Some(key) = bytes[start..].strip_prefix(KEY) else { return false };
        let key_start = start + KEY.len();
        let key_end = self.text.plain_end(key_start);
        let key = &key[..key_end - key_start];
        let Some(value) = bytes[key_end..].strip_prefix(VALUE) else { return false };
        let value_start = key_end + VALUE.len();
        let end = if value.starts_with(STRING) {
            let text_start = value_start + STRING.len();
            let text_end = self.text.plain_end(text_start);
            if !bytes[text_end..].starts_with(b"\"}}") || key.is_empty() {
                return false;
            }
            let text = &bytes[text_start..text_end];
            put_key(&mut self.out, tag, key, 1 + varint_len(text.len() as u64) + text.len());
            put_bytes(&mut self.out, 0x0a, text);
            text_end + 3
        } else if let Some(number) = value.strip_prefix(INT) {
            let (number, close): (_, &[u8]) = match number.strip_prefix(b"\"") {
                Some(quoted) => (quoted, b"\"}}"),
                None => (number, b"}}"),
            };
            let digits = number.iter().take(19).take_while(|byte| byte.is_ascii_digit()).count();
            // Few enough digits for 64 bits; a zero in front is no number unless it is the only one.
            if digits == 0 || digits > 18 || (number[0] == b'0' && digits > 1) || !number[digits..].starts_with(close) || key.is_empty() {
                return false;
            }
            let value = number[..digits].iter().fold(0u64, |value, digit| value * 10 + u64::from(digit - b'0'));
            put_key(&mut self.out, tag, key, 1 + varint_len(value));
            self.out.push(0x18);
            put_varint(&mut self.out, value);
            bytes.len() - number.len() + digits + close.len()
        } else if let Some(truth) = value.strip_prefix(BOOL) {
            let (value, word) = if truth.starts_with(b"true}}") { (1, 6) } else { (0, 7) };
            if (value == 0 && !truth.starts_with(b"false}}")) || key.is_empty() {
                return false;
            }
            put_key(&mut self.out, tag, key, 2);
            self.out.extend_from_slice(&[0x10, value]);
            bytes.len() - truth.len() + word
        } else {
            return false;
        };
        self.text.go_to(end);
        true
    }
}
