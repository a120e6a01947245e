//! Colours and cursor movements out of text.

/// The text without escape sequences; as it is where it has none.
pub fn without<'a>(text: &'a [u8], out: &'a mut Vec<u8>) -> &'a [u8] {
    let Some(mut at) = memchr::memchr(0x1b, text) else { return text };
    out.clear();
    let mut rest = text;
    loop {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + sequence_len(&rest[at..])..];
        match memchr::memchr(0x1b, rest) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.extend_from_slice(rest);
    out
}

/// Bytes of the escape sequence at the beginning of `text`, the escape byte included.
fn sequence_len(text: &[u8]) -> usize {
    match text.get(1) {
        Some(b'[') => {
            let body = text[2..].iter().take_while(|byte| matches!(byte, 0x20..=0x3f)).count();
            let ends = matches!(text.get(2 + body), Some(0x40..=0x7e));
            2 + body + usize::from(ends)
        }
        // A window's title or a link: to its end, which is BEL or ESC \; one that does not end is no sequence.
        Some(b']') => match memchr::memchr2(7, 0x1b, &text[2..]) {
            Some(end) if text[2 + end] == 7 => end + 3,
            Some(end) if text.get(3 + end) == Some(&b'\\') => end + 4,
            _ => 2,
        },
        Some(b'(' | b')' | b'#') => text.len().min(3),
        Some(0x30..=0x7e) => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clean(text: &str) -> String {
        String::from_utf8_lossy(without(text.as_bytes(), &mut Vec::new())).into_owned()
    }

    #[test]
    fn colours_links_and_movements_are_left_out_and_nothing_else() {
        for (text, expected) in [
            ("plain", "plain"),
            ("\x1b[31mred\x1b[0m and \x1b[1;38;5;208mbold\x1b[m", "red and bold"),
            ("\x1b[2K\x1b[1A up", " up"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x07 end", "link end"),
            ("\x1b(Btext\x1b=", "text"),
            ("cut \x1b[31", "cut "),
            ("cut \x1b", "cut "),
            ("\x1b]0;no end", "0;no end"),
            ("日本\x1b[0m語", "日本語"),
        ] {
            assert_eq!(clean(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_escape_is_left_in_any_text(text in proptest::collection::vec(prop_oneof![Just(0x1bu8), Just(b'['), Just(b']'), any::<u8>()], 0..200)) {
            let mut out = Vec::new();
            prop_assert!(!without(&text, &mut out).contains(&0x1b));
        }
    }
}
