//! The head of a message (tag and what kind of body follows) and its options.

use super::cursor::{Cursor, Fault, Head};
use super::inflate::Compression;
use super::read::IdForm;

/// The tag of a frame that carries a block between two emp-pipes.
pub const BLOCK_TAG: &[u8] = b"emp.block";

/// What a message's second element says about its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// `[tag, time, record, option?]`: the time begins there.
    Message,
    /// `[tag, [entry, …], option?]`: so many entries.
    Forward(usize),
    /// `[tag, bytes, option?]`: so many bytes of entries, one after another.
    Packed(usize),
}

/// A message up to its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start<'a> {
    /// The tag.
    pub tag: &'a [u8],
    /// The mode.
    pub body: Body,
    /// Elements of the message.
    pub elements: usize,
    /// Where the body begins: its time, its first entry, or its bytes.
    pub body_at: usize,
}

/// What is wrong with a message whose end can still be found.
pub type Misshapen = &'static str;

/// Reads a message up to its body. Only the head of a packed body need be there.
pub fn start(data: &[u8], pos: usize) -> Result<Result<Start<'_>, Misshapen>, Fault> {
    let mut cursor = Cursor::new(data, pos);
    let Head::Array(elements) = cursor.head()? else { return Ok(Err("a message is an array")) };
    if !(2..=4).contains(&elements) {
        return Ok(Err("a message has two to four elements"));
    }
    let tag = match cursor.head()? {
        Head::Str(len) | Head::Bin(len) => cursor.take(len)?,
        _ => return Ok(Err("a message begins with its tag")),
    };
    let body = match cursor.peek()? {
        0x90..=0x9f | 0xdc | 0xdd => match cursor.head()? {
            Head::Array(count) => Body::Forward(count),
            _ => Body::Message,
        },
        0xa0..=0xbf | 0xc4..=0xc6 | 0xd9..=0xdb => Body::Packed(packed_len(&mut cursor)?),
        _ => Body::Message,
    };
    if body == Body::Message && elements < 3 {
        return Ok(Err("a message of two elements has entries as its second"));
    }
    if body != Body::Message && elements > 3 {
        return Ok(Err("a message with entries has two or three elements"));
    }
    Ok(Ok(Start { tag, body, elements, body_at: cursor.pos }))
}

/// The length of a str or bin that need not be there yet.
fn packed_len(cursor: &mut Cursor<'_>) -> Result<usize, Fault> {
    let head = cursor.take(1)?[0];
    let width = match head {
        0xa0..=0xbf => return Ok(usize::from(head & 31)),
        0xc4 | 0xd9 => 1,
        0xc5 | 0xda => 2,
        _ => 4,
    };
    Ok(cursor.take(width)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)))
}

/// A message's options; what is not known or of a wrong type is as if it were not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The chunk id and how it came.
    pub chunk: Option<(Vec<u8>, IdForm)>,
    /// What the sender says of the body.
    pub compression: Option<Compression>,
    /// What the sender says, where it is neither of the known ones nor "text".
    pub unknown_compression: bool,
    /// Other than logs.
    pub other_signal: bool,
    /// A block's header.
    pub block_header: Option<Vec<u8>>,
    /// The number of entries, a hint.
    pub size: Option<u64>,
    /// Message mode: what stands beside the time.
    pub metadata: Option<Vec<u8>>,
}

/// Reads the options (nil, or a map).
pub fn options(cursor: &mut Cursor<'_>) -> Result<Options, Fault> {
    let mut options = Options::default();
    let start = cursor.pos;
    let Head::Map(count) = cursor.head()? else {
        cursor.pos = start;
        cursor.skip()?;
        return Ok(options);
    };
    for _ in 0..count {
        let key = cursor.text()?.unwrap_or_default();
        let value = cursor.value()?;
        let mut inner = Cursor::new(value, 0);
        let head = inner.head()?;
        match (key, head) {
            (b"chunk", Head::Str(_)) => options.chunk = Some((value[inner.pos..].to_vec(), IdForm::Str)),
            (b"chunk", Head::Bin(_)) => options.chunk = Some((value[inner.pos..].to_vec(), IdForm::Bin)),
            (b"compressed", Head::Str(_) | Head::Bin(_)) => match &value[inner.pos..] {
                b"gzip" => options.compression = Some(Compression::Gzip),
                b"zstd" => options.compression = Some(Compression::Zstd),
                other => options.unknown_compression = !matches!(other, b"text" | b""),
            },
            (b"fluent_signal", Head::Int(signal)) => options.other_signal = signal != 0,
            (b"emp_block", Head::Str(_) | Head::Bin(_)) => options.block_header = Some(value[inner.pos..].to_vec()),
            (b"size", Head::Int(size)) => options.size = u64::try_from(size).ok(),
            (b"metadata", Head::Map(_)) => options.metadata = Some(value.to_vec()),
            _ => {}
        }
    }
    Ok(options)
}
