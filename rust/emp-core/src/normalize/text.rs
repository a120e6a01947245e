//! Values as text: keys that are no strings, numbers as levels, times.

use std::borrow::Cow;
use std::fmt::Write;

use crate::fluent::cursor::{Cursor, Head};

/// How deep a map or array that serves as a key is written out.
const KEY_DEPTH: usize = 4;

/// The text of a msgpack value that serves as a key: strings as they are, all else as JSON would write it.
pub fn of_key(value: &[u8]) -> Cow<'_, [u8]> {
    let mut cursor = Cursor::new(value, 0);
    match cursor.head() {
        Ok(Head::Str(_) | Head::Bin(_)) => Cow::Borrowed(&value[cursor.pos..]),
        _ => {
            let mut out = String::new();
            put(&mut out, &mut Cursor::new(value, 0), KEY_DEPTH);
            Cow::Owned(out.into_bytes())
        }
    }
}

/// The text of a number; None for any other value.
pub fn of_number(value: &[u8]) -> Option<String> {
    match Cursor::new(value, 0).head() {
        Ok(Head::Int(number)) => Some(number.to_string()),
        Ok(Head::Big(number)) => Some(number.to_string()),
        Ok(Head::Float(number)) => Some(number.to_string()),
        _ => None,
    }
}

fn put(out: &mut String, cursor: &mut Cursor<'_>, depth: usize) {
    let Ok(head) = cursor.head() else { return };
    let start = cursor.pos;
    // Writing to a String cannot fail.
    let _ = match head {
        Head::Nil => write!(out, "null"),
        Head::Bool(value) => write!(out, "{value}"),
        Head::Int(value) => write!(out, "{value}"),
        Head::Big(value) => write!(out, "{value}"),
        Head::Float(value) => write!(out, "{value}"),
        Head::Str(len) | Head::Bin(len) | Head::Ext(_, len) => {
            let content = cursor.take(len).unwrap_or_default();
            write!(out, "{:?}", String::from_utf8_lossy(content))
        }
        Head::Array(_) | Head::Map(_) if depth == 0 => {
            cursor.pos = cursor.data.len();
            write!(out, "...")
        }
        Head::Array(count) => {
            out.push('[');
            for index in 0..count {
                if cursor.pos >= cursor.data.len() {
                    break;
                }
                out.push_str(if index > 0 { "," } else { "" });
                put(out, cursor, depth - 1);
            }
            write!(out, "]")
        }
        Head::Map(count) => {
            out.push('{');
            for index in 0..count {
                if cursor.pos >= cursor.data.len() {
                    break;
                }
                out.push_str(if index > 0 { "," } else { "" });
                put(out, cursor, depth - 1);
                out.push(':');
                put(out, cursor, depth - 1);
            }
            write!(out, "}}")
        }
    };
    debug_assert!(cursor.pos >= start);
}

/// A time as RFC 3339 in UTC, with as many digits of its second as it needs (none, 3, 6 or 9).
pub fn rfc3339(time_unix_nano: i64) -> String {
    let (seconds, ns) = (time_unix_nano.div_euclid(1_000_000_000), time_unix_nano.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to civil date with years that begin in March, so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let mut out = format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    let _ = match ns {
        0 => Ok(()),
        _ if ns % 1_000_000 == 0 => write!(out, ".{:03}", ns / 1_000_000),
        _ if ns % 1000 == 0 => write!(out, ".{:06}", ns / 1000),
        _ => write!(out, ".{ns:09}"),
    };
    out.push('Z');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalize::time::TimeReader;

    #[test]
    fn a_time_survives_being_written() {
        let mut reader = TimeReader::default();
        for time in [0, 1, 951_782_400_000_000_000, 1_709_210_096_789_000_000, 4_294_967_295_000_000_001, 9_214_646_399_123_456_000] {
            let text = rfc3339(time);
            assert_eq!(reader.of_text(text.as_bytes()), Some(time), "{text}");
        }
    }

    #[test]
    fn keys_that_are_no_strings_become_their_text() {
        for (value, text) in [
            (&[0x07][..], "7"),
            (&[0xff], "-1"),
            (&[0xc0], "null"),
            (&[0xc3], "true"),
            (&[0x92, 1, 0xa1, b'a'], "[1,\"a\"]"),
            (&[0x81, 1, 0x91, 2], "{1:[2]}"),
            (&[0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0xc0], "[[[[...]]]]"),
            (&[0xc4, 1, b'x'], "x"),
        ] {
            assert_eq!(of_key(value), text.as_bytes());
        }
    }
}
