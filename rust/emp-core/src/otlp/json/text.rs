//! JSON text, read in one pass: strings, numbers, and stepping over whole values without recursion.
//!
//! What is wrong is a [`Fault`].

use std::borrow::Cow;

use super::fault::{Fault, Result};

/// A string as it lies between its quotes.
#[derive(Clone, Copy, Debug)]
pub struct Str<'a> {
    /// Its bytes.
    pub raw: &'a [u8],
    /// Whether there are escapes in them.
    pub escaped: bool,
    /// Where it begins.
    pub offset: usize,
}

/// A position in JSON text.
#[derive(Clone, Debug)]
pub struct Text<'a> {
    bytes: &'a [u8],
    at: usize,
    /// All of it is UTF-8: no string needs to be looked at.
    is_utf8: bool,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The high bit of each byte that is `byte`; exact up to the first of them.
#[inline(always)]
fn is_byte(word: u64, byte: u8) -> u64 {
    let zero = word ^ (ONES * byte as u64);
    zero.wrapping_sub(ONES) & !zero & HIGHS
}

/// Whether a byte ends a run of plain string bytes.
#[inline(always)]
fn is_special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

impl<'a> Text<'a> {
    /// At the beginning of a text.
    pub fn new(bytes: &'a [u8]) -> Self {
        let at = if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        Self { bytes, at, is_utf8: simdutf8::basic::from_utf8(bytes).is_ok() }
    }

    /// The next byte's place.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Goes back (or on) to a place.
    pub fn go_to(&mut self, offset: usize) {
        self.at = offset;
    }

    /// The text cannot be followed here.
    #[cold]
    pub fn broken<T>(&self, detail: &'static str) -> Result<T> {
        let detail = if self.at >= self.bytes.len() { "the text ends early" } else { detail };
        Err(Box::new(Fault { broken: true, offset: self.at, detail: detail.into(), path: String::new() }))
    }

    /// What lies at a place is not what should be there.
    #[cold]
    pub fn wrong<T>(&self, offset: usize, detail: impl Into<Cow<'static, str>>) -> Result<T> {
        Err(Box::new(Fault { broken: false, offset, detail: detail.into(), path: String::new() }))
    }

