//! Numbers and bytes as JSON writes them.

/// A whole number of 64 bits; None for anything else.
#[inline]
pub fn unsigned(token: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for byte in token {
        if !byte.is_ascii_digit() {
            return unsigned_of_double(token);
        }
        value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
    }
    (!token.is_empty()).then_some(value)
}

/// Whole numbers may be written `1e3` or `5.0`.
#[cold]
fn unsigned_of_double(token: &[u8]) -> Option<u64> {
    double(token, false)
        .filter(|value| value.fract() == 0.0 && (0.0..18_446_744_073_709_551_616.0).contains(value))
        .map(|value| value as u64)
}

/// A signed number of 64 bits; None for anything else.
#[inline]
pub fn signed(token: &[u8]) -> Option<i64> {
    match token {
        [b'-', digits @ ..] => unsigned(digits).and_then(|value| 0i64.checked_sub_unsigned(value)),
        _ => unsigned(token).and_then(|value| i64::try_from(value).ok()),
    }
}

/// A double; the three that JSON has no number for are strings.
pub fn double(token: &[u8], quoted: bool) -> Option<f64> {
    match token {
        b"NaN" if quoted => return Some(f64::NAN),
        b"Infinity" if quoted => return Some(f64::INFINITY),
        b"-Infinity" if quoted => return Some(f64::NEG_INFINITY),
        _ => {}
    }
    // Rust reads more than JSON has: "inf", "+1", ".5".
    let is_number = token.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
    std::str::from_utf8(token).ok().filter(|_| is_number)?.parse().ok().filter(|value: &f64| value.is_finite())
}

/// Standard or URL-safe base64, with or without padding; None for anything else.
pub fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let digits = &text[..text.len() - padding];
    if padding > 2 || digits.len() % 4 == 1 || (padding > 0 && !text.len().is_multiple_of(4)) {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for four in digits.chunks(4) {
        let mut bits = 0u32;
        for byte in four {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(digit);
        }
        bits <<= 6 * (4 - four.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_in_both_alphabets_with_and_without_padding() {
        for text in ["+/8=", "-_8=", "+/8", "-_8"] {
            assert_eq!(from_base64(text.as_bytes()), Some(vec![0xfb, 0xff]), "{text}");
        }
        for text in ["A", "AA=", "AAA==", "A===", "A A=", "AAAA="] {
            assert_eq!(from_base64(text.as_bytes()), None, "{text}");
        }
        assert_eq!(from_base64(b""), Some(vec![]));
    }

    #[test]
    fn whole_numbers_are_exact_to_their_ends_and_no_further() {
        assert_eq!(signed(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed(b"-9223372036854775809"), None);
        assert_eq!(signed(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(signed(b"9223372036854775808"), None);
        assert_eq!(unsigned(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(unsigned(b"18446744073709551616"), None);
        assert_eq!(unsigned(b"1e3"), Some(1000));
        assert_eq!(unsigned(b"5.0"), Some(5));
        for text in ["", "-", "1.5", "1e40", "-1", "x", "1_0"] {
            assert_eq!(unsigned(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn doubles_are_json_numbers_or_the_three_words() {
        assert_eq!(double(b"-1.5e3", false), Some(-1500.0));
        assert_eq!(double(b"Infinity", true), Some(f64::INFINITY));
        assert!(double(b"NaN", true).is_some_and(f64::is_nan));
        for text in ["NaN", "inf", "infinity", "1e999", "0x10", ""] {
            assert_eq!(double(text.as_bytes(), false), None, "{text}");
        }
    }
}
