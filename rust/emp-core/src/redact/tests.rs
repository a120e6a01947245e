use proptest::prelude::*;

use super::{Redactor, Rules, pattern_names};
use crate::batch::{Batch, Signal, TableEntry};
use crate::otlp::fields::log;
use crate::otlp::value::{Scalar, put_key_value, put_scalar};
use crate::otlp::wire::{put_bytes, put_message};

const MASK: &str = "[redacted]";

fn rules() -> Rules {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Rules {
        keys: owned(&["password", "token", "api_key", "secret", "authorization", "cookie", "access_key"]),
        kept_keys: owned(&["token_type"]),
        patterns: pattern_names().filter(|name| *name != "email").map(str::to_owned).collect(),
        own_patterns: vec![("badge".to_owned(), r"badge-(\d{4})".to_owned())],
        mask: MASK.to_owned(),
        hash_key: None,
    }
}

fn redactor() -> Redactor {
    Redactor::new(&rules()).unwrap()
}

fn text(given: &str) -> String {
    String::from_utf8(redactor().text(given.as_bytes())).unwrap()
}

#[test]
fn secrets_in_texts_are_found_by_what_they_look_like() {
    for (given, wanted) in [
        ("Authorization: Bearer abcdefghijklmnop.qrs", "Authorization: [redacted]"),
        ("sent bearer abcdefghijklmnop0123= to it", "sent bearer [redacted] to it"),
        ("Basic dXNlcjpwYXNzd29yZA== was used", "Basic [redacted] was used"),
        ("key AKIAIOSFODNN7EXAMPLE of", "key [redacted] of"),
        ("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl ok", "got [redacted] ok"),
        ("postgres://hub:p%40ss@db:5432/x", "postgres://hub:[redacted]@db:5432/x"),
        ("redis://:hunter2@r:6379", "redis://:[redacted]@r:6379"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ012345 pushed", "[redacted] pushed"),
        ("x -----BEGIN RSA PRIVATE KEY-----\nDEK-Info: a\nMIIE\n-----END RSA PRIVATE KEY----- y", "x [redacted] y"),
        ("x -----BEGIN PRIVATE KEY-----\nMIIE cut off", "x [redacted]"),
        (r#"{"password": "a\"b", "n": 1}"#, r#"{"password": "[redacted]", "n": 1}"#),
        (r#"{\"api_key\":\"abc\",\"n\":1}"#, r#"{\"api_key\":\"[redacted]\",\"n\":1}"#),
        ("GET /x?access_key=abc&page=2", "GET /x?access_key=[redacted]&page=2"),
        ("db_password = hunter2; retry", "db_password = [redacted]; retry"),
        ("curl --api-key s3cr3t --verbose", "curl --api-key [redacted] --verbose"),
        ("Cookie: a=b; session=c\r\nHost: x", "Cookie: [redacted]\r\nHost: x"),
        ("password='it''s'", "password='[redacted]''s'"),
        ("dsn https://0123456789abcdef0123456789abcdef@o1.ingest.sentry.io/7", "dsn https://[redacted]@o1.ingest.sentry.io/7"),
        ("card 4111 1111 1111 1111 of", "card [redacted] of"),
        ("badge-1234 opened", "badge-[redacted] opened"),
    ] {
        assert_eq!(text(given), wanted);
    }
}

#[test]
fn what_is_no_secret_stays() {
    for given in [
        "password: null",
        "token=true",
        "a tokens: 5 of 7",
        "the password was wrong",
        "http://host:80/a@b",
        "mail someone@example.org",
        "bearer authentication is on",
        "basic authentication",
        "token [redacted]",
        "password=[redacted] \"token\":\"[redacted]\"",
        "Authorization: [redacted]",
        "auth_request_handler_timeout_s is 5",
        "sk-learn-compatible-estimators",
        "token_count: 7 tokens",
        "order 4111111111111112",
        "https://0123456789abcdef@host/7",
        "",
    ] {
        assert_eq!(text(given), given);
    }
}

fn batch(pairs: &[(&str, Scalar<'_>)], body: &str) -> Batch {
    let mut out = Batch::new(Signal::Logs);
    let (mut message, mut value) = (Vec::new(), Vec::new());
    put_scalar(&mut value, Scalar::String(body.as_bytes()));
    put_bytes(&mut message, log::BODY, &value);
    for (key, scalar) in pairs {
        value.clear();
        put_scalar(&mut value, *scalar);
        put_key_value(&mut message, log::ATTRIBUTES, key.as_bytes(), &value);
    }
    let mut resource = Vec::new();
    value.clear();
    put_scalar(&mut value, Scalar::String(b"s3cr3t"));
    put_key_value(&mut resource, 1, b"db.password", &value);
    out.resources = vec![TableEntry { message: resource, ..TableEntry::default() }];
    out.scopes = vec![TableEntry::default()];
    out.push_message(&message, 0, 0).unwrap();
    out
}

fn holds(batch: &Batch, needle: &str) -> bool {
    let everything = batch.rows.iter().chain(batch.resources.iter().flat_map(|entry| &entry.message)).copied().collect::<Vec<_>>();
    memchr::memmem::find(&everything, needle.as_bytes()).is_some()
}

#[test]
fn a_secret_key_hides_its_value_and_neighbours_stay() {
    let given = batch(
        &[
            ("user.password", Scalar::String(b"hunter2")),
            ("apiKey", Scalar::Int(4_242_424_242)),
            ("token_count", Scalar::Int(77)),
            ("token_type", Scalar::String(b"kept-one")),
            ("password", Scalar::Bool(true)),
            ("job_id", Scalar::String(b"job-7")),
            ("secret.bytes", Scalar::Bytes(b"\x00raw")),
        ],
        "hello",
    );
    let redacted = redactor().batch(&given).unwrap();
    let out = redacted.batch.unwrap();
    for gone in ["hunter2", "s3cr3t", "raw"] {
        assert!(!holds(&out, gone), "{gone} is still there");
    }
    for kept in ["user.password", "kept-one", "job-7", "hello", MASK] {
        assert!(holds(&out, kept), "{kept} is gone");
    }
    assert_eq!(redacted.counts[0], 4, "two texts of the row, a number, the resource's");
    assert_eq!(out.view(out.columns.job_id[0]), Some(&b"job-7"[..]), "the columns name other bytes now");
    let again = redactor().batch(&out).unwrap();
    assert!(again.batch.is_none(), "what is masked was masked again");
}

#[test]
fn with_a_key_the_same_secret_has_the_same_hash_by_its_key_and_within_a_text() {
    let hashing = Redactor::new(&Rules { hash_key: Some(b"0123456789abcdef".to_vec()), ..rules() }).unwrap();
    let given = batch(&[("password", Scalar::String(b"hunter2")), ("pin.token", Scalar::Int(77))], "password=hunter2");
    let out = hashing.batch(&given).unwrap().batch.unwrap();
    assert!(!holds(&out, "hunter2") && !holds(&out, MASK));
    let hash = String::from_utf8(hashing.text(b"password=hunter2")).unwrap();
    let hash = hash.strip_prefix("password=").unwrap();
    let count = memchr::memmem::find_iter(&out.rows, hash).count();
    assert_eq!((hash.len(), count), (23, 2), "{hash}");
    assert!(hashing.batch(&out).unwrap().batch.is_none(), "a hash is hashed again");
    assert!(redactor().batch(&out).unwrap().batch.is_none(), "a hash is masked where it comes to");
}

#[test]
fn rows_without_a_secret_are_not_touched() {
    let mut given = batch(&[("job_id", Scalar::String(b"job-7"))], "nothing to see");
    given.resources = vec![TableEntry::default()];
    let redacted = redactor().batch(&given).unwrap();
    assert!(redacted.batch.is_none());
    assert!(redacted.counts.iter().all(|count| *count == 0));
}

/// The whole row is asked first, where such a pattern would not match.
#[test]
fn a_pattern_that_looks_at_the_ends_of_a_value_is_found_within_a_row() {
    for source in [r"^nothing", r"see$", r"\Anothing to", r"nothing to see\z", r"\bto\b"] {
        let mine = Rules { own_patterns: vec![("mine".to_owned(), source.to_owned())], keys: vec![], ..rules() };
        let redacted = Redactor::new(&mine).unwrap().batch(&batch(&[], "nothing to see")).unwrap();
        assert!(redacted.batch.is_some_and(|out| holds(&out, MASK)), "{source}");
    }
}

#[test]
fn what_a_row_that_was_walked_in_vain_masked_is_counted_once() {
    let mut message = Vec::new();
    let mut value = Vec::new();
    put_scalar(&mut value, Scalar::String(b"hunter2"));
    put_key_value(&mut message, log::ATTRIBUTES, b"password", &value);
    put_bytes(&mut message, 99, b"password=hunter2");
    let (mut inner, mut torn) = (Vec::new(), Vec::new());
    put_scalar(&mut inner, Scalar::String(b"password=hunter2"));
    put_bytes(&mut torn, 1, &inner);
    torn.push(0xff); // the list is masked as far as it can be read, then taken back, and written over as bytes
    let mut list = Vec::new();
    put_bytes(&mut list, 5, &torn);
    put_bytes(&mut message, log::BODY, &list);
    let (out, mut work) = (redactor(), redactor().work(Default::default()));
    let masked = out.whole(&message, &crate::otlp::descriptors::LOG, &mut work).unwrap();
    assert!(memchr::memmem::find(&masked, b"hunter2").is_none());
    assert_eq!(work.counts.iter().sum::<u64>(), 3);
}

#[test]
fn values_nested_at_any_depth_are_looked_at() {
    for depth in [1usize, 5, 60, 200, 5_000] {
        let mut value = Vec::new();
        put_scalar(&mut value, Scalar::String(b"password=hunter2"));
        for _ in 0..depth {
            let inner = std::mem::take(&mut value);
            put_message(&mut value, 5, |out| put_bytes(out, 1, &inner));
        }
        let mut message = Vec::new();
        put_bytes(&mut message, log::BODY, &value);
        let mut given = Batch::new(Signal::Logs);
        (given.resources, given.scopes) = (vec![TableEntry::default()], vec![TableEntry::default()]);
        given.push_message(&message, 0, 0).unwrap();
        let out = redactor().batch(&given).unwrap().batch.unwrap();
        assert!(!holds(&out, "hunter2"), "at depth {depth}");
    }
}

#[test]
fn a_part_that_cannot_be_followed_is_written_over_as_bytes() {
    let mut message = Vec::new();
    let mut torn = b"\x0a\x08password\x12\x7f".to_vec();
    torn.extend_from_slice(b"\x0a\x07hunter2");
    put_bytes(&mut message, log::BODY, b"");
    put_bytes(&mut message, 99, &torn);
    let mut given = Batch::new(Signal::Logs);
    (given.resources, given.scopes) = (vec![TableEntry::default()], vec![TableEntry::default()]);
    given.push_message(&message, 0, 0).unwrap();
    let out = redactor().batch(&given).unwrap().batch.unwrap();
    assert!(!holds(&out, "hunter2"));
    assert_eq!(out.rows.len(), given.rows.len());
}

#[test]
fn bytes_that_are_no_rows_keep_their_length() {
    for given in [
        &b"\x82\xa8password\xa7hunter2\xa4user\xa1x"[..],
        b"\xa8password\xd9\x20hunter2hunter2hunter2hunter2hunt\xa1x",
        b"\x0a\x08password\x12\x09\x0a\x07hunter2",
        b"{\"password\":\"hunter2\",\"user\":\"x\"}",
        b"\xff\xfepassword=hunter2\xc1 x",
        b"\xa8PassWord\xdb\x00\x00\x00\x07hunter2 x",
        b"\xa6secret\xa9hunt\xc3\xa4hunt\x01x",
    ] {
        let (out, counts) = redactor().bytes(given);
        assert_eq!(out.len(), given.len());
        assert!(memchr::memmem::find(&out, b"hunt").is_none(), "{:?}", String::from_utf8_lossy(&out));
        assert!(counts.iter().sum::<u64>() >= 1);
    }
}

#[test]
fn a_pattern_that_cannot_be_one_is_named() {
    for (source, why) in [("(", "unclosed"), ("x*", "empty text"), (r"(\w{1000}){1000}", "size"), (r"(a)\1", "backreference")] {
        let wrong = Rules { own_patterns: vec![("mine".to_owned(), source.to_owned())], ..rules() };
        let detail = Redactor::new(&wrong).err().expect(source).detail;
        assert!(detail.contains("mine") && detail.contains(why), "{detail}");
    }
    let unknown = Rules { patterns: vec!["jwtt".to_owned()], ..rules() };
    assert!(Redactor::new(&unknown).err().unwrap().detail.contains("jwtt"));
}

/// In quadratic time it would not end within a day.
#[test]
fn a_megabyte_of_beginnings_ends() {
    let size = 1 << 20;
    let unit = |part: &str| part.repeat(size / part.len());
    for given in [
        unit("password="),
        unit("a:/"),
        unit("-----BEGIN PRIVATE KEY-----"),
        unit("eyJ"),
        unit("password\" "),
        unit("x://a:b"),
        unit("--a-"),
        unit("sk-"),
        unit("[redacted]"),
    ] {
        let redactor = redactor();
        assert_eq!(redactor.bytes(given.as_bytes()).0.len(), given.len());
        redactor.text(given.as_bytes());
    }
    let mine = Rules { own_patterns: vec![("slow".to_owned(), "a.*b|a".to_owned())], patterns: vec![], ..rules() };
    let out = Redactor::new(&mine).unwrap().bytes("a".repeat(size).as_bytes()).0;
    assert!(out.iter().all(|byte| *byte == b'*'), "what lies behind the last match that is looked for is masked");
}

proptest! {
    #[test]
    fn any_bytes_are_redacted_without_a_panic_and_once(data in proptest::collection::vec(any::<u8>(), 0..400), around in "[a-z:=\" ]{0,8}password[a-z:=\" ]{0,8}") {
        let redactor = redactor();
        let mut given = around.into_bytes();
        given.extend_from_slice(&data);
        let (out, _) = redactor.bytes(&given);
        prop_assert_eq!(out.len(), given.len());
        let mut batch = Batch::new(Signal::Logs);
        (batch.resources, batch.scopes) = (vec![TableEntry::default()], vec![TableEntry::default()]);
        let mut message = Vec::new();
        put_bytes(&mut message, 99, &given);
        if batch.push_message(&message, 0, 0).is_ok() {
            redactor.batch(&batch).unwrap();
        }
        redactor.text(&given);
    }
}
