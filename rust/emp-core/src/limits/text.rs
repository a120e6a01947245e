//! Texts cut to a length, at a character, and marked.

use std::borrow::Cow;

use super::exceeds;
use crate::json_lines::value::value_text;
use crate::otlp::value::{AnyValue, any_value};
use crate::otlp::wire::{Reader, WireError};

/// What a shortened text ends with.
pub const MARK: &[u8] = "…".as_bytes();

/// `text`, cut at a character and marked where it is longer than `limit` (0: none).
pub fn shortened(text: &[u8], limit: u32) -> Cow<'_, [u8]> {
    cut(text, limit, MARK)
}

/// The same with a hash of the whole text after the mark: what differed before differs after. The hash is the same in every process, for the
/// text names a stream. A limit that does not hold the hash gets the mark alone.
pub fn shortened_apart(text: &[u8], limit: u32) -> Cow<'_, [u8]> {
    if !is_over(text, limit) {
        return Cow::Borrowed(text);
    }
    let mut mark = MARK.to_vec();
    mark.extend_from_slice(format!("{:08x}", fnv_1a(text)).as_bytes());
    cut(text, limit, if limit as usize > mark.len() { &mark } else { MARK })
}

fn cut<'a>(text: &'a [u8], limit: u32, mark: &[u8]) -> Cow<'a, [u8]> {
    if !is_over(text, limit) {
        return Cow::Borrowed(text);
    }
    let mut end = limit as usize - mark.len();
    // Step back over the inside of a character; bytes that are no UTF-8 end it after three.
    for _ in 0..3 {
        if end > 0 && text[end] & 0xc0 == 0x80 {
            end -= 1;
        }
    }
    Cow::Owned([&text[..end], mark].concat())
}

fn is_over(text: &[u8], limit: u32) -> bool {
    exceeds(u32::try_from(text.len()).unwrap_or(u32::MAX), limit)
}

fn fnv_1a(text: &[u8]) -> u32 {
    text.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The text of a value longer than `limit` (a map or list becomes its JSON first), whole; None when it fits.
pub fn text_over(value: &Reader<'_>, limit: u32) -> Result<Option<Vec<u8>>, WireError> {
    let len = match any_value(value.clone())? {
        AnyValue::String(text) => text.len(),
        AnyValue::Bytes(_) | AnyValue::Array(_) | AnyValue::KvList(_) => value.rest().len(),
        _ => 0,
    };
    if limit == 0 || len <= limit as usize {
        return Ok(None);
    }
    Ok(value_text(value.clone())?.map(Cow::into_owned))
}

/// The text that replaces a value longer than `limit`; None when it fits.
pub fn fitting_text(value: &Reader<'_>, limit: u32) -> Result<Option<Vec<u8>>, WireError> {
    Ok(text_over(value, limit)?.map(|text| shortened(&text, limit).into_owned()))
}
