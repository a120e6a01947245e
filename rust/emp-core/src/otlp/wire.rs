//! A protobuf reader that is bounded and never panics, and the few functions that write protobuf.
//!
//! The reader hands out fields as slices of the input with their absolute offsets; nothing is copied and nothing is recursed into.

use crate::error::{CoreError, ErrorKind};

/// What cannot be read, and where: an absolute offset in what the caller gave to the outermost reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The byte at which it was seen.
    pub offset: usize,
    /// What was seen there.
    pub detail: &'static str,
}

impl WireError {
    /// The core's error of a kind at this place.
    pub fn of_kind(self, kind: ErrorKind) -> CoreError {
        CoreError::new(kind, self.offset, self.detail)
    }
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
    /// Wire types 3 and 4, long deprecated: skipped as a whole.
    Group,
}

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Field<'a> {
    /// The field number, 1 to 2^29-1.
    pub number: u32,
    /// Its value.
    pub value: Value<'a>,
    /// The whole field as it lies, tag included.
    pub raw: &'a [u8],
    /// The absolute offset of `raw`.
    pub offset: usize,
}

impl<'a> Field<'a> {
    /// The payload of a length-delimited field; None for other types.
    #[inline]
    pub fn bytes(&self) -> Option<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// A reader of the payload as a message; empty for other types.
    #[inline]
    pub fn message(&self) -> Reader<'a> {
        let bytes = self.bytes().unwrap_or_default();
        Reader { data: bytes, at: 0, base: self.offset + self.raw.len() - bytes.len() }
    }

    /// The absolute offset of the payload of a length-delimited field.
    #[inline]
    pub fn bytes_offset(&self) -> usize {
        self.offset + self.raw.len() - self.bytes().map_or(0, <[u8]>::len)
    }

    /// The number of its wire type (3 for groups).
    #[inline]
    pub fn wire_type(&self) -> u8 {
        match self.value {
            Value::Varint(_) => 0,
            Value::Fixed64(_) => 1,
            Value::Bytes(_) => 2,
            Value::Group => 3,
            Value::Fixed32(_) => 5,
        }
    }

    /// A scalar as u64, of whatever wire type it has; None for bytes and groups.
    #[inline]
    pub fn scalar(&self) -> Option<u64> {
        match self.value {
            Value::Varint(value) | Value::Fixed64(value) => Some(value),
            Value::Fixed32(value) => Some(u64::from(value)),
            _ => None,
        }
    }
}

/// Reads the fields of one message in order.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    data: &'a [u8],
    pub(super) at: usize,
    base: usize,
}

const MAX_GROUP_DEPTH: usize = 64;

