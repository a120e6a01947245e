//! The headers of both forms, behind the priority.

use super::structured;
use super::{Form, Message};
use crate::normalize::time::TimeReader;

const NS_PER_S: i64 = 1_000_000_000;
const DAY_S: i64 = 86_400;
const MONTHS: [&[u8; 3]; 12] = [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
/// RFC 5424's lengths are 255 and less; nobody's names are longer than this.
const MOST_NAME_BYTES: usize = 255;

/// What is known of a time that says neither its year nor its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    /// When the message is read.
    pub now_unix_nano: i64,
    /// The zone of times without one, in seconds east of UTC.
    pub utc_offset_s: i64,
    /// A time without a year is in the latest year in which it is at most so far ahead of now: half a year where messages come as they are
    /// written and only clocks are wrong, a day for files, which may be old.
    pub most_ahead_s: i64,
}

impl When {
    /// Half a year.
    pub const LIVE_AHEAD_S: i64 = 183 * DAY_S;
    /// A day.
    pub const FILE_AHEAD_S: i64 = DAY_S;
}

/// The version of RFC 5424 at the front, and what follows it; None where what follows is no time of that form.
pub(super) fn version(text: &[u8]) -> Option<(u16, &[u8])> {
    let digits = text.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=3).contains(&digits) || text[0] == b'0' || text.get(digits) != Some(&b' ') {
        return None;
    }
    let rest = &text[digits + 1..];
    let is_time = match rest {
        [b'-'] | [b'-', b' ', ..] => true,
        [a, b, c, d, b'-', ..] => [a, b, c, d].iter().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    let version = text[..digits].iter().fold(0_u16, |value, digit| value * 10 + u16::from(digit - b'0'));
    is_time.then_some((version, rest))
}

/// What stands before the next space, and what behind it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b' ', text) {
        Some(end) => (&text[..end], &text[end + 1..]),
        None => (text, b""),
    }
}

/// A word that is not RFC 5424's way to say that there is none.
fn named(word: &[u8]) -> &[u8] {
    if word == b"-" { b"" } else { word }
}

/// What stands behind the version: `TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA MSG`.
pub(super) fn rfc5424<'a>(text: &'a [u8], times: &mut TimeReader) -> Message<'a> {
    let mut found = Message { form: Form::Rfc5424, ..Message::bare(b"") };
    let (time, mut rest) = word(text);
    match times.of_text(time) {
        Some(time) if time > 0 => found.time_unix_nano = Some(time),
        _ => found.unread_time = named(time),
    }
    let mut values: [&[u8]; 4] = [b""; 4];
    for value in &mut values {
        let (found, behind) = word(rest);
        if found.is_empty() || found.len() > MOST_NAME_BYTES {
            break; // two spaces, or the end: what is left is no header
        }
        *value = found;
        rest = behind;
    }
    [found.host, found.app, found.proc_id, found.msg_id] = values.map(named);
    if values[3].is_empty() {
        found.malformed = true;
        found.body = rest;
        return found;
    }
    match structured::split(rest) {
        Some((elements, body)) => {
            found.structured = elements;
            found.body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        }
        None => {
            found.malformed = true;
            found.body = rest;
        }
    }
    found
}

/// What stands behind the priority: `TIMESTAMP HOSTNAME TAG[PID]: CONTENT`, in which all but the content may be absent.
pub(super) fn rfc3164<'a>(text: &'a [u8], when: &When, times: &mut TimeReader) -> Message<'a> {
    let start = text.iter().take_while(|byte| **byte == b' ').count().min(8);
    let Some((time, len)) = bsd_time(&text[start..], when).or_else(|| iso_time(&text[start..], times)) else {
        let mut found = Message::bare(text);
        // Without a time "word: " may be the text's own; with a process id it is a tag.
        if let Some(tag) = tag(text).filter(|tag| !tag.proc_id.is_empty()) {
            (found.app, found.proc_id, found.body) = (tag.app, tag.proc_id, tag.body);
        }
        return found;
    };
    let mut found = Message { form: Form::Rfc3164, time_unix_nano: time, ..Message::bare(&text[start + len..]) };
    if time.is_none() {
        found.unread_time = text[start..start + len].trim_ascii_end();
    }
    // `logger` and libc say no host where they speak to their own machine.
    let (first, behind) = word(found.body);
    let is_host = !first.is_empty() && first.len() <= MOST_NAME_BYTES && !behind.is_empty() && first.last() != Some(&b':');
    if is_host && !first.contains(&b'[') {
        found.host = named(first);
        found.body = behind;
    }
    if let Some(tag) = tag(found.body) {
        (found.app, found.proc_id, found.body) = (tag.app, tag.proc_id, tag.body);
    }
    found
}

struct Tag<'a> {
    app: &'a [u8],
    proc_id: &'a [u8],
    body: &'a [u8],
}

