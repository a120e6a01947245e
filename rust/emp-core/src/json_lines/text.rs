//! The parts of JSON text: strings, numbers, times, hex, base64.

use std::io::Write as _;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends a JSON string; bytes that are not UTF-8 become U+FFFD.
pub fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    match simdutf8::basic::from_utf8(text) {
        Ok(text) => put_escaped(out, text.as_bytes()),
        Err(_) => put_escaped(out, String::from_utf8_lossy(text).as_bytes()),
    }
    out.push(b'"');
}

fn put_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let must_escape = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    // Nearly all texts need nothing: without an early exit the compiler looks at many bytes at once.
    if !text.iter().fold(false, |any, byte| any | must_escape(*byte)) {
        return out.extend_from_slice(text);
    }
    let mut copied = 0;
    for (at, &byte) in text.iter().enumerate() {
        if !must_escape(byte) {
            continue;
        }
        out.extend_from_slice(&text[copied..at]);
        copied = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
    out.extend_from_slice(&text[copied..]);
}

/// Appends a number, or a string where JSON has no number for it: "NaN", "Infinity", "-Infinity".
pub fn put_f64(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        serde_json::to_writer(&mut *out, &value).expect("a Vec takes all bytes");
    } else {
        let _ = write!(out, "\"{}\"", non_finite(value));
    }
}

/// The name of a double that is no number in JSON.
pub fn non_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

/// Appends an integer.
pub fn put_i64(out: &mut Vec<u8>, value: i64) {
    let _ = write!(out, "{value}");
}

/// Appends lowercase hex, without quotes.
pub fn put_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

/// Appends standard base64 with padding, without quotes.
pub fn put_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            out.push(if digit <= chunk.len() { DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] } else { b'=' });
        }
    }
}

/// Appends a time as ISO 8601 in UTC, without quotes: milliseconds where that is exact, else nanoseconds.
pub fn put_time(out: &mut Vec<u8>, unix_nano: i64) {
    const NANOS: i64 = 1_000_000_000;
    let (seconds, nanos) = (unix_nano.div_euclid(NANOS), unix_nano.rem_euclid(NANOS));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date, by 400-year eras that begin on 1 March (Howard Hinnant's `civil_from_days`).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    for (value, width, end) in [(year, 4, b'-'), (month, 2, b'-'), (day, 2, b'T'), (hour, 2, b':'), (minute, 2, b':'), (second, 2, b'.')] {
        put_digits(out, value, width);
        out.push(end);
    }
    if nanos % 1_000_000 == 0 {
        put_digits(out, nanos / 1_000_000, 3);
    } else {
        put_digits(out, nanos, 9);
    }
    out.push(b'Z');
}

/// Appends the last `width` decimal digits of a number that is not negative.
fn put_digits(out: &mut Vec<u8>, mut value: i64, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    for digit in out[start..].iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn a_string_reads_back_as_its_text_with_repairs(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            let read: String = serde_json::from_str(&written(|out| put_string(out, &text))).unwrap();
            prop_assert_eq!(read, String::from_utf8_lossy(&text));
        }
    }

    #[test]
    fn times_are_right_around_leap_days_and_before_1970() {
        for (unix_nano, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_709_208_000_123_000_000, "2024-02-29T12:00:00.123Z"),
            (1_709_208_000_123_456_789, "2024-02-29T12:00:00.123456789Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(written(|out| put_time(out, unix_nano)), text);
        }
    }

    #[test]
    fn base64_is_padded() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(written(|out| put_base64(out, bytes.as_bytes())), text);
        }
    }
}
