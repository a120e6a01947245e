//! Whether the beginning of a file is text that lines can be made of.

/// Bytes of a file that are looked at.
pub const LOOKED_AT_BYTES: usize = 512;
/// Fewer bytes say nothing about an encoding that has no mark.
const LEAST_BYTES: usize = 8;

/// Why a file that begins like this is not read; None where it is. UTF-16 and UTF-32, with their mark or by where their zeros stand.
pub fn refusal(start: &[u8]) -> Option<&'static str> {
    let start = &start[..start.len().min(LOOKED_AT_BYTES)];
    match start {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Some("the file is UTF-32; only UTF-8 is read"),
        [0xff, 0xfe, ..] => return Some("the file is UTF-16 (little-endian); only UTF-8 is read"),
        [0xfe, 0xff, ..] => return Some("the file is UTF-16 (big-endian); only UTF-8 is read"),
        _ => {}
    }
    if start.len() < LEAST_BYTES {
        return None;
    }
    // Western text in UTF-16 is every other byte 0; a hole of zeros has them at both places.
    let zeros = |from: usize| start.iter().skip(from).step_by(2).filter(|byte| **byte == 0).count();
    let half = start.len() / 2;
    match (zeros(0), zeros(1)) {
        (0, odd) if odd * 10 >= half * 7 => Some("the file is UTF-16 (little-endian, without a mark); only UTF-8 is read"),
        (even, 0) if even * 10 >= half * 7 => Some("the file is UTF-16 (big-endian, without a mark); only UTF-8 is read"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_16_is_refused_with_and_without_its_mark() {
        let text = "2025-10-09 INFO started\n";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for (bytes, word) in [
            (little.clone(), "little-endian"),
            (big.clone(), "big-endian"),
            ([&[0xff, 0xfe], &little[..]].concat(), "little-endian"),
            ([&[0xfe, 0xff], &big[..]].concat(), "big-endian"),
            (vec![0xff, 0xfe, 0, 0, b'a', 0, 0, 0], "UTF-32"),
        ] {
            assert!(refusal(&bytes).is_some_and(|why| why.contains(word)), "{bytes:?}");
        }
    }

    #[test]
    fn utf_8_holes_and_what_is_too_short_to_say_are_read() {
        for bytes in
            [&b""[..], b"a\0", b"plain text\n", "日本語のログ\n".as_bytes(), &[0; 64], b"\0\0\0\0after a hole\n", b"\xef\xbb\xbfmark"]
        {
            assert_eq!(refusal(bytes), None, "{bytes:?}");
        }
    }
}
