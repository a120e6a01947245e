//! The one-pass reading says what reading by descriptors says, and no request makes items vanish.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::keys::ERROR;
use super::usual::{self, Log};
use super::usual_point::is_usual;
use super::{Decoder, Encoding, Read};
use crate::batch::{Extremes, Signal};
use crate::compress::Codec;
use crate::error::ErrorKind;
use crate::normalize::Normalizer;
use crate::otlp::decode::decode_foreign;
use crate::otlp::descriptors::{LOG, METRIC, SPAN, inner};
use crate::otlp::encode::encode;
use crate::otlp::scan::scan_row;
use crate::otlp::validate::validate;
use crate::otlp::wire::{Reader, put_bytes, put_fixed64, put_uint, put_varint};

const NOW: i64 = 1_800_000_000_000_000_000;

fn field(number: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, number, payload);
    out
}

fn uint(number: u32, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_uint(&mut out, number, value);
    out
}

fn fixed64(number: u32, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_fixed64(&mut out, number, value);
    out
}

fn fixed32(number: u32, value: u32) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, u64::from(number) << 3 | 5);
    out.extend_from_slice(&value.to_le_bytes());
    out
}

/// Text that SDKs write, that means something to the rules, or that is none.
fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "job_id", "jobId", "event_type", "level", "message", "machine_id", "worker_id", "traceId", "traceparent", "error", "timestamp",
            "INFO", "warn", "{\"message\":\"inner\",\"a\":1}", "a=1 b=2", "", "4bf92f3577b34da6a3ce929d0e0e4736", "http.method",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        2 => "[a-zé]{0,200}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..40),
    ]
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        4 => text().prop_map(|text| field(1, &text)),
        1 => any::<bool>().prop_map(|value| uint(2, u64::from(value))),
        1 => any::<u64>().prop_map(|value| uint(3, value)),
        1 => any::<u64>().prop_map(|value| fixed64(4, value)),
        1 => vec(any::<u8>(), 0..20).prop_map(|bytes| field(7, &bytes)),
        1 => Just(Vec::new()),
        1 => vec(any::<u8>(), 0..8),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(|values| field(5, &values.iter().flat_map(|value| field(1, value)).collect::<Vec<_>>())),
            vec((text(), inner.clone()), 0..3)
                .prop_map(|pairs| { field(6, &pairs.iter().flat_map(|(key, value)| field(1, &pair(key, value))).collect::<Vec<_>>()) }),
            // Two fields of the oneof.
            (inner.clone(), inner).prop_map(|(first, second)| [first, second].concat()),
        ]
    })
}

fn pair(key: &[u8], value: &[u8]) -> Vec<u8> {
    [field(1, key), field(2, value)].concat()
}

fn attribute(number: u32) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => (text(), any_value()).prop_map(move |(key, value)| field(number, &pair(&key, &value))),
        1 => (text(), any_value()).prop_map(move |(key, value)| field(number, &[field(2, &value), field(1, &key)].concat())),
        1 => vec(any::<u8>(), 0..12).prop_map(move |bytes| field(number, &bytes)),
    ]
}

fn id() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 16), vec(any::<u8>(), 8), Just(vec![0; 16]), Just(vec![0; 8]), vec(any::<u8>(), 0..20)]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..30u64, Just(NOW as u64), any::<u64>()]
}

fn log() -> impl Strategy<Value = Vec<u8>> {
    let one = prop_oneof![
        4 => attribute(6),
        2 => number().prop_map(|value| fixed64(1, value)),
        2 => number().prop_map(|value| fixed64(11, value)),
        2 => number().prop_map(|value| uint(2, value)),
        2 => text().prop_map(|text| field(3, &text)),
        2 => any_value().prop_map(|value| field(5, &value)),
        1 => number().prop_map(|value| uint(7, value)),
        1 => any::<u32>().prop_map(|value| fixed32(8, value)),
        1 => id().prop_map(|id| field(9, &id)),
        1 => id().prop_map(|id| field(10, &id)),
        1 => text().prop_map(|text| field(12, &text)),
        1 => any::<u32>().prop_map(|value| fixed32(1000, value)),
        1 => vec(any::<u8>(), 0..6),
    ];
    vec(one, 0..8).prop_map(|fields| fields.concat())
}

