//! Times as loggers write them: ISO 8601 with or without offset, epoch seconds, milli-, micro- and nanoseconds, as number or text.

use crate::fluent::cursor::{Cursor, Head};

const NS_PER_S: i64 = 1_000_000_000;
/// 1973: a smaller number of seconds is some other quantity, such as a duration.
const LEAST_EPOCH_S: f64 = 1e8;

/// Reads ISO 8601 times; remembers the minute of the last one, since neighbours share it.
#[derive(Clone, Debug, Default)]
pub struct TimeReader {
    minute_text: [u8; 16],
    minute_unix_nano: i64,
}

/// Two digits at the front of `text`.
#[inline(always)]
fn two(text: &[u8]) -> Option<i64> {
    let (a, b) = (text.first()?.wrapping_sub(b'0'), text.get(1)?.wrapping_sub(b'0'));
    (a < 10 && b < 10).then(|| i64::from(a) * 10 + i64::from(b))
}

/// Nanoseconds of `:ss.mmmZ`, the last eight bytes of the usual form; None for anything else.
#[inline(always)]
fn seconds_and_ms(text: u64) -> Option<i64> {
    const SIX: u64 = 0x0606_0606_0606_0606;
    const HIGH: u64 = 0xf0f0_f0f0_f0f0_f0f0;
    // Colon, dot and Z become 0 and digits their values, which are below 10: adding six leaves their high half empty.
    let values = text ^ u64::from_le_bytes(*b":00.000Z");
    if values & (HIGH | 0xff00_0000_ff00_00ff) != 0 || values.wrapping_add(SIX) & HIGH != 0 {
        return None;
    }
    let digit = |index: u32| (values >> (8 * index)) as i64 & 15;
    let seconds = digit(1) * 10 + digit(2);
    (seconds < 60).then(|| seconds * NS_PER_S + (digit(4) * 100 + digit(5) * 10 + digit(6)) * 1_000_000)
}

impl TimeReader {
    /// Nanoseconds since 1970 of a time in text: ISO 8601, or digits as in [`of_number`]. None when it is neither, or out of range.
    #[inline]
    pub fn of_text(&mut self, text: &[u8]) -> Option<i64> {
        let (Some(minute), Some(b':')) = (text.first_chunk::<16>(), text.get(16)) else { return self.other(text) };
        if u128::from_ne_bytes(*minute) != u128::from_ne_bytes(self.minute_text) {
            self.minute_unix_nano = minute_unix_nano(minute)?;
            self.minute_text = *minute;
        }
        if text.len() == 24
            && let Some(rest) = text[16..].first_chunk::<8>()
            && let Some(ns) = seconds_and_ms(u64::from_le_bytes(*rest))
        {
            return self.minute_unix_nano.checked_add(ns);
        }
        let seconds = two(&text[17..])?;
        let mut ns = seconds * NS_PER_S;
        let rest = &text[19..];
        if seconds > 60 {
            return None;
        }
        let (fraction_ns, zone) = fraction(rest)?;
        ns += fraction_ns;
        self.minute_unix_nano.checked_add(ns)?.checked_sub(zone_offset_s(zone)? * NS_PER_S)
    }

