//! A bounded reader of msgpack: every length is checked against what is there before anything is taken, nothing panics.
//!
//! [`Cursor::head`] reads the head of one value (a scalar whole, the length of anything longer); [`skip`] steps over a whole value without
//! recursion, so nesting costs neither stack nor memory. Strings are bytes here; what is not UTF-8 is repaired where text is written.

/// Why reading stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bytes end inside a value.
    Truncated,
    /// The byte 0xc1, which msgpack never uses.
    Reserved,
    /// Maps and arrays lie deeper in each other than the limit.
    TooDeep,
    /// Something else where the record, a map, should be.
    NoMap,
    /// A record of another emp-pipe whose reserved map holds what no row can have.
    Unrestorable,
}

impl Fault {
    /// The fault in a few words.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Truncated => "the bytes end inside a value",
            Self::Reserved => "byte 0xc1 is no msgpack",
            Self::TooDeep => "nested deeper than the limit",
            Self::NoMap => "the record is no map",
            Self::Unrestorable => "the reserved map holds what no row can have",
        }
    }
}

/// The head of a value: scalars whole, of all others the length. The content of str, bin and ext follows and is known to be there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Head {
    /// nil
    Nil,
    /// true, false
    Bool(bool),
    /// Any integer that fits.
    Int(i64),
    /// An integer above `i64::MAX`.
    Big(u64),
    /// float32 and float64
    Float(f64),
    /// Bytes of a string.
    Str(usize),
    /// Bytes of a bin.
    Bin(usize),
    /// Type and bytes of an ext.
    Ext(i8, usize),
    /// Elements.
    Array(usize),
    /// Pairs.
    Map(usize),
}

/// A position in bytes that came from outside.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    /// What is read.
    pub data: &'a [u8],
    /// The next byte.
    pub pos: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at `pos` of `data`.
    pub fn new(data: &'a [u8], pos: usize) -> Self {
        Self { data, pos }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.data.len().saturating_sub(self.pos)
    }

    /// The next byte, not taken.
    #[inline(always)]
    pub fn peek(&self) -> Result<u8, Fault> {
        self.data.get(self.pos).copied().ok_or(Fault::Truncated)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.data.get(self.pos..).and_then(|rest| rest.first_chunk::<N>()).ok_or(Fault::Truncated)?;
        self.pos += N;
        Ok(*bytes)
    }

    /// `len` bytes.
    #[inline(always)]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let bytes = self.data.get(self.pos..).and_then(|rest| rest.get(..len)).ok_or(Fault::Truncated)?;
        self.pos += len;
        Ok(bytes)
    }

    #[inline(always)]
    fn there(&self, len: usize) -> Result<usize, Fault> {
        if len <= self.remaining() { Ok(len) } else { Err(Fault::Truncated) }
    }

    /// The head of the next value; the position is then at its content.
    #[inline]
    pub fn head(&mut self) -> Result<Head, Fault> {
        let byte = self.peek()?;
        self.pos += 1;
        Ok(match byte {
            0x00..=0x7f => Head::Int(i64::from(byte)),
            0xe0..=0xff => Head::Int(i64::from(byte as i8)),
            0xa0..=0xbf => Head::Str(self.there(usize::from(byte & 31))?),
            0x80..=0x8f => Head::Map(usize::from(byte & 15)),
            0x90..=0x9f => Head::Array(usize::from(byte & 15)),
            0xc0 => Head::Nil,
            0xc1 => return Err(Fault::Reserved),
            0xc2 => Head::Bool(false),
            0xc3 => Head::Bool(true),
            0xc4 => Head::Bin(self.len8()?),
            0xc5 => Head::Bin(self.len16()?),
            0xc6 => Head::Bin(self.len32()?),
            0xc7 => self.ext(1)?,
            0xc8 => self.ext(2)?,
            0xc9 => self.ext(4)?,
            0xca => Head::Float(f64::from(f32::from_be_bytes(self.array()?))),
            0xcb => Head::Float(f64::from_be_bytes(self.array()?)),
            0xcc => Head::Int(i64::from(self.array::<1>()?[0])),
            0xcd => Head::Int(i64::from(u16::from_be_bytes(self.array()?))),
            0xce => Head::Int(i64::from(u32::from_be_bytes(self.array()?))),
            0xcf => {
                let value = u64::from_be_bytes(self.array()?);
                i64::try_from(value).map_or(Head::Big(value), Head::Int)
            }
            0xd0 => Head::Int(i64::from(self.array::<1>()?[0] as i8)),
            0xd1 => Head::Int(i64::from(i16::from_be_bytes(self.array()?))),
            0xd2 => Head::Int(i64::from(i32::from_be_bytes(self.array()?))),
            0xd3 => Head::Int(i64::from_be_bytes(self.array()?)),
            0xd4..=0xd8 => {
                let kind = self.array::<1>()?[0] as i8;
                Head::Ext(kind, self.there(1 << (byte - 0xd4))?)
            }
            0xd9 => Head::Str(self.len8()?),
            0xda => Head::Str(self.len16()?),
            0xdb => Head::Str(self.len32()?),
            0xdc => Head::Array(usize::from(u16::from_be_bytes(self.array()?))),
            0xdd => Head::Array(u32::from_be_bytes(self.array()?) as usize),
            0xde => Head::Map(usize::from(u16::from_be_bytes(self.array()?))),
            0xdf => Head::Map(u32::from_be_bytes(self.array()?) as usize),
        })
    }

    fn len8(&mut self) -> Result<usize, Fault> {
        let len = usize::from(self.array::<1>()?[0]);
        self.there(len)
    }

    fn len16(&mut self) -> Result<usize, Fault> {
        let len = usize::from(u16::from_be_bytes(self.array()?));
        self.there(len)
    }

    fn len32(&mut self) -> Result<usize, Fault> {
        let len = u32::from_be_bytes(self.array()?) as usize;
        self.there(len)
    }

    fn ext(&mut self, width: usize) -> Result<Head, Fault> {
        let len = self.take(width)?.iter().fold(0usize, |len, byte| len << 8 | usize::from(*byte));
        let kind = self.array::<1>()?[0] as i8;
        Ok(Head::Ext(kind, self.there(len)?))
    }

    /// The bytes of a string or bin, else None; the position is then behind the value in both cases.
    pub fn text(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        let start = self.pos;
        match self.head()? {
            Head::Str(len) | Head::Bin(len) => self.take(len).map(Some),
            _ => {
                self.pos = start;
                self.skip()?;
                Ok(None)
            }
        }
    }

    /// Steps over one value.
    pub fn skip(&mut self) -> Result<(), Fault> {
        let mut scan = Scan::value(self.pos);
        match scan.advance(self.data) {
            Ok(true) => {
                self.pos = scan.pos;
                Ok(())
            }
            Ok(false) => Err(Fault::Truncated),
            Err(fault) => Err(fault),
        }
    }

    /// The bytes of the next value, stepped over.
    pub fn value(&mut self) -> Result<&'a [u8], Fault> {
        let start = self.pos;
        self.skip()?;
        Ok(&self.data[start..self.pos])
    }
}

