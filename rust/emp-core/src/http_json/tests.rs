use super::*;
use proptest::prelude::*;

fn decoder() -> Decoder {
    Decoder::new(Arc::new(Normalizer::default()), 1 << 20)
}

fn request(form: Form) -> Request<'static> {
    Request { coding: Coding::Codec(Codec::None), form, tag: b"app.web", time: b"", now_unix_nano: 1_760_000_000_000_000_000 }
}

/// Rows and pieces set aside: offset and bytes.
fn read_as(form: Form, body: &str) -> Result<(usize, Vec<(u64, String)>), CoreError> {
    let read = decoder().decode(body.as_bytes(), &request(form))?;
    let rows = read.batch.map_or(0, |batch| batch.len());
    assert_eq!(read.received, rows as u64 + read.rejected_items);
    Ok((rows, read.rejected.iter().map(|one| (one.offset, String::from_utf8_lossy(&one.data).into_owned())).collect()))
}

fn read(body: &str) -> Result<(usize, Vec<(u64, String)>), CoreError> {
    read_as(Form::Json, body)
}

#[test]
fn an_object_an_array_and_lines_are_records() {
    for (body, rows) in [
        ("", 0),
        (" \r\n\t", 0),
        ("[]", 0),
        ("[ ]\n[]", 0),
        (r#"{"a":1}"#, 1),
        (" {\n\"a\" : 1\n} ", 1),
        (r#"[{"a":1}, {"a":2} ]"#, 2),
        ("{\"a\":1}\n{\"a\":2}\r\n\n{\"a\":3}\n", 3),
        (r#"{"a":1}{"a":2}"#, 2),
        ("[{\"a\":1}]\n[{\"a\":2},{\"a\":3}]", 3),
        ("\u{feff}{\"a\":1}", 1),
    ] {
        assert_eq!(read(body), Ok((rows, vec![])), "{body}");
    }
}

#[test]
fn a_bad_line_among_good_ones_costs_itself() {
    for (body, rows, aside) in [
        ("{\"a\":1}\n{\"a\":\n{\"a\":3}\n", 2, vec![(8, "{\"a\":")]),
        ("{\"a\":\n{\"a\":2}\n{\"a\":3}\n", 2, vec![(0, "{\"a\":")]),
        ("{\"a\":1}\n{\"a\":2", 1, vec![(8, "{\"a\":2")]),
        ("{\"a\":1}\nnothing\n\n{\"a\":3}", 2, vec![(8, "nothing")]),
        ("{\"a\":1}\n{\"a\":\"x\ny\"}\n{\"a\":3}", 2, vec![(8, "{\"a\":\"x"), (16, "y\"}")]),
        ("{\"a\":1}\n{\"a\":2} x\n{\"a\":3}", 3, vec![(16, "x")]),
        ("{\"a\":1}\n7\n\"s\"\n{\"a\":3}", 2, vec![(8, "7"), (10, "\"s\"")]),
        ("[{\"a\":1},7,{\"a\":2},[{}],null]", 2, vec![(9, "7"), (19, "[{}]"), (24, "null")]),
    ] {
        let (got_rows, got_aside) = read(body).unwrap();
        let places: Vec<_> = got_aside.iter().map(|(_, data)| data.as_str()).collect();
        assert_eq!((got_rows, places), (rows, aside.iter().map(|(_, data)| *data).collect()), "{body}");
        for ((offset, data), (start, _)) in got_aside.iter().zip(&aside) {
            assert!((*start..=start + data.len() as u64).contains(offset), "{body}: {offset}");
        }
    }
}

#[test]
fn a_body_of_which_nothing_can_be_used_is_an_error_with_its_offset() {
    for (body, offset) in [
        ("{\"a\":}", 5),
        ("{\"a\":1", 6),
        ("[{\"a\":1},{\"a\":2]", 15),
        ("[{\"a\":1}", 8),
        ("7", 0),
        ("[1,2]", 1),
        ("nothing", 0),
        ("{\"a\":1}\0", 7),
        ("{'a':1}", 1),
        ("{\"a\":01}", 7),
        ("{\"a\":NaN}", 5),
        ("{\"a\":1,}", 7),
        ("{\"a\":\"\\x\"}", 6),
        ("[\n{\"a\":1},\n{\"a\":2,},\n{\"a\":3}\n]", 18),
        ("[{\"a\":1},\n{\"a\":2,},\n{\"a\":3}]", 17),
        ("{\"list\":[\n{\"x\":1},\n{\"x\":2}\n],\n\"b\" 3}", 34),
    ] {
        let error = read(body).unwrap_err();
        assert_eq!((error.kind, error.offset), (ErrorKind::BodyInvalid, offset), "{body}: {error}");
    }
}

#[test]
fn lines_that_are_said_to_be_lines_stand_for_themselves() {
    let body = "{\"a\":\nnothing {\n{\"a\":3}\n{\"a\":";
    assert_eq!(read(body).unwrap_err().offset, 6, "nobody says so, and it does not look like it");
    let (rows, aside) = read_as(Form::Lines, body).unwrap();
    assert_eq!((rows, aside.len()), (1, 3));
}

#[test]
fn hostile_values_cost_themselves_and_no_stack() {
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let (rows, aside) = read(&format!("[{{\"a\":1}},{deep},{{\"a\":2}}]")).unwrap();
    assert_eq!((rows, aside.len()), (2, 1));
    assert!(read(&"[".repeat(100_000)).is_err());
    assert!(read(&"{\"a\":".repeat(100_000)).is_err());
    let just = format!("{{\"a\":{}1{}}}", "[".repeat(31), "]".repeat(31));
    assert_eq!(read(&just), Ok((1, vec![])));
    let deeper = format!("[{{}},{{\"a\":{}1{}}}]", "[".repeat(32), "]".repeat(32));
    assert_eq!(read(&deeper).unwrap().1.len(), 1);
}

#[test]
fn more_records_than_the_limit_allows_are_refused_before_they_take_memory() {
    let error = decoder().decode("{}".repeat(1 << 17).as_bytes(), &request(Form::Json)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);
    let error = decoder().decode(format!("[{}0]", "0,".repeat(1 << 17)).as_bytes(), &request(Form::Json)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);
}

#[test]
fn a_form_gives_its_field() {
    let body = "time=1760000001.5&json=%7B%22a%22%3A+%22x%26y%22%7d&more=1";
    assert_eq!(read_as(Form::UrlEncoded, body), Ok((1, vec![])));
    assert_eq!(read_as(Form::UrlEncoded, "{\"a\":1}"), Ok((1, vec![])), "as curl -d sends it");
    assert!(read_as(Form::UrlEncoded, "a=1").unwrap_err().detail.contains("`json`"));
    assert!(read_as(Form::UrlEncoded, "json=%7B%2").is_err());
}

#[test]
fn times_are_exact() {
    let mut reader = TimeReader::default();
    for (text, expected) in [
        ("1760000000.123456789", Some(1_760_000_000_123_456_789)),
        ("1760000000", Some(1_760_000_000_000_000_000)),
        ("1760000000123", Some(1_760_000_000_123_000_000)),
        ("2025-10-09T08:53:20Z", Some(1_760_000_000_000_000_000)),
        ("yesterday", None),
        ("-1", None),
        (".", None),
    ] {
        assert_eq!(form::time(&mut reader, text.as_bytes()).ok(), expected, "{text}");
    }
}

#[test]
fn deflate_is_inflated_with_and_without_its_head_and_stops_at_the_limit() {
    use std::io::Write;
    let body = b"{\"a\":1}\n{\"a\":2}";
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(body).unwrap();
    let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    bare.write_all(body).unwrap();
    for packed in [zlib.finish().unwrap(), bare.finish().unwrap()] {
        let request = Request { coding: Coding::Deflate, ..request(Form::Json) };
        assert_eq!(decoder().decode(&packed, &request).unwrap().received, 2);
        assert!(decoder().decode(&packed[..5], &request).is_err());
    }
    let mut bomb = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    bomb.write_all(&vec![b' '; 4 << 20]).unwrap();
    let error = form::inflate(&bomb.finish().unwrap(), 1 << 20).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), lines: bool) {
        let _ = decoder().decode(&bytes, &request(if lines { Form::Lines } else { Form::Json }));
        let _ = decoder().decode(&bytes, &request(Form::UrlEncoded));
    }

    #[test]
    fn json_like_text_never_panics_and_the_books_balance(text in "[\\[\\]{}\",:0-9tfnrue.\\\\ \n-]{0,40}") {
        for form in [Form::Json, Form::Lines] {
            if let Ok(read) = decoder().decode(text.as_bytes(), &request(form)) {
                let rows = read.batch.map_or(0, |batch| batch.len() as u64);
                prop_assert_eq!(read.received, rows + read.rejected_items);
            }
        }
    }

    #[test]
    fn an_object_that_serde_reads_is_the_same_row_as_by_the_other_transcoder(
        pairs in proptest::collection::vec(("[a-z\"é\\\\]{0,5}", "\\PC{0,12}", any::<i64>(), any::<f64>()), 0..5)
    ) {
        let mut object = serde_json::Map::new();
        for (key, text, whole, broken) in pairs {
            object.insert(format!("{key}1"), text.into());
            object.insert(format!("{key}2"), serde_json::json!([whole, {"x": broken}, null, true]));
        }
        let text = serde_json::to_string(&object).unwrap();
        let mut expected = Vec::new();
        crate::normalize::json::to_msgpack(text.as_bytes(), &mut expected).unwrap();
        let mut transcoder = Transcoder::default();
        let found = transcoder.record(&mut Text::new(text.as_bytes()), MAX_DEPTH).unwrap();
        let row = |record: &[u8]| {
            let mut builder = Builder::new(Arc::new(Normalizer::default()), "x", MAX_DEPTH);
            builder.push(&Envelope::default(), record, 0).unwrap();
            builder.take().0.rows
        };
        prop_assert_eq!(row(found), row(&expected));
    }
}
