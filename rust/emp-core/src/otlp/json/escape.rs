//! The escapes of JSON strings.

/// Appends a string with its escapes resolved; half a surrogate pair becomes U+FFFD.
pub fn put_unescaped(out: &mut Vec<u8>, raw: &[u8]) {
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let (byte, used) = match rest.get(at + 1) {
            Some(b'b') => (8, 2),
            Some(b'f') => (12, 2),
            Some(b'n') => (b'\n', 2),
            Some(b'r') => (b'\r', 2),
            Some(b't') => (b'\t', 2),
            Some(b'u') => {
                rest = put_code_point(out, &rest[at..]);
                continue;
            }
            Some(byte) => (*byte, 2),
            None => (b'\\', 1),
        };
        out.push(byte);
        rest = &rest[at + used..];
    }
    out.extend_from_slice(rest);
}

/// Appends what one or two `\uXXXX` in front of `rest` say; returns what lies behind them.
fn put_code_point<'a>(out: &mut Vec<u8>, rest: &'a [u8]) -> &'a [u8] {
    let unit = |rest: &[u8]| {
        let digits = rest.strip_prefix(b"\\u").and_then(|rest| rest.get(..4))?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let first = unit(rest).unwrap_or(0xd800);
    let mut behind = rest.get(6..).unwrap_or_default();
    let code = match (first, unit(behind)) {
        (0xd800..=0xdbff, Some(second @ 0xdc00..=0xdfff)) => {
            behind = &behind[6..];
            0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
        }
        _ => first,
    };
    let char = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
    behind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_surrogate_pair_is_replaced() {
        let mut out = Vec::new();
        put_unescaped(&mut out, br"a\ud83dz\ude00\ud83d\ude00");
        assert_eq!(String::from_utf8(out).unwrap(), "a\u{fffd}z\u{fffd}\u{1f600}");
    }
}
