//! Writes the fields of a row for [`super::row`]: short pieces in whole blocks, with room kept behind them.

use super::copy::{BLOCK, SLACK, copy_block, copy_text};
use super::shape::Slot;
use super::value::put_any;
use super::wire::{close, payload_len, put_bytes, put_key, put_varint, varint_len, write_varint};
use crate::batch::View;
use crate::fluent::cursor::Cursor;

/// Room that is made before every field: any field whose encoded size is below 128 fits with blocks written past its end.
const ROOM: usize = 512;

/// The row buffer while a row is written.
pub struct Out<'a> {
    rows: &'a mut Vec<u8>,
    /// Bytes written; the buffer's own length follows when other code writes.
    len: usize,
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        self.sync();
    }
}

impl<'a> Out<'a> {
    /// Writes behind what is there.
    #[inline(always)]
    pub fn new(rows: &'a mut Vec<u8>) -> Self {
        let len = rows.len();
        Self { rows, len }
    }

    #[inline(always)]
    fn sync(&mut self) {
        // SAFETY: `len` bytes were there or have been written, all within the capacity.
        unsafe { self.rows.set_len(self.len) }
    }

    /// Where to write; ROOM bytes may be written there.
    #[inline(always)]
    fn target(&mut self) -> *mut u8 {
        if self.rows.capacity() - self.len < ROOM {
            self.grow(ROOM);
        }
        // SAFETY: `len` is within the capacity.
        unsafe { self.rows.as_mut_ptr().add(self.len) }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, room: usize) {
        self.sync();
        self.rows.reserve(room);
    }

    /// Whether the bytes just copied are UTF-8, given that some are not ASCII.
    #[cold]
    #[inline(never)]
    fn is_utf8(text: &[u8]) -> bool {
        simdutf8::basic::from_utf8(text).is_ok()
    }

    /// The view that the text of the next attribute will have.
    #[inline(always)]
    pub fn next_text(&self, slot: &Slot, len: usize) -> View {
        let name = usize::from(slot.name_len);
        let pair = name + len + 6;
        let head = if pair < 0x80 { 8 + name } else { long_head(name, len) };
        View { offset: (self.len + head) as u32, len: len as u32 }
    }

    /// The view of the last `len` bytes.
    #[inline(always)]
    fn last(&self, len: usize) -> View {
        View { offset: (self.len - len) as u32, len: len as u32 }
    }

    /// Writes the head of an attribute up to the end of its name.
    ///
    /// # Safety
    /// `target` has ROOM.
    #[inline(always)]
    unsafe fn name(target: *mut u8, slot: &Slot, pair: usize) {
        // SAFETY: the head and the name have at most SLACK bytes, as the slot's prefix has.
        unsafe {
            copy_block(slot.prefix.as_ptr(), target);
            if slot.name_len > BLOCK as u8 - 4 {
                copy_block(slot.prefix.as_ptr().add(BLOCK), target.add(BLOCK));
            }
            *target.add(1) = pair as u8;
        }
    }

    /// Writes an attribute with a text value; false when that is not UTF-8.
    ///
    /// # Safety
    /// A block is readable behind the text.
    #[inline(always)]
    pub unsafe fn text_attribute(&mut self, slot: &Slot, text: &[u8]) -> bool {
        let name = usize::from(slot.name_len);
        let pair = name + text.len() + 6;
        if pair >= 0x80 {
            return self.long_text_attribute(slot, text);
        }
        let target = self.target();
        self.len += pair + 2;
        // SAFETY: less than 128 bytes and a block are written to ROOM; the caller's promise covers the text.
        let ascii = unsafe {
            Self::name(target, slot, pair);
            let head = u32::from_le_bytes([0x12, text.len() as u8 + 2, 0x0a, text.len() as u8]);
            target.add(4 + name).cast::<u32>().write_unaligned(head);
            copy_text(text.as_ptr(), target.add(8 + name), text.len())
        };
        ascii || Self::is_utf8(text)
    }

    #[inline(never)]
    fn long_text_attribute(&mut self, slot: &Slot, text: &[u8]) -> bool {
        self.sync();
        put_key(self.rows, 0x32, slot.name(), 1 + varint_len(text.len() as u64) + text.len());
        put_bytes(self.rows, 0x0a, text);
        self.len = self.rows.len();
        Self::is_utf8(text)
    }

    /// Writes a text field of the record with less than 128 bytes; false when it is not UTF-8.
    ///
    /// # Safety
    /// A block is readable behind the text.
    #[inline(always)]
    pub unsafe fn short_text(&mut self, tag: u8, text: &[u8]) -> bool {
        let target = self.target();
        self.len += text.len() + 2;
        // SAFETY: less than 130 bytes and a block are written to ROOM; the caller's promise covers the text.
        let ascii = unsafe {
            target.cast::<[u8; 2]>().write_unaligned([tag, text.len() as u8]);
            copy_text(text.as_ptr(), target.add(2), text.len())
        };
        ascii || Self::is_utf8(text)
    }

