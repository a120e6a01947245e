//! Rows as they usually are, asked without walking through them field by field: do their attributes have names of secrets?
//!
//! Usual is a log record, a span, a resource or a scope whose attributes are texts, numbers and bools, each of one field. Everything else is
//! left to the walk, which knows all of OTLP.

use super::keys::{KeyMatch, KeyMemo, Keys};
use crate::batch::Signal;

/// What a field of a message is to this look, by its tag of one byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Holds no key: a text, an id, a number.
    Plain,
    /// An `AnyValue`.
    Value,
    /// A `KeyValue`.
    Attribute,
    /// Anything may be in it.
    Unusual,
}

/// The fields of one kind of message.
pub struct Layout([Part; 128]);

impl Layout {
    const fn new(plain: &[u8], value: u8, attribute: u8) -> Self {
        let mut parts = [Part::Unusual; 128];
        let mut tag = 0;
        while tag < 128 {
            if matches!(tag & 7, 0 | 1 | 5) {
                parts[tag] = Part::Plain;
            }
            tag += 1;
        }
        let mut at = 0;
        while at < plain.len() {
            parts[(plain[at] << 3 | 2) as usize] = Part::Plain;
            at += 1;
        }
        if value > 0 {
            parts[(value << 3 | 2) as usize] = Part::Value;
        }
        parts[(attribute << 3 | 2) as usize] = Part::Attribute;
        Self(parts)
    }

    /// That of a signal's rows; None where they are never usual.
    pub fn of_rows(signal: Signal) -> Option<&'static Self> {
        match signal {
            Signal::Logs => Some(&LOG),
            Signal::Traces => Some(&SPAN),
            Signal::Metrics => None,
        }
    }
}

// Texts and ids that are looked at by their clues alone, the body, the attributes.
static LOG: Layout = Layout::new(&[3, 9, 10, 12], 5, 6);
static SPAN: Layout = Layout::new(&[1, 2, 3, 4, 5], 0, 9);
/// Of a resource.
pub static RESOURCE: Layout = Layout::new(&[], 0, 1);
/// Of a scope.
pub static SCOPE: Layout = Layout::new(&[1, 2], 0, 3);

/// Whether a message has no value that its name makes a secret; false where it is not a usual one. `mask` is no secret.
pub fn names_nothing(data: &[u8], layout: &Layout, keys: &Keys, mask: impl Fn(&[u8]) -> bool, memo: &mut KeyMemo) -> bool {
    let mut rest = data;
    while let [tag, behind @ ..] = rest {
        let part = layout.0.get(usize::from(*tag)).copied().unwrap_or(Part::Unusual);
        let (payload, next) = match (tag & 7, part) {
            (_, Part::Unusual) => return false,
            (0, _) => match varint_end(behind) {
                Some(end) => (&behind[..0], &behind[end..]),
                None => return false,
            },
            (1, _) if behind.len() >= 8 => (&behind[..0], &behind[8..]),
            (5, _) if behind.len() >= 4 => (&behind[..0], &behind[4..]),
            (2, _) => match delimited(behind) {
                Some(both) => both,
                None => return false,
            },
            _ => return false,
        };
        let usual = match part {
            Part::Attribute => attribute(payload, keys, &mask, memo),
            Part::Value => value(payload) != Shape::Unusual,
            Part::Plain | Part::Unusual => true,
        };
        if !usual {
            return false;
        }
        rest = next;
    }
    true
}

fn attribute(pair: &[u8], keys: &Keys, mask: &impl Fn(&[u8]) -> bool, memo: &mut KeyMemo) -> bool {
    let [0x0a, behind @ ..] = pair else { return false };
    let Some((key, [0x12, behind @ ..])) = delimited(behind) else { return false };
    let Some((given, [])) = delimited(behind) else { return false };
    let shape = value(given);
    match keys.remembered(key, memo) {
        KeyMatch::No => shape != Shape::Unusual,
        found => match shape {
            Shape::Nothing => true,
            Shape::Number => found == KeyMatch::Within,
            Shape::Text(text) => text.is_empty() || mask(text),
            Shape::Unusual => false,
        },
    }
}

#[derive(PartialEq, Eq)]
enum Shape<'a> {
    /// Empty, or a bool.
    Nothing,
    Number,
    Text(&'a [u8]),
    Unusual,
}

/// What an `AnyValue` of one field holds.
#[inline]
fn value(given: &[u8]) -> Shape<'_> {
    match given {
        [] => Shape::Nothing,
        [0x0a, behind @ ..] => match delimited(behind) {
            Some((text, [])) => Shape::Text(text),
            _ => Shape::Unusual,
        },
        [0x10, behind @ ..] if varint_end(behind) == Some(behind.len()) => Shape::Nothing,
        [0x18, behind @ ..] if varint_end(behind) == Some(behind.len()) => Shape::Number,
        [0x21, behind @ ..] if behind.len() == 8 => Shape::Number,
        _ => Shape::Unusual,
    }
}

/// Where a varint ends.
#[inline]
fn varint_end(data: &[u8]) -> Option<usize> {
    data.iter().take(10).position(|byte| *byte < 0x80).map(|at| at + 1)
}

/// What a length of up to two bytes says, and what is behind it.
#[inline]
fn delimited(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = match data {
        [len @ 0..0x80, rest @ ..] => (usize::from(*len), rest),
        [low, high @ 0..0x80, rest @ ..] => (usize::from(*low & 0x7f) | usize::from(*high) << 7, rest),
        [low, middle, high @ 0..0x80, rest @ ..] => {
            (usize::from(*low & 0x7f) | usize::from(*middle & 0x7f) << 7 | usize::from(*high) << 14, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}
