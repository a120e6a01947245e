//! `redact`: batches of 500 log records of about 300 bytes with eight attributes through the rules that the `redact` processor has by default.
//!
//! Clean records, records whose keys or texts have a name of a secret in them without being one, and records of which each holds one.
//! Each case checks what it made before it is timed. Left out: Python.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use emp_core::batch::{Batch, Signal, TableEntry};
use emp_core::otlp::fields::log;
use emp_core::otlp::value::{Scalar, put_key_value, put_scalar};
use emp_core::otlp::wire::put_bytes;
use emp_core::redact::{Redactor, Rules};

const RECORDS: usize = 500;
const KEYS: [&str; 21] = [
    "password",
    "passwords",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "secrets",
    "token",
    "authorization",
    "api_key",
    "access_key",
    "private_key",
    "shared_key",
    "account_key",
    "encryption_key",
    "credential",
    "credentials",
    "cookie",
    "jwt",
    "dsn",
    "connection_string",
];
const PATTERNS: [&str; 8] = ["key_value", "bearer", "aws_key", "jwt", "private_key", "url_password", "sentry_key", "provider_token"];

fn redactor() -> Redactor {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Redactor::new(&Rules {
        keys: owned(&KEYS),
        kept_keys: owned(&["token_type"]),
        patterns: owned(&PATTERNS),
        own_patterns: Vec::new(),
        mask: "[redacted]".to_owned(),
        hash_key: None,
    })
    .expect("the rules are right")
}

/// `key` and `text` are what differs between the cases.
fn batch(key: &str, text: &str) -> Batch {
    let mut out = Batch::new(Signal::Logs);
    out.resources = vec![TableEntry::default()];
    out.scopes = vec![TableEntry::default()];
    let (mut message, mut value) = (Vec::new(), Vec::new());
    for number in 0..RECORDS {
        message.clear();
        value.clear();
        let body = format!("sampling step {number} of 500 took 1.25 s {text}");
        put_scalar(&mut value, Scalar::String(body.as_bytes()));
        put_bytes(&mut message, log::BODY, &value);
        let job = format!("job-{number:08}-4f1c-9d7e-a1b2c3d4e5f6");
        let pairs: [(&str, &str); 7] = [
            ("job_id", &job),
            ("worker_id", "worker-003"),
            ("machine_id", "machine-eu-7"),
            ("service_type", "comfyui"),
            ("connector_id", "comfyui-gpu2"),
            ("event_type", "job_progress"),
            ("timestamp", "2027-01-15T07:52:11.250Z"),
        ];
        for (name, text) in pairs {
            value.clear();
            put_scalar(&mut value, Scalar::String(text.as_bytes()));
            put_key_value(&mut message, log::ATTRIBUTES, name.as_bytes(), &value);
        }
        value.clear();
        put_scalar(&mut value, Scalar::Int(1_000 + number as i64));
        put_key_value(&mut message, log::ATTRIBUTES, key.as_bytes(), &value);
        out.push_message(&message, 0, 0).expect("a record");
    }
    out
}

fn cases(c: &mut Criterion) {
    let redactor = redactor();
    let mut group = c.benchmark_group("redact");
    group.throughput(Throughput::Elements(RECORDS as u64));
    for (case, key, text, masked) in [
        ("clean", "progress", "on the second device", 0),
        ("key_that_is_none", "gen_ai.usage.input_tokens", "on the second device", 0),
        ("text_that_is_none", "progress", "as the token was read", 0),
        ("secret_key", "session_token", "on the second device", RECORDS),
        ("secret_text", "progress", "by password=hunter2hunter2", RECORDS),
    ] {
        let batch = batch(key, text);
        let redacted = redactor.batch(&batch).expect("a batch");
        assert_eq!(redacted.counts.iter().sum::<u64>(), masked as u64, "{case}");
        assert_eq!(redacted.batch.is_some(), masked > 0, "{case}");
        group.bench_function(case, |b| b.iter(|| redactor.batch(black_box(&batch)).expect("a batch")));
    }
    group.finish();
    println!("bytes of a clean record: {}", batch("progress", "on the second device").rows.len() / RECORDS);
}

criterion_group!(benches, cases);
criterion_main!(benches);