/// A resumable walk to the end of a number of values: it counts what is still owed, so it needs no stack, and goes on where it stopped
/// when more bytes are there. Every byte is looked at once; contents of str, bin and ext are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The next head to read; may lie behind the bytes that are there.
    pub pos: usize,
    /// Values still to pass.
    pub owed: u64,
}

impl Scan {
    /// A walk over one value that begins at `pos`.
    pub fn value(pos: usize) -> Self {
        Self { pos, owed: 1 }
    }

    /// Goes on; true at the end of the last value, false when the bytes end before it.
    #[inline]
    pub fn advance(&mut self, data: &[u8]) -> Result<bool, Fault> {
        let (mut pos, mut owed) = (self.pos, self.owed);
        let result = loop {
            if owed == 0 {
                break Ok(pos <= data.len());
            }
            let Some(&byte) = data.get(pos) else { break Ok(false) };
            let (width, content, inner) = match byte {
                0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => (1, 0, 0),
                0xa0..=0xbf => (1, usize::from(byte & 31), 0),
                0x80..=0x8f => (1, 0, u64::from(byte & 15) * 2),
                0x90..=0x9f => (1, 0, u64::from(byte & 15)),
                0xc1 => break Err(Fault::Reserved),
                0xca | 0xce | 0xd2 => (5, 0, 0),
                0xcb | 0xcf | 0xd3 => (9, 0, 0),
                0xcc | 0xd0 => (2, 0, 0),
                0xcd | 0xd1 => (3, 0, 0),
                0xd4..=0xd8 => (2, 1 << (byte - 0xd4), 0),
                _ => {
                    let wide = |at: usize, n: usize| {
                        data.get(at..at + n).map(|bytes| bytes.iter().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte)))
                    };
                    let n = match byte {
                        0xc4 | 0xc7 | 0xd9 => 1,
                        0xc5 | 0xc8 | 0xda | 0xdc | 0xde => 2,
                        _ => 4,
                    };
                    let Some(len) = wide(pos + 1, n) else { break Ok(false) };
                    match byte {
                        0xdc | 0xdd => (1 + n, 0, len as u64),
                        0xde | 0xdf => (1 + n, 0, len as u64 * 2),
                        0xc7..=0xc9 => (2 + n, len, 0),
                        _ => (1 + n, len, 0),
                    }
                }
            };
            pos += width + content;
            owed = (owed - 1).saturating_add(inner);
        };
        (self.pos, self.owed) = (pos, owed);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_of_a_hundred_thousand_costs_no_stack() {
        let mut data = vec![0x91; 100_000];
        data.push(0xc0);
        let mut cursor = Cursor::new(&data, 0);
        assert_eq!(cursor.skip(), Ok(()));
        assert_eq!(cursor.pos, data.len());
    }

    #[test]
    fn a_scan_goes_on_where_the_bytes_ended() {
        let data = [0x82, 0xa1, b'a', 0xda, 0, 3, b'x', b'y', b'z', 0xa1, b'b', 0xcb, 0, 0, 0, 0, 0, 0, 0, 0];
        for cut in 0..data.len() {
            let mut scan = Scan::value(0);
            assert_eq!(scan.advance(&data[..cut]), Ok(false), "cut at {cut}");
            assert_eq!(scan.advance(&data), Ok(true));
            assert_eq!(scan.pos, data.len());
        }
    }

    #[test]
    fn a_length_of_four_gigabytes_is_refused_before_memory_is_taken() {
        let data = [0xdb, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        assert_eq!(Cursor::new(&data, 0).head(), Err(Fault::Truncated));
        let data = [0xc9, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        assert_eq!(Cursor::new(&data, 0).head(), Err(Fault::Truncated));
    }
}