    /// The next byte that is no white space; 0 at the end.
    #[inline(always)]
    pub fn peek(&mut self) -> u8 {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(byte) => return *byte,
                None => return 0,
            }
        }
    }

    /// Steps over `byte` where it is next.
    #[inline(always)]
    pub fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == byte;
        self.at += usize::from(found);
        found
    }

    /// After an element of a list or object that ends with `close`: true when another one follows.
    #[inline(always)]
    pub fn more(&mut self, close: u8) -> Result<bool> {
        match self.peek() {
            b',' => {
                self.at += 1;
                Ok(true)
            }
            byte if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => self.broken("a comma or a closing bracket should be here"),
        }
    }

    /// A key and its colon.
    #[inline(always)]
    pub fn key(&mut self) -> Result<Str<'a>> {
        if self.peek() != b'"' {
            return self.broken("a key in quotes should be here");
        }
        let key = self.string()?;
        if !self.eat(b':') {
            return self.broken("a colon should be here");
        }
        Ok(key)
    }

    /// The bytes of a string without escapes, where one is next; None, and nothing stepped over, where not.
    #[inline(always)]
    pub fn plain_string(&mut self) -> Option<&'a [u8]> {
        if !self.is_utf8 || self.peek() != b'"' {
            return None;
        }
        let start = self.at + 1;
        let end = self.plain_end(start);
        if self.bytes.get(end) != Some(&b'"') {
            return None;
        }
        self.at = end + 1;
        Some(&self.bytes[start..end])
    }

    /// A key as [`Self::plain_string`] gives it, and its colon.
    #[inline(always)]
    pub fn plain_key(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        let key = self.plain_string()?;
        if self.eat(b':') {
            return Some(key);
        }
        self.at = start;
        None
    }

    /// The string whose opening quote is next.
    #[inline(always)]
    pub fn string(&mut self) -> Result<Str<'a>> {
        let start = self.at + 1;
        self.at = self.plain_end(start);
        if self.bytes.get(self.at) == Some(&b'"') {
            self.at += 1;
            return self.utf8(Str { raw: &self.bytes[start..self.at - 1], escaped: false, offset: start });
        }
        self.escaped_string(start)
    }

    /// The same for a string of any bytes.
    #[inline(always)]
    pub fn string_of_any_bytes(&mut self) -> Result<Str<'a>> {
        let start = self.at + 1;
        match self.string() {
            Err(fault) if !fault.broken => {
                let raw = &self.bytes[start..self.at - 1];
                Ok(Str { raw, escaped: memchr::memchr(b'\\', raw).is_some(), offset: start })
            }
            string => string,
        }
    }

    /// Whether all of the text is UTF-8.
    pub fn is_utf8(&self) -> bool {
        self.is_utf8
    }

    #[inline(never)]
    fn escaped_string(&mut self, start: usize) -> Result<Str<'a>> {
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return self.utf8(Str { raw: &self.bytes[start..self.at - 1], escaped: true, offset: start });
                }
                Some(b'\\') => self.skip_escape()?,
                Some(_) => return self.broken("a control character in a string"),
                None => return self.broken(""),
            }
            self.at = self.plain_end(self.at);
        }
    }

    fn skip_escape(&mut self) -> Result<()> {
        let digits = self.bytes.get(self.at + 2..self.at + 6).unwrap_or_default();
        self.at += match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') if digits.len() == 4 && digits.iter().all(u8::is_ascii_hexdigit) => 6,
            _ => return self.broken("an escape that JSON does not have"),
        };
        Ok(())
    }

    #[inline(always)]
    fn utf8(&self, string: Str<'a>) -> Result<Str<'a>> {
        if !self.is_utf8 && simdutf8::basic::from_utf8(string.raw).is_err() {
            return self.wrong(string.offset, "a string that is not UTF-8");
        }
        Ok(string)
    }

    /// All bytes and the next one's place, where all of them are UTF-8.
    #[inline(always)]
    pub fn utf8_bytes(&self) -> Option<(&'a [u8], usize)> {
        self.is_utf8.then_some((self.bytes, self.at))
    }

    /// Where a run of plain string bytes ends.
    #[inline(always)]
    pub fn plain_end(&self, mut at: usize) -> usize {
        let bytes = self.bytes;
        while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_le_bytes(*chunk);
            let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
            let special = is_byte(word, b'"') | is_byte(word, b'\\') | control;
            if special != 0 {
                return at + (special.trailing_zeros() / 8) as usize;
            }
            at += 8;
        }
        while bytes.get(at).is_some_and(|byte| !is_special(*byte)) {
            at += 1;
        }
        at
    }

    /// The bytes of a number, which is next.
    #[inline]
    pub fn number(&mut self) -> Result<&'a [u8]> {
        let start = self.at;
        self.at += usize::from(self.bytes.get(self.at) == Some(&b'-'));
        let whole = self.digits()?;
        if whole > 1 && self.bytes[self.at - whole] == b'0' {
            return self.broken("a number with a zero in front");
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            self.at += usize::from(matches!(self.bytes.get(self.at), Some(b'+' | b'-')));
            self.digits()?;
        }
        Ok(&self.bytes[start..self.at])
    }

    #[inline]
    fn digits(&mut self) -> Result<usize> {
        let count = self.bytes[self.at.min(self.bytes.len())..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return self.broken("a digit should be here");
        }
        self.at += count;
        Ok(count)
    }

    /// Steps over a word: `true`, `false`, `null`.
    #[inline]
    pub fn word(&mut self, word: &'static [u8]) -> Result<()> {
        if !self.bytes[self.at..].starts_with(word) {
            return self.broken("no value that JSON knows");
        }
        self.at += word.len();
        Ok(())
    }

    /// Steps over one value of any depth, every byte of it checked.
    pub fn skip(&mut self) -> Result<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            match self.peek() {
                b'{' => {
                    self.at += 1;
                    if !self.eat(b'}') {
                        open.push(b'}');
                        self.skip_key()?;
                        continue;
                    }
                }
                b'[' => {
                    self.at += 1;
                    if !self.eat(b']') {
                        open.push(b']');
                        continue;
                    }
                }
                b'"' => self.skip_string()?,
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                b'-' | b'0'..=b'9' => drop(self.number()?),
                _ => return self.broken("no value that JSON knows"),
            }
            loop {
                let Some(&close) = open.last() else { return Ok(()) };
                if self.more(close)? {
                    if close == b'}' {
                        self.skip_key()?;
                    }
                    break;
                }
                open.pop();
            }
        }
    }

    /// Steps over a string whatever bytes are in it; what is not UTF-8 stands where nobody reads it.
    fn skip_string(&mut self) -> Result<()> {
        match self.string() {
            Err(fault) if fault.broken => Err(fault),
            _ => Ok(()),
        }
    }

    fn skip_key(&mut self) -> Result<()> {
        if self.peek() != b'"' {
            return self.broken("a key in quotes should be here");
        }
        self.skip_string()?;
        if self.eat(b':') { Ok(()) } else { self.broken("a colon should be here") }
    }

    /// Refuses anything but white space.
    pub fn end(&mut self) -> Result<()> {
        self.peek();
        if self.at < self.bytes.len() {
            return self.broken("more text after the request");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::json::escape::put_unescaped;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_stepped_over_just_where_serde_reads_it(text in "[\\[\\]{}\",:0-9tfnrue.\\\\ -]{0,24}") {
            let mut ours = Text::new(text.as_bytes());
            let followed = ours.skip().and_then(|()| ours.end());
            // serde refuses numbers that no double holds, and half a surrogate pair; we step over them.
            match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
                Ok(_) => prop_assert!(followed.is_ok(), "{followed:?}"),
                Err(error) => prop_assert!(followed.is_err() || error.to_string().contains("surrogate"), "{error}"),
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut text = Text::new(&bytes);
            let _ = text.skip();
            prop_assert!(text.offset() <= bytes.len());
            put_unescaped(&mut Vec::new(), &bytes);
        }

        #[test]
        fn a_string_means_what_serde_says(string: String, ascii: bool) {
            let mut json = serde_json::to_string(&string).unwrap();
            if ascii {
                json = json.chars().flat_map(|c| if c.is_ascii() { vec![c as u16] } else { c.encode_utf16(&mut [0; 2]).to_vec() })
                    .map(|unit| if unit < 0x80 { char::from(unit as u8).to_string() } else { format!("\\u{unit:04X}") })
                    .collect();
            }
            let mut text = Text::new(json.as_bytes());
            let found = text.string().unwrap();
            let mut out = Vec::new();
            put_unescaped(&mut out, found.raw);
            prop_assert_eq!(out, string.as_bytes());
            prop_assert!(text.end().is_ok());
        }
    }

    #[test]
    fn nesting_costs_no_stack() {
        let deep = [vec![b'['; 1_000_000], vec![b']'; 1_000_000]].concat();
        let mut text = Text::new(&deep);
        assert_eq!(text.skip(), Ok(()));
        assert_eq!(text.end(), Ok(()));
    }
}
