//! Which shard of a log a row belongs to, and a block cut into the parts of several shards.
//!
//! Spans go by trace id, metrics by their stream's resource and name, log records by job id (else worker, else machine). So all that one
//! deriver has to see together lies in one shard, whoever received it. The number is the same in every process and every version: shards
//! outlive both. Source: the sharding rules of `docs/decisions/001-log.md`.

use std::borrow::Cow;

use crate::aggregate::with_sorted_attributes;
use crate::batch::{Batch, Signal, TableEntry};
use crate::block::{Block, Header, MAX_OWN_BYTES, decode_block, encode_block};
use crate::error::CoreError;
use crate::otlp::decode::string_attribute;
use crate::otlp::fields::resource;
use crate::otlp::wire::{Reader, WireError, for_each_field};

/// `Metric.name`.
const METRIC_NAME: u32 = 1;
/// What a log record belongs to where it names no job.
const IDENTITIES: [&[u8]; 2] = [b"worker_id", b"machine_id"];

/// A part of a block: its shard, its header, whose id is the whole's with `.<shard>` behind it, and its payload, which may be the whole's.
pub type Part<'a> = (u32, Header, Cow<'a, [u8]>);

/// A block in parts, one for each shard that has rows, by shard. A block whose rows all belong to one shard is that part as it lies.
pub fn split<'a>(header: &Header, payload: &'a [u8], shards: u32) -> Result<Vec<Part<'a>>, CoreError> {
    let batch = decode_block(header, payload, MAX_OWN_BYTES)?;
    let shard_of_row = shards_of(&batch, shards.max(1));
    let id = |shard: u32| format!("{}.{shard}", header.block_id);
    let mut used: Vec<u32> = shard_of_row.clone();
    used.sort_unstable();
    used.dedup();
    if let [] | [_] = used[..] {
        let shard = used.first().copied().unwrap_or(0);
        return Ok(vec![(shard, Header { block_id: id(shard), ..header.clone() }, Cow::Borrowed(payload))]);
    }
    used.into_iter()
        .map(|shard| {
            let rows = batch.filter(|row| shard_of_row[row] == shard);
            let Block { header: mut part, payload } = encode_block(&[&rows], header.codec, 1, &header.topic, &id(shard))?;
            part.decided = header.decided;
            part.red_done = header.red_done;
            part.aggregated = header.aggregated;
            Ok((shard, part, Cow::Owned(payload)))
        })
        .collect()
}

/// The shard of each row.
fn shards_of(batch: &Batch, shards: u32) -> Vec<u32> {
    let nothing = Hash::START.and(&[]);
    // What the resource says is read and hashed once for each, not for every row.
    let of_resource = |entry: &TableEntry| match batch.signal {
        Signal::Traces => nothing,
        Signal::Metrics => Hash::START.and(&with_sorted_attributes(&entry.message, resource::ATTRIBUTES)),
        Signal::Logs => {
            let found = IDENTITIES.iter().find_map(|key| string_attribute(&entry.message, resource::ATTRIBUTES, key));
            Hash::START.and(found.unwrap_or_default())
        }
    };
    let of_resources: Vec<Hash> = batch.resources.iter().map(of_resource).collect();
    (0..batch.len())
        .map(|row| {
            let shared = of_resources.get(batch.columns.resource[row] as usize).copied().unwrap_or(nothing);
            let hash = match batch.signal {
                Signal::Traces => Hash::START.and(&batch.columns.trace_id[row]),
                Signal::Metrics => shared.and(metric_name(batch.message(row))),
                Signal::Logs => match batch.view(batch.columns.job_id[row]) {
                    Some(job_id) if !job_id.is_empty() => Hash::START.and(job_id),
                    _ => shared,
                },
            };
            hash.shard(shards)
        })
        .collect()
}

