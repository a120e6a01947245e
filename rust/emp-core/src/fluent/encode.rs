//! Batches to PackedForward messages, one tag each, and a block to the message that carries it between two emp-pipes.

use std::borrow::Cow;

use super::msgpack::{put_array_head, put_bin, put_bin_head, put_event_time, put_int, put_map_head, put_str};
use super::record::Records;
use crate::batch::{Batch, Signal, tag_of};
use crate::block::Header;
use crate::compress::{Codec, compress};
use crate::error::{CoreError, ErrorKind};

/// Entries of one message, uncompressed: under Fluent Bit's limit of 6,144,000 bytes a message. A single larger record is sent alone.
const MAX_BODY_BYTES: usize = 4 << 20;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardFrame {
    /// Its tag.
    pub tag: Vec<u8>,
    /// Its chunk id: what the ack names.
    pub chunk: String,
    /// The message.
    pub data: Vec<u8>,
    /// Its entries.
    pub records: usize,
}

struct Body<'a> {
    tag: Cow<'a, [u8]>,
    entries: Vec<u8>,
    records: usize,
}

/// The messages of a batch of logs. Rows without a tag get `default_tag`. The first has the chunk id `chunk`, the others `<chunk>.<n>`.
pub fn encode(batch: &Batch, codec: Codec, chunk: &str, default_tag: &str) -> Result<Vec<ForwardFrame>, CoreError> {
    if batch.signal != Signal::Logs {
        let detail = format!("Forward carries logs here, not {}: send those by OTLP", batch.signal.name());
        return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, detail));
    }
    let mut frames = Vec::new();
    let mut finish = |body: Body<'_>| {
        let chunk = if frames.is_empty() { chunk.to_owned() } else { format!("{chunk}.{}", frames.len()) };
        frames.push(frame(body, codec, chunk));
    };
    let broken = |error: crate::otlp::wire::WireError| error.of_kind(ErrorKind::BodyInvalid);
    let mut records = Records::new(batch).map_err(broken)?;
    let tags: Vec<&[u8]> = batch.scopes.iter().map(|scope| tag_of(scope).unwrap_or(default_tag.as_bytes())).collect();
    let mut open: Vec<Body<'_>> = Vec::new();
    for row in 0..batch.len() {
        let tag = tags[batch.columns.scope[row] as usize];
        let index = match open.iter().position(|body| *body.tag == *tag) {
            Some(index) => index,
            None => {
                open.push(Body { tag: Cow::Borrowed(tag), entries: Vec::new(), records: 0 });
                open.len() - 1
            }
        };
        let body = &mut open[index];
        let before = body.entries.len();
        put_entry(&mut body.entries, batch.columns.time_unix_nano[row], &mut records, row).map_err(broken)?;
        body.records += 1;
        if body.entries.len() > MAX_BODY_BYTES && body.records > 1 {
            let entry = body.entries.split_off(before);
            let full = std::mem::replace(body, Body { tag: Cow::Borrowed(tag), entries: entry, records: 1 });
            finish(Body { records: full.records - 1, ..full });
        }
    }
    open.into_iter().for_each(&mut finish);
    Ok(frames)
}

fn put_entry(out: &mut Vec<u8>, time_unix_nano: i64, records: &mut Records<'_>, row: usize) -> Result<(), crate::otlp::wire::WireError> {
    put_array_head(out, 2);
    let (seconds, nanoseconds) = event_time(time_unix_nano).unwrap_or_default();
    put_event_time(out, seconds, nanoseconds);
    records.put(out, row)
}

/// The EventTime of a time; None where it has none: unknown, past 2106, or what Fluent Bit takes for a group marker.
pub(super) fn event_time(time_unix_nano: i64) -> Option<(u32, u32)> {
    let seconds = u32::try_from(time_unix_nano / 1_000_000_000).ok().filter(|seconds| (1..0xffff_fffe).contains(seconds))?;
    Some((seconds, (time_unix_nano % 1_000_000_000) as u32))
}

fn frame(body: Body<'_>, codec: Codec, chunk: String) -> ForwardFrame {
    let packed;
    let entries = match codec {
        Codec::None => &body.entries,
        _ => {
            packed = compress(codec, 1, &body.entries);
            &packed
        }
    };
    let mut data = Vec::with_capacity(entries.len() + body.tag.len() + chunk.len() + 64);
    put_array_head(&mut data, 3);
    put_str(&mut data, &body.tag);
    put_bin(&mut data, entries);
    put_map_head(&mut data, if codec == Codec::None { 2 } else { 3 });
    put_str(&mut data, b"chunk");
    put_str(&mut data, chunk.as_bytes());
    put_str(&mut data, b"size");
    put_int(&mut data, body.records as i64);
    if codec != Codec::None {
        put_str(&mut data, b"compressed");
        put_str(&mut data, codec.name().as_bytes());
    }
    ForwardFrame { tag: body.tag.into_owned(), chunk, data, records: body.records }
}

/// The message that carries a block between two emp-pipes, verbatim: `["emp.block", payload, {"chunk": block id, "emp_block": header,
/// "size": records}]`.
pub fn block_frame(header: &Header, payload: &[u8]) -> Vec<u8> {
    let header_bytes = header.to_bytes();
    let mut data = Vec::with_capacity(payload.len() + header_bytes.len() + header.block_id.len() + 64);
    put_array_head(&mut data, 3);
    put_str(&mut data, b"emp.block");
    put_bin_head(&mut data, payload.len());
    data.extend_from_slice(payload);
    put_map_head(&mut data, 3);
    put_str(&mut data, b"chunk");
    put_str(&mut data, header.block_id.as_bytes());
    put_str(&mut data, b"emp_block");
    put_bin(&mut data, &header_bytes);
    put_str(&mut data, b"size");
    put_int(&mut data, i64::try_from(header.records).unwrap_or(i64::MAX));
    data
}
