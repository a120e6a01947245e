//! One record in JSON to msgpack, in one pass over its text.
//!
//! Unlike [`crate::normalize::json`], which reads what is inside a record's body, it knows where in a longer text it is, takes a number
//! that no 64 bits hold as the text that it is (as Forward's rows do), and bytes that are not UTF-8 repaired.

use crate::normalize::json::{put_float, put_int, put_str};
use crate::normalize::wire::repaired;
use crate::otlp::json::escape::put_unescaped;
use crate::otlp::json::fault::Result;
use crate::otlp::json::text::{Str, Text};

/// Memory for one record that is kept between records.
#[derive(Debug, Default)]
pub(crate) struct Transcoder {
    out: Vec<u8>,
    unescaped: Vec<u8>,
}

impl Transcoder {
    /// The msgpack of the object that is next. A fault that is not `broken` leaves a text that can be followed from the object's start.
    pub(crate) fn record(&mut self, text: &mut Text<'_>, depth: usize) -> Result<&mut Vec<u8>> {
        self.out.clear();
        self.object(text, depth)?;
        Ok(&mut self.out)
    }

    fn object(&mut self, text: &mut Text<'_>, depth: usize) -> Result<()> {
        let Some(depth) = depth.checked_sub(1) else { return text.wrong(text.offset(), "nested too deep") };
        text.eat(b'{');
        let start = self.open(0xdf);
        let mut pairs = 0;
        if !text.eat(b'}') {
            loop {
                self.key(text)?;
                self.value(text, depth)?;
                pairs += 1;
                if !text.more(b'}')? {
                    break;
                }
            }
        }
        self.close(start, pairs);
        Ok(())
    }

    fn array(&mut self, text: &mut Text<'_>, depth: usize) -> Result<()> {
        let Some(depth) = depth.checked_sub(1) else { return text.wrong(text.offset(), "nested too deep") };
        text.eat(b'[');
        let start = self.open(0xdd);
        let mut elements = 0;
        if !text.eat(b']') {
            loop {
                self.value(text, depth)?;
                elements += 1;
                if !text.more(b']')? {
                    break;
                }
            }
        }
        self.close(start, elements);
        Ok(())
    }

    /// A head of the widest kind, whose count comes when it is known: nothing has to be moved then. Returns where its content begins.
    fn open(&mut self, head: u8) -> usize {
        self.out.extend_from_slice(&[head, 0, 0, 0, 0]);
        self.out.len()
    }

    fn close(&mut self, start: usize, count: u32) {
        self.out[start - 4..start].copy_from_slice(&count.to_be_bytes());
    }

    #[inline]
    fn key(&mut self, text: &mut Text<'_>) -> Result<()> {
        if let Some(key) = text.plain_key() {
            put_str(&mut self.out, key);
            return Ok(());
        }
        if text.peek() != b'"' {
            return text.broken("a key in quotes should be here");
        }
        let key = text.string_of_any_bytes()?;
        self.string(key, text.is_utf8());
        if text.eat(b':') { Ok(()) } else { text.broken("a colon should be here") }
    }

    #[inline]
    fn value(&mut self, text: &mut Text<'_>, depth: usize) -> Result<()> {
        if let Some(string) = text.plain_string() {
            put_str(&mut self.out, string);
            return Ok(());
        }
        match text.peek() {
            b'{' => return self.object(text, depth),
            b'[' => return self.array(text, depth),
            b'"' => {
                let string = text.string_of_any_bytes()?;
                self.string(string, text.is_utf8());
            }
            b'-' | b'0'..=b'9' => {
                let token = text.number()?;
                self.number(token);
            }
            b't' => {
                text.word(b"true")?;
                self.out.push(0xc3);
            }
            b'f' => {
                text.word(b"false")?;
                self.out.push(0xc2);
            }
            b'n' => {
                text.word(b"null")?;
                self.out.push(0xc0);
            }
            _ => return text.broken("no value that JSON knows"),
        }
        Ok(())
    }

    fn string(&mut self, string: Str<'_>, is_utf8: bool) {
        let mut raw = string.raw;
        if string.escaped {
            self.unescaped.clear();
            put_unescaped(&mut self.unescaped, raw);
            raw = &self.unescaped;
        }
        if is_utf8 {
            put_str(&mut self.out, raw);
        } else {
            put_str(&mut self.out, &repaired(raw));
        }
    }

    #[inline]
    fn number(&mut self, token: &[u8]) {
        let (digits, sign) = match token {
            [b'-', digits @ ..] => (digits, -1),
            digits => (digits, 1),
        };
        // 18 digits always fit.
        if digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit) {
            let number = digits.iter().fold(0i64, |number, digit| number * 10 + i64::from(digit - b'0'));
            put_int(&mut self.out, sign * number);
            return;
        }
        self.other_number(token);
    }

    #[inline(never)]
    fn other_number(&mut self, token: &[u8]) {
        let text = std::str::from_utf8(token).unwrap_or_default();
        if let Ok(number) = text.parse::<i64>() {
            put_int(&mut self.out, number);
        } else if token.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E'))
            && let Some(number) = text.parse().ok().filter(|number: &f64| number.is_finite())
        {
            put_float(&mut self.out, number);
        } else {
            put_str(&mut self.out, token);
        }
    }
}
