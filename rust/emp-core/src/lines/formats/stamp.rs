//! Times and levels at the beginning of a line.

use crate::lines::Fields;
use crate::normalize::severity;
use crate::normalize::time::TimeReader;

/// Reads times; those that name no zone are of one that is fixed.
#[derive(Clone, Debug, Default)]
pub struct Times {
    reader: TimeReader,
    utc_offset_ns: i64,
}

/// A time at the beginning of a text, and how much of it that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The time.
    pub time_unix_nano: i64,
    /// Its bytes.
    pub len: usize,
}

const MONTHS: [&[u8; 3]; 12] = [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
/// Words that are levels where a level stands; not all that the normaliser knows, since some (`log`, `http`) begin many a text.
const LEVELS: [&[u8]; 18] = [
    b"INFO",
    b"ERROR",
    b"WARN",
    b"WARNING",
    b"DEBUG",
    b"TRACE",
    b"CRITICAL",
    b"FATAL",
    b"NOTICE",
    b"VERBOSE",
    b"SUCCESS",
    b"CRIT",
    b"ERR",
    b"ALERT",
    b"EMERG",
    b"PANIC",
    b"SEVERE",
    b"SILLY",
];

impl Times {
    /// Times without a zone are that many seconds east of UTC.
    pub fn new(utc_offset_s: i64) -> Self {
        Self { reader: TimeReader::default(), utc_offset_ns: utc_offset_s.clamp(-86_400, 86_400) * 1_000_000_000 }
    }

    /// The date and time with which `text` begins: ISO 8601 with `T` or a space, or the date with slashes.
    pub fn at(&mut self, text: &[u8]) -> Option<Stamp> {
        let head: &[u8; 19] = text.first_chunk()?;
        let [_, _, _, _, dash, _, _, dash_2, _, _, b'T' | b' ' | b't' | b'_', _, _, b':', _, _, b':', _, _] = head else { return None };
        if dash != dash_2 || !matches!(dash, b'-' | b'/') {
            return None;
        }
        let digits = |from: usize| text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let mut len = 19;
        if matches!(text.get(19), Some(b'.' | b',')) {
            let fraction = digits(20);
            len += if fraction > 0 { fraction + 1 } else { 0 };
        }
        let mut has_zone = true;
        match text.get(len) {
            Some(b'Z' | b'z') => len += 1,
            Some(b'+' | b'-') => match (digits(len + 1), text.get(len + 3)) {
                (4, _) => len += 5,
                (2, Some(b':')) if digits(len + 4) == 2 => len += 6,
                (2, _) => len += 3,
                _ => has_zone = false,
            },
            _ => has_zone = false,
        }
        let mut buffer = [0; 48];
        let text = if *dash == b'-' && head[10] != b'_' {
            &text[..len]
        } else {
            let copy = buffer.get_mut(..len)?;
            copy.copy_from_slice(&text[..len]);
            (copy[4], copy[7], copy[10]) = (b'-', b'-', b'T');
            &*copy
        };
        let time = self.reader.of_text(text)?;
        let time_unix_nano = if has_zone { time } else { time.checked_sub(self.utc_offset_ns)? };
        Some(Stamp { time_unix_nano, len })
    }

    /// The time that `text` is as a whole: as [`Self::at`], or digits since 1970 in any unit.
    pub fn whole(&mut self, text: &[u8]) -> Option<i64> {
        if let Some(stamp) = self.at(text) {
            let rest = text[stamp.len..].trim_ascii();
            return (rest.is_empty() || rest == b"UTC" || rest == b"GMT").then_some(stamp.time_unix_nano);
        }
        if matches!(text.len(), 10..=20) && text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
            return self.reader.of_text(text);
        }
        None
    }

    /// The time as web servers write it: `10/Oct/2000:13:55:36 -0700`, the whole text.
    pub fn of_web(&mut self, text: &[u8]) -> Option<i64> {
        let (head, zone): (&[u8; 20], &[u8]) = text.split_first_chunk()?;
        let [day_1, day_2, b'/', month_1, month_2, month_3, b'/', y1, y2, y3, y4, b':', time @ ..] = head else { return None };
        let month = MONTHS.iter().position(|name| **name == [*month_1, *month_2, *month_3])? + 1;
        let mut out = Vec::with_capacity(32);
        out.extend_from_slice(&[
            *y1,
            *y2,
            *y3,
            *y4,
            b'-',
            b'0' + (month / 10) as u8,
            b'0' + (month % 10) as u8,
            b'-',
            *day_1,
            *day_2,
            b'T',
        ]);
        out.extend_from_slice(time);
        out.extend_from_slice(zone.get(..16).unwrap_or(zone).trim_ascii());
        self.reader.of_text(&out)
    }
}

