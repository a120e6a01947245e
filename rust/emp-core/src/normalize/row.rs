//! The hot path: a record in msgpack to a row in one pass.
//!
//! It takes the usual record: text keys, no two fields for one name, values of the types that the schema expects, valid UTF-8. At anything
//! else it steps aside (returns None, the row taken back) and [`super::careful`] writes the record, by rules that it shares.

use super::Builder;
use super::copy::{SLACK, copy_32, copy_text, hex, same_32};
use super::shape::{MAX_KEY_BYTES, Slot};
use super::table::Role;
use super::unfold;
use super::value::put_any;
use super::wire::{close, put_bytes, put_key, put_varint, varint_len};
use super::{severity, time::TimeReader};
use crate::batch::build::RowFacts;
use crate::batch::{Extremes, FLAG_EVENT, View};
use crate::fluent::cursor::Cursor;

/// A str's place in `data`.
#[derive(Clone, Copy, Debug)]
struct Text {
    at: usize,
    len: usize,
}

/// The str at `pos`, if it is one and whole.
#[inline(always)]
fn text_at(data: &[u8], pos: usize) -> Option<Text> {
    let head = *data.get(pos)?;
    let text = if head & 0xe0 == 0xa0 {
        Text { at: pos + 1, len: usize::from(head & 31) }
    } else if head == 0xd9 {
        Text { at: pos + 2, len: usize::from(*data.get(pos + 1)?) }
    } else if head == 0xda {
        let [high, low] = *data.get(pos + 1..)?.first_chunk::<2>()?;
        Text { at: pos + 3, len: usize::from(u16::from_be_bytes([high, low])) }
    } else if head == 0xdb {
        Text { at: pos + 5, len: u32::from_be_bytes(*data.get(pos + 1..)?.first_chunk::<4>()?) as usize }
    } else {
        return None;
    };
    (text.len <= data.len() - text.at.min(data.len())).then_some(text)
}

/// Whether the key of `slot` lies at `pos`.
#[inline(always)]
fn is_key(slot: &Slot, data: &[u8], pos: usize) -> bool {
    let len = usize::from(slot.raw_len);
    if pos + MAX_KEY_BYTES <= data.len() {
        // SAFETY: 32 bytes of data lie behind `pos`; a slot's key has 32.
        return unsafe { same_32(data.as_ptr().add(pos), slot.raw.as_ptr(), len) };
    }
    data.get(pos..pos + len) == Some(&slot.raw[..len])
}

/// Appends text of `data` that is followed by nothing fixed; false when it is not UTF-8.
///
/// # Safety
/// `text` lies in `data`; there is room for its length and SLACK behind `rows.len()`.
#[inline(always)]
unsafe fn put_text(rows: &mut Vec<u8>, data: &[u8], text: Text) -> bool {
    // SAFETY: the caller's promise; blocks are read only where data has them.
    let ascii = unsafe {
        let end = rows.len();
        let ascii = copy_text(data.as_ptr().add(text.at), rows.as_mut_ptr().add(end), text.len, text.at + 32 <= data.len());
        rows.set_len(end + text.len);
        ascii
    };
    ascii || simdutf8::basic::from_utf8(&data[text.at..text.at + text.len]).is_ok()
}

/// Appends an attribute with a text value; false when that is not UTF-8.
#[inline(always)]
fn put_text_attribute(rows: &mut Vec<u8>, slot: &Slot, data: &[u8], text: Text) -> bool {
    let name = usize::from(slot.name_len);
    let pair = name + text.len + 6;
    if pair >= 0x80 {
        return put_long_text_attribute(rows, slot, &data[text.at..text.at + text.len]);
    }
    rows.reserve(pair + 2 + SLACK);
    // SAFETY: room is there for the pair and SLACK; the name and its head have at most 62 bytes, so two blocks hold them and 4 more follow.
    unsafe {
        let end = rows.len();
        let target = rows.as_mut_ptr().add(end);
        copy_32(slot.prefix.as_ptr(), target);
        if name > 28 {
            copy_32(slot.prefix.as_ptr().add(32), target.add(32));
        }
        *target.add(1) = pair as u8;
        let head = u32::from_le_bytes([0x12, text.len as u8 + 2, 0x0a, text.len as u8]);
        target.add(4 + name).cast::<u32>().write_unaligned(head);
        rows.set_len(end + 8 + name);
        put_text(rows, data, text)
    }
}

#[inline(never)]
fn put_long_text_attribute(rows: &mut Vec<u8>, slot: &Slot, text: &[u8]) -> bool {
    put_key(rows, 0x32, name(slot), 1 + varint_len(text.len() as u64) + text.len());
    put_bytes(rows, 0x0a, text);
    simdutf8::basic::from_utf8(text).is_ok()
}

