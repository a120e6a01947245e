use super::*;
use crate::http_json::MAX_DEPTH;
use crate::normalize::{Builder, Envelope};
use proptest::prelude::*;

fn source(format: Format, max_line_bytes: usize) -> Source {
    let settings = Settings {
        format,
        max_line_bytes,
        scope: b"emp-pipe/tail".to_vec(),
        tag: b"app".to_vec(),
        resource: vec![("file.name".into(), "app.log".into())],
        ..Settings::default()
    };
    Source::new(Arc::new(Normalizer::default()), &settings, 0)
}

fn bodies(batch: &Batch) -> Vec<String> {
    batch.columns.body.iter().map(|view| String::from_utf8_lossy(batch.view(*view).unwrap_or_default()).into_owned()).collect()
}

fn taken(source: &mut Source) -> Vec<String> {
    source.take().map_or(Vec::new(), |batch| bodies(&batch))
}

#[test]
fn a_line_is_a_row_when_its_end_has_come() {
    let mut source = source(Format::Auto, 1 << 20);
    source.feed(b"one\ntwo\r\n\nthr", 1);
    assert_eq!(taken(&mut source), ["one", "two"]);
    assert_eq!((source.pending_bytes(), source.counts().blank), (3, 1));
    source.feed(b"ee", 2);
    assert_eq!((taken(&mut source), source.pending_bytes()), (Vec::<String>::new(), 5));
    source.feed(b"\n", 3);
    assert_eq!((taken(&mut source), source.pending_bytes()), (vec!["three".to_owned()], 0));
    source.feed(b"four", 4);
    source.flush(5, false);
    assert_eq!(source.pending_bytes(), 4, "only the end of the file makes it whole");
    source.flush(5, true);
    assert_eq!((taken(&mut source), source.pending_bytes()), (vec!["four".to_owned()], 0));
}

#[test]
fn a_line_over_the_limit_is_split_between_characters_and_marked_and_nothing_is_dropped() {
    let line = "日本".repeat(100);
    for cut in [1, 7, 64, 65, 601] {
        let mut source = source(Format::Auto, 100);
        for piece in format!("{line}\nnext\n").as_bytes().chunks(cut) {
            source.feed(piece, 1);
        }
        let batch = source.take().unwrap();
        let mut found = bodies(&batch);
        assert_eq!(found.pop().unwrap(), "next", "cut {cut}");
        assert_eq!(found.concat(), line, "cut {cut}");
        assert!(found.iter().all(|part| part.len() <= 100 && !part.contains('\u{fffd}')), "cut {cut}");
        let json = String::from_utf8(crate::json_lines::json_lines(&batch).unwrap()).unwrap();
        assert_eq!(json.matches("\"line.continues\":true").count(), found.len() - 1, "{json}");
        assert_eq!(json.matches("\"line.continues\":false").count(), 1);
        assert_eq!(source.counts().split, found.len() as u64);
    }
}

/// The rows that the HTTP receiver makes of JSON lines.
fn by_http(lines: &str) -> Batch {
    let decoder = crate::http_json::Decoder::new(Arc::new(Normalizer::default()), 1 << 20);
    let request = crate::http_json::Request {
        coding: crate::http_json::Coding::Codec(crate::compress::Codec::None),
        form: crate::http_json::Form::Json,
        tag: b"app",
        time: b"",
        now_unix_nano: 7,
    };
    decoder.decode(lines.as_bytes(), &request).unwrap().batch.unwrap()
}

#[test]
fn a_json_line_is_the_row_that_the_http_receiver_makes_of_it_and_any_other_is_a_body() {
    let line = r#"{"level":"warn","message":"hot","job_id":"job-1","timestamp":"2025-10-09T08:53:20Z","n":[1,{"a":2}]}"#;
    let mut source = source(Format::Auto, 1 << 20);
    source.feed(format!("{line}\n{{torn\n{{}} x\n").as_bytes(), 7);
    let batch = source.take().unwrap();
    assert_eq!(bodies(&batch), ["hot", "{torn", "{} x"]);
    assert_eq!(batch.row(0), by_http(line).row(0));
}