/// The name that counts: the last one, as protobuf merges. What cannot be read has none.
fn metric_name(message: &[u8]) -> &[u8] {
    let mut name: &[u8] = &[];
    let _ = for_each_field(Reader::new(message), |field| {
        if field.number == METRIC_NAME {
            name = field.bytes().unwrap_or_default();
        }
        Ok::<(), WireError>(())
    });
    name
}

/// FNV-1a of the parts so far, each with a byte behind it that ends it.
/// Without a key: the number must be the same in every process. Who chooses ids that collide makes one shard busier, and no more.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    const START: Self = Self(0xcbf2_9ce4_8422_2325);

    fn and(self, part: &[u8]) -> Self {
        let more = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self(part.iter().chain(&[0xff]).fold(self.0, more))
    }

    /// Mixed first, so that the low bits depend on all.
    fn shard(self, shards: u32) -> u32 {
        let mut hash = self.0;
        hash ^= hash >> 33;
        hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
        ((hash ^ hash >> 33) % u64::from(shards)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Codec;
    use crate::otlp::fields::{log, span};
    use crate::otlp::value::{Scalar, put_key_value, put_scalar};
    use crate::otlp::wire::put_bytes;

    fn value(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put_scalar(&mut out, Scalar::String(text.as_bytes()));
        out
    }

    fn resource_of(attributes: &[(&str, &str)]) -> TableEntry {
        let mut message = Vec::new();
        for (key, text) in attributes {
            put_key_value(&mut message, resource::ATTRIBUTES, key.as_bytes(), &value(text));
        }
        TableEntry { message, ..TableEntry::default() }
    }

    fn batch_of(signal: Signal, resources: &[TableEntry], rows: &[(u32, Vec<u8>)]) -> Batch {
        let mut batch = Batch { resources: resources.to_vec(), scopes: vec![TableEntry::default()], ..Batch::new(signal) };
        for (resource, message) in rows {
            batch.push_message(message, *resource, 0).unwrap();
        }
        batch
    }

    fn span_of(trace: u8) -> Vec<u8> {
        let mut message = Vec::new();
        put_bytes(&mut message, span::TRACE_ID, &[trace; 16]);
        put_bytes(&mut message, span::SPAN_ID, &[1; 8]);
        message
    }

    fn metric_of(name: &str) -> Vec<u8> {
        let mut message = Vec::new();
        put_bytes(&mut message, METRIC_NAME, name.as_bytes());
        message
    }

    fn log_of(job: Option<&str>) -> Vec<u8> {
        let mut message = Vec::new();
        put_bytes(&mut message, log::BODY, &value("x"));
        if let Some(job) = job {
            put_key_value(&mut message, log::ATTRIBUTES, b"job_id", &value(job));
        }
        message
    }

    #[test]
    fn the_shard_of_an_id_is_the_same_for_ever() {
        // Rows of one trace lie in shards that older versions chose: these numbers never change.
        let batch = batch_of(Signal::Traces, &[TableEntry::default()], &(0..8).map(|id| (0, span_of(id))).collect::<Vec<_>>());
        assert_eq!(shards_of(&batch, 4), [2, 0, 0, 1, 3, 0, 1, 3]);
    }

    #[test]
    fn the_shard_of_a_metric_and_of_a_log_record_is_the_same_for_ever_too() {
        let resources = [resource_of(&[("service.name", "s"), ("a", "1")]), resource_of(&[("worker_id", "w1")]), TableEntry::default()];
        let metrics: Vec<_> = (0..9).map(|row: u32| (row % 3, metric_of(&format!("m{row}")))).collect();
        assert_eq!(shards_of(&batch_of(Signal::Metrics, &resources, &metrics), 1000), [935, 666, 931, 547, 829, 102, 618, 799, 710]);
        let logs: Vec<_> = (0..6).map(|row: u32| (row % 3, log_of((row < 3).then_some("j")))).collect();
        assert_eq!(shards_of(&batch_of(Signal::Logs, &resources, &logs), 1000), [907, 907, 907, 933, 794, 933]);
    }

    #[test]
    fn the_parts_of_a_block_are_its_rows_each_once_all_of_a_trace_together() {
        let rows: Vec<_> = (0..200).map(|row: u8| (0, span_of(row % 50))).collect();
        let batch = batch_of(Signal::Traces, &[TableEntry::default()], &rows);
        let mut whole = encode_block(&[&batch], Codec::Zstd, 1, "traces.in", "b").unwrap();
        whole.header.red_done = true;
        let parts = split(&whole.header, &whole.payload, 4).unwrap();
        assert_eq!(parts.iter().map(|(shard, ..)| *shard).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let mut seen = std::collections::HashMap::new();
        for (shard, header, payload) in &parts {
            assert_eq!(header.block_id, format!("b.{shard}"));
            assert!(header.red_done && !header.decided);
            for trace_id in &decode_block(header, payload, MAX_OWN_BYTES).unwrap().columns.trace_id {
                assert_eq!(*seen.entry(*trace_id).or_insert(*shard), *shard);
            }
        }
        assert_eq!(parts.iter().map(|(_, header, _)| header.records).sum::<u64>(), 200);
    }

    #[test]
    fn a_block_of_one_shard_is_its_part_as_it_lies() {
        let batch = batch_of(Signal::Traces, &[TableEntry::default()], &[(0, span_of(1)), (0, span_of(1))]);
        let whole = encode_block(&[&batch], Codec::Gzip, 1, "traces.in", "b").unwrap();
        let parts = split(&whole.header, &whole.payload, 16).unwrap();
        let [(_, header, Cow::Borrowed(payload))] = &parts[..] else { panic!("its payload is copied: {parts:?}") };
        assert_eq!((header.codec, payload.as_ptr(), payload.len()), (Codec::Gzip, whole.payload.as_ptr(), whole.payload.len()));
    }

    #[test]
    fn metrics_go_by_name_and_resource_whatever_the_order_of_its_attributes() {
        let resources = [resource_of(&[("a", "1"), ("b", "2")]), resource_of(&[("b", "2"), ("a", "1")]), resource_of(&[("a", "2")])];
        let rows: Vec<_> = (0..64).flat_map(|name| (0..3).map(move |index| (index, metric_of(&format!("m{name}"))))).collect();
        let shards = shards_of(&batch_of(Signal::Metrics, &resources, &rows), 4);
        assert!(shards.chunks(3).all(|three| three[0] == three[1]));
        assert!(shards.chunks(3).any(|three| three[0] != three[2]));
        assert!((0..4).all(|shard| shards.contains(&shard)));
    }

    #[test]
    fn log_records_go_by_job_else_worker_else_machine() {
        let both = resource_of(&[("worker_id", "w1"), ("machine_id", "m1")]);
        let resources = [both, resource_of(&[("worker_id", "w1")]), resource_of(&[("machine_id", "m1")]), TableEntry::default()];
        let rows: Vec<_> = (0..4).flat_map(|index| [(index, log_of(Some("j"))), (index, log_of(None))]).collect();
        let shards = shards_of(&batch_of(Signal::Logs, &resources, &rows), 1 << 30);
        assert!(shards.iter().step_by(2).all(|shard| *shard == shards[0]));
        assert_eq!(shards[1], shards[3]);
        let distinct: std::collections::HashSet<_> = [shards[0], shards[1], shards[5], shards[7]].into();
        assert_eq!(distinct.len(), 4);
    }

    #[test]
    fn bytes_that_cannot_be_read_are_an_error_and_no_panic() {
        let batch = batch_of(Signal::Traces, &[TableEntry::default()], &[(0, span_of(1))]);
        let whole = encode_block(&[&batch], Codec::None, 1, "traces.in", "b").unwrap();
        for cut in 0..whole.payload.len() {
            assert!(split(&whole.header, &whole.payload[..cut], 4).is_err());
        }
        assert!(split(&whole.header, &whole.payload, 0).is_ok());
    }
}
