//! What holds for every stream of Fluent Forward: cuts do not matter, no bytes panic, every entry is a row or counted.

use std::sync::Arc;

use emp_core::batch::Batch;
use emp_core::compress::{Codec, compress};
use emp_core::error::ErrorKind;
use emp_core::fluent::decoder::{Decoder, Limits};
use emp_core::fluent::msgpack::{put_array_head, put_bin, put_f64, put_int, put_map_head, put_nil, put_str};
use emp_core::fluent::read::{Chunk, Read, Rejected};
use emp_core::normalize::Normalizer;
use emp_core::otlp::encode::encode;
use proptest::prelude::*;

const NOW: i64 = 1_800_000_000_000_000_000;

type Record = Vec<(String, Value)>;

#[derive(Clone, Debug)]
enum Value {
    Nil,
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Map(Record),
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Nil => put_nil(out),
        Value::Int(value) => put_int(out, *value),
        Value::Float(value) => put_f64(out, *value),
        Value::Text(text) => put_str(out, text.as_bytes()),
        Value::Bytes(bytes) => put_bin(out, bytes),
        Value::List(values) => {
            put_array_head(out, values.len());
            values.iter().for_each(|value| put_value(out, value));
        }
        Value::Map(record) => put_record(out, record),
    }
}

fn put_record(out: &mut Vec<u8>, record: &Record) {
    put_map_head(out, record.len());
    for (key, value) in record {
        put_str(out, key.as_bytes());
        put_value(out, value);
    }
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_map(Value::Float),
        "[ -~é]{0,40}".prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::List),
            proptest::collection::vec(("[a-c]{1,2}", inner), 0..3).prop_map(Value::Map),
        ]
    })
}

fn records() -> impl Strategy<Value = Record> {
    let key = prop_oneof![
        Just("message".to_owned()),
        Just("level".to_owned()),
        Just("machine_id".to_owned()),
        Just("job_id".to_owned()),
        "[a-f]{1,3}"
    ];
    proptest::collection::vec((key, values()), 0..6)
}

#[derive(Clone, Debug)]
struct Message {
    mode: u8,
    entries: Vec<(u32, Record)>,
    chunk: Option<String>,
}

fn put_entry(out: &mut Vec<u8>, (seconds, record): &(u32, Record), with_metadata: bool) {
    put_array_head(out, 2);
    if with_metadata {
        put_array_head(out, 2);
    }
    out.extend_from_slice(&[0xd7, 0]);
    out.extend_from_slice(&seconds.to_be_bytes());
    out.extend_from_slice(&7u32.to_be_bytes());
    if with_metadata {
        put_map_head(out, 0);
    }
    put_record(out, record);
}

fn put_options(out: &mut Vec<u8>, message: &Message) {
    match &message.chunk {
        Some(chunk) => {
            put_map_head(out, 1);
            put_str(out, b"chunk");
            put_str(out, chunk.as_bytes());
        }
        None => put_nil(out),
    }
}

fn put_message(out: &mut Vec<u8>, message: &Message) {
    match message.mode {
        0 => {
            for (seconds, record) in &message.entries {
                put_array_head(out, 4);
                put_str(out, b"app");
                put_int(out, i64::from(*seconds));
                put_record(out, record);
                put_options(out, message);
            }
            return;
        }
        1 => {
            put_array_head(out, 3);
            put_str(out, b"app");
            put_array_head(out, message.entries.len());
            message.entries.iter().for_each(|entry| put_entry(out, entry, true));
        }
        mode => {
            put_array_head(out, 3);
            put_str(out, b"app");
            let mut body = Vec::new();
            message.entries.iter().for_each(|entry| put_entry(&mut body, entry, false));
            let codec = [Codec::None, Codec::Gzip, Codec::Zstd][usize::from(mode - 2)];
            put_bin(out, &compress(codec, 1, &body));
        }
    }
    put_options(out, message);
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let entries = proptest::collection::vec((1u32..0xffff_fff0, records()), 0..5);
    let message = (0u8..5, entries, proptest::option::of("[a-z]{1,4}")).prop_map(|(mode, entries, chunk)| Message { mode, entries, chunk });
    proptest::collection::vec(message, 1..4)
}

fn stream_of(messages: &[Message]) -> Vec<u8> {
    let mut out = Vec::new();
    messages.iter().for_each(|message| put_message(&mut out, message));
    out
}

/// A stream, now and then with a few bytes changed.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop_oneof![Just(Vec::new()), proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)];
    (messages(), changes).prop_map(|(messages, changes)| {
        let mut stream = stream_of(&messages);
        for (at, byte) in changes.into_iter().filter(|_| !stream.is_empty()).collect::<Vec<_>>() {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        stream
    })
}

/// What a stream came to.
#[derive(Debug, Default, PartialEq)]
struct Told {
    rows: Vec<Vec<u8>>,
    acks: Vec<Vec<u8>>,
    rejected: Vec<Rejected>,
    fatal: Option<(ErrorKind, u64)>,
    received: u64,
}

