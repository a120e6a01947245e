//! The hot path: a record in msgpack to a row in one pass.
//!
//! It takes the usual record: text keys, no two fields for one name, values of the types that the schema expects, valid UTF-8. At anything
//! else it steps aside (the row taken back) and [`super::careful`] writes the record, by rules that it shares. It reads in blocks, so the
//! last record of a buffer, behind which no block is readable, is copied to where one is ([`Builder::push_usual`]); one that has its buffer to
//! itself is given room there ([`Builder::push_alone`]).
//! How fields are written is in [`super::out`].

use super::copy::{BLOCK, SLACK, has_byte, hex, same_block};
use super::out::Out;
use super::shape::{MAX_KEY_BYTES, Slot};
use super::table::Role;
use super::{Builder, careful, identity::Identity, severity, unfold};
use crate::batch::FLAG_EVENT;
use crate::batch::build::RowFacts;
use crate::fluent::cursor::Cursor;

/// Readable bytes from the first byte of a field: its key, the head of its value, and a block more.
const FIELD_BYTES: usize = 2 * SLACK;
/// What stands behind a record where room was made: no key and no value begins with it.
const ROOM_BYTE: u8 = 0xc1;
/// A record that ends a buffer is copied up to this size.
const MAX_TAIL_BYTES: usize = 64 << 10;
const KEEP_TAIL_BYTES: usize = 4 << 10;

/// How far the pass came.
enum Pass {
    /// The row is written; the record ends there.
    Done(usize),
    /// The buffer ends too near.
    Tail,
    /// The record is not a usual one.
    Unusual,
}

/// The length of a str at `pos` and where its text begins; None when it is no str.
///
/// # Safety
/// Five bytes are readable.
#[inline(always)]
unsafe fn text_at(data: *const u8, pos: usize) -> Option<(usize, usize)> {
    // SAFETY: the caller's promise.
    unsafe {
        let head = *data.add(pos);
        if head & 0xe0 == 0xa0 {
            return Some((pos + 1, usize::from(head & 31)));
        }
        let wide = data.add(pos + 1);
        match head {
            0xd9 => Some((pos + 2, usize::from(*wide))),
            0xda => Some((pos + 3, usize::from(u16::from_be(wide.cast::<u16>().read_unaligned())))),
            0xdb => Some((pos + 5, u32::from_be(wide.cast::<u32>().read_unaligned()) as usize)),
            _ => None,
        }
    }
}

/// Whether the key of `slot` lies at `key`.
///
/// # Safety
/// A block is readable there.
#[inline(always)]
unsafe fn is_key(slot: &Slot, key: *const u8) -> bool {
    // SAFETY: the caller's promise; a slot's key is a block.
    unsafe { same_block(key, slot.raw.as_ptr(), usize::from(slot.raw_len)) }
}

impl Builder {
    /// Writes the record at `pos` of `data` when it is a usual one; returns where it ends.
    #[inline]
    pub(super) fn push_usual(&mut self, entry_time: Option<i64>, data: &[u8], pos: usize) -> Option<usize> {
        let start = self.template.begin(&mut self.batch.rows);
        let mut pass = self.usual_fields(entry_time, data, pos, data.len(), start);
        if let Pass::Tail = pass {
            pass = self.usual_tail(entry_time, data, pos, start);
        }
        match pass {
            Pass::Done(end) => Some(end),
            Pass::Tail | Pass::Unusual => {
                self.batch.rows.truncate(start);
                None
            }
        }
    }

    /// The same for a record that has its buffer to itself: room is made behind it, and it is read once, where it lies.
    #[inline]
    pub(super) fn push_usual_alone(&mut self, entry_time: Option<i64>, record: &mut Vec<u8>) -> bool {
        let len = record.len();
        // What lies behind must not be taken for fields: `valid` ends before it.
        record.resize(len + FIELD_BYTES, ROOM_BYTE);
        let start = self.template.begin(&mut self.batch.rows);
        let pass = self.usual_fields(entry_time, record, 0, len, start);
        record.truncate(len);
        let done = matches!(pass, Pass::Done(_));
        if !done {
            self.batch.rows.truncate(start);
        }
        done
    }

