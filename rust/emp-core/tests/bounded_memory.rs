//! What bytes from outside may cost in memory, counted by an allocator: a small multiple of themselves, and nothing for longer than needed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use emp_core::aggregate::emit::BlockForm;
use emp_core::aggregate::red::{Red, RedSettings};
use emp_core::aggregate::red_emit::Span;
use emp_core::aggregate::{Aggregator, Settings};
use emp_core::batch::{Batch, Signal, TableEntry};
use emp_core::block::encode_block;
use emp_core::compress::Codec;
use emp_core::otlp::wire::{put_bytes, put_fixed64, put_message, put_uint};

const FORM: BlockForm<'_> = BlockForm { codec: Codec::None, level: 1, topic: "metrics", id_prefix: "b" };

thread_local! {
    /// Bytes that this thread holds, and the most since [`cost_of`] began.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn count(bytes: isize) {
    HELD.set(HELD.get() + bytes);
    MOST.set(MOST.get().max(HELD.get()));
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // As if both were there for a moment: they may be.
        count(size as isize);
        count(-(layout.size() as isize));
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Cost {
    most: usize,
    held_after: usize,
}

fn cost_of<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let before = HELD.get();
    MOST.set(before);
    let done = work();
    let bytes = |now: isize| usize::try_from(now - before).unwrap_or(0);
    (done, Cost { most: bytes(MOST.get()), held_after: bytes(HELD.get()) })
}

fn batch_of(signal: Signal, rows: &[Vec<u8>]) -> Batch {
    let mut batch = Batch::new(signal);
    batch.resources.push(TableEntry::default());
    batch.scopes.push(TableEntry::default());
    rows.iter().for_each(|row| batch.push_message(row, 0, 0).unwrap());
    batch
}

/// A metric with one kind of data (its field) and temporality, and points as they are.
fn metric(data: u32, temporality: u64, points: &[Vec<u8>]) -> Vec<u8> {
    let mut row = Vec::new();
    put_bytes(&mut row, 1, b"m");
    put_message(&mut row, data, |out| {
        points.iter().for_each(|point| put_bytes(out, 1, point));
        put_uint(out, 2, temporality);
    });
    row
}

/// Takes one row twice and flushes it: what a take costs at most, and what is held at the end.
fn aggregated(row: &[u8]) -> Cost {
    let batch = batch_of(Signal::Metrics, &[row.to_vec()]);
    let mut aggregator = Aggregator::new(Settings::default());
    let ((), first) = cost_of(|| drop(aggregator.take(&batch)));
    let ((), all) = cost_of(|| {
        aggregator.take(&batch);
        aggregator.flush(FORM).unwrap();
    });
    Cost { most: first.most, held_after: first.held_after + all.held_after }
}

#[test]
fn a_point_with_a_million_empty_exemplars_costs_little_beside_its_bytes() {
    let point = [[0x2a, 0].repeat(1 << 20), vec![0x31, 1, 0, 0, 0, 0, 0, 0, 0]].concat();
    let row = metric(7, 1, &[point]);
    let cost = aggregated(&row);
    assert!(cost.most < row.len(), "{} bytes for a row of {}", cost.most, row.len());
}

#[test]
fn a_point_with_a_million_buckets_costs_a_small_multiple_of_its_bytes() {
    let mut point = Vec::new();
    put_message(&mut point, 8, |buckets| put_bytes(buckets, 2, &vec![1; 1 << 20]));
    let row = metric(10, 1, &[point]);
    let cost = aggregated(&row);
    assert!(cost.most < 4 * row.len(), "{} bytes for a row of {}", cost.most, row.len());
}

#[test]
fn one_huge_point_does_not_leave_its_memory_behind() {
    let mut exponential = Vec::new();
    put_message(&mut exponential, 8, |buckets| put_bytes(buckets, 2, &vec![0; 1 << 20]));
    let mut histogram = Vec::new();
    put_bytes(&mut histogram, 6, &vec![0; 1 << 20]);
    put_bytes(&mut histogram, 7, &vec![0; (1 << 20) - 8]);
    // Attributes and exemplars in turns: each kind is copied together.
    let scattered = [[0x2a, 0, 0x3a, 2, 0x0a, 0].repeat(1 << 17), vec![0x31, 1, 0, 0, 0, 0, 0, 0, 0]].concat();
    for (data, point) in [(10, exponential), (9, histogram), (7, scattered)] {
        let batch = batch_of(Signal::Metrics, &[metric(data, 1, &[point])]);
        let small = batch_of(Signal::Metrics, &[metric(data, 1, &[Vec::new()])]);
        let mut aggregator = Aggregator::new(Settings { idle_windows: 1, ..Settings::default() });
        let ((), cost) = cost_of(|| {
            aggregator.take(&batch);
            aggregator.flush(FORM).unwrap();
            aggregator.take(&small);
            aggregator.flush(FORM).unwrap();
            aggregator.take(&small);
            aggregator.flush(FORM).unwrap();
        });
        assert!(cost.held_after < 1 << 18, "{} bytes are held for data {data}", cost.held_after);
    }
}

#[test]
fn an_aggregator_knows_its_size_also_where_points_do_not_join() {
    // No temporality: every point is kept as it lies.
    let points: Vec<Vec<u8>> = (0..2000)
        .map(|_| {
            let mut point = Vec::new();
            put_bytes(&mut point, 6, &[1; 4096]);
            point
        })
        .collect();
    let batch = batch_of(Signal::Metrics, &[metric(9, 0, &points)]);
    let mut aggregator = Aggregator::new(Settings::default());
    let ((), cost) = cost_of(|| drop(aggregator.take(&batch)));
    assert!(aggregator.size_bytes() > cost.held_after / 2, "{} said, {} held", aggregator.size_bytes(), cost.held_after);
}

#[test]
fn long_span_names_are_not_held_from_one_flush_to_the_next() {
    let spans: Vec<Vec<u8>> = (0..64u8)
        .map(|number| {
            let mut span = Vec::new();
            put_bytes(&mut span, 1, &[number + 1; 16]);
            put_bytes(&mut span, 2, &[number + 1; 8]);
            put_bytes(&mut span, 5, &vec![b'a' + number % 26; 1 << 15 | usize::from(number)]);
            put_fixed64(&mut span, 7, 1);
            span
        })
        .collect();
    let block = encode_block(&[&batch_of(Signal::Traces, &spans)], Codec::Zstd, 1, "traces", "b").unwrap();
    let settings = RedSettings {
        namespace: "traces".into(),
        bounds: None,
        milliseconds: false,
        dimensions: Vec::new(),
        max_names: 1000,
        max_exemplars: 1,
    };
    let mut red = Red::new(settings);
    let ((), cost) = cost_of(|| {
        red.take(&block.header, &block.payload, 1 << 30, 1).unwrap();
        red.flush(FORM, Span { start_unix_nano: 1, end_unix_nano: 2 }).unwrap();
    });
    assert!(cost.held_after < 1 << 18, "{} bytes are held", cost.held_after);
}