#[test]
fn each_dialect_of_json_is_the_row_that_http_makes_of_it_or_of_what_its_names_mean_here() {
    for (dialect, line, meant) in [
        (
            "winston",
            r#"{"level":"warn","message":"hot","timestamp":"2025-10-09T08:53:20Z","jobId":"job-1","stack":"Error: x\n    at f"}"#,
            None,
        ),
        (
            "pino",
            r#"{"level":50,"time":1760000000000,"pid":7,"hostname":"gpu-1","msg":"it failed","err":{"type":"Error","message":"x","stack":"s"}}"#,
            None,
        ),
        ("bunyan", r#"{"name":"api","hostname":"gpu-1","pid":7,"level":30,"msg":"up","time":"2025-10-09T08:53:20Z","v":0}"#, None),
        (
            "structlog",
            r#"{"event":"job done","level":"info","timestamp":"2025-10-09T08:53:20Z","job_id":"job-1"}"#,
            Some(r#"{"message":"job done","level":"info","timestamp":"2025-10-09T08:53:20Z","job_id":"job-1"}"#),
        ),
        (
            "structlog with an exception",
            r#"{"event":"failed","exception":"Traceback (most recent call last):\n  File \"x\", line 1, in f\nValueError: bad"}"#,
            Some(
                r#"{"message":"failed","exception.type":"ValueError","exception.message":"bad","exception.stacktrace":"Traceback (most recent call last):\n  File \"x\", line 1, in f\nValueError: bad"}"#,
            ),
        ),
        (
            "ecs",
            r#"{"@timestamp":"2025-10-09T08:53:20Z","log":{"level":"error","logger":"a.b"},"message":"m","ecs":{"version":"1.6.0"},"error":{"type":"E","message":"bad","stack_trace":"s"},"service":{"name":"api"}}"#,
            Some(
                r#"{"@timestamp":"2025-10-09T08:53:20Z","level":"error","logger":"a.b","message":"m","ecs.version":"1.6.0","exception.type":"E","exception.message":"bad","exception.stacktrace":"s","service.name":"api"}"#,
            ),
        ),
    ] {
        for format in [Format::Auto, Format::Json] {
            let mut source = source(format, 1 << 20);
            source.feed(format!("{line}\n").as_bytes(), 7);
            let batch = source.take().unwrap();
            let expected = by_http(meant.unwrap_or(line));
            assert_eq!(batch.row(0), expected.row(0), "{dialect}");
            assert_eq!(batch.columns.severity_number, expected.columns.severity_number, "{dialect}");
            assert_eq!(batch.columns.time_unix_nano, expected.columns.time_unix_nano, "{dialect}");
        }
        if meant.is_some() {
            let mut source = source(Format::Auto, 1 << 20);
            source.feed(format!("{line}\n").as_bytes(), 7);
            assert_ne!(source.take().unwrap().row(0), by_http(line).row(0), "{dialect}: names of a sender's own choosing stay over HTTP");
        }
    }
}

#[test]
fn a_hole_of_nul_bytes_is_left_out_and_counted() {
    let mut source = source(Format::Auto, 1 << 20);
    source.feed(b"\0\0\0\0first\nsec\0ond\n\0\0\n", 1);
    assert_eq!(taken(&mut source), ["first", "second"]);
    assert_eq!((source.counts().nul_bytes, source.counts().blank), (7, 1));
}

proptest! {
    #[test]
    fn any_cut_of_any_bytes_gives_the_same_rows_and_every_byte_is_in_a_row_or_pends(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'{'), Just(b'"'), Just(0u8), Just(0xe6u8), any::<u8>()], 0..600),
        cuts in proptest::collection::vec(1usize..90, 1..20),
        format in prop_oneof![Just(Format::Auto), Just(Format::Plain), Just(Format::Json)],
    ) {
        let mut at_once = source(format, 80);
        at_once.feed(&bytes, 1);
        let mut in_pieces = source(format, 80);
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at((*cut).min(rest.len()));
            in_pieces.feed(piece, 1);
            rest = later;
        }
        prop_assert_eq!(at_once.counts(), in_pieces.counts());
        prop_assert_eq!(at_once.pending_bytes(), in_pieces.pending_bytes());
        prop_assert_eq!(at_once.parts(), in_pieces.parts());
        at_once.flush(1, true);
        in_pieces.flush(1, true);
        prop_assert_eq!(at_once.pending_bytes(), 0);
        let rows = |source: &mut Source| source.take().map(|batch| batch.rows);
        prop_assert_eq!(rows(&mut at_once), rows(&mut in_pieces));
    }

    #[test]
    fn a_text_has_the_row_that_a_map_with_that_body_has(text in "\\PC{0,40}|[a-z]{1,5}=[a-z ]{0,9}|[ {}\"a:1]{0,9}") {
        let row = |push: &dyn Fn(&mut Builder) -> bool| {
            let mut builder = Builder::new(Arc::new(Normalizer::default()), "x", MAX_DEPTH);
            builder.set_now(9);
            builder.set_tag(b"t");
            push(&mut builder).then(|| builder.take().0.rows)
        };
        if let Some(found) = row(&|builder| builder.push_text(text.as_bytes())) {
            let mut fields = Fields::default();
            fields.text(b"message", text.as_bytes());
            let record = fields.record().to_vec();
            prop_assert_eq!(Some(found), row(&|builder| builder.push(&Envelope::default(), &record, 0).is_ok()));
        }
    }

    #[test]
    fn any_cut_of_traces_and_containers_gives_the_same_rows_and_a_restart_at_what_pends_goes_on_with_the_same(
        picks in proptest::collection::vec(0usize..24, 1..40),
        cuts in proptest::collection::vec(1usize..200, 1..20),
        stop in 0usize..2000,
    ) {
        let docker = |stream: &str, log: &str| format!(r#"{{"log":"{log}","stream":"{stream}","time":"2025-10-09T08:53:20Z"}}"#);
        let pool = [
            "Traceback (most recent call last):".to_owned(), "  File \"x.py\", line 1".to_owned(), "ValueError: bad".to_owned(), String::new(),
            "During handling of the above exception, another exception occurred:".to_owned(), "Error: boom".to_owned(),
            "    at f (x.js:1:1)".to_owned(), "Caused by: x".to_owned(), "panic: boom".to_owned(), "goroutine 1 [running]:".to_owned(),
            "main.main()".to_owned(), "thread 'main' panicked at x.rs:1:1:".to_owned(), "some text".to_owned(), "/app/x.js:3".to_owned(),
            "   ^".to_owned(), "[2025-10-09 08:53:20] ERROR: failed".to_owned(), r#"{"message":"json"}"#.to_owned(),
            docker("stdout", "part"), docker("stdout", r"end\n"), docker("stderr", r"Error: x\n"), docker("stderr", r"    at f\n"),
            docker("stderr", "part"), " 50%|#    | 1/2 [00:01<00:01]\r100%|#| 2/2 [00:01<00:01]".to_owned(), "2025-10-09T08:53:20Z stderr P x".to_owned(),
        ];
        let text: String = picks.iter().map(|pick| format!("{}\n", pool[*pick])).collect();
        let bytes = text.as_bytes();
        let lines = |source: &mut Source| {
            let written = source.take().map_or(Vec::new(), |batch| crate::json_lines::json_lines(&batch).unwrap());
            String::from_utf8(written).unwrap()
        };
        let mut at_once = source(Format::Auto, 1 << 16);
        at_once.feed(bytes, 1);
        at_once.flush(1, true);
        let all = lines(&mut at_once);
        prop_assert_eq!(at_once.pending_bytes(), 0);
        let mut in_pieces = source(Format::Auto, 1 << 16);
        let mut rest = bytes;
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at((*cut).min(rest.len()));
            in_pieces.feed(piece, 1);
            rest = later;
        }
        in_pieces.flush(1, true);
        prop_assert_eq!(&all, &lines(&mut in_pieces));
        // A process that is killed has the rows so far; the next one reads on from before what pended.
        let stop = stop.min(bytes.len());
        let mut first = source(Format::Auto, 1 << 16);
        first.feed(&bytes[..stop], 1);
        let mut rows = lines(&mut first);
        let mut second = source(Format::Auto, 1 << 16);
        second.feed(&bytes[stop - first.pending_bytes()..], 1);
        second.flush(1, true);
        rows.push_str(&lines(&mut second));
        prop_assert_eq!(&all, &rows);
    }
}
