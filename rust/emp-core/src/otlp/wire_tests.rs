use super::*;
use proptest::prelude::*;

fn walk(reader: Reader<'_>, depth: usize) -> Result<usize, WireError> {
    let mut fields = 0;
    for_each_field(reader, |field| {
        fields += 1;
        if depth > 0 && field.bytes().is_some() {
            let _ = walk(field.message(), depth - 1);
        }
        Ok::<(), WireError>(())
    })?;
    Ok(fields)
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Err(error) = walk(Reader::new(&data), 3) {
            prop_assert!(error.offset <= data.len());
        }
    }

    #[test]
    fn the_quick_ways_read_what_the_long_way_reads(data in proptest::collection::vec(any::<u8>(), 0..40), len in 0..40_000usize) {
        let mut framed = Vec::new();
        put_bytes(&mut framed, 2, &vec![7; len]);
        for data in [data, framed] {
            for long in [false, true] {
                let (mut quickly, mut slowly) = (Reader::new(&data), Reader::new(&data));
                let tag = (data.first().copied().unwrap_or(0x12) & 0x78).max(8) | 2;
                let message = if long { quickly.quick_message(tag) } else { quickly.short_message(tag) };
                if let Some(message) = message {
                    let field = slowly.next_field().unwrap().unwrap();
                    prop_assert_eq!((message.rest(), message.offset()), (field.bytes().unwrap(), field.bytes_offset()));
                    prop_assert_eq!(quickly.rest(), slowly.rest());
                } else {
                    prop_assert_eq!(quickly.rest(), &data[..]);
                }
            }
        }
    }

    #[test]
    fn a_varint_reads_back_and_has_the_length_that_was_promised(value: u64) {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        prop_assert_eq!(out.len(), varint_len(value));
        prop_assert_eq!(Reader::new(&out).varint(), Ok(value));
    }

    #[test]
    fn a_message_of_any_length_is_framed_like_bytes(payload in proptest::collection::vec(any::<u8>(), 0..40_000)) {
        let mut framed = vec![7];
        put_message(&mut framed, 5, |out| out.extend_from_slice(&payload));
        let mut plain = vec![7];
        put_bytes(&mut plain, 5, &payload);
        prop_assert_eq!(framed, plain);
    }
}

#[test]
fn a_length_past_the_end_is_refused_at_its_offset() {
    assert_eq!(
        Reader::at(&[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f, 1], 100).next_field(),
        Err(WireError { offset: 106, detail: "protobuf: a field ends early" })
    );
}

#[test]
fn a_group_is_skipped_and_the_next_field_read() {
    let mut reader = Reader::new(&[0x0b, 0x08, 0x01, 0x13, 0x14, 0x0c, 0x10, 0x05]);
    assert_eq!(reader.next_field().unwrap().unwrap().value, Value::Group);
    assert_eq!(reader.next_field().unwrap().unwrap().value, Value::Varint(5));
}