    /// The same for a record at the end of its buffer, by way of a copy with room behind it.
    #[inline(never)]
    fn usual_tail(&mut self, entry_time: Option<i64>, data: &[u8], pos: usize, start: usize) -> Pass {
        let Some(record) = data.get(pos..).filter(|record| record.len() <= MAX_TAIL_BYTES) else { return Pass::Unusual };
        self.batch.rows.truncate(start);
        self.template.begin(&mut self.batch.rows);
        let mut copy = std::mem::take(&mut self.tail);
        copy.clear();
        copy.extend_from_slice(record);
        // What lies behind must not be taken for fields: `valid` ends before it.
        copy.resize(record.len() + FIELD_BYTES, ROOM_BYTE);
        let pass = self.usual_fields(entry_time, &copy, 0, record.len(), start);
        // A quiet connection keeps little.
        if copy.capacity() <= KEEP_TAIL_BYTES {
            self.tail = copy;
        }
        match pass {
            Pass::Done(end) => Pass::Done(pos + end),
            other => other,
        }
    }

    #[inline(always)]
    fn usual_fields(&mut self, entry_time: Option<i64>, data: &[u8], mut pos: usize, valid: usize, start: usize) -> Pass {
        let Some(last_field) = data.len().checked_sub(FIELD_BYTES) else { return Pass::Tail };
        if pos > last_field {
            return Pass::Tail;
        }
        let bytes = data.as_ptr();
        let mut fields = match data[pos] {
            head @ 0x80..=0x8f => {
                pos += 1;
                u32::from(head & 15)
            }
            0xde => {
                pos += 3;
                u32::from(u16::from_be_bytes([data[pos - 2], data[pos - 1]]))
            }
            0xdf => {
                pos += 5;
                u32::from_be_bytes([data[pos - 4], data[pos - 3], data[pos - 2], data[pos - 1]])
            }
            _ => return Pass::Unusual,
        };
        self.record = self.record.wrapping_add(1);
        if self.record == 0 {
            self.shapes.claimed.fill(0);
            self.record = 1;
        }
        let Self { rules, shapes, times, identities, batch, max_depth, record, .. } = self;
        let mut out = Out::new(&mut batch.rows);
        let mut row = RowFacts::new(self.scope);
        let mut identity = Identity::default();
        let (mut time, mut explicit_severity, mut traceparent) = (entry_time, 0, None);
        let (mut longest_value, mut longest_key) = (0, 0);
        let mut previous = 0usize;
        while fields > 0 {
            fields -= 1;
            if pos > last_field {
                return Pass::Tail;
            }
            // SAFETY: FIELD_BYTES are readable from `pos`.
            let key = unsafe { bytes.add(pos) };
            let mut at = usize::from(shapes.slots[previous].next);
            // SAFETY: a block is readable.
            if unsafe { !is_key(&shapes.slots[at], key) } {
                // A field that is sometimes absent: the one after it follows.
                let skipped = usize::from(shapes.slots[at].next);
                // SAFETY: a block is readable.
                if unsafe { is_key(&shapes.slots[skipped], key) } {
                    at = skipped;
                } else {
                    // SAFETY: five bytes are readable.
                    let Some((text, len)) = (unsafe { text_at(bytes, pos) }) else { return Pass::Unusual };
                    if text + len - pos > MAX_KEY_BYTES {
                        return Pass::Unusual;
                    }
                    let Some(found) = shapes.find(&rules.table, &data[pos..text + len], &data[text..text + len]) else {
                        return Pass::Unusual;
                    };
                    shapes.slots[previous].next = found;
                    at = usize::from(found);
                }
            }
            previous = at;
            let slot = &shapes.slots[at];
            pos += usize::from(slot.raw_len);
            let claimed = &mut shapes.claimed[usize::from(slot.claim)];
            if *claimed == *record {
                return Pass::Unusual;
            }
            *claimed = *record;
            // SAFETY: a key has at most MAX_KEY_BYTES, so that many fewer than FIELD_BYTES are readable.
            let Some((text, len)) = (unsafe { text_at(bytes, pos) }) else {
                match slot.role {
                    Role::Attribute => {}
                    Role::Millis if matches!(data[pos], 0x00..=0x7f | 0xe0..=0xff | 0xca..=0xd3) || !slot.is_alias => {}
                    Role::Time => {
                        let mut cursor = Cursor::new(data, pos);
                        let found = times.of_value(data, pos);
                        if found.is_none() || cursor.skip().is_err() {
                            return Pass::Unusual;
                        }
                        time = found;
                        pos = cursor.pos;
                        continue;
                    }
                    Role::SeverityNumber if matches!(data[pos], 1..=24) => {
                        explicit_severity = data[pos];
                        pos += 1;
                        continue;
                    }
                    _ => return Pass::Unusual,
                }
                row.attributes += 1;
                longest_key = longest_key.max(slot.name_len);
                match out.attribute(slot, data, pos, *max_depth) {
                    Some((end, size)) => (pos, longest_value) = (end, longest_value.max(size)),
                    None => return Pass::Unusual,
                }
                continue;
            };
            if text + len + BLOCK > data.len() {
                return Pass::Tail;
            }
            pos = text + len;
            let content = &data[text..pos];
            match slot.role {
                Role::Time => {
                    time = times.of_text(content);
                    if time.is_none() {
                        return Pass::Unusual;
                    }
                    continue;
                }
                Role::Level => {
                    row.severity_number = severity::of_text(content);
                    // SAFETY: a block is readable behind the text.
                    if len >= 0x80 || unsafe { !out.short_text(0x1a, content) } {
                        return Pass::Unusual;
                    }
                    continue;
                }
                Role::Body => {
                    // Whether a brace begins it, or an equals sign is near its beginning: else there is nothing to unfold.
                    // SAFETY: a block is readable.
                    let doubtful = content.first().is_some_and(|first| matches!(first, b'{' | b' ' | b'\t' | b'\r' | b'\n'))
                        || unsafe { has_byte(content.as_ptr(), len, b'=') };
                    if doubtful && rules.unfold && unfold::may_be_folded(content) {
                        return Pass::Unusual;
                    }
                    // SAFETY: a block is readable behind the text.
                    match unsafe { out.body(content) } {
                        Some(view) => row.body = view,
                        None => return Pass::Unusual,
                    }
                    continue;
                }
                Role::TraceId => {
                    if let Some(id) = hex::<16>(content).filter(|id| *id != [0; 16]) {
                        row.trace_id = id;
                        out.id(0x4a, id);
                        continue;
                    }
                }
                Role::SpanId => {
                    if let Some(id) = hex::<8>(content).filter(|id| *id != [0; 8]) {
                        row.span_id = id;
                        out.id(0x52, id);
                        continue;
                    }
                }
                Role::Identity(index) => {
                    if len == 0 || !identities.liftable[usize::from(index)] {
                        return Pass::Unusual;
                    }
                    // SAFETY: a block is readable from the first byte of the text.
                    match unsafe { identities.part(index, content) } {
                        Some(number) => identity = identity.with(index, number),
                        None => return Pass::Unusual,
                    }
                    continue;
                }
                Role::SeverityNumber => return Pass::Unusual,
                Role::Millis if slot.is_alias => return Pass::Unusual,
                Role::Attribute | Role::Millis | Role::Error => {}
                Role::JobId => row.job_id = out.next_text(slot, len),
                Role::EventType => {
                    row.event_type = out.next_text(slot, len);
                    row.flags |= FLAG_EVENT;
                }
                Role::Traceparent => traceparent = Some(content),
            }
            // SAFETY: a block is readable behind the text.
            if unsafe { !out.text_attribute(slot, content) } {
                return Pass::Unusual;
            }
            row.attributes += 1;
            longest_key = longest_key.max(slot.name_len);
            longest_value = longest_value.max(len);
        }
        drop(out);
        if pos > valid {
            return Pass::Unusual;
        }
        if let Some(header) = traceparent {
            careful::fill_ids(&mut batch.rows, header, &mut row.trace_id, &mut row.span_id);
        }
        if explicit_severity > 0 {
            row.severity_number = explicit_severity;
        }
        // Identity that finds no place needs the careful path, which keeps it on the record.
        match identities.resource(rules, &mut batch.resources, identity) {
            Some(index) => row.resource = index,
            None => return Pass::Unusual,
        }
        batch.extremes.max_value_bytes = batch.extremes.max_value_bytes.max(longest_value as u32);
        batch.extremes.max_key_bytes = batch.extremes.max_key_bytes.max(u32::from(longest_key));
        self.end_row(start, row, time);
        Pass::Done(pos)
    }

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