fn span() -> impl Strategy<Value = Vec<u8>> {
    let event = (vec(attribute(3), 0..2), text()).prop_map(|(attributes, name)| [field(2, &name), attributes.concat()].concat());
    let link =
        (id(), id(), vec(attribute(4), 0..2)).prop_map(|(a, b, attributes)| [field(1, &a), field(2, &b), attributes.concat()].concat());
    let status = (text(), 0..4u64).prop_map(|(text, code)| [field(2, &text), uint(3, code)].concat());
    let one = prop_oneof![
        3 => attribute(9),
        1 => id().prop_map(|id| field(1, &id)),
        1 => id().prop_map(|id| field(2, &id)),
        1 => id().prop_map(|id| field(4, &id)),
        2 => text().prop_map(|text| field(5, &text)),
        1 => text().prop_map(|text| field(3, &text)),
        1 => number().prop_map(|value| uint(6, value)),
        1 => number().prop_map(|value| fixed64(7, value)),
        1 => number().prop_map(|value| fixed64(8, value)),
        1 => event.prop_map(|event| field(11, &event)),
        1 => link.prop_map(|link| field(13, &link)),
        2 => status.prop_map(|status| field(15, &status)),
        1 => any::<u32>().prop_map(|value| fixed32(16, value)),
        1 => vec(any::<u8>(), 0..6),
    ];
    let ids = [field(1, &[1; 16]), field(2, &[2; 8])].concat();
    vec(one, 0..8).prop_map(move |fields| [ids.clone(), fields.concat()].concat())
}

fn point() -> impl Strategy<Value = Vec<u8>> {
    let exemplar = (vec(attribute(7), 0..2), id(), number())
        .prop_map(|(attributes, id, time)| [attributes.concat(), field(5, &id), fixed64(2, time)].concat());
    let one = prop_oneof![
        3 => attribute(7),
        3 => attribute(9),
        4 => (prop::sample::select(vec![2u32, 3, 4, 5, 6, 11, 12]), number()).prop_map(|(field, value)| fixed64(field, value)),
        2 => (prop::sample::select(vec![6u32, 7]), vec(any::<u8>(), 0..20)).prop_map(|(number, packed)| field(number, &packed)),
        2 => (prop::sample::select(vec![8u32, 10]), number()).prop_map(|(field, value)| uint(field, value)),
        1 => (prop::sample::select(vec![5u32, 8]), exemplar).prop_map(|(number, exemplar)| field(number, &exemplar)),
        1 => vec(any::<u8>(), 0..4),
    ];
    vec(one, 0..6).prop_map(|fields| fields.concat())
}

fn metric() -> impl Strategy<Value = Vec<u8>> {
    let point = prop_oneof![
        3 => (vec(attribute(7), 0..2), number()).prop_map(|(attributes, value)| [fixed64(6, value), attributes.concat()].concat()),
        1 => vec(any::<u8>(), 0..8),
    ];
    let data = (prop::sample::select(vec![5u32, 7, 9, 10, 11]), vec(point, 0..4))
        .prop_map(|(number, points)| field(number, &points.iter().flat_map(|point| field(1, point)).collect::<Vec<_>>()));
    (text(), vec(data, 0..2), vec(any::<u8>(), 0..2)).prop_map(|(name, data, rest)| [field(1, &name), data.concat(), rest].concat())
}

fn request(rows: &[Vec<u8>]) -> Vec<u8> {
    let rows: Vec<u8> = rows.iter().flat_map(|row| field(2, row)).collect();
    field(1, &field(2, &rows))
}

fn read(signal: Signal, data: &[u8], encoding: Encoding) -> Option<Read> {
    let rules = Normalizer::new(vec![("machine_id".into(), "m".into())], &[], true, 4);
    Decoder::new(Arc::new(rules), signal, 1 << 20).decode(data, Codec::None, encoding, NOW).ok()
}