impl<'a> Reader<'a> {
    /// A reader of a message whose first byte has offset 0.
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, base: 0 }
    }

    /// A reader of a message that lies at `base` of something larger.
    pub fn at(data: &'a [u8], base: usize) -> Self {
        Self { data, at: 0, base }
    }

    /// The bytes that were not read yet.
    pub fn rest(&self) -> &'a [u8] {
        &self.data[self.at..]
    }

    #[inline]
    fn fail<T>(&self, detail: &'static str) -> Result<T, WireError> {
        Err(WireError { offset: self.base + self.at, detail })
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        if let Some(&byte) = self.data.get(self.at)
            && byte < 0x80
        {
            self.at += 1;
            return Ok(u64::from(byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for (index, &byte) in self.data[self.at..].iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.at += index + 1;
                return Ok(value);
            }
        }
        self.fail(if self.data.len() - self.at < 10 { "protobuf: a varint ends early" } else { "protobuf: a varint has over 10 bytes" })
    }

    /// The usual case, quickly: the next field has this one-byte tag, is length-delimited and shorter than 128 bytes. Else None, and
    /// nothing is stepped over.
    #[inline(always)]
    pub fn short_message(&mut self, tag: u8) -> Option<Reader<'a>> {
        match &self.data[self.at..] {
            [first, len @ 0..0x80, rest @ ..] if *first == tag && usize::from(*len) <= rest.len() => {
                let data = &rest[..usize::from(*len)];
                let base = self.base + self.at + 2;
                self.at += 2 + data.len();
                Some(Reader { data, at: 0, base })
            }
            _ => None,
        }
    }

    /// [`Self::short_message`] for messages of up to 16 KiB.
    #[inline(always)]
    pub fn quick_message(&mut self, tag: u8) -> Option<Reader<'a>> {
        let (head, len, rest) = match &self.data[self.at..] {
            [first, len @ 0..0x80, rest @ ..] if *first == tag => (2, usize::from(*len), rest),
            [first, low, high @ 0..0x80, rest @ ..] if *first == tag => (3, usize::from(*low & 0x7f) | usize::from(*high) << 7, rest),
            _ => return None,
        };
        let data = rest.get(..len)?;
        let base = self.base + self.at + head;
        self.at += head + len;
        Some(Reader { data, at: 0, base })
    }

    /// The next field, where it has this one-byte tag of a fixed64.
    #[inline(always)]
    pub fn quick_fixed64(&mut self, tag: u8) -> Option<u64> {
        let [first, rest @ ..] = &self.data[self.at..] else { return None };
        let value = rest.first_chunk::<8>().filter(|_| *first == tag)?;
        self.at += 9;
        Some(u64::from_le_bytes(*value))
    }

    /// The offset of the next byte.
    pub fn offset(&self) -> usize {
        self.base + self.at
    }

    /// The next of packed varints; None at the end.
    pub fn next_varint(&mut self) -> Result<Option<u64>, WireError> {
        if self.at == self.data.len() { Ok(None) } else { self.varint().map(Some) }
    }

    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], WireError> {
        let rest = &self.data[self.at..];
        if len > rest.len() as u64 {
            return self.fail("protobuf: a field ends early");
        }
        self.at += len as usize;
        Ok(&rest[..len as usize])
    }

    /// The next field; None at the end of the message.
    #[inline]
    pub fn next_field(&mut self) -> Result<Option<Field<'a>>, WireError> {
        if self.at == self.data.len() {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.varint()?;
        let Some(number) = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number)) else {
            self.at = start;
            return self.fail("protobuf: a field number is out of range");
        };
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            3 => {
                self.skip_group(number)?;
                Value::Group
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => {
                self.at = start;
                return self.fail("protobuf: an unknown wire type");
            }
        };
        Ok(Some(Field { number, value, raw: &self.data[start..self.at], offset: self.base + start }))
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        match self.data[self.at..].first_chunk::<N>() {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => self.fail("protobuf: a field ends early"),
        }
    }

    fn skip_group(&mut self, number: u32) -> Result<(), WireError> {
        let mut open = vec![number];
        while let Some(&innermost) = open.last() {
            let tag = self.varint()?;
            match tag & 7 {
                0 => drop(self.varint()?),
                1 => drop(self.array::<8>()?),
                2 => {
                    let len = self.varint()?;
                    self.take(len)?;
                }
                3 if open.len() < MAX_GROUP_DEPTH => open.push((tag >> 3) as u32),
                4 if (tag >> 3) as u32 == innermost => drop(open.pop()),
                5 => drop(self.array::<4>()?),
                _ => return self.fail("protobuf: a group cannot be followed"),
            }
        }
        Ok(())
    }
}

/// Calls `visit` with each field of a message.
#[inline]
pub fn for_each_field<'a, E: From<WireError>>(mut reader: Reader<'a>, mut visit: impl FnMut(Field<'a>) -> Result<(), E>) -> Result<(), E> {
    while let Some(field) = reader.next_field()? {
        visit(field)?;
    }
    Ok(())
}

/// The bytes that a varint takes.
#[inline]
pub const fn varint_len(value: u64) -> usize {
    ((70 - (value | 1).leading_zeros()) / 7) as usize
}

/// Appends a varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a varint field.
#[inline]
pub fn put_uint(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

/// Appends a fixed64 field.
#[inline]
pub fn put_fixed64(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends tag and length of a length-delimited field; its `len` bytes come next.
#[inline]
pub fn put_header(out: &mut Vec<u8>, number: u32, len: usize) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, len as u64);
}

/// Appends a length-delimited field.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_header(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// The size of a length-delimited field with a payload of `len` bytes and a field number under 16.
#[inline]
pub const fn field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// Appends a length-delimited field whose payload `write` appends.
#[inline]
pub fn put_message(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    put_varint(out, u64::from(number) << 3 | 2);
    let len_at = out.len();
    out.push(0);
    write(out);
    let len = out.len() - len_at - 1;
    if len < 0x80 {
        out[len_at] = len as u8;
    } else {
        let mut prefix = [0u8; 10];
        let width = varint_len(len as u64);
        let mut rest = len;
        for byte in &mut prefix[..width] {
            *byte = rest as u8 | 0x80;
            rest >>= 7;
        }
        prefix[width - 1] &= 0x7f;
        out.splice(len_at..=len_at, prefix[..width].iter().copied());
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
