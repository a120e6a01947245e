//! What one read of a connection completed.

use crate::batch::Batch;
use crate::block::Block;
use crate::error::ErrorKind;
use crate::normalize::json::put_str;

/// The most bytes of an unusable piece that are kept.
pub const MAX_REJECTED_BYTES: usize = 1 << 20;

/// The most pieces of one read that are kept apart. Further ones join the last of their kind: a body of a million bad bytes is one dead
/// letter then, not a million.
pub const MAX_REJECTED_PIECES: usize = 256;

/// A chunk that asks for an ack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The id as the sender wrote it.
    pub id: Vec<u8>,
    /// The encoded answer: the id is echoed verbatim, str as str and bin as bin; JSON to a sender of JSON.
    pub ack: Vec<u8>,
    /// Its rows in this read's batch: the first, and the one behind the last.
    pub row_start: usize,
    /// Equal to `row_start` when its rows came out in earlier reads, or it has none.
    pub row_end: usize,
    /// Which of the blocks it is.
    pub block_index: Option<usize>,
}

/// How an id came, and so how it is echoed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdForm {
    /// msgpack str
    Str,
    /// msgpack bin
    Bin,
    /// a JSON string
    Json,
}

/// The encoded ack of a chunk id.
pub fn ack(id: &[u8], form: IdForm) -> Vec<u8> {
    match form {
        IdForm::Json => {
            let id = serde_json::Value::from(String::from_utf8_lossy(id).into_owned());
            format!("{{\"ack\":{id}}}").into_bytes()
        }
        IdForm::Str => {
            let mut out = vec![0x81, 0xa3, b'a', b'c', b'k'];
            put_str(&mut out, id);
            out
        }
        IdForm::Bin => {
            let mut out = vec![0x81, 0xa3, b'a', b'c', b'k', 0xc6];
            out.extend_from_slice(&(id.len() as u32).to_be_bytes());
            out.extend_from_slice(id);
            out
        }
    }
}

/// Bytes that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Why.
    pub kind: ErrorKind,
    /// Why, in a few words.
    pub detail: String,
    /// Where, from the connection's first byte; for an entry of a compressed body, where that begins.
    pub offset: u64,
    /// The bytes, [`MAX_REJECTED_BYTES`] at most.
    pub data: Vec<u8>,
    /// The records that are lost with them, as far as known; at least 1.
    pub records: u64,
}

impl Rejected {
    /// One with a bounded copy of `data`.
    pub fn new(kind: ErrorKind, detail: impl Into<String>, offset: u64, data: &[u8]) -> Self {
        Self { kind, detail: detail.into(), offset, data: data[..data.len().min(MAX_REJECTED_BYTES)].to_vec(), records: 1 }
    }
}

/// What one read completed. Counts and rows of frames that go on are in the reads in which they were decoded.
#[derive(Debug, Default)]
pub struct Read {
    /// The rows of all frames.
    pub batch: Option<Batch>,
    /// Blocks from another emp-pipe.
    pub blocks: Vec<Block>,
    /// The chunks to be acknowledged once all of this read, and of those before, is safe.
    pub chunks: Vec<Chunk>,
    /// What could not be used.
    pub rejected: Vec<Rejected>,
    /// Records, the rejected ones included, those of `blocks` too.
    pub received: u64,
    /// Frames that ended.
    pub frames: u64,
    /// The outer frame cannot be followed; nothing more can be read from this connection.
    pub fatal: Option<Rejected>,
    /// Blocks from a peer that may send none: neither kept nor acknowledged.
    pub foreign_blocks: u64,
    /// Arrival minus record time, the least over the rows that have a time of their own; 0 without one.
    pub min_age_ns: i64,
    /// Records whose identity stayed on them because the batch had too many resources.
    pub resources_over_limit: u64,
    /// Bytes looked at, each as often as it was: linear in what arrived, however it was cut.
    pub looked_at_bytes: u64,
    /// The decoder stopped at the size of a batch with more to do: call it again with no new bytes.
    pub more: bool,
}

impl Read {
    /// Adds bytes that could not be used, and that `records` are lost with them.
    pub fn reject(&mut self, kind: ErrorKind, detail: &str, offset: u64, data: &[u8], records: u64) {
        self.received += records;
        set_aside(&mut self.rejected, kind, detail, offset, data, records);
    }
}

/// Adds bytes that could not be used to a list of a bounded number of pieces.
pub fn set_aside(pieces: &mut Vec<Rejected>, kind: ErrorKind, detail: &str, offset: u64, data: &[u8], records: u64) {
    if pieces.len() >= MAX_REJECTED_PIECES {
        // Few kinds exist, so the last of this kind is among the last few pieces, or the list grows by one.
        if let Some(last) = pieces.iter_mut().rev().take(8).find(|piece| piece.kind == kind) {
            let room = MAX_REJECTED_BYTES - last.data.len();
            last.data.extend_from_slice(&data[..data.len().min(room)]);
            last.records += records;
            return;
        }
    }
    let mut piece = Rejected::new(kind, detail, offset, data);
    piece.records = records;
    pieces.push(piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_bad_entries_are_few_pieces_and_all_counted() {
        let mut read = Read::default();
        for offset in 0..1_000_000 {
            read.reject(ErrorKind::EntryInvalid, "an entry is an array", offset, b"\0\0\0", 1);
        }
        read.reject(ErrorKind::BodyInvalid, "the body ends in its middle", 1_000_000, b"torn", 3);
        assert_eq!(read.rejected.len(), MAX_REJECTED_PIECES + 1);
        assert_eq!(read.received, 1_000_003);
        assert_eq!(read.rejected.iter().map(|piece| piece.records).sum::<u64>(), 1_000_003);
        assert!(read.rejected.iter().all(|piece| piece.data.len() <= MAX_REJECTED_BYTES));
        assert_eq!(read.rejected[0].data, b"\0\0\0", "the first ones keep their bytes for themselves");
    }
}
