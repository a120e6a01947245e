//! HPACK (RFC 7541): header blocks read in full, with bounded memory and time, and written in the plainest form.
//!
//! Reading hands each field to a visitor as it is decoded, so that a block of one-byte references to a long entry takes no memory. Writing
//! keeps no table: nothing that we send is secret to one request and known to another.

use std::collections::VecDeque;

use super::hpack_table::STATIC;
use super::huffman;

/// What the dynamic table may hold: the protocol's default, which we do not change.
const MOST_TABLE_BYTES: usize = 4096;
/// What the protocol counts for an entry beside its bytes.
const ENTRY_BYTES: usize = 32;

/// A name and its value.
type Entry = (Box<[u8]>, Box<[u8]>);

/// A header block that cannot be read; the connection's table is lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInvalid;

/// The reader of one connection's header blocks.
#[derive(Default)]
pub struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size_bytes: usize,
    limit_bytes: Option<usize>,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// Reads a block; `visit` gets each name and value.
    pub fn decode(&mut self, mut block: &[u8], mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), BlockInvalid> {
        let mut is_first = true;
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let (name, value) = self.entry(index)?;
                visit(name, value);
            } else if first & 0xE0 == 0x20 {
                let limit_bytes = integer(&mut block, 5)?;
                if !is_first || limit_bytes > MOST_TABLE_BYTES {
                    return Err(BlockInvalid);
                }
                self.limit_bytes = Some(limit_bytes);
                self.evict(limit_bytes);
                continue; // several may stand at the beginning
            } else {
                let is_kept = first & 0x40 != 0;
                self.literal(&mut block, if is_kept { 6 } else { 4 })?;
                visit(&self.name, &self.value);
                if is_kept {
                    self.keep();
                }
            }
            is_first = false;
        }
        // A long field does not leave its memory behind with the connection.
        for text in [&mut self.name, &mut self.value] {
            text.clear();
            text.shrink_to(MOST_TABLE_BYTES);
        }
        Ok(())
    }

    /// Reads a literal field to `name` and `value`.
    fn literal(&mut self, block: &mut &[u8], prefix_bits: u32) -> Result<(), BlockInvalid> {
        let index = integer(block, prefix_bits)?;
        let mut name = std::mem::take(&mut self.name);
        name.clear();
        if index == 0 {
            string(block, &mut name)?;
        } else {
            name.extend_from_slice(self.entry(index)?.0);
        }
        self.name = name;
        self.value.clear();
        string(block, &mut self.value)
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), BlockInvalid> {
        match index.checked_sub(1).ok_or(BlockInvalid)? {
            place if place < STATIC.len() => Ok((STATIC[place].0.as_bytes(), STATIC[place].1.as_bytes())),
            place => self.entries.get(place - STATIC.len()).map(|(name, value)| (&**name, &**value)).ok_or(BlockInvalid),
        }
    }

    /// Puts the last literal into the table.
    fn keep(&mut self) {
        let size_bytes = self.name.len() + self.value.len() + ENTRY_BYTES;
        let limit_bytes = self.limit_bytes.unwrap_or(MOST_TABLE_BYTES);
        self.evict(limit_bytes.saturating_sub(size_bytes));
        if size_bytes <= limit_bytes {
            self.entries.push_front((self.name.as_slice().into(), self.value.as_slice().into()));
            self.size_bytes += size_bytes;
        }
    }

    #[cfg(test)]
    pub(super) fn table_bytes(&self) -> usize {
        self.size_bytes
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.size_bytes + self.name.capacity() + self.value.capacity()
    }

    fn evict(&mut self, until_bytes: usize) {
        while self.size_bytes > until_bytes {
            let Some((name, value)) = self.entries.pop_back() else { return };
            self.size_bytes -= name.len() + value.len() + ENTRY_BYTES;
        }
    }
}

fn integer(block: &mut &[u8], prefix_bits: u32) -> Result<usize, BlockInvalid> {
    let (&first, mut rest) = block.split_first().ok_or(BlockInvalid)?;
    let most = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(first) & most;
    if value == most {
        // Four more bytes are 2^28: more than any block has.
        for shift in [0, 7, 14, 21] {
            let (&byte, after) = rest.split_first().ok_or(BlockInvalid)?;
            rest = after;
            value += usize::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                *block = rest;
                return Ok(value);
            }
        }
        return Err(BlockInvalid);
    }
    *block = rest;
    Ok(value)
}

fn string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), BlockInvalid> {
    let is_huffman = block.first().ok_or(BlockInvalid)? & 0x80 != 0;
    let size_bytes = integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(size_bytes).ok_or(BlockInvalid)?;
    *block = rest;
    if is_huffman {
        return huffman::decode(bytes, out).ok_or(BlockInvalid);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// Appends a field that no table of the peer keeps. `is_secret`: no proxy on the way may keep it either.
pub fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8], is_secret: bool) {
    let kind = if is_secret { 0x10 } else { 0 };
    match STATIC.iter().position(|(known, _)| known.as_bytes() == name) {
        Some(place) => {
            if STATIC[place].1.as_bytes() == value && !value.is_empty() {
                return put_integer(out, 0x80, 7, place + 1);
            }
            put_integer(out, kind, 4, place + 1);
        }
        None => {
            out.push(kind);
            put_integer(out, 0, 7, name.len());
            out.extend_from_slice(name);
        }
    }
    put_integer(out, 0, 7, value.len());
    out.extend_from_slice(value);
}

fn put_integer(out: &mut Vec<u8>, kind: u8, prefix_bits: u32, value: usize) {
    let most = (1_usize << prefix_bits) - 1;
    if value < most {
        return out.push(kind | value as u8);
    }
    out.push(kind | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