/// `app: `, `app[pid]: ` or `app[pid] ` at the front.
fn tag(text: &[u8]) -> Option<Tag<'_>> {
    let len = text.iter().take(MOST_NAME_BYTES + 1).take_while(|byte| !matches!(byte, b' ' | b':' | b'[' | b']')).count();
    if !(1..=MOST_NAME_BYTES).contains(&len) || text[..len].iter().any(u8::is_ascii_control) {
        return None;
    }
    let (app, rest) = text.split_at(len);
    let (proc_id, rest) = match rest {
        [b'[', inner @ ..] => {
            let end = inner.iter().take(MOST_NAME_BYTES).position(|byte| matches!(byte, b']' | b' '))?;
            if end == 0 || inner[end] != b']' {
                return None;
            }
            let rest = &inner[end + 1..];
            (&inner[..end], rest.strip_prefix(b":").unwrap_or(rest))
        }
        [b':', rest @ ..] => (&rest[..0], rest),
        _ => return None,
    };
    match rest {
        [] => Some(Tag { app, proc_id, body: rest }),
        [b' ', body @ ..] => Some(Tag { app, proc_id, body }),
        _ => None,
    }
}

/// RFC 3339, as rsyslog and journald write it where RFC 3164 has its own; and how long it is with the space behind it.
fn iso_time(text: &[u8], times: &mut TimeReader) -> Option<(Option<i64>, usize)> {
    if !matches!(text, [_, _, _, _, b'-', _, _, b'-', _, _, b'T', ..]) {
        return None;
    }
    let (time, _) = word(text);
    if time.len() > 48 {
        return None;
    }
    let time_unix_nano = times.of_text(time.strip_suffix(b":").unwrap_or(time)).filter(|time| *time > 0)?;
    Some((Some(time_unix_nano), (time.len() + 1).min(text.len())))
}

/// `Mmm dd hh:mm:ss`, maybe with a year behind the day or the time, a fraction, and a colon; and how long it is with the space behind it.
/// No time of those digits: None in the pair.
fn bsd_time(text: &[u8], when: &When) -> Option<(Option<i64>, usize)> {
    let name = text.first_chunk::<3>()?;
    let month = MONTHS.iter().position(|known| known.eq_ignore_ascii_case(name))? as i64 + 1;
    let mut cursor = Cursor { text, at: 3 };
    cursor.spaces(1, 2)?;
    let day = cursor.number(1, 2)?;
    cursor.spaces(1, 2)?;
    let mut year = None;
    if cursor.peek(4) == Some(b' ') {
        year = Some(cursor.number(4, 4)?);
        cursor.spaces(1, 1)?;
    }
    let hour = cursor.number(1, 2)?;
    cursor.byte(b':')?;
    let minute = cursor.number(2, 2)?;
    cursor.byte(b':')?;
    let second = cursor.number(2, 2)?;
    let mut fraction_ns = 0;
    if matches!(cursor.peek(0), Some(b'.' | b',')) {
        cursor.at += 1;
        fraction_ns = cursor.fraction_ns()?;
    }
    cursor.byte(b':');
    if !matches!(cursor.peek(0), None | Some(b' ')) {
        return None;
    }
    let len = (cursor.at + 1).min(text.len());
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return Some((None, len));
    }
    let of_day_ns = ((hour * 60 + minute) * 60 + second - when.utc_offset_s) * NS_PER_S + fraction_ns;
    let time_in = |year: i64| Some(days_since_1970(year, month, day)? * DAY_S * NS_PER_S + of_day_ns).filter(|time| *time > 0);
    let time = match year {
        Some(year) => time_in(year),
        None => {
            let latest = when.now_unix_nano.saturating_add(when.most_ahead_s.saturating_mul(NS_PER_S));
            let this_year = 1970 + when.now_unix_nano.max(0) / (365 * DAY_S * NS_PER_S + DAY_S * NS_PER_S / 4);
            // Eight years back: the 29th of February may be so rare.
            (this_year - 8..=this_year + 1).rev().find_map(|year| time_in(year).filter(|time| *time <= latest))
        }
    };
    Some((time, len))
}

/// None where there is no such day, or nanoseconds have no room for it.
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    if !(1970..2262).contains(&year) || day > days_of_month[month as usize - 1] {
        return None;
    }
    let leap_days = (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400 - 477;
    Some((year - 1970) * 365 + leap_days + days_of_month[..month as usize - 1].iter().sum::<i64>() + day - 1)
}

struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    fn byte(&mut self, expected: u8) -> Option<()> {
        (self.peek(0)? == expected).then(|| self.at += 1)
    }

    fn spaces(&mut self, least: usize, most: usize) -> Option<()> {
        let count = self.text[self.at.min(self.text.len())..].iter().take(most).take_while(|byte| **byte == b' ').count();
        self.at += count;
        (count >= least).then_some(())
    }

    fn number(&mut self, least: usize, most: usize) -> Option<i64> {
        let digits = self.text[self.at..].iter().take(most).take_while(|byte| byte.is_ascii_digit());
        let (mut value, mut count) = (0, 0);
        for digit in digits {
            value = value * 10 + i64::from(digit - b'0');
            count += 1;
        }
        self.at += count;
        (count >= least).then_some(value)
    }

    /// Digits after the ninth are cut off.
    fn fraction_ns(&mut self) -> Option<i64> {
        let count = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let digits = &self.text[self.at..self.at + count];
        self.at += count;
        let ns = digits.iter().chain(std::iter::repeat(&b'0')).take(9).fold(0, |ns, digit| ns * 10 + i64::from(digit - b'0'));
        (count > 0).then_some(ns)
    }
}