    #[cold]
    fn other(&mut self, text: &[u8]) -> Option<i64> {
        let text = text.trim_ascii();
        // Without seconds, or a date alone: written out, then read as above.
        if text.len() >= 10 && text[4..].starts_with(b"-") {
            let mut full = text.to_vec();
            if text.len() == 10 {
                full.extend_from_slice(b"T00:00:00Z");
            } else if text.len() >= 16 && text.get(16) != Some(&b':') {
                full.splice(16..16, *b":00");
            } else {
                return None;
            }
            return self.of_text(&full);
        }
        if !matches!(text.first(), Some(b'0'..=b'9')) || text.len() > 32 {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        match text.parse::<i64>() {
            Ok(number) => of_integer(number),
            Err(_) => of_number(text.parse().ok()?),
        }
    }

    /// Nanoseconds since 1970 of the msgpack value at `pos`, whatever its type; None when it is no usable time.
    pub fn of_value(&mut self, data: &[u8], pos: usize) -> Option<i64> {
        let mut cursor = Cursor::new(data, pos);
        match cursor.head().ok()? {
            Head::Str(len) | Head::Bin(len) => self.of_text(cursor.take(len).ok()?),
            Head::Int(number) => of_integer(number),
            Head::Float(number) => of_number(number),
            Head::Ext(kind, len) => of_ext(kind, cursor.take(len).ok()?),
            _ => None,
        }
    }
}

/// The time of msgpack's own timestamp type (-1) or of Fluent's EventTime (0).
pub fn of_ext(kind: i8, content: &[u8]) -> Option<i64> {
    let (seconds, ns) = match (kind, content) {
        (0, [s0, s1, s2, s3, n0, n1, n2, n3]) => {
            (i64::from(u32::from_be_bytes([*s0, *s1, *s2, *s3])), i64::from(u32::from_be_bytes([*n0, *n1, *n2, *n3])))
        }
        (-1, _) if content.len() == 4 => (i64::from(u32::from_be_bytes(content.try_into().ok()?)), 0),
        (-1, _) if content.len() == 8 => {
            let value = u64::from_be_bytes(content.try_into().ok()?);
            ((value & 0x3_ffff_ffff) as i64, (value >> 34) as i64)
        }
        (-1, _) if content.len() == 12 => {
            let (ns, seconds) = content.split_at(4);
            (i64::from_be_bytes(seconds.try_into().ok()?), i64::from(u32::from_be_bytes(ns.try_into().ok()?)))
        }
        _ => return None,
    };
    let time = seconds.checked_mul(NS_PER_S)?.checked_add(ns)?;
    (time > 0).then_some(time)
}

/// Nanoseconds of an integer since 1970 in s, ms, µs or ns, told apart by size; None below 1973.
pub fn of_integer(number: i64) -> Option<i64> {
    let unit = match number {
        ..100_000_000 => return None,
        100_000_000..100_000_000_000 => NS_PER_S,
        100_000_000_000..100_000_000_000_000 => 1_000_000,
        100_000_000_000_000..100_000_000_000_000_000 => 1000,
        _ => 1,
    };
    number.checked_mul(unit)
}

/// The same for a number with a fraction.
pub fn of_number(number: f64) -> Option<i64> {
    if !(LEAST_EPOCH_S..1e19).contains(&number) {
        return None;
    }
    let unit = match number {
        ..1e11 => 1e9,
        1e11..1e14 => 1e6,
        1e14..1e17 => 1e3,
        _ => 1.0,
    };
    // Whole and fraction apart: their product in one f64 would be rounded to some 200 ns.
    let ns = number.trunc() * unit;
    if ns >= i64::MAX as f64 {
        return None;
    }
    (number.trunc() as i64).checked_mul(unit as i64)?.checked_add((number.fract() * unit).round() as i64)
}

fn minute_unix_nano(text: &[u8; 16]) -> Option<i64> {
    let [_, _, _, _, b'-', _, _, b'-', _, _, b'T' | b't' | b' ', _, _, b':', _, _] = text else { return None };
    let year = two(text)? * 100 + two(&text[2..])?;
    let (month, day, hour, minute) = (two(&text[5..])?, two(&text[8..])?, two(&text[11..])?, two(&text[14..])?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    if !(1970..2262).contains(&year) || !(1..=12).contains(&month) || hour > 23 || minute > 59 {
        return None;
    }
    if day < 1 || day > days_of_month[month as usize - 1] {
        return None;
    }
    let years = year - 1970;
    let leap_days = (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400 - 477;
    let days = years * 365 + leap_days + days_of_month[..month as usize - 1].iter().sum::<i64>() + day - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 * NS_PER_S)
}

/// The fraction of a second at the front of `text` in nanoseconds, and what follows it. Digits after the ninth are cut off.
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let [b'.' | b',', digits @ ..] = text else { return Some((0, text)) };
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    let mut ns = 0;
    for digit in digits[..count].iter().chain(std::iter::repeat(&b'0')).take(9) {
        ns = ns * 10 + i64::from(digit - b'0');
    }
    Some((ns, &digits[count..]))
}

/// Seconds east of UTC; no zone means UTC.
fn zone_offset_s(zone: &[u8]) -> Option<i64> {
    let (sign, zone) = match zone.trim_ascii_start() {
        [] | [b'Z' | b'z'] | b"UTC" | b"GMT" => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let hours = two(zone)?;
    let minutes = match &zone[2..] {
        [] => 0,
        [b':', rest @ ..] if rest.len() == 2 => two(rest)?,
        rest if rest.len() == 2 => two(rest)?,
        _ => return None,
    };
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes) * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(text: &str) -> Option<i64> {
        TimeReader::default().of_text(text.as_bytes())
    }

    #[test]
    fn iso_8601_is_read_in_all_its_forms() {
        let second = 1_709_210_096 * NS_PER_S; // 2024-02-29T12:34:56Z
        for (text, expected) in [
            ("2024-02-29T12:34:56Z", second),
            ("2024-02-29T12:34:56.789Z", second + 789_000_000),
            ("2024-02-29 12:34:56,789", second + 789_000_000),
            ("2024-02-29T12:34:56.123456789Z", second + 123_456_789),
            ("2024-02-29T12:34:56.1234567891234+00:00", second + 123_456_789),
            ("2024-02-29T14:34:56+02:00", second),
            ("2024-02-29T06:04:56.5-0630", second + 500_000_000),
            ("2024-02-29T13:34:56+01", second),
            ("2024-02-29T12:34:56 UTC", second),
            ("2024-02-29T12:34Z", second - 56 * NS_PER_S),
            ("2024-02-29", second - (12 * 3600 + 34 * 60 + 56) * NS_PER_S),
            ("1970-01-01T00:00:00Z", 0),
            ("2000-03-01T00:00:00Z", 951_868_800 * NS_PER_S),
        ] {
            assert_eq!(ns(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "soon",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-02-29T24:00:00Z",
            "2024-02-29T12:60:00Z",
            "2024-02-29T12:34:61Z",
            "2024-02-29T12:34:56.Z",
            "2024-02-29T12:34:56+2",
            "2024-02-29T12:34:56 tomorrow",
            "9999-01-01T00:00:00Z",
            "0.25",
            "12",
            "-5",
            "2024-02-29T1x:34:56Z",
            "2024/02/29",
            "99999999999999999999",
            "2024-",
            "2024-02-29T",
            "éééééééééééé",
        ] {
            assert_eq!(ns(text), None, "{text}");
        }
    }

    #[test]
    fn the_remembered_minute_does_not_leak_into_another() {
        let mut reader = TimeReader::default();
        assert_eq!(reader.of_text(b"2024-02-29T12:34:56Z"), ns("2024-02-29T12:34:56Z"));
        assert_eq!(reader.of_text(b"2024-02-29T12:35:56Z"), ns("2024-02-29T12:35:56Z"));
        assert_eq!(reader.of_text(b"2024-02-3xT12:35:56Z"), None);
        assert_eq!(reader.of_text(b"2024-02-29T12:35:57Z"), ns("2024-02-29T12:35:57Z"));
    }

    #[test]
    fn epoch_numbers_are_told_apart_by_size() {
        let expected = Some(1_712_345_678_901_000_000);
        assert_eq!(of_integer(1_712_345_678), Some(1_712_345_678 * NS_PER_S));
        assert_eq!(of_integer(1_712_345_678_901), expected);
        assert_eq!(of_integer(1_712_345_678_901_000), expected);
        assert_eq!(of_integer(1_712_345_678_901_000_000), expected);
        assert_eq!(of_number(1_712_345_678.5), Some(1_712_345_678_500_000_000));
        assert_eq!(ns("1712345678901"), expected);
        assert_eq!(ns("1712345678.5"), Some(1_712_345_678_500_000_000));
        for number in [f64::NAN, f64::INFINITY, -1.0, 3.5, 1e18 * 9.9] {
            assert_eq!(of_number(number), None, "{number}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_counts_one_more() {
        let mut expected = 0;
        for year in 1970..2262 {
            for month in 1..=12 {
                for day in 1..=31 {
                    let text = format!("{year:04}-{month:02}-{day:02}T00:00");
                    if let Some(time) = minute_unix_nano(text.as_bytes().try_into().unwrap()) {
                        assert_eq!(time, expected, "{text}");
                        expected += 86_400 * NS_PER_S;
                    }
                }
            }
        }
        assert_eq!(expected / (86_400 * NS_PER_S), 106_651);
    }
}