    /// Writes the body; returns the view of its text, None when that is not UTF-8.
    ///
    /// # Safety
    /// A block is readable behind the text.
    #[inline(always)]
    pub unsafe fn body(&mut self, text: &[u8]) -> Option<View> {
        if text.len() >= 126 {
            return self.long_body(text);
        }
        let target = self.target();
        self.len += text.len() + 4;
        // SAFETY: less than 130 bytes and a block are written to ROOM; the caller's promise covers the text.
        let ascii = unsafe {
            let head = u32::from_le_bytes([0x2a, text.len() as u8 + 2, 0x0a, text.len() as u8]);
            target.cast::<u32>().write_unaligned(head);
            copy_text(text.as_ptr(), target.add(4), text.len())
        };
        (ascii || Self::is_utf8(text)).then(|| self.last(text.len()))
    }

    #[inline(never)]
    fn long_body(&mut self, text: &[u8]) -> Option<View> {
        self.sync();
        self.rows.push(0x2a);
        put_varint(self.rows, (1 + varint_len(text.len() as u64) + text.len()) as u64);
        put_bytes(self.rows, 0x0a, text);
        self.len = self.rows.len();
        Self::is_utf8(text).then(|| self.last(text.len()))
    }

    /// Writes an id.
    #[inline(always)]
    pub fn id<const N: usize>(&mut self, tag: u8, id: [u8; N]) {
        let target = self.target();
        self.len += N + 2;
        // SAFETY: N is 8 or 16.
        unsafe {
            target.cast::<[u8; 2]>().write_unaligned([tag, N as u8]);
            target.add(2).cast::<[u8; N]>().write_unaligned(id);
        }
    }

    /// Writes an attribute whose encoded value has `len` (at most 12) of 16 bytes.
    #[inline(always)]
    fn short_attribute(&mut self, slot: &Slot, any: [u8; 16], len: usize) -> usize {
        let name = usize::from(slot.name_len);
        let pair = name + len + 4;
        let target = self.target();
        self.len += pair + 2;
        // SAFETY: at most 62 + 18 bytes are written to ROOM.
        unsafe {
            Self::name(target, slot, pair);
            target.add(4 + name).cast::<[u8; 2]>().write_unaligned([0x12, len as u8]);
            target.add(6 + name).cast::<[u8; 16]>().write_unaligned(any);
        }
        len
    }

    #[inline(always)]
    fn int_attribute(&mut self, slot: &Slot, value: u64) -> usize {
        let mut any = [0; 16];
        any[0] = 0x18;
        write_varint(&mut any[1..11], value);
        self.short_attribute(slot, any, 1 + varint_len(value))
    }

    /// Writes an attribute with any value but a str; returns where the value ends and its encoded size,
    /// None when it cannot be read.
    #[inline(always)]
    pub fn attribute(&mut self, slot: &Slot, data: &[u8], pos: usize, max_depth: usize) -> Option<(usize, usize)> {
        let rest = data.get(pos..)?.first_chunk::<9>()?;
        match *rest {
            [head @ 0x00..=0x7f, ..] => {
                Some((pos + 1, self.short_attribute(slot, [0x18, head, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 2)))
            }
            [0xcb, a, b, c, d, e, f, g, h] => {
                Some((pos + 9, self.short_attribute(slot, [0x21, h, g, f, e, d, c, b, a, 0, 0, 0, 0, 0, 0, 0], 9)))
            }
            [0xcc, a, ..] => Some((pos + 2, self.int_attribute(slot, u64::from(a)))),
            [0xcd, a, b, ..] => Some((pos + 3, self.int_attribute(slot, u64::from(u16::from_be_bytes([a, b]))))),
            [0xce, a, b, c, d, ..] => Some((pos + 5, self.int_attribute(slot, u64::from(u32::from_be_bytes([a, b, c, d]))))),
            [head @ (0xc2 | 0xc3), ..] => {
                Some((pos + 1, self.short_attribute(slot, [0x10, head & 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 2)))
            }
            _ => self.other_attribute(slot, data, pos, max_depth),
        }
    }

    #[inline(never)]
    fn other_attribute(&mut self, slot: &Slot, data: &[u8], pos: usize, max_depth: usize) -> Option<(usize, usize)> {
        self.sync();
        let start = self.rows.len();
        self.rows.extend_from_slice(&slot.prefix[..4 + usize::from(slot.name_len)]);
        let mut cursor = Cursor::new(data, pos);
        let before = self.rows.len();
        let done = put_any(self.rows, 0x12, &mut cursor, max_depth);
        let size = payload_len(self.rows.len() - before);
        close(self.rows, start + 2);
        self.len = self.rows.len();
        done.ok().map(|()| (cursor.pos, size))
    }
}

/// Bytes before the text of an attribute of 128 bytes or more.
#[cold]
fn long_head(name: usize, len: usize) -> usize {
    let any = 1 + varint_len(len as u64) + len;
    let pair = 2 + name + 1 + varint_len(any as u64) + any;
    1 + varint_len(pair as u64) + pair - len
}

const _: () = assert!(ROOM >= 2 * SLACK + 0x80 + BLOCK);
