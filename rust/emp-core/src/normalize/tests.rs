//! All ways of writing a row give the same row.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Builder, Envelope, Normalizer};
use crate::fluent::msgpack::{put_array_head, put_bin, put_bool, put_f64, put_int, put_map_head, put_nil, put_str};

const NOW: i64 = 1_800_000_000_000_000_000;

const KEYS: [&str; 34] = [
    "timestamp",
    "@timestamp",
    "time",
    "level",
    "severity",
    "severity_number",
    "message",
    "msg",
    "log",
    "trace_id",
    "traceId",
    "span_id",
    "traceparent",
    "machine_id",
    "machineId",
    "worker_id",
    "service_type",
    "service",
    "service.name",
    "hostname",
    "job_id",
    "jobId",
    "event_type",
    "duration_ms",
    "duration",
    "error",
    "err",
    "stack",
    "exception.message",
    "connectorId",
    "a",
    "b",
    "a_key_of_thirty_one_characters_",
    "a key that is too long to be remembered by its connection, so it is looked up",
];

const TEXTS: [&str; 14] = [
    "info",
    "WARN",
    "30",
    "2027-01-15T08:00:00.123Z",
    "1800000000123",
    "4bf92f3577b34da6a3ce929d0e0e4736",
    "00f067aa0ba902b7",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "00000000000000000000000000000000",
    "gpu-1",
    "{\"a\": 1, \"level\": \"warn\"}",
    "level=warn msg=\"b c\"",
    "",
    "Grüße",
];