fn name(slot: &Slot) -> &[u8] {
    &slot.prefix[4..4 + usize::from(slot.name_len)]
}

/// Appends an attribute with a value of at most 12 encoded bytes.
#[inline(always)]
fn put_short_attribute(rows: &mut Vec<u8>, slot: &Slot, any: &[u8; 16], any_len: usize) {
    let name = usize::from(slot.name_len);
    let pair = name + any_len + 4;
    rows.reserve(pair + 2 + SLACK);
    // SAFETY: as in `put_text_attribute`; 16 bytes are written behind the name, `any_len` of them kept.
    unsafe {
        let end = rows.len();
        let target = rows.as_mut_ptr().add(end);
        copy_32(slot.prefix.as_ptr(), target);
        if name > 28 {
            copy_32(slot.prefix.as_ptr().add(32), target.add(32));
        }
        *target.add(1) = pair as u8;
        *target.add(4 + name) = 0x12;
        *target.add(5 + name) = any_len as u8;
        target.add(6 + name).cast::<[u8; 16]>().write_unaligned(*any);
        rows.set_len(end + pair + 2);
    }
}

fn int_any(value: i64) -> ([u8; 16], usize) {
    let mut any = [0; 16];
    any[0] = 0x18;
    super::wire::write_varint(&mut any[1..], value as u64);
    (any, 1 + varint_len(value as u64))
}

/// Appends an attribute with any value that is no str; returns where the value ends.
#[inline(always)]
fn put_attribute(rows: &mut Vec<u8>, slot: &Slot, data: &[u8], pos: usize, max_depth: usize) -> Option<usize> {
    let head = *data.get(pos)?;
    match head {
        0x00..=0x7f => {
            let mut any = [0; 16];
            (any[0], any[1]) = (0x18, head);
            put_short_attribute(rows, slot, &any, 2);
            Some(pos + 1)
        }
        0xcb => {
            let bits = u64::from_be_bytes(*data.get(pos + 1..)?.first_chunk::<8>()?);
            let mut any = [0; 16];
            any[0] = 0x21;
            any[1..9].copy_from_slice(&bits.to_le_bytes());
            put_short_attribute(rows, slot, &any, 9);
            Some(pos + 9)
        }
        0xc2 | 0xc3 => {
            let mut any = [0; 16];
            (any[0], any[1]) = (0x10, head & 1);
            put_short_attribute(rows, slot, &any, 2);
            Some(pos + 1)
        }
        0xcc => {
            let (any, len) = int_any(i64::from(*data.get(pos + 1)?));
            put_short_attribute(rows, slot, &any, len);
            Some(pos + 2)
        }
        0xcd => {
            let (any, len) = int_any(i64::from(u16::from_be_bytes(*data.get(pos + 1..)?.first_chunk::<2>()?)));
            put_short_attribute(rows, slot, &any, len);
            Some(pos + 3)
        }
        0xce => {
            let (any, len) = int_any(i64::from(u32::from_be_bytes(*data.get(pos + 1..)?.first_chunk::<4>()?)));
            put_short_attribute(rows, slot, &any, len);
            Some(pos + 5)
        }
        _ => put_other_attribute(rows, slot, data, pos, max_depth),
    }
}

#[inline(never)]
fn put_other_attribute(rows: &mut Vec<u8>, slot: &Slot, data: &[u8], pos: usize, max_depth: usize) -> Option<usize> {
    let mut cursor = Cursor::new(data, pos);
    let start = rows.len();
    rows.extend_from_slice(&slot.prefix[..4 + usize::from(slot.name_len)]);
    put_any(rows, 0x12, &mut cursor, max_depth).ok()?;
    close(rows, start + 2);
    Some(cursor.pos)
}

/// Appends the body, a str; returns the view of its text, None when it is not UTF-8.
#[inline(always)]
fn put_body(rows: &mut Vec<u8>, data: &[u8], text: Text) -> Option<View> {
    rows.reserve(text.len + 16 + SLACK);
    if text.len < 126 {
        let end = rows.len();
        // SAFETY: room is there for 4 bytes, the text and SLACK.
        unsafe {
            let head = u32::from_le_bytes([0x2a, text.len as u8 + 2, 0x0a, text.len as u8]);
            rows.as_mut_ptr().add(end).cast::<u32>().write_unaligned(head);
            rows.set_len(end + 4);
        }
    } else {
        rows.push(0x2a);
        put_varint(rows, (1 + varint_len(text.len as u64) + text.len) as u64);
        rows.push(0x0a);
        put_varint(rows, text.len as u64);
    }
    let view = View { offset: rows.len() as u32, len: text.len as u32 };
    // SAFETY: `text_at` found the text in data; room was reserved.
    unsafe { put_text(rows, data, text) }.then_some(view)
}

