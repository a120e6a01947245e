//! Numbers of payment cards in a text: digits as issuers give them, with a right check digit (Luhn), and nothing joined to them.

use std::ops::Range;

/// A card's number has at most so many digits.
const MOST_DIGITS: usize = 19;

/// The numbers, in order.
pub fn find(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            if !text[at].is_ascii_digit() {
                at += 1;
                continue;
            }
            let (start, before) = (at, at.checked_sub(1).map(|before| text[before]));
            let joined = before.is_some_and(|byte| is_word(byte) || byte == b'.' || byte == b'-');
            if let Some(end) = card_at(&text[start..]).filter(|_| !joined) {
                at = start + end;
                return Some(start..at);
            }
            // What is within a number is no beginning of another.
            at += text[at..].iter().take_while(|byte| is_word(**byte)).count();
        }
        None
    })
}

/// Where a card's number ends that begins with the text.
fn card_at(text: &[u8]) -> Option<usize> {
    let mut digits = [0u8; MOST_DIGITS];
    let mut count = 0;
    let mut best = None;
    for (index, &byte) in text.iter().enumerate() {
        match byte {
            b'0'..=b'9' if count < MOST_DIGITS => {
                digits[count] = byte - b'0';
                count += 1;
                let next = text.get(index + 1..).unwrap_or_default();
                let ends = match next {
                    [b'.', digit, ..] if digit.is_ascii_digit() => false,
                    [byte, ..] => !is_word(*byte),
                    [] => true,
                };
                if ends && is_issued(&digits[..count]) && luhn(&digits[..count]) {
                    best = Some(index + 1);
                }
            }
            // One sign between two digits.
            b' ' | b'-' if count > 0 && text[index - 1].is_ascii_digit() => {}
            _ => break,
        }
    }
    best
}

/// Whether an issuer gives numbers with these first digits and this length.
fn is_issued(digits: &[u8]) -> bool {
    let first = |count: usize| digits[..count].iter().fold(0u32, |number, digit| number * 10 + u32::from(*digit));
    match digits.len() {
        13 | 19 => digits[0] == 4 || digits.len() == 19 && first(2) == 62,
        14 => matches!(first(2), 36 | 38 | 39) || matches!(first(3), 300..=305),
        15 => matches!(first(2), 34 | 37),
        16 => {
            digits[0] == 4
                || matches!(first(2), 51..=55 | 62 | 65)
                || matches!(first(4), 2221..=2720 | 6011 | 3528..=3589)
                || matches!(first(3), 644..=649)
        }
        _ => false,
    }
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, u32::from(*digit)) {
            (0, digit) => digit,
            (_, digit) => 2 * digit - if digit > 4 { 9 } else { 0 },
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn numbers_of_cards_are_found() {
        for (text, wanted) in [
            ("card 4111111111111111 was", "4111111111111111"),
            ("4111 1111 1111 1111 2029", "4111 1111 1111 1111"),
            ("paid by 5500-0055-5555-5559.", "5500-0055-5555-5559"),
            ("(371449635398431)", "371449635398431"),
            ("30569309025904", "30569309025904"),
            ("6011000990139424,", "6011000990139424"),
            ("2223003122003222", "2223003122003222"),
            ("4222222222222", "4222222222222"),
            ("year 2026 4111111111111111", "4111111111111111"),
        ] {
            let found: Vec<_> = find(text.as_bytes()).map(|range| &text[range]).collect();
            assert_eq!(found, [wanted], "{text}");
        }
    }

    #[test]
    fn numbers_that_are_none_stay() {
        for text in [
            "4111111111111112",
            "0000000000000000",
            "1790000000000000000",
            "id-4111111111111111",
            "x4111111111111111",
            "4111111111111111f",
            "4111111111111111.5",
            "3.4111111111111111",
            "4111  1111  1111  1111",
            "41111111111111111111111",
            "9999999999999995",
            "2027-01-15 07:52:11",
        ] {
            assert_eq!(find(text.as_bytes()).count(), 0, "{text}");
        }
    }

    #[test]
    fn a_megabyte_of_digits_ends() {
        assert_eq!(find("4111111111111112 ".repeat(1 << 16).as_bytes()).count(), 0);
        assert_eq!(find(&[b'4'; 1 << 20]).count(), 0);
    }
}