impl Told {
    fn add(&mut self, read: Read) {
        self.rows.extend(read.batch.iter().flat_map(rows_of));
        self.acks.extend(read.chunks.into_iter().map(|Chunk { ack, .. }| ack));
        self.rejected.extend(read.rejected);
        self.received += read.received;
        self.fatal = self.fatal.or(read.fatal.map(|fatal| (fatal.kind, fatal.offset)));
    }
}

/// Each row as a request of its own: with its resource and scope.
fn rows_of(batch: &Batch) -> Vec<Vec<u8>> {
    (0..batch.len()).map(|row| encode(&[&batch.slice(row, row + 1)])).collect()
}

fn decoder(limits: &Limits) -> Decoder {
    Decoder::new(Arc::new(Normalizer::default()), limits.clone())
}

fn told(limits: &Limits, pieces: &[&[u8]]) -> Told {
    let mut decoder = decoder(limits);
    let mut told = Told::default();
    for piece in pieces {
        let mut read = decoder.feed(piece, NOW);
        while std::mem::take(&mut read.more) {
            told.add(std::mem::replace(&mut read, decoder.received(0, NOW)));
        }
        told.add(read);
        if told.fatal.is_some() {
            break;
        }
    }
    told
}

fn cut<'a>(stream: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = stream;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at((*size).min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

fn tight() -> Limits {
    Limits {
        max_frame_bytes: 2000,
        max_inflated_bytes: 300,
        max_entry_bytes: 60,
        max_depth: 2,
        stream_above_bytes: 50,
        accept_blocks: true,
    }
}

proptest! {
    #[test]
    fn it_does_not_matter_where_a_stream_is_cut(stream in streams(), sizes in proptest::collection::vec(1..60usize, 1..10)) {
        let whole = told(&Limits::default(), &[&stream]);
        let cut = told(&Limits::default(), &cut(&stream, &sizes));
        prop_assert_eq!(whole, cut);
    }

    #[test]
    fn frames_decoded_as_they_arrive_give_the_rows_and_acks_of_frames_that_were_waited_for(
        messages in messages(), sizes in proptest::collection::vec(1..60usize, 1..10)
    ) {
        let stream = stream_of(&messages);
        let waited = told(&Limits::default(), &[&stream]);
        let streamed = told(&Limits { stream_above_bytes: 0, ..Limits::default() }, &cut(&stream, &sizes));
        prop_assert_eq!(waited, streamed);
    }

    #[test]
    fn no_bytes_panic_and_the_books_balance(
        stream in prop_oneof![streams(), proptest::collection::vec(any::<u8>(), 0..200)],
        sizes in proptest::collection::vec(1..60usize, 1..10),
        limits in prop_oneof![Just(tight()), Just(Limits::default())],
    ) {
        let told = told(&limits, &cut(&stream, &sizes));
        let rejected: u64 = told.rejected.iter().map(|rejected| rejected.records).sum();
        prop_assert_eq!(told.received, told.rows.len() as u64 + rejected + u64::from(told.fatal.is_some()));
    }

    #[test]
    fn every_message_that_is_valid_gives_all_its_rows_and_one_ack(messages in messages()) {
        let told = told(&Limits::default(), &[&stream_of(&messages)]);
        let entries: usize = messages.iter().map(|message| message.entries.len()).sum();
        let asked = |message: &Message| if message.mode == 0 { message.entries.len() } else { 1 };
        let acks: usize = messages.iter().filter(|message| message.chunk.is_some()).map(asked).sum();
        prop_assert_eq!((told.rows.len(), told.acks.len(), told.rejected.len()), (entries, acks, 0));
    }
}

#[test]
fn work_grows_with_the_bytes_and_not_with_the_cuts() {
    let record = |text: String| vec![("message".to_owned(), Value::Text(text)), ("list".to_owned(), Value::List(vec![Value::Nil; 50]))];
    let many: Vec<(u32, Record)> = (1..2000).map(|second| (second, record("x".repeat(60)))).collect();
    let one_long = vec![(1, vec![("list".to_owned(), Value::List(vec![Value::Text("abc".to_owned()); 100_000]))])];
    for (mode, entries) in [(1, &many), (2, &many), (3, &many), (1, &one_long), (2, &one_long), (0, &one_long)] {
        let stream = stream_of(&[Message { mode, entries: entries.clone(), chunk: None }]);
        for (stream_above_bytes, piece) in [(8 << 20, 7), (8 << 20, 1000), (1000, 7), (1000, 1000)] {
            let mut decoder = decoder(&Limits { stream_above_bytes, ..Limits::default() });
            let mut rows = 0;
            let mut looked_at_bytes = 0;
            for piece in stream.chunks(piece) {
                let read = decoder.feed(piece, NOW);
                rows += read.batch.map_or(0, |batch| batch.len());
                looked_at_bytes += read.looked_at_bytes;
            }
            assert_eq!(rows, entries.len());
            let plain_bytes = if mode == 3 { 130 * entries.len() } else { stream.len() };
            assert!(looked_at_bytes < 4 * plain_bytes as u64, "mode {mode}, {piece} bytes a read: {looked_at_bytes} for {plain_bytes}");
        }
    }
}