impl Builder {
    /// Writes the record at `pos` of `data` when it is a usual one; returns where it ends.
    pub(super) fn push_usual(&mut self, entry_time: Option<i64>, data: &[u8], pos: usize) -> Option<usize> {
        let start = self.template.begin(&mut self.batch.rows);
        let end = self.usual_fields(entry_time, data, pos, start);
        if end.is_none() {
            self.batch.rows.truncate(start);
        }
        end
    }

    #[inline(always)]
    fn usual_fields(&mut self, entry_time: Option<i64>, data: &[u8], mut pos: usize, start: usize) -> Option<usize> {
        let mut fields = match *data.get(pos)? {
            head @ 0x80..=0x8f => {
                pos += 1;
                u32::from(head & 15)
            }
            0xde => {
                pos += 3;
                u32::from(u16::from_be_bytes(*data.get(pos - 2..)?.first_chunk::<2>()?))
            }
            0xdf => {
                pos += 5;
                u32::from_be_bytes(*data.get(pos - 4..)?.first_chunk::<4>()?)
            }
            _ => return None,
        };
        self.record = self.record.wrapping_add(1);
        if self.record == 0 {
            self.shapes.claimed.fill(0);
            self.record = 1;
        }
        let rows = &mut self.batch.rows;
        let mut extremes: Extremes = self.batch.extremes;
        let mut time = None;
        let mut traceparent = None;
        let mut identity: [&[u8]; 5] = [&[]; 5];
        let mut explicit_severity = 0;
        let mut facts = RowFacts::new(self.scope);
        let mut previous = 0usize;
        while fields > 0 {
            fields -= 1;
            let mut at = usize::from(self.shapes.slots[previous].next);
            if !is_key(&self.shapes.slots[at], data, pos) {
                // A field that is sometimes absent: the one after it follows.
                let skipped = usize::from(self.shapes.slots[at].next);
                if is_key(&self.shapes.slots[skipped], data, pos) {
                    at = skipped;
                } else {
                    let key = text_at(data, pos)?;
                    let found = self.shapes.find(&self.rules.table, &data[pos..key.at + key.len], &data[key.at..key.at + key.len])?;
                    self.shapes.slots[previous].next = found;
                    at = usize::from(found);
                }
            }
            previous = at;
            let slot = &self.shapes.slots[at];
            pos += usize::from(slot.raw_len);
            let claimed = &mut self.shapes.claimed[usize::from(slot.claim)];
            if *claimed == self.record {
                return None;
            }
            *claimed = self.record;
            let text = text_at(data, pos);
            match (slot.role, text) {
                (Role::Attribute, Some(text)) => {
                    extremes.max_value_bytes = extremes.max_value_bytes.max(text.len as u32);
                    if !put_text_attribute(rows, slot, data, text) {
                        return None;
                    }
                }
                (Role::JobId | Role::EventType, Some(text)) => {
                    extremes.max_value_bytes = extremes.max_value_bytes.max(text.len as u32);
                    if !put_text_attribute(rows, slot, data, text) {
                        return None;
                    }
                    let view = View { offset: (rows.len() - text.len) as u32, len: text.len as u32 };
                    if slot.role == Role::JobId {
                        facts.job_id = view;
                    } else {
                        facts.event_type = view;
                        facts.flags |= FLAG_EVENT;
                    }
                }
                (Role::Time, text) => {
                    let times: &mut TimeReader = &mut self.times;
                    time = match text {
                        Some(text) => times.of_text(&data[text.at..text.at + text.len]),
                        None => times.of_value(data, pos),
                    };
                    time?;
                    pos = match text {
                        Some(text) => text.at + text.len,
                        None => end_of(data, pos)?,
                    };
                    continue;
                }
                (Role::Level, Some(text)) if text.len < 0x80 => {
                    facts.severity_number = severity::of_text(&data[text.at..text.at + text.len]);
                    rows.reserve(text.len + 2 + SLACK);
                    rows.extend_from_slice(&[0x1a, text.len as u8]);
                    // SAFETY: room was reserved for the text and SLACK.
                    if !unsafe { put_text(rows, data, text) } {
                        return None;
                    }
                    pos = text.at + text.len;
                    continue;
                }
                (Role::Body, Some(text)) => {
                    if self.rules.unfold && unfold::may_be_folded(&data[text.at..text.at + text.len]) {
                        return None;
                    }
                    facts.body = put_body(rows, data, text)?;
                    pos = text.at + text.len;
                    continue;
                }
                (Role::TraceId, Some(text)) => match hex::<16>(&data[text.at..text.at + text.len]) {
                    Some(id) if id != [0; 16] => {
                        facts.trace_id = id;
                        rows.extend_from_slice(&[0x4a, 16]);
                        rows.extend_from_slice(&id);
                        pos = text.at + text.len;
                        continue;
                    }
                    _ => {
                        extremes.max_value_bytes = extremes.max_value_bytes.max(text.len as u32);
                        if !put_text_attribute(rows, slot, data, text) {
                            return None;
                        }
                    }
                },
                (Role::SpanId, Some(text)) => match hex::<8>(&data[text.at..text.at + text.len]) {
                    Some(id) if id != [0; 8] => {
                        facts.span_id = id;
                        rows.extend_from_slice(&[0x52, 8]);
                        rows.extend_from_slice(&id);
                        pos = text.at + text.len;
                        continue;
                    }
                    _ => {
                        extremes.max_value_bytes = extremes.max_value_bytes.max(text.len as u32);
                        if !put_text_attribute(rows, slot, data, text) {
                            return None;
                        }
                    }
                },
                (Role::Identity(index), Some(text)) if text.len > 0 && self.identities.liftable[usize::from(index)] => {
                    identity[usize::from(index)] = &data[text.at..text.at + text.len];
                    pos = text.at + text.len;
                    continue;
                }
                (Role::Traceparent, Some(text)) => {
                    traceparent = Some(&data[text.at..text.at + text.len]);
                    extremes.max_value_bytes = extremes.max_value_bytes.max(text.len as u32);
                    if !put_text_attribute(rows, slot, data, text) {
                        return None;
                    }
                }
                (Role::Error, Some(text)) => {
                    extremes.max_value_bytes = extremes.max_value_bytes.max(text.len as u32);
                    if !put_text_attribute(rows, slot, data, text) {
                        return None;
                    }
                }
                (Role::SeverityNumber, None) if matches!(data[pos..].first(), Some(1..=24)) => {
                    explicit_severity = data[pos];
                    pos += 1;
                    continue;
                }
                (Role::Millis, text) if !slot.is_alias || is_number(data, pos) => match text {
                    Some(text) => {
                        extremes.max_value_bytes = extremes.max_value_bytes.max(text.len as u32);
                        if !put_text_attribute(rows, slot, data, text) {
                            return None;
                        }
                    }
                    None => {
                        facts.attributes += 1;
                        extremes.max_key_bytes = extremes.max_key_bytes.max(u32::from(slot.name_len));
                        let before = rows.len();
                        pos = put_attribute(rows, slot, data, pos, self.max_depth)?;
                        extremes.max_value_bytes = extremes.max_value_bytes.max((rows.len() - before) as u32);
                        continue;
                    }
                },
                (Role::Attribute, None) => {
                    facts.attributes += 1;
                    extremes.max_key_bytes = extremes.max_key_bytes.max(u32::from(slot.name_len));
                    // The whole attribute: an upper bound of its value, which is all that a limit needs.
                    let before = rows.len();
                    pos = put_attribute(rows, slot, data, pos, self.max_depth)?;
                    extremes.max_value_bytes = extremes.max_value_bytes.max((rows.len() - before) as u32);
                    continue;
                }
                _ => return None,
            }
            // A text attribute was written.
            facts.attributes += 1;
            extremes.max_key_bytes = extremes.max_key_bytes.max(u32::from(slot.name_len));
            let text = text?;
            pos = text.at + text.len;
        }
        if let Some(header) = traceparent {
            super::careful::fill_ids(rows, header, &mut facts.trace_id, &mut facts.span_id);
        }
        if explicit_severity > 0 {
            facts.severity_number = explicit_severity;
        }
        // Identity that finds no place needs the careful path, which keeps it on the record.
        facts.resource = self.identities.resource(&self.rules, &mut self.batch.resources, &identity)?;
        self.batch.extremes = extremes;
        self.end_row(start, facts, time.or(entry_time));
        Some(pos)
    }
}

impl Builder {
    /// Ends a row: its time is the one found, moved by the correction, else the arrival.
    #[inline(always)]
    pub(super) fn end_row(&mut self, start: usize, mut row: RowFacts, time_unix_nano: Option<i64>) {
        row.time_unix_nano = match time_unix_nano {
            Some(time) => {
                self.newest_unix_nano = self.newest_unix_nano.max(Some(time));
                time.saturating_add(self.correction_ns)
            }
            None => self.now_unix_nano,
        };
        self.batch.finish_row(start, row);
    }
}

#[inline(never)]
fn end_of(data: &[u8], pos: usize) -> Option<usize> {
    let mut cursor = Cursor::new(data, pos);
    cursor.skip().ok()?;
    Some(cursor.pos)
}

#[inline(always)]
fn is_number(data: &[u8], pos: usize) -> bool {
    matches!(data.get(pos), Some(0x00..=0x7f | 0xe0..=0xff | 0xca..=0xd3))
}
