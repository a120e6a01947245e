use super::{Filter, RateLimiter};
use crate::batch::{Batch, FLAG_ERROR, Signal, TableEntry};
use crate::otlp::fields::{log, resource, scope};
use crate::otlp::value::{Scalar, put_key_value, put_scalar};
use crate::otlp::wire::{put_bytes, put_uint};

const SECOND: u64 = 1_000_000_000;

fn entry(number: u32, key: &[u8], text: &str) -> TableEntry {
    let (mut message, mut value) = (Vec::new(), Vec::new());
    put_scalar(&mut value, Scalar::String(text.as_bytes()));
    put_key_value(&mut message, number, key, &value);
    TableEntry { message, ..TableEntry::default() }
}

/// Rows: severity, text, attribute `kind`, service (0 or 1), tag (0 or 1).
fn batch(rows: &[(u8, &str, &str, u32, u32)]) -> Batch {
    let mut out = Batch::new(Signal::Logs);
    out.resources = ["api", "worker"].map(|name| entry(resource::ATTRIBUTES, b"service.name", name)).to_vec();
    out.scopes = ["app.one", "app.two"].map(|tag| entry(scope::ATTRIBUTES, b"fluent.tag", tag)).to_vec();
    for (severity, text, kind, service, tag) in rows {
        let (mut message, mut value) = (Vec::new(), Vec::new());
        put_uint(&mut message, log::SEVERITY_NUMBER, u64::from(*severity));
        put_scalar(&mut value, Scalar::String(text.as_bytes()));
        put_bytes(&mut message, log::BODY, &value);
        value.clear();
        put_scalar(&mut value, Scalar::String(kind.as_bytes()));
        put_key_value(&mut message, log::ATTRIBUTES, b"kind", &value);
        out.push_message(&message, *service, *tag).unwrap();
    }
    out
}

fn sample() -> Batch {
    batch(&[(5, "zero", "poll", 0, 0), (9, "GET /health", "poll", 0, 1), (17, "boom", "job", 1, 0), (0, "four", "job", 1, 1)])
}

fn left(batch: Option<&Batch>) -> Vec<String> {
    let Some(batch) = batch else { return Vec::new() };
    batch.columns.body.iter().map(|view| String::from_utf8_lossy(batch.view(*view).unwrap()).into_owned()).collect()
}