/// Writes when it happened.
pub fn put_time(fields: &mut Fields, time_unix_nano: i64) {
    // As a number of nanoseconds: no time of a log is before 1973.
    fields.int(b"timestamp", time_unix_nano);
}

/// The level that is written at the beginning of `text`, a whole word.
pub fn level(text: &[u8]) -> Option<&[u8]> {
    let len = text.iter().take(9).take_while(|byte| byte.is_ascii_alphabetic()).count();
    let word = &text[..len];
    let ends = text.get(len).is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
    (ends && (3..=8).contains(&len) && is_level(word)).then_some(word)
}

/// Whether a word is a level.
pub fn is_level(word: &[u8]) -> bool {
    LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word))
}

/// Writes a level; returns its severity number.
pub fn put_level(fields: &mut Fields, level: &[u8]) -> u8 {
    fields.text(b"level", level);
    severity::of_text(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_760_000_000_000_000_000; // 2025-10-09T08:53:20Z

    #[test]
    fn a_time_at_the_beginning_is_read_with_its_length() {
        for (text, ns, len) in [
            ("2025-10-09T08:53:20Z rest", 0, 20),
            ("2025-10-09 08:53:20,123 - x", 123_000_000, 23),
            ("2025-10-09 08:53:20.5+00:00]", 500_000_000, 27),
            ("2025-10-09T10:53:20+0200 x", 0, 24),
            ("2025-10-09T08:53:20.669794202Z stdout F", 669_794_202, 30),
            ("2025/10/09 08:53:20 [error]", 0, 19),
            ("2025-10-09 08:53:20-name", 0, 19),
            ("2025-10-09_08:53:20.1 x", 100_000_000, 21),
        ] {
            assert_eq!(Times::default().at(text.as_bytes()), Some(Stamp { time_unix_nano: T + ns, len }), "{text}");
        }
        for text in
            ["", "2025-10-09", "2025-10/09 08:53:20", "2025-13-09 08:53:20", "20251009T085320Z.........", "日本日本日本日本日本日本"]
        {
            assert_eq!(Times::default().at(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_of_the_zone_that_is_set() {
        let mut times = Times::new(7200);
        assert_eq!(times.whole(b"2025-10-09 10:53:20"), Some(T));
        assert_eq!(times.whole(b"2025-10-09 08:53:20Z"), Some(T));
        assert_eq!(times.whole(b"1760000000"), Some(T));
        assert_eq!(times.whole(b"1760000000000"), Some(T));
        assert_eq!(times.whole(b"2025-10-09 10:53:20 x"), None);
    }

    #[test]
    fn a_web_servers_time_is_read() {
        assert_eq!(Times::default().of_web(b"09/Oct/2025:08:53:20 +0000"), Some(T));
        assert_eq!(Times::default().of_web(b"09/Oct/2025:10:53:20 +0200"), Some(T));
        for text in ["", "09/Okt/2025:08:53:20 +0000", "99/Oct/2025:08:53:20 +0000", "09/Oct/2025:08:53:2"] {
            assert_eq!(Times::default().of_web(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_level_is_a_whole_word() {
        assert_eq!(level(b"INFO: x"), Some(&b"INFO"[..]));
        assert_eq!(level(b"warning"), Some(&b"warning"[..]));
        for text in ["INFORMED", "information", "info_x", "in", "", "log: x", "9"] {
            assert_eq!(level(text.as_bytes()), None, "{text}");
        }
    }
}
