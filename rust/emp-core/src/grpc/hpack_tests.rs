//! The examples of RFC 7541, Appendix C; and: any bytes give fields or a refusal, in memory that is bounded by the table's limit.

use proptest::prelude::*;

use super::hpack::{BlockInvalid, Decoder, put_field};
use super::huffman;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, BlockInvalid> {
    let mut found = Vec::new();
    decoder.decode(block, |name, value| found.push(format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))))?;
    Ok(found)
}

#[test]
fn requests_one_after_the_other_share_the_table_as_in_c_4_of_the_rfc() {
    let mut decoder = Decoder::default();
    let first = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
    assert_eq!(fields(&mut decoder, &bytes("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff")).unwrap(), first);
    let second = [&first[..], &["cache-control: no-cache"]].concat();
    assert_eq!(fields(&mut decoder, &bytes("8286 84be 5886 a8eb 1064 9cbf")).unwrap(), second);
    let third = [":method: GET", ":scheme: https", ":path: /index.html", ":authority: www.example.com", "custom-key: custom-value"];
    assert_eq!(fields(&mut decoder, &bytes("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf")).unwrap(), third);
}

#[test]
fn entries_leave_a_small_table_in_their_order_as_in_c_6_of_the_rfc() {
    let mut decoder = Decoder::default();
    let (private, place) = ("cache-control: private", "location: https://www.example.com");
    let date = |second| format!("date: Mon, 21 Oct 2013 20:13:2{second} GMT");
    let first = bytes(
        "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b
         97c8 e9ae 82ae 43d3",
    );
    assert_eq!(fields(&mut decoder, &first).unwrap(), [":status: 302", private, &date(1), place]);
    assert_eq!(fields(&mut decoder, &bytes("4883 640e ffc1 c0bf")).unwrap(), [":status: 307", private, &date(1), place]);
    let third = bytes(
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960
         d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    );
    let cookie = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    assert_eq!(fields(&mut decoder, &third).unwrap(), [":status: 200", private, &date(2), place, "content-encoding: gzip", cookie]);
}

#[test]
fn blocks_that_are_none_are_refused() {
    for (what, block) in [
        ("index 0", bytes("80")),
        ("an index that is not there", bytes("be")),
        ("an integer without end", bytes("ff ff ff ff ff ff ff ff")),
        ("an integer that is cut", bytes("ff 80")),
        ("a name that is cut", bytes("40 05 61")),
        ("a value that is missing", bytes("40 01 61")),
        ("an end mark in a string", bytes("00 84 ff ff ff ff 00")),
        ("a padding of more than seven bits", bytes("00 82 1f ff 00")),
        ("a padding that is not all ones", bytes("00 81 18 00")),
        ("a table over its limit", bytes("3f e2 1f")),
        ("a limit behind a field", bytes("82 20")),
    ] {
        assert_eq!(fields(&mut Decoder::default(), &block), Err(BlockInvalid), "{what}");
    }
}

#[test]
fn a_reference_to_a_long_entry_allocates_nothing_however_often_it_stands_there() {
    let mut decoder = Decoder::default();
    let mut block = vec![0x40, 1, b'a', 0x7F];
    let value = vec![b'v'; 4000];
    block.extend_from_slice(&[0x81, 0x1E]); // 127 + 1 + 30 * 128 = 3968
    block.extend_from_slice(&value[..3968]);
    let mut decoded = 0;
    decoder.decode(&block, |_, value| decoded += value.len()).unwrap();
    decoder.decode(&[0xBE; 10_000], |_, value| decoded += value.len()).unwrap();
    assert_eq!(decoded, 10_001 * 3968);
    assert!(decoder.held_bytes() <= 4096 + 2 * 4096);
}

#[test]
fn the_table_holds_4096_bytes_however_much_is_put_into_it() {
    let mut decoder = Decoder::default();
    for number in 0..100_u8 {
        let block = [&[0x40, 1, number, 0x64][..], &[b'v'; 100]].concat();
        assert_eq!(decoder.decode(&block, |_, value| assert_eq!(value.len(), 100)), Ok(()));
        assert!(decoder.table_bytes() <= 4096);
    }
    // An entry takes 133 bytes: thirty have room.
    assert_eq!(decoder.decode(&[0x80 | (61 + 30)], |name, _| assert_eq!(name, [70])), Ok(()));
    assert_eq!(decoder.decode(&[0x80 | (61 + 31)], |_, _| {}), Err(BlockInvalid));
}

#[test]
fn one_long_field_does_not_leave_its_memory_behind() {
    let mut decoder = Decoder::default();
    let mut block = Vec::new();
    put_field(&mut block, &[b'n'; 30_000], &[b'v'; 30_000], false);
    assert_eq!(decoder.decode(&block, |name, value| assert_eq!((name.len(), value.len()), (30_000, 30_000))), Ok(()));
    assert!(decoder.held_bytes() <= 2 * 4096, "{}", decoder.held_bytes());
}

proptest! {
    #[test]
    fn what_is_written_is_read(fields in proptest::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>(), any::<bool>()), 0..8)) {
        let mut block = Vec::new();
        for (name, value, is_secret) in &fields {
            put_field(&mut block, name, value, *is_secret);
        }
        let mut read = Vec::new();
        Decoder::default().decode(&block, |name, value| read.push((name.to_vec(), value.to_vec()))).unwrap();
        prop_assert_eq!(read, fields.into_iter().map(|(name, value, _)| (name, value)).collect::<Vec<_>>());
    }

    #[test]
    fn a_string_in_huffmans_code_is_read_back(text: Vec<u8>) {
        let mut read = Vec::new();
        prop_assert_eq!(huffman::decode(&huffman::encode(&text), &mut read), Some(()));
        prop_assert_eq!(read, text);
    }

    #[test]
    fn any_bytes_give_fields_or_a_refusal_and_the_table_stays_small(blocks in proptest::collection::vec(any::<Vec<u8>>(), 0..20)) {
        let mut decoder = Decoder::default();
        for block in blocks {
            let _ = decoder.decode(&block, |_, _| {});
            prop_assert!(decoder.table_bytes() <= 4096);
        }
    }
}
