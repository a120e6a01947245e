//! Around the text: forms, `deflate`, the time that a sender names.

use std::io::Read;

use crate::error::{CoreError, ErrorKind};
use crate::normalize::time::TimeReader;

/// How a body is laid out, as its sender says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// JSON texts of any kind; also when nobody says anything.
    Json,
    /// JSON texts, each on a line of its own.
    Lines,
    /// A form with the field `json`, and maybe `time`; or bare JSON, which command-line clients send under this name.
    UrlEncoded,
}

/// Whether the body of what is said to be a form is JSON.
pub(super) fn is_json(body: &[u8]) -> bool {
    matches!(body.trim_ascii_start().first(), None | Some(b'{' | b'['))
}

/// The fields `json` and `time` of a form, decoded.
pub(super) fn fields(body: &[u8]) -> Result<(Vec<u8>, Vec<u8>), CoreError> {
    let (mut json, mut time) = (None, Vec::new());
    for field in body.split(|byte| *byte == b'&') {
        if let Some(value) = field.strip_prefix(b"json=") {
            json.get_or_insert_with(|| decoded(value));
        } else if let Some(value) = field.strip_prefix(b"time=") {
            time = decoded(value);
        }
    }
    json.map(|json| (json, time)).ok_or_else(|| CoreError::new(ErrorKind::BodyInvalid, 0, "the form has no field `json`"))
}

/// A field's value; a percent sign that begins no code stands for itself.
fn decoded(value: &[u8]) -> Vec<u8> {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        at += 1;
        match (byte, hex(value.get(at)), hex(value.get(at + 1))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            _ => out.push(byte),
        }
    }
    out
}

/// The time that a sender names: seconds since 1970, other units told by size, or ISO 8601.
pub(super) fn time(reader: &mut TimeReader, text: &[u8]) -> Result<i64, CoreError> {
    let text = text.trim_ascii();
    let time = seconds(text).or_else(|| reader.of_text(text));
    time.ok_or_else(|| CoreError::new(ErrorKind::BodyInvalid, 0, "the time is neither seconds since 1970 nor ISO 8601"))
}

/// Seconds with a fraction, exact to the nanosecond.
fn seconds(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.')?;
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let nanos = format!("{fraction:0<9}").get(..9)?.parse::<i64>().ok()?;
    whole.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos).filter(|time| *time > 0)
}

/// HTTP's `deflate`: with zlib's head, else bare.
pub(super) fn inflate(data: &[u8], max_bytes: usize) -> Result<Vec<u8>, CoreError> {
    let mut out = Vec::new();
    let cap = (max_bytes as u64).saturating_add(1);
    let has_head = matches!(data, [method, flags, ..] if method & 15 == 8 && u16::from_be_bytes([*method, *flags]) % 31 == 0);
    let read = if has_head {
        flate2::read::ZlibDecoder::new(data).take(cap).read_to_end(&mut out)
    } else {
        flate2::read::DeflateDecoder::new(data).take(cap).read_to_end(&mut out)
    };
    read.map_err(|error| CoreError::new(ErrorKind::BodyInvalid, 0, format!("deflate: the body cannot be inflated ({error})")))?;
    if out.len() > max_bytes {
        return Err(CoreError::new(ErrorKind::TooLarge, 0, format!("a body inflates to more than {max_bytes} bytes")));
    }
    Ok(out)
}