/// Nothing vanishes, and what is kept can be read by whoever gets it.
fn check(signal: Signal, read: &Read) -> Result<(), TestCaseError> {
    let kept = read.batch.as_ref().map_or(0, |batch| batch.record_count());
    prop_assert_eq!(read.received, kept + read.rejected_items);
    prop_assert_eq!(read.rejected.iter().map(|piece| piece.records).sum::<u64>(), read.rejected_items);
    if let Some(batch) = &read.batch {
        let again = decode_foreign(signal, &encode(&[batch]), Codec::None, 1 << 22, ErrorKind::BodyInvalid);
        prop_assert_eq!(again.map(|again| again.record_count()), Ok(kept));
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_log_record_read_in_one_pass_is_the_one_read_by_descriptors(message in log(), base in 0..1000usize) {
        let rules = Normalizer::default();
        let (mut ours, mut theirs) = (Extremes::default(), Extremes::default());
        if let Some((facts, log)) = usual::log(&message, base, rules.keys(), &mut ours) {
            prop_assert_eq!(validate(Reader::at(&message, base), &LOG, 97), Ok(()));
            let expected = scan_row(Signal::Logs, &message, base, &mut theirs).unwrap();
            prop_assert_eq!(format!("{facts:?} {ours:?}"), format!("{expected:?} {theirs:?}"));
            let of = Log::of(Reader::new(&message), rules.keys());
            // A map is only told from text in the one pass.
            prop_assert_eq!(Log { roles: log.roles & !ERROR, ..log }, Log { roles: of.roles & !ERROR, ..of });
        }
    }

    #[test]
    fn a_span_read_in_one_pass_is_the_one_read_by_descriptors(message in span(), base in 0..1000usize) {
        let (mut ours, mut theirs) = (Extremes::default(), Extremes::default());
        if let Some(facts) = usual::span(&message, base, &mut ours) {
            prop_assert_eq!(validate(Reader::at(&message, base), &SPAN, 97), Ok(()));
            let expected = scan_row(Signal::Traces, &message, base, &mut theirs).unwrap();
            prop_assert_eq!(format!("{facts:?} {ours:?}"), format!("{expected:?} {theirs:?}"));
        }
    }

    #[test]
    fn a_data_point_that_is_usual_is_whole(point in point(), data in prop::sample::select(vec![5u32, 7, 9, 10, 11])) {
        if is_usual(data, &point) {
            let descriptors = inner(inner(&METRIC, data), 1);
            prop_assert_eq!(validate(Reader::new(&point), descriptors, 95), Ok(()));
        }
    }

    #[test]
    fn log_records_are_kept_or_set_aside_one_by_one(rows in vec(log(), 0..5)) {
        let read = read(Signal::Logs, &request(&rows), Encoding::Protobuf).expect("the framing is whole");
        prop_assert_eq!(read.received, rows.len() as u64);
        check(Signal::Logs, &read)?;
    }

    #[test]
    fn spans_are_kept_or_set_aside_one_by_one(rows in vec(span(), 0..5)) {
        let read = read(Signal::Traces, &request(&rows), Encoding::Protobuf).expect("the framing is whole");
        prop_assert_eq!(read.received, rows.len() as u64);
        check(Signal::Traces, &read)?;
    }

    #[test]
    fn data_points_are_kept_or_set_aside_one_by_one(rows in vec(metric(), 0..5)) {
        check(Signal::Metrics, &read(Signal::Metrics, &request(&rows), Encoding::Protobuf).expect("the framing is whole"))?;
    }

    #[test]
    fn a_byte_changed_in_one_record_costs_no_other(rows in vec(log(), 1..5), at: prop::sample::Index, byte: u8) {
        let good: Vec<_> = rows.into_iter().filter(|row| validate(Reader::new(row), &LOG, 97).is_ok()).collect();
        let mut changed = good.clone();
        let Some(row) = changed.iter_mut().find(|row| !row.is_empty()) else { return Ok(()) };
        let index = at.index(row.len());
        row[index] = byte;
        let read = read(Signal::Logs, &request(&changed), Encoding::Protobuf).expect("the framing is whole");
        prop_assert_eq!(read.received, good.len() as u64);
        prop_assert!(read.rejected_items <= 1);
        check(Signal::Logs, &read)?;
    }

    #[test]
    fn cut_and_changed_requests_never_panic(
        rows in vec(prop_oneof![log(), span(), metric()], 1..4), cut: prop::sample::Index, at: prop::sample::Index, byte: u8
    ) {
        let mut data = request(&rows);
        data.truncate(cut.index(data.len() + 1));
        if !data.is_empty() {
            let index = at.index(data.len());
            data[index] = byte;
        }
        for signal in [Signal::Logs, Signal::Traces, Signal::Metrics] {
            for encoding in [Encoding::Protobuf, Encoding::Json] {
                if let Some(read) = read(signal, &data, encoding) {
                    check(signal, &read)?;
                }
            }
        }
    }

    #[test]
    fn json_of_likely_text_never_panics_and_loses_no_item(text in json_text()) {
        for (signal, name, rows) in [(Signal::Logs, "Logs", "logRecords"), (Signal::Traces, "Spans", "spans"), (Signal::Metrics, "Metrics", "metrics")] {
            let request = format!("{{\"resource{name}\":[{{\"scope{name}\":[{{\"{rows}\":[{text},{text}]}}]}}]}}");
            if let Some(read) = read(signal, request.as_bytes(), Encoding::Json) {
                check(signal, &read)?;
            }
        }
        if let Some(read) = read(Signal::Logs, text.as_bytes(), Encoding::Json) {
            check(Signal::Logs, &read)?;
        }
    }
}

/// JSON that is near to OTLP's, now and then cut or with a byte too many.
fn json_text() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "key",
        "value",
        "stringValue",
        "intValue",
        "doubleValue",
        "arrayValue",
        "kvlistValue",
        "values",
        "bytesValue",
        "boolValue",
        "body",
        "attributes",
        "traceId",
        "spanId",
        "timeUnixNano",
        "gauge",
        "sum",
        "dataPoints",
        "asInt",
        "bucketCounts",
        "histogram",
        "flags",
        "resourceLogs",
        "scopeLogs",
        "logRecords",
        "resource",
        "name",
        "status",
        "code",
        "time_unix_nano",
    ]);
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("\"\"".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| format!("\"{number}\"")),
        any::<f64>().prop_map(|number| number.to_string()),
        "[a-z\\\\\"é{}]{0,8}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just("\"4bf92f3577b34da6a3ce929d0e0e4736\"".to_owned()),
        Just("\"00f067aa0ba902b7\"".to_owned()),
        "[\\[\\]{}\",:0-9a-z\\\\ -]{0,6}",
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(|values| format!("[{}]", values.join(","))),
            vec((key.clone(), inner), 0..4).prop_map(|pairs| {
                let members: Vec<_> = pairs.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}
