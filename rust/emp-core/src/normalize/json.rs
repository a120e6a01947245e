//! JSON to msgpack, so that one row writer serves both. The order of keys is kept, equal keys too (what follows decides between them).

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

use crate::error::{CoreError, ErrorKind};

/// Appends the msgpack form of one JSON text. Bytes that are not UTF-8 are repaired first. Errors carry the offset of the line's fault.
pub fn to_msgpack(text: &[u8], out: &mut Vec<u8>) -> Result<(), CoreError> {
    let repaired = super::wire::repaired(text);
    let start = out.len();
    let mut reader = serde_json::Deserializer::from_slice(&repaired);
    let done = Writer(out).deserialize(&mut reader).and_then(|()| reader.end());
    done.map_err(|error| {
        out.truncate(start);
        CoreError::new(ErrorKind::BodyInvalid, offset(&repaired, &error), format!("no JSON: {error}"))
    })
}

fn offset(text: &[u8], error: &serde_json::Error) -> usize {
    let before = memchr::memchr_iter(b'\n', text).nth(error.line().wrapping_sub(2)).map_or(0, |at| at + 1);
    let line_start = if error.line() > 1 { before } else { 0 };
    (line_start + error.column().saturating_sub(1)).min(text.len())
}

/// Appends a msgpack str.
pub fn put_str(out: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        len @ 0..32 => out.push(0xa0 | len as u8),
        len @ 32..0x100 => out.extend_from_slice(&[0xd9, len as u8]),
        len => {
            out.push(0xdb);
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(text);
}

/// Appends a msgpack integer.
pub fn put_int(out: &mut Vec<u8>, value: i64) {
    if (0..0x80).contains(&value) {
        out.push(value as u8);
    } else {
        out.push(0xd3);
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends a msgpack float.
pub fn put_float(out: &mut Vec<u8>, value: f64) {
    out.push(0xcb);
    out.extend_from_slice(&value.to_be_bytes());
}

struct Writer<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Writer<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Writer<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.push(0xc0);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.0.push(0xc2 | u8::from(value));
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        put_int(self.0, value);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => put_int(self.0, value),
            Err(_) => {
                self.0.push(0xcf);
                self.0.extend_from_slice(&value.to_be_bytes());
            }
        }
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        put_float(self.0, value);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        put_str(self.0, value.as_bytes());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        let start = open(self.0, 0xdd);
        let mut count = 0;
        while values.next_element_seed(Writer(self.0))?.is_some() {
            count += 1;
        }
        close::<A::Error>(self.0, start, count)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<(), A::Error> {
        let start = open(self.0, 0xdf);
        let mut count = 0;
        while pairs.next_key_seed(Writer(self.0))?.is_some() {
            pairs.next_value_seed(Writer(self.0))?;
            count += 1;
        }
        close::<A::Error>(self.0, start, count)
    }
}

fn open(out: &mut Vec<u8>, head: u8) -> usize {
    out.extend_from_slice(&[head, 0, 0, 0, 0]);
    out.len()
}

fn close<E: serde::de::Error>(out: &mut [u8], start: usize, count: usize) -> Result<(), E> {
    let count = u32::try_from(count).map_err(|_| E::custom("too many values"))?;
    // Short ones in their short form would need the content moved; readers take any width.
    out[start - 4..start].copy_from_slice(&count.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fluent::cursor::{Cursor, Head};

    #[test]
    fn values_keep_their_type_and_order() {
        let mut out = Vec::new();
        to_msgpack(br#" {"b":1,"a":[true,null,-2.5,18446744073709551615,"\u00e9"]} "#, &mut out).unwrap();
        let mut cursor = Cursor::new(&out, 0);
        assert_eq!(cursor.head(), Ok(Head::Map(2)));
        assert_eq!(cursor.text(), Ok(Some(&b"b"[..])));
        assert_eq!(cursor.head(), Ok(Head::Int(1)));
        assert_eq!(cursor.text(), Ok(Some(&b"a"[..])));
        assert_eq!(cursor.head(), Ok(Head::Array(5)));
        assert_eq!(cursor.head(), Ok(Head::Bool(true)));
        assert_eq!(cursor.head(), Ok(Head::Nil));
        assert_eq!(cursor.head(), Ok(Head::Float(-2.5)));
        assert_eq!(cursor.head(), Ok(Head::Big(u64::MAX)));
        assert_eq!(cursor.text(), Ok(Some("é".as_bytes())));
        assert_eq!(cursor.remaining(), 0);
    }

    #[test]
    fn what_is_no_json_leaves_nothing_and_says_where() {
        for (text, offset) in [("{\"a\":}", 5), ("{}x", 2), ("", 0), ("{\n\"a\" 1}", 6), ("[NaN]", 1)] {
            let mut out = vec![7];
            let error = to_msgpack(text.as_bytes(), &mut out).unwrap_err();
            assert_eq!(out, [7]);
            assert_eq!(error.offset, offset, "{text}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(to_msgpack(deep.as_bytes(), &mut Vec::new()).is_err());
    }
}
