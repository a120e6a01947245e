//! `forward_to_otlp`: frames of 1000 ConnectorLogger records to OTLP request bytes, and its two halves.
//!
//! Each case checks what it made before it is timed. Left out: sockets, compression, Python; `bench/core_driver.py` compares the same work
//! with msgpack-python.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use emp_core::batch::Batch;
use emp_core::fluent::decoder::{Decoder, Limits};
use emp_core::normalize::Normalizer;
use emp_core::otlp::encode::encode;

const RECORDS: usize = 1000;
const NOW_UNIX_NANO: i64 = 1_800_000_000_000_000_000;

/// xorshift64*: the same records in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        len @ 0..32 => out.push(0xa0 | len as u8),
        len => out.extend_from_slice(&[0xd9, len as u8]),
    }
    out.extend_from_slice(text.as_bytes());
}

/// An entry of about 380 bytes; `sometimes` adds the fields that only some records have.
fn entry(random: &mut Random, out: &mut Vec<u8>, machines: &[String], sometimes: bool) {
    let ms = random.below(60_000);
    let seconds = 1_799_999_000 + ms / 1000;
    out.extend_from_slice(&[0x92, 0xd7, 0]);
    out.extend_from_slice(&(seconds as u32).to_be_bytes());
    out.extend_from_slice(&((ms % 1000 * 1_000_000) as u32).to_be_bytes());
    let extra = sometimes && random.below(4) == 0;
    let (worker, level) = (random.below(4), ["debug", "info", "info", "info", "info", "warn", "error"][random.below(7) as usize]);
    out.extend_from_slice(&[0xde, 0, if extra { 17 } else { 15 }]);
    let texts = [
        ("timestamp", format!("2027-01-15T07:5{}:{:02}.{:03}Z", random.below(10), ms / 1000, ms % 1000)),
        ("level", level.to_owned()),
        ("message", format!("sampling step {} of {}", random.below(100), random.below(100))),
        ("machine_id", machines[random.below(machines.len() as u64) as usize].clone()),
        ("worker_id", format!("worker-{worker:03}")),
        ("service_type", "comfyui".to_owned()),
        ("connector_id", format!("comfyui-gpu{worker}")),
        ("event_type", "job_progress".to_owned()),
        ("job_id", format!("job-{:016x}{:016x}", random.next(), random.next())),
        ("job_status", "processing".to_owned()),
    ];
    for (key, text) in &texts {
        put_str(out, key);
        put_str(out, text);
    }
    if extra {
        put_str(out, "model");
        put_str(out, "flux-dev-fp8");
        put_str(out, "resource_allocation");
        out.push(0x82);
        put_str(out, "gpu");
        out.push(1);
        put_str(out, "memory");
        put_str(out, "24GB");
    }
    put_str(out, "progress");
    out.push(random.below(101) as u8);
    put_str(out, "duration_ms");
    out.push(0xcb);
    out.extend_from_slice(&(random.below(60_000) as f64 / 8.0).to_be_bytes());
    put_str(out, "queue_position");
    out.push(random.below(100) as u8);
    put_str(out, "trace_id");
    put_str(out, &format!("{:016x}{:016x}", random.next(), random.next()));
    put_str(out, "span_id");
    put_str(out, &format!("{:016x}", random.next()));
}

fn frame(seed: u64, machines: usize, sometimes: bool) -> Vec<u8> {
    let mut random = Random(seed);
    let machines: Vec<String> = (0..machines).map(|_| format!("gpu-{:08x}", random.next() as u32)).collect();
    let mut body = Vec::new();
    for _ in 0..RECORDS {
        entry(&mut random, &mut body, &machines, sometimes);
    }
    let mut frame = vec![0x93];
    put_str(&mut frame, "worker.comfyui");
    frame.push(0xc6);
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(&body);
    frame.push(0x81);
    put_str(&mut frame, "size");
    frame.extend_from_slice(&[0xcd, (RECORDS >> 8) as u8, RECORDS as u8]);
    frame
}

fn decode(decoder: &mut Decoder, frame: &[u8]) -> Batch {
    let read = decoder.feed(frame, NOW_UNIX_NANO);
    read.batch.expect("the frame has rows")
}

fn forward_to_otlp(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward_to_otlp");
    group.throughput(Throughput::Elements(RECORDS as u64));
    for (name, machines, sometimes) in [("one_worker", 1, false), ("160_workers", 40, false), ("160_workers_varying_fields", 40, true)] {
        let frame = frame(7, machines, sometimes);
        let mut decoder = Decoder::new(Arc::new(Normalizer::default()), Limits::default());
        let batch = decode(&mut decoder, &frame);
        assert_eq!((batch.len(), batch.resources.len()), (RECORDS, machines * 4));
        assert!(encode(&[&batch]).len() > RECORDS * 200);
        group.bench_function(format!("{name}/decode"), |bencher| bencher.iter(|| black_box(decode(&mut decoder, black_box(&frame)))));
        group.bench_function(format!("{name}/encode"), |bencher| bencher.iter(|| black_box(encode(&[black_box(&batch)]))));
        group.bench_function(format!("{name}/both"), |bencher| {
            bencher.iter(|| black_box(encode(&[&decode(&mut decoder, black_box(&frame))])))
        });
    }
    group.finish();
}

criterion_group!(benches, forward_to_otlp);
criterion_main!(benches);