/// An encoded value.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let encode = |put: fn(&mut Vec<u8>, i64), value| {
        let mut out = Vec::new();
        put(&mut out, value);
        out
    };
    prop_oneof![
        4 => proptest::sample::select(&TEXTS[..]).prop_map(|text| {
            let mut out = Vec::new();
            put_str(&mut out, text.as_bytes());
            out
        }),
        2 => "[ -~]{0,300}".prop_map(|text| {
            let mut out = Vec::new();
            put_str(&mut out, text.as_bytes());
            out
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(|text| {
            let mut out = Vec::new();
            put_str(&mut out, &text);
            out
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| {
            let mut out = Vec::new();
            put_bin(&mut out, &bytes);
            out
        }),
        2 => any::<i64>().prop_map(move |value| encode(put_int, value)),
        2 => (0..30i64).prop_map(move |value| encode(put_int, value)),
        1 => (0..2i64).prop_map(move |value| encode(|out, value| put_bool(out, value == 1), value)),
        1 => any::<u32>().prop_map(move |value| encode(|out, value| put_f64(out, value as f64 / 8.0), i64::from(value))),
        1 => Just(vec![0xc0]),
        1 => any::<u64>().prop_map(|value| [&[0xcf][..], &value.to_be_bytes()].concat()),
        1 => Just(vec![0xd7, 0, 0x6b, 0x49, 0xd2, 0, 0, 0, 0, 7]),
        1 => (0..20usize, any::<u8>()).prop_map(|(count, seed)| {
            let mut out = Vec::new();
            put_map_head(&mut out, count);
            for index in 0..count {
                put_str(&mut out, format!("k{}", index % (usize::from(seed) % 7 + 1)).as_bytes());
                put_array_head(&mut out, 2);
                put_int(&mut out, index as i64);
                put_nil(&mut out);
            }
            out
        }),
    ]
}

fn record() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![9 => proptest::sample::select(&KEYS[..]).prop_map(str::to_owned), 1 => "[a-zé]{1,4}"];
    proptest::collection::vec((key, value()), 0..18).prop_map(|fields| {
        let mut out = Vec::new();
        put_map_head(&mut out, fields.len());
        for (key, value) in fields {
            put_str(&mut out, key.as_bytes());
            out.extend_from_slice(&value);
        }
        out
    })
}

fn builder(max_resources: usize) -> Builder {
    let stamp = vec![("machine_id".to_owned(), "gpu-stamp".to_owned()), ("host.name".to_owned(), "here".to_owned())];
    let rules = Normalizer::new(stamp, &[("gpuBox".to_owned(), "machine_id".to_owned())], true, max_resources);
    let mut builder = Builder::new(Arc::new(rules), "test", 4);
    builder.set_now(NOW);
    builder.set_tag(b"app");
    builder
}

proptest! {
    #[test]
    fn the_usual_and_the_careful_way_write_the_same_rows(
        records in proptest::collection::vec((record(), proptest::option::of(1..i64::MAX), 0..300usize), 1..6),
        max_resources in prop_oneof![Just(2), Just(1024)],
        damage in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
        repeat in 1..3usize,
    ) {
        let (mut usual, mut careful, mut alone) = (builder(max_resources), builder(max_resources), builder(max_resources));
        for _ in 0..repeat {
            for (index, (record, time_unix_nano, behind)) in records.iter().enumerate() {
                let mut data = record.clone();
                if let Some((at, byte)) = damage.filter(|_| index == 0) {
                    let at = at.index(data.len());
                    data[at] = byte;
                }
                // What lies behind the record must not matter.
                data.extend(std::iter::repeat_n(0x07, *behind));
                let envelope = Envelope { time_unix_nano: *time_unix_nano, metadata: &[] };
                let ends = (usual.push(&envelope, &data, 0), careful.push_careful(&envelope, &data, 0));
                prop_assert_eq!(ends.0, ends.1);
                let kept = data.clone();
                prop_assert_eq!(alone.push_alone(&envelope, &mut data), ends.0.map(drop));
                prop_assert_eq!(data, kept, "the buffer is left as it was");
            }
        }
        prop_assert_eq!(usual.min_age_ns(), careful.min_age_ns());
        prop_assert_eq!(usual.min_age_ns(), alone.min_age_ns());
        let (alone, alone_over) = alone.take();
        let ((usual, usual_over), (careful, careful_over)) = (usual.take(), careful.take());
        prop_assert_eq!(usual.len(), careful.len());
        prop_assert_eq!((&alone.rows, &alone.resources, alone_over), (&usual.rows, &usual.resources, usual_over));
        prop_assert_eq!(&alone.extremes, &usual.extremes);
        for row in 0..usual.len() {
            prop_assert_eq!(usual.row(row), careful.row(row));
        }
        prop_assert_eq!(usual_over, careful_over);
        prop_assert_eq!(usual.extremes, careful.extremes);
        prop_assert_eq!(&usual.resources, &careful.resources);
        prop_assert_eq!(&usual.scopes, &careful.scopes);
        let (a, b) = (&usual.columns, &careful.columns);
        prop_assert_eq!(&a.time_unix_nano, &b.time_unix_nano);
        prop_assert_eq!(&a.severity_number, &b.severity_number);
        prop_assert_eq!(&a.resource, &b.resource);
        prop_assert_eq!(&a.flags, &b.flags);
        prop_assert_eq!((&a.trace_id, &a.span_id), (&b.trace_id, &b.span_id));
        prop_assert_eq!((&a.body, &a.job_id, &a.event_type), (&b.body, &b.job_id, &b.event_type));
    }
}

#[test]
fn the_usual_record_takes_the_usual_way_also_at_the_end_of_its_buffer() {
    let mut data = Vec::new();
    put_map_head(&mut data, 4);
    for (key, text) in [("timestamp", "2027-01-15T08:00:00.123Z"), ("level", "info"), ("machine_id", "gpu-1"), ("note", "Grüße")] {
        put_str(&mut data, key.as_bytes());
        put_str(&mut data, text.as_bytes());
    }
    let mut builder = builder(1024);
    assert_eq!(builder.push_usual(None, &data, 0), Some(data.len()));
    for cut in 0..data.len() {
        assert_eq!(builder.push_usual(None, &data[..cut], 0), None, "cut at {cut}");
    }
    assert_eq!(builder.len(), 1);
    assert!(builder.push_usual_alone(None, &mut data));
    assert_eq!(builder.len(), 2);
}
