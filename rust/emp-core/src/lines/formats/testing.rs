//! What the formats' tests share.

use super::Found;
use super::stamp::Times;
use crate::fluent::cursor::{Cursor, Head};
use crate::lines::Fields;

/// 2025-10-09T08:53:20Z.
pub const T: i64 = 1_760_000_000_000_000_000;

/// The fields as JSON and the message; None where the line is not of the format.
pub fn parsed(parse: for<'a> fn(&'a [u8], &mut Times, &mut Fields) -> Option<Found<'a>>, line: &str) -> Option<(String, Option<String>)> {
    let mut fields = Fields::default();
    let found = parse(line.as_bytes(), &mut Times::default(), &mut fields)?;
    let message = found.message.map(|message| String::from_utf8_lossy(message).into_owned());
    Some((json(&mut fields), message))
}

/// The fields as JSON.
pub fn json(fields: &mut Fields) -> String {
    let mut out = String::new();
    put(&mut out, &mut Cursor::new(fields.record(), 0));
    out
}

fn put(out: &mut String, cursor: &mut Cursor<'_>) {
    match cursor.head().unwrap() {
        Head::Map(count) => {
            out.push('{');
            for index in 0..count {
                out.push_str(if index > 0 { "," } else { "" });
                put(out, cursor);
                out.push(':');
                put(out, cursor);
            }
            out.push('}');
        }
        Head::Str(len) => out.push_str(&serde_json::to_string(&String::from_utf8_lossy(cursor.take(len).unwrap())).unwrap()),
        Head::Int(value) => out.push_str(&value.to_string()),
        Head::Float(value) => out.push_str(&format!("{value:?}")),
        Head::Bool(value) => out.push_str(&value.to_string()),
        other => panic!("{other:?}"),
    }
}
