//! Bytes from outside never panic, wherever they are taken: requests, blocks and their headers, and every use of the rows that came out.

use emp_core::batch::rewrite::Target;
use emp_core::batch::values::{Attribute, Values};
use emp_core::batch::{Batch, Signal};
use emp_core::block::{Header, decode_block, encode_block, halve, merge_blocks};
use emp_core::compress::Codec;
use emp_core::error::ErrorKind;
use emp_core::fluent::encode::encode;
use emp_core::json_lines::json_lines;
use emp_core::limits::DestinationLimits;
use emp_core::otlp::decode::{decode, decode_foreign};
use emp_core::otlp::value::Scalar;
use emp_core::selection::Selection;
use proptest::prelude::*;

fn signals() -> impl Strategy<Value = Signal> {
    prop_oneof![Just(Signal::Logs), Just(Signal::Traces), Just(Signal::Metrics)]
}

fn codecs() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::None), Just(Codec::Gzip), Just(Codec::Zstd)]
}

/// Bytes that look like protobuf here and there: small tags and lengths, so that nested messages come up.
fn likely_bytes() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        4 => (1..16u8, 0..20u8).prop_map(|(number, len)| vec![number << 3 | 2, len]),
        1 => (1..16u8, any::<u64>()).prop_map(|(number, value)| [vec![number << 3 | 1], value.to_le_bytes().to_vec()].concat()),
        // A body, and attributes that have columns of their own.
        1 => Just(b"\x2a\x03\x0a\x01b".to_vec()),
        1 => Just(b"\x32\x0d\x0a\x06job_id\x12\x03\x0a\x01j".to_vec()),
        1 => Just(b"\x32\x11\x0a\x0aevent_type\x12\x03\x0a\x01e".to_vec()),
        1 => (1..16u8, any::<u8>()).prop_map(|(number, value)| vec![number << 3, value & 0x7f]),
        1 => proptest::collection::vec(any::<u8>(), 0..8),
    ];
    proptest::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat())
}

/// A request whose rows are such bytes.
fn request() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(likely_bytes(), 0..4).prop_map(|rows| {
        let mut scope_rows = Vec::new();
        for row in rows {
            put(&mut scope_rows, 2, &row);
        }
        let mut resource_rows = Vec::new();
        put(&mut resource_rows, 2, &scope_rows);
        let mut request = Vec::new();
        put(&mut request, 1, &resource_rows);
        request
    })
}

fn put(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    emp_core::otlp::wire::put_bytes(out, number, bytes);
}

/// Everything that can be done with a batch; errors are fine, panics are not.
fn use_all(batch: &Batch) {
    let limits = DestinationLimits {
        max_age_ns: 1,
        max_ahead_ns: 1,
        max_body_bytes: 4,
        max_log_attributes: 1,
        max_span_attributes: 1,
        max_span_events: 1,
        max_trace_spans: 1,
        max_key_bytes: 4,
        max_value_bytes: 4,
    };
    let _ = json_lines(batch);
    let _ = encode(batch, Codec::None, "c", "tag");
    let _ = batch.to_arrow(None);
    let _ = limits.apply(batch, 5);
    let _ = DestinationLimits { max_age_ns: 0, max_ahead_ns: 0, ..limits }.apply(batch, 5);
    let selection = Selection::new(Some(r#"{"attributes": {"a": "1"}, "tags": ["**"], "min_severity": "info"}"#), None).unwrap();
    let _ = selection.of_rows(batch);
    let attribute = Attribute { key: b"a".to_vec(), values: Values::scalar(Scalar::Int(1)) };
    let _ = batch.with_attributes(std::slice::from_ref(&attribute), Target::Resource, true);
    let _ = batch.with_attributes(&[attribute], Target::Record, true);
    let _ = batch.without_attributes(&[b"a".to_vec()]);
    let half = batch.filter(|row| row % 2 == 0);
    assert_eq!(half.len(), batch.len().div_ceil(2));
    let block = encode_block(&[batch, &half], Codec::Zstd, 1, "t", "b").unwrap();
    assert_eq!(block.header.records, batch.record_count() + half.record_count());
    let again = decode_block(&block.header, &block.payload, 1 << 20).expect("what we wrote");
    assert_eq!(again.len(), batch.len() + half.len());
    // The columns of a selection say what a fresh look at its rows says.
    for (row, selected) in (0..half.len()).map(|row| (row, &half)).chain((0..batch.len()).map(|row| (row, batch))) {
        let fresh = if std::ptr::eq(selected, batch) { row } else { batch.len() + row };
        let columns = [&selected.columns, &again.columns].map(|columns| [&columns.body, &columns.job_id, &columns.event_type]);
        for (ours, theirs) in columns[0].iter().zip(columns[1]) {
            assert_eq!(selected.view(ours[row]), again.view(theirs[fresh]));
        }
        assert_eq!(selected.columns.flags[row], again.columns.flags[fresh]);
        assert_eq!(selected.columns.time_unix_nano[row], again.columns.time_unix_nano[fresh]);
        assert_eq!(selected.message(row), again.message(fresh));
    }
    let merged = merge_blocks(&[(&block.header, &block.payload), (&block.header, &block.payload)], Codec::Gzip, "m").unwrap();
    assert_eq!(merged.header.records, 2 * block.header.records);
    let halves = halve(&block.header, &block.payload, ["x", "y"]).unwrap();
    match halves {
        Some(halves) => assert_eq!(halves.iter().map(|half| half.header.records).sum::<u64>(), again.record_count()),
        None => assert!(again.len() < 2),
    }
}

proptest! {
    #[test]
    fn requests_of_arbitrary_bytes(data in proptest::collection::vec(any::<u8>(), 0..200), signal in signals(), codec in codecs()) {
        let _ = decode_foreign(signal, &data, codec, 1 << 16, ErrorKind::BodyInvalid);
    }

    #[test]
    fn rows_of_likely_bytes_and_every_use_of_them(data in request(), signal in signals()) {
        // Unchecked, as a block's payload is: what lies deeper in a row may be anything.
        if let Ok(batch) = decode(signal, &data, ErrorKind::BlockInvalid) {
            use_all(&batch);
        }
        if let Ok(batch) = decode_foreign(signal, &data, Codec::None, 1 << 16, ErrorKind::BodyInvalid) {
            prop_assert!(json_lines(&batch).is_ok(), "a checked row can be written");
            use_all(&batch);
        }
    }

    #[test]
    fn headers_of_arbitrary_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Header::parse(&data);
    }

    #[test]
    fn headers_that_lie(
        payload in proptest::collection::vec(any::<u8>(), 0..100), signal in signals(), codec in codecs(), size: u64, records: u64
    ) {
        let mut header = encode_block(&[&Batch::new(signal)], codec, 1, "t", "b").unwrap().header;
        header.uncompressed_bytes = size;
        header.records = records;
        prop_assert_eq!(Header::parse(&header.to_bytes()).unwrap(), header.clone());
        let _ = decode_block(&header, &payload, 1 << 16);
        let _ = merge_blocks(&[(&header, &payload), (&header, &payload)], Codec::None, "m");
        let _ = halve(&header, &payload, ["x", "y"]);
    }
}
