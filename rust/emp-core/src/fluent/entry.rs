//! One entry, `[time, record]` or `[[time, metadata], record]`, to a row.

use super::cursor::{Cursor, Fault, Head};
use super::group;
use crate::normalize::time::{of_ext, of_integer, of_number};
use crate::normalize::{Builder, Envelope};

/// Seconds of an EventTime that stand for the start and the end of a group.
const GROUP_START: u32 = 0xffff_ffff;
const GROUP_END: u32 = 0xffff_fffe;
/// Integers up to this are seconds, whatever year they name; above, the unit is told by size.
const MAX_SECONDS: i64 = i64::MAX / 1_000_000_000;

/// What an entry was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A row was written; the entry ends there.
    Row(usize),
    /// A group marker, consumed.
    Marker(usize),
    /// No record can be made of it, but it can be stepped over.
    Bad(usize, &'static str),
    /// It cannot be followed: torn, or no msgpack.
    Torn(Fault),
}

/// Reads the entry at `pos`.
#[inline]
pub fn read(builder: &mut Builder, data: &[u8], pos: usize) -> Entry {
    // The usual one: an array of two, an EventTime.
    if let Some([0x92, 0xd7, 0, s0, s1, s2, s3, n0, n1, n2, n3]) = data.get(pos..).and_then(|rest| rest.first_chunk::<11>()) {
        let seconds = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
        if seconds > 0 && seconds < GROUP_END {
            let ns = u32::from_be_bytes([*n0, *n1, *n2, *n3]);
            let time = Some(i64::from(seconds) * 1_000_000_000 + i64::from(ns));
            return match builder.push(&Envelope { time_unix_nano: time, metadata: &[] }, data, pos + 11) {
                Ok(end) => Entry::Row(end),
                Err(fault) => refused(data, pos, fault),
            };
        }
    }
    read_any(builder, data, pos)
}

/// What a fault of the record makes of the entry.
#[cold]
fn refused(data: &[u8], pos: usize, fault: Fault) -> Entry {
    match fault {
        Fault::Truncated | Fault::Reserved => Entry::Torn(fault),
        Fault::TooDeep | Fault::NoMap | Fault::Unrestorable => bad(data, pos, fault.detail()),
    }
}

fn bad(data: &[u8], pos: usize, detail: &'static str) -> Entry {
    let mut cursor = Cursor::new(data, pos);
    match cursor.skip() {
        Ok(()) => Entry::Bad(cursor.pos, detail),
        Err(fault) => Entry::Torn(fault),
    }
}

#[inline(never)]
fn read_any(builder: &mut Builder, data: &[u8], pos: usize) -> Entry {
    let mut cursor = Cursor::new(data, pos);
    match any(builder, &mut cursor) {
        Ok(Ok(entry)) => entry,
        Ok(Err(detail)) => bad(data, pos, detail),
        Err(fault) => refused(data, pos, fault),
    }
}

fn any(builder: &mut Builder, cursor: &mut Cursor<'_>) -> Result<Result<Entry, &'static str>, Fault> {
    if cursor.head()? != Head::Array(2) {
        return Ok(Err("an entry is an array of time and record"));
    }
    let mut metadata: &[u8] = &[];
    let time = if matches!(cursor.peek()?, 0x90..=0x9f | 0xdc | 0xdd) {
        if cursor.head()? != Head::Array(2) {
            return Ok(Err("an entry's meta is a time, or an array of time and metadata"));
        }
        let time = time(cursor)?;
        metadata = cursor.value()?;
        time
    } else {
        time(cursor)?
    };
    match time {
        Time::Bad(detail) => Ok(Err(detail)),
        Time::GroupStart => {
            let body = cursor.value()?;
            group::start(builder, metadata, body);
            Ok(Ok(Entry::Marker(cursor.pos)))
        }
        Time::GroupEnd => {
            cursor.skip()?;
            builder.end_group();
            Ok(Ok(Entry::Marker(cursor.pos)))
        }
        Time::At(time_unix_nano) => {
            let envelope = Envelope { time_unix_nano, metadata };
            builder.push(&envelope, cursor.data, cursor.pos).map(|end| Ok(Entry::Row(end)))
        }
    }
}

/// An entry's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// None means: now.
    At(Option<i64>),
    /// Fluent Bit's marker.
    GroupStart,
    /// Fluent Bit's marker.
    GroupEnd,
    /// No time that a record can have.
    Bad(&'static str),
}

const OUT_OF_RANGE: Time = Time::Bad("the time is negative or out of range");

/// Reads a time: an EventTime (fixext8 or ext8), whole or broken seconds, nil.
pub fn time(cursor: &mut Cursor<'_>) -> Result<Time, Fault> {
    Ok(match cursor.head()? {
        Head::Nil | Head::Int(0) => Time::At(None),
        Head::Int(seconds @ 1..=MAX_SECONDS) => Time::At(Some(seconds * 1_000_000_000)),
        Head::Int(number) if number > 99_999_999_999 => of_integer(number).map_or(OUT_OF_RANGE, |time| Time::At(Some(time))),
        Head::Int(_) | Head::Big(_) => OUT_OF_RANGE,
        Head::Float(0.0) => Time::At(None),
        Head::Float(number) if number > 0.0 && number < 1e8 => Time::At(Some((number * 1e9) as i64)),
        Head::Float(number) => of_number(number).map_or(OUT_OF_RANGE, |time| Time::At(Some(time))),
        Head::Ext(kind, len) => {
            let content = cursor.take(len)?;
            match content {
                [0xff, 0xff, 0xff, last @ (0xff | 0xfe), 0, 0, 0, 0] if kind == 0 => {
                    if u32::from(*last) == GROUP_START & 0xff {
                        Time::GroupStart
                    } else {
                        Time::GroupEnd
                    }
                }
                [0, 0, 0, 0, 0, 0, 0, 0] if kind == 0 => Time::At(None),
                _ => of_ext(kind, content).map_or(OUT_OF_RANGE, |time| Time::At(Some(time))),
            }
        }
        _ => {
            return Ok(Time::Bad("the time is no EventTime, number or nil"));
        }
    })
}
