use std::sync::Arc;

use proptest::prelude::*;

use super::fields::Value;
use super::frames::{Frame, Frames, Framing};
use super::*;
use crate::normalize::Normalizer;

/// 2026-01-01T00:30:00Z
const NEW_YEAR: i64 = 1_767_227_400_000_000_000;
/// 2026-11-24T17:00:00Z
const NOW: i64 = 1_795_539_600_000_000_000;
const S: i64 = 1_000_000_000;

fn live(now_unix_nano: i64) -> When {
    When { now_unix_nano, utc_offset_s: 0, most_ahead_s: When::LIVE_AHEAD_S }
}

fn parsed(text: &[u8]) -> Message<'_> {
    Parser::default().parse(text, &live(NOW))
}

fn time(text: &str) -> Option<i64> {
    crate::normalize::time::TimeReader::default().of_text(text.as_bytes())
}

/// Name and value of each field, as text.
fn fields(text: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    parsed(text.as_bytes()).fields(|name, value| {
        let value = match value {
            Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
            Value::Int(number) => number.to_string(),
            Value::Texts(texts) => texts.iter().map(|text| String::from_utf8_lossy(text)).collect::<Vec<_>>().join(" | "),
        };
        all.push((String::from_utf8_lossy(name).into_owned(), value));
    });
    all
}

fn expect(text: &str, expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(fields(text), expected, "{text}");
}

#[test]
fn the_examples_of_rfc_5424_are_read() {
    let text = "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \u{feff}'su root' failed for lonvick on /dev/pts/8";
    expect(
        text,
        &[
            ("message", "'su root' failed for lonvick on /dev/pts/8"),
            ("level", "crit"),
            ("syslog.facility", "auth"),
            ("host.name", "mymachine.example.com"),
            ("service.name", "su"),
            ("syslog.msgid", "ID47"),
        ],
    );
    assert_eq!(parsed(text.as_bytes()).time_unix_nano, time("2003-10-11T22:14:15.003Z"));
    assert_eq!(parsed(text.as_bytes()).form, Form::Rfc5424);
    let text = "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.";
    expect(
        text,
        &[
            ("message", "%% It's time to make the do-nuts."),
            ("level", "notice"),
            ("syslog.facility", "local4"),
            ("process.pid", "8710"),
            ("host.name", "192.0.2.1"),
            ("service.name", "myproc"),
        ],
    );
    assert_eq!(parsed(text.as_bytes()).time_unix_nano, time("2003-08-24T12:14:15.000003Z"));
    expect(
        "<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut=\"3\" eventSource=\"Application\" \
         eventID=\"1011\"][examplePriority@32473 class=\"high\"]",
        &[
            ("message", ""),
            ("level", "notice"),
            ("syslog.facility", "local4"),
            ("host.name", "mymachine.example.com"),
            ("service.name", "evntslog"),
            ("syslog.msgid", "ID47"),
            ("syslog.exampleSDID@32473.iut", "3"),
            ("syslog.exampleSDID@32473.eventSource", "Application"),
            ("syslog.exampleSDID@32473.eventID", "1011"),
            ("syslog.examplePriority@32473.class", "high"),
        ],
    );
}