#[test]
fn each_condition_chooses_its_rows() {
    for (condition, dropped) in [
        (r#"{"max_severity": "debug"}"#, &["zero"][..]),
        (r#"{"min_severity": "info"}"#, &["GET /health", "boom"]),
        (r#"{"min_severity": "info", "max_severity": "warn"}"#, &["GET /health"]),
        (r#"{"tags": ["app.two"]}"#, &["GET /health", "four"]),
        (r#"{"tags": ["app.*"], "services": ["work*"]}"#, &["boom", "four"]),
        (r#"{"attributes": {"kind": "po*"}}"#, &["zero", "GET /health"]),
        (r#"{"attributes": {"service.name": "api"}}"#, &["zero", "GET /health"]),
        (r#"{"matches": {"body": "^GET /h"}}"#, &["GET /health"]),
        (r#"{"matches": {"kind": "^j.b$"}, "services": ["worker"]}"#, &["boom", "four"]),
        (r#"{"signals": ["traces"]}"#, &[]),
        (r#"{"attributes": {"none": "*"}}"#, &[]),
    ] {
        let filter = Filter::parse(&format!(r#"[{{"name": "it", "where": {condition}, "keep_one_in": 0}}]"#)).unwrap();
        let filtered = filter.apply(&sample()).unwrap();
        let kept: Vec<_> = left(Some(&sample())).into_iter().filter(|text| !dropped.contains(&text.as_str())).collect();
        assert_eq!(filtered.unchanged, dropped.is_empty(), "{condition}");
        if !filtered.unchanged {
            assert_eq!(left(filtered.batch.as_ref()), kept, "{condition}");
        }
        assert_eq!(filtered.dropped, [dropped.len() as u64], "{condition}");
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let filter = Filter::parse(
        r#"[{"name": "keep", "where": {"matches": {"body": "zero"}}, "keep_one_in": 1}, {"name": "drop", "where": {}, "keep_one_in": 0}]"#,
    )
    .unwrap();
    let filtered = filter.apply(&sample()).unwrap();
    assert_eq!(left(filtered.batch.as_ref()), ["zero"]);
    assert_eq!(filtered.dropped, [0, 3]);
}

#[test]
fn one_in_n_is_the_first_of_each_n_over_all_batches() {
    let filter = Filter::parse(r#"[{"name": "few", "where": {}, "keep_one_in": 3}]"#).unwrap();
    let mut kept = Vec::new();
    for start in (0..20).step_by(4) {
        let texts: Vec<_> = (start..start + 4).map(|number| number.to_string()).collect();
        let given = batch(&texts.iter().map(|text| (9, text.as_str(), "", 0, 0)).collect::<Vec<_>>());
        kept.extend(left(filter.apply(&given).unwrap().batch.as_ref()));
    }
    assert_eq!(kept, ["0", "3", "6", "9", "12", "15", "18"]);
}

#[test]
fn what_cannot_be_a_rule_is_named() {
    for (rule, why) in [
        (r#"{"name": "odd", "where": {"max_severity": "loud"}, "keep_one_in": 0}"#, "loud"),
        (r#"{"name": "odd", "where": {"matches": {"body": "("}}, "keep_one_in": 0}"#, "unclosed"),
        (r#"{"name": "odd", "where": {"bodies": []}, "keep_one_in": 0}"#, "bodies"),
    ] {
        let detail = Filter::parse(&format!("[{rule}]")).err().unwrap().detail;
        assert!(detail.contains(why), "{detail}");
    }
}

fn limiter(by: &str, max_buckets: usize) -> RateLimiter {
    let rule = format!(r#"[{{"name": "it", "where": {{}}, "by": "{by}", "records_per_s": 2, "burst": 3, "spare_errors": true}}]"#);
    RateLimiter::parse(&rule, max_buckets).unwrap()
}

#[test]
fn a_burst_passes_and_then_so_many_a_second() {
    let limiter = limiter("all", 10);
    let given = batch(&[(9, "a", "", 0, 0); 5]);
    let kept = |now| limiter.apply(&given, now).unwrap();
    let count = |now| {
        let out = kept(now);
        assert_eq!(out.dropped[0] as usize + left(out.batch.as_ref()).len() + if out.unchanged { 5 } else { 0 }, 5);
        5 - out.dropped[0]
    };
    assert_eq!(count(SECOND), 3);
    assert_eq!(count(SECOND), 0);
    assert_eq!(count(2 * SECOND), 2);
    assert_eq!(count(SECOND), 0, "a clock that goes back gives nothing");
    assert_eq!(count(100 * SECOND), 3, "no more than the burst is saved");
}

#[test]
fn each_source_tag_or_service_has_its_own_bucket() {
    let rows: Vec<_> = (0..20).map(|number| (9, "a", "", number % 2, number / 2 % 2)).collect();
    for (by, kept) in [("all", 3), ("tag", 6), ("service", 6), ("source", 12)] {
        let out = limiter(by, 10).apply(&batch(&rows), SECOND).unwrap();
        assert_eq!(20 - out.dropped[0], kept, "by {by}");
    }
}

#[test]
fn errors_pass_and_take_nothing_unless_told_otherwise() {
    let rows: Vec<_> = (0..10).map(|number| (if number % 2 == 0 { 17 } else { 9 }, "a", "", 0, 0)).collect();
    let given = batch(&rows);
    assert!(given.columns.flags[0] & FLAG_ERROR != 0);
    assert_eq!(limiter("all", 10).apply(&given, SECOND).unwrap().dropped, [2]);
    let strict = r#"[{"name": "it", "where": {}, "by": "all", "records_per_s": 2, "burst": 3, "spare_errors": false}]"#;
    assert_eq!(RateLimiter::parse(strict, 10).unwrap().apply(&given, SECOND).unwrap().dropped, [7]);
}

#[test]
fn there_are_never_more_buckets_than_allowed() {
    let limiter = limiter("source", 4);
    for number in 0..100 {
        let mut given = batch(&[(9, "a", "", 0, 0); 5]);
        given.resources[0] = entry(resource::ATTRIBUTES, b"service.name", &number.to_string());
        limiter.apply(&given, SECOND).unwrap();
        assert!(limiter.bucket_count() <= 4);
    }
}