#[test]
fn structured_data_keeps_escapes_repetitions_and_what_opentelemetry_has_a_name_for() {
    expect(
        r#"<13>1 - - - - - [origin ip="192.0.2.1" ip="192.0.2.129" swVersion="2.1"][a@1 q="say \"hi\" \\ \] \n" e=""][alone] text"#,
        &[
            ("message", "text"),
            ("level", "notice"),
            ("syslog.facility", "user"),
            ("client.address", "192.0.2.1 | 192.0.2.129"),
            ("service.version", "2.1"),
            ("syslog.a@1.q", r#"say "hi" \ ] \n"#),
            ("syslog.a@1.e", ""),
            ("syslog.alone", ""),
        ],
    );
}

#[test]
fn what_is_sent_for_rfc_3164_is_read() {
    let (message, host, app, pid) = ("message", "host.name", "service.name", "process.pid");
    let (level, facility) = (("level", "crit"), ("syslog.facility", "auth"));
    for (text, expected) in [
        (
            "<34>Oct 11 22:14:15 mymachine su: 'su root' failed",
            vec![(message, "'su root' failed"), level, facility, (host, "mymachine"), (app, "su")],
        ),
        (
            "<34>Nov  4 02:14:15 box sshd[4123]: Accepted publickey",
            vec![(message, "Accepted publickey"), level, facility, (pid, "4123"), (host, "box"), (app, "sshd")],
        ),
        ("<34>Oct 11 22:14:15 sshd[4123]: no host", vec![(message, "no host"), level, facility, (pid, "4123"), (app, "sshd")]),
        ("<34>Oct 11 22:14:15 su: no host", vec![(message, "no host"), level, facility, (app, "su")]),
        (
            "<34>Oct 11 22:14:15 box postfix/smtpd[7]: x",
            vec![(message, "x"), level, facility, (pid, "7"), (host, "box"), (app, "postfix/smtpd")],
        ),
        (
            "<34>Oct 11 22:14:15 box last message repeated 3 times",
            vec![(message, "last message repeated 3 times"), level, facility, (host, "box")],
        ),
        ("<34>Oct 11 22:14:15 fe80::1 app: x", vec![(message, "x"), level, facility, (host, "fe80::1"), (app, "app")]),
        (
            "<34>2026-10-11T22:14:15.123456+02:00 box cron[9]: x",
            vec![(message, "x"), level, facility, (pid, "9"), (host, "box"), (app, "cron")],
        ),
        ("<34>Oct 11 2026 22:14:15.250: box kernel: x", vec![(message, "x"), level, facility, (host, "box"), (app, "kernel")]),
        ("<34>Oct 11 22:14:15 box see http://a/b", vec![(message, "see http://a/b"), level, facility, (host, "box")]),
        ("<34>app[12]: no time", vec![(message, "no time"), level, facility, (pid, "12"), (app, "app")]),
        ("<34>error: no time", vec![(message, "error: no time"), level, facility]),
        ("<34>", vec![(message, ""), level, facility]),
        ("Oct 11 22:14:15 box app[p-1]: of a file", vec![(message, "of a file"), ("syslog.procid", "p-1"), (host, "box"), (app, "app")]),
        ("just words", vec![(message, "just words")]),
        ("<192>Oct 11 22:14:15 box app: no priority", vec![(message, "<192>Oct 11 22:14:15 box app: no priority")]),
        ("<34>1 error happened", vec![(message, "1 error happened"), level, facility]),
        ("<34>Foo 11 22:14:15 box app: no month", vec![(message, "Foo 11 22:14:15 box app: no month"), level, facility]),
    ] {
        expect(text, &expected);
    }
}

#[test]
fn line_ends_and_nul_bytes_at_the_end_are_no_part_of_a_message() {
    for end in ["\n", "\r\n", "\0", "\n\0", " \t\r\n"] {
        assert_eq!(parsed(format!("<13>Oct 11 22:14:15 box app: x{end}").as_bytes()).body, b"x", "{end:?}");
    }
}

#[test]
fn a_header_of_rfc_5424_that_breaks_off_keeps_everything() {
    for (text, body) in [
        ("<34>1 2003-10-11T22:14:15Z", ""),
        ("<34>1 2003-10-11T22:14:15Z box app", ""),
        ("<34>1 2003-10-11T22:14:15Z box  x - - text", " x - - text"),
        ("<34>1 2003-10-11T22:14:15Z box app 1 id [broken text", "[broken text"),
        ("<34>1 2003-10-11T22:14:15Z box app 1 id [a b=\"c] text", "[a b=\"c] text"),
        ("<34>1 2003-10-11T22:14:15Z box app 1 id [a b=\"c\"]text", "[a b=\"c\"]text"),
        ("<34>1 2003-10-11T22:14:15Z box app 1 id no structured data", "no structured data"),
    ] {
        let found = parsed(text.as_bytes());
        assert!(found.malformed, "{text}");
        assert_eq!(String::from_utf8_lossy(found.body), body, "{text}");
        assert_eq!(found.priority, Some(34));
    }
    assert!(!parsed(b"<34>1 2003-10-11T22:14:15Z box app 1 id").malformed, "a header without structured data is forgiven");
}

#[test]
fn a_time_that_cannot_be_read_is_kept_as_it_is_written() {
    for (text, written) in [
        ("<34>1 2003-99-11T22:14:15Z box app 1 - - x", "2003-99-11T22:14:15Z"),
        ("<34>Oct 42 22:14:15 box app[1]: x", "Oct 42 22:14:15"),
        ("<34>Feb 29 2025 22:14:15 box app[1]: x", "Feb 29 2025 22:14:15"),
        ("<34>Oct 11 25:14:15 box app[1]: x", "Oct 11 25:14:15"),
    ] {
        let found = parsed(text.as_bytes());
        assert_eq!(found.time_unix_nano, None, "{text}");
        assert_eq!(String::from_utf8_lossy(found.unread_time), written, "{text}");
        assert_eq!((found.host, found.app, found.body), (&b"box"[..], &b"app"[..], &b"x"[..]), "{text}");
    }
}

#[test]
fn a_time_without_a_year_is_in_the_year_that_fits() {
    let file = |now| When { most_ahead_s: When::FILE_AHEAD_S, ..live(now) };
    for (text, when, expected) in [
        ("Nov 24 16:59:59", live(NOW), "2026-11-24T16:59:59Z"),
        ("Dec 31 23:59:59", live(NEW_YEAR), "2025-12-31T23:59:59Z"),
        ("Jan  1 00:10:00", live(NEW_YEAR), "2026-01-01T00:10:00Z"),
        ("Jan  1 00:10:00", live(NEW_YEAR - 3600 * S), "2026-01-01T00:10:00Z"),
        ("Mar  1 00:00:00", live(NEW_YEAR), "2026-03-01T00:00:00Z"),
        ("Mar  1 00:00:00", file(NEW_YEAR), "2025-03-01T00:00:00Z"),
        ("Jan  1 12:00:00", file(NEW_YEAR), "2026-01-01T12:00:00Z"),
        ("Feb 29 12:00:00", live(NOW), "2024-02-29T12:00:00Z"),
        ("Nov 24 19:00:00", When { utc_offset_s: 7200, ..live(NOW) }, "2026-11-24T17:00:00Z"),
        ("Nov 24 09:00:00.5", When { utc_offset_s: -28_800, ..live(NOW) }, "2026-11-24T17:00:00.5Z"),
        ("Nov 24 2019 09:00:00", live(NOW), "2019-11-24T09:00:00Z"),
    ] {
        let line = format!("<13>{text} box app: x");
        assert_eq!(Parser::default().parse(line.as_bytes(), &when).time_unix_nano, time(expected), "{text} at {}", when.now_unix_nano);
    }
}

fn frames(framing: Framing, max_bytes: usize, pieces: &[&[u8]]) -> Vec<(String, u32, bool)> {
    let mut stream = Frames::new(framing, max_bytes);
    let mut found = Vec::new();
    let mut each = |frame: Frame<'_>| found.push((String::from_utf8_lossy(frame.text).into_owned(), frame.part, frame.continues));
    for piece in pieces {
        stream.feed(piece, &mut each);
    }
    stream.flush(&mut each);
    found
}

fn whole(texts: &[&str]) -> Vec<(String, u32, bool)> {
    texts.iter().map(|text| ((*text).to_owned(), 0, false)).collect()
}

#[test]
fn lengths_and_lines_are_told_apart_message_by_message() {
    let stream = "8 <13>a\nbc<14>d\r\n5 <15>e\n\n<16>f\x00404 not found\n7 <17>ghi";
    let expected = whole(&["<13>a\nbc", "<14>d\r", "<15>e", "<16>f", "404 not found", "<17>ghi"]);
    assert_eq!(frames(Framing::Auto, 1024, &[stream.as_bytes()]), expected);
    let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
    assert_eq!(frames(Framing::Auto, 1024, &bytes), expected);
}

#[test]
fn a_setting_fixes_how_messages_are_told_apart() {
    assert_eq!(frames(Framing::Newline, 1024, &[b"5 <13>a\nb\n"]), whole(&["5 <13>a", "b"]));
    assert_eq!(frames(Framing::OctetCounting, 1024, &[b"5 a\nbcd3 <1>"]), whole(&["a\nbcd", "<1>"]));
    let mut stream = Frames::new(Framing::OctetCounting, 1024);
    let mut found = Vec::new();
    stream.feed(b"<13>no length\n2 ok1234567890123 too many digits\n", |frame| found.push(frame.text.to_vec()));
    assert_eq!(found, [&b"<13>no length"[..], b"ok", b"1234567890123 too many digits"]);
    assert_eq!(stream.misframed, 2);
}

#[test]
fn a_long_message_comes_in_parts_without_a_cut_character() {
    let text = "日本語".repeat(40);
    for stream in [format!("{text}\n"), format!("{} {text}", text.len())] {
        let framing = if stream.ends_with('\n') { Framing::Newline } else { Framing::OctetCounting };
        for size in [1, 7, 100, 1000] {
            let pieces: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            let found = frames(framing, 64, &pieces);
            assert_eq!(found.iter().map(|(text, _, _)| text.as_str()).collect::<String>(), text);
            let parts: Vec<u32> = found.iter().map(|(_, part, _)| *part).collect();
            assert_eq!(parts, (1..=found.len() as u32).collect::<Vec<_>>());
            assert_eq!(found.iter().filter(|(_, _, continues)| !continues).count(), 1);
            assert!(!found.last().unwrap().2);
        }
    }
}

#[test]
fn a_message_that_ends_before_its_length_is_kept_and_counted() {
    let mut stream = Frames::new(Framing::Auto, 1024);
    let mut found = Vec::new();
    stream.feed(b"100 <13>torn", |frame| found.push(frame.text.to_vec()));
    assert!(found.is_empty());
    stream.flush(|frame| found.push(frame.text.to_vec()));
    assert_eq!((found, stream.torn, stream.pending_bytes()), (vec![b"<13>torn".to_vec()], 1, 0));
}

fn decoder(max_message_bytes: usize) -> Decoder {
    Decoder::new(Arc::new(Normalizer::default()), Settings { framing: Framing::Auto, max_message_bytes })
}

#[test]
fn a_claimed_length_takes_no_memory() {
    let mut decoder = decoder(1024);
    let mut stream = decoder.stream();
    decoder.feed(&mut stream, b"", b"999999999 <13>Oct 11 22:14:15 box app: ", &live(NOW));
    for _ in 0..1000 {
        decoder.feed(&mut stream, b"", &[b'x'; 1000], &live(NOW));
        assert!(stream.pending_bytes() <= 1024);
    }
    let (read, _) = decoder.take();
    assert!(read.batch.unwrap().len() > 900);
    assert!(stream.frames.buffer_capacity() <= 8 * 1024);
}

#[test]
fn every_part_of_a_long_message_says_whose_it_is() {
    let mut decoder = decoder(100);
    let mut stream = decoder.stream();
    let line = format!("<13>Oct 11 22:14:15 box app[7]: {}\n", "y".repeat(300));
    decoder.feed(&mut stream, b"192.0.2.7", line.as_bytes(), &live(NOW));
    let (read, ages) = decoder.take();
    let batch = read.batch.unwrap();
    assert_eq!((batch.len(), batch.resources.len()), (4, 1), "all of one host and application");
    assert_eq!(decoder.counts().split, 4);
    assert_eq!(ages, [(b"192.0.2.7".to_vec(), NOW - time("2026-10-11T22:14:15Z").unwrap())]);
}

#[test]
fn every_message_is_a_row_or_blank() {
    let mut decoder = decoder(1024);
    for datagram in [&b"<13>a"[..], b"", b"\n", b"\0\0", b"\xff\xfe", b"two\nlines", &[b'z'; 5000]] {
        decoder.datagram(b"192.0.2.7", datagram, &live(NOW));
    }
    let counts = decoder.counts();
    assert_eq!((counts.rows, counts.blank, counts.without_priority, counts.split), (3 + 5, 3, 3, 5));
    assert_eq!(decoder.take().0.received, 8);
}

proptest! {
    #[test]
    fn any_bytes_never_panic_and_the_body_is_their_end(text in any::<Vec<u8>>(), now in any::<i64>(), offset in any::<i32>(), ahead in any::<i64>()) {
        let when = When { now_unix_nano: now, utc_offset_s: i64::from(offset), most_ahead_s: ahead };
        let found = Parser::default().parse(&text, &when);
        prop_assert!(trimmed(&text).ends_with(found.body));
        found.fields(|_, _| {});
    }

    #[test]
    fn almost_messages_never_panic(text in "<[0-9]{1,4}>(1 )?((2024-02-30T|Feb 29 )[0-9:. ]{0,12}|- )?[ a-z\\[\\]:=\"\\\\@-]{0,60}", now in 0..i64::MAX) {
        let found = Parser::default().parse(text.as_bytes(), &live(now));
        let mut names = Vec::new();
        found.fields(|name, _| names.push(name.to_vec()));
        let count = names.len();
        names.sort();
        names.dedup();
        prop_assert_eq!(names.len(), count, "each name once");
    }

    #[test]
    fn what_a_sender_writes_comes_back(
        priority in 0_u8..192, host in "[a-z0-9.-]{2,30}", app in "[a-zA-Z/_-]{2,40}", proc_id in "[a-z0-9]{1,20}", msg_id in "[A-Z0-9]{1,20}",
        id in "[a-z@0-9]{1,20}", name in "[a-z]{1,20}", value in "\\PC{0,40}", body in "[!-~]{1,10}( \\PC{0,40}[!-~])?",
    ) {
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
        let text = format!("<{priority}>1 2026-11-24T17:00:00Z {host} {app} {proc_id} {msg_id} [{id} {name}=\"{escaped}\"] {body}");
        let found = parsed(text.as_bytes());
        prop_assert!(!found.malformed);
        prop_assert_eq!(found.priority, Some(priority));
        prop_assert_eq!(
            (found.host, found.app, found.proc_id, found.msg_id, found.body),
            (host.as_bytes(), app.as_bytes(), proc_id.as_bytes(), msg_id.as_bytes(), body.as_bytes())
        );
        let mut values = Vec::new();
        structured::each(found.structured, |found_id, found_name, value| {
            values.push((found_id.to_vec(), found_name.to_vec(), value.into_owned()));
        });
        prop_assert_eq!(values, [(id.into_bytes(), name.into_bytes(), value.into_bytes())]);
    }

    #[test]
    fn a_stream_gives_the_same_messages_however_it_is_cut(
        messages in proptest::collection::vec(("[a-z\u{e9}\u{65e5}]{0,30}", any::<bool>()), 0..12), cuts in proptest::collection::vec(1_usize..40, 1..20),
    ) {
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for (text, counted) in &messages {
            let message = format!("<13>{text}");
            let wire = if *counted { format!("{} {message}", message.len()) } else { format!("{message}\n") };
            stream.extend_from_slice(wire.as_bytes());
            expected.push((message, 0, false));
        }
        let mut pieces = Vec::new();
        let (mut at, mut cuts) = (0, cuts.iter().cycle());
        while at < stream.len() {
            let end = (at + cuts.next().unwrap()).min(stream.len());
            pieces.push(&stream[at..end]);
            at = end;
        }
        prop_assert_eq!(frames(Framing::Auto, 1024, &pieces), expected);
    }

    #[test]
    fn any_stream_is_read_within_bounds_and_nothing_of_it_is_lost(
        pieces in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), Just(b'<'), 48_u8..58, any::<u8>()], 0..200), 0..20),
    ) {
        let mut stream = Frames::new(Framing::Auto, 64);
        let mut got = 0;
        let mut fed = Vec::new();
        for piece in &pieces {
            fed.extend_from_slice(piece);
            stream.feed(piece, |frame| got += frame.text.len());
            prop_assert!(stream.pending_bytes() <= 64 + 16);
        }
        stream.flush(|frame| got += frame.text.len());
        // Ends of messages and their lengths are no part of them.
        let framing = fed.iter().filter(|byte| matches!(byte, b'\n' | b'\r' | b'\0' | b' ' | b'0'..=b'9')).count();
        prop_assert!(got <= fed.len() && got + framing >= fed.len());
    }
}
