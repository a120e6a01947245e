//! `AnyValue` as plain JSON (an object is an object) and as bare text.

use std::borrow::Cow;

use super::text::{non_finite, put_base64, put_f64, put_i64, put_string};
use crate::otlp::fields::list;
use crate::otlp::value::{AnyValue, MAX_DEPTH, any_value, for_each_element, for_each_pair};
use crate::otlp::wire::{Reader, WireError};

/// Appends a value as JSON: bytes as base64, doubles that are no number as strings. Nested past [`MAX_DEPTH`] it says so.
pub fn put_value(out: &mut Vec<u8>, value: Reader<'_>) -> Result<(), WireError> {
    put_nested(out, &any_value(value)?, MAX_DEPTH)
}

fn put_nested(out: &mut Vec<u8>, value: &AnyValue<'_>, depth: usize) -> Result<(), WireError> {
    match value {
        AnyValue::Empty => out.extend_from_slice(b"null"),
        AnyValue::String(text) => put_string(out, text),
        AnyValue::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        AnyValue::Int(value) => put_i64(out, *value),
        AnyValue::Double(value) => put_f64(out, *value),
        AnyValue::Bytes(bytes) => {
            out.push(b'"');
            put_base64(out, bytes);
            out.push(b'"');
        }
        AnyValue::Array(_) | AnyValue::KvList(_) if depth == 0 => out.extend_from_slice(b"\"(nested too deep)\""),
        AnyValue::Array(array) => {
            let mut separator = b'[';
            for_each_element(array.clone(), |element| {
                out.push(separator);
                separator = b',';
                put_nested(out, &any_value(element)?, depth - 1)
            })?;
            close(out, separator, b'[', b']');
        }
        AnyValue::KvList(pairs) => {
            let mut separator = b'{';
            for_each_pair(pairs.clone(), list::VALUES, |pair| {
                out.push(separator);
                separator = b',';
                put_string(out, pair.key);
                out.push(b':');
                put_nested(out, &any_value(pair.value)?, depth - 1)
            })?;
            close(out, separator, b'{', b'}');
        }
    }
    Ok(())
}

fn close(out: &mut Vec<u8>, separator: u8, open: u8, end: u8) {
    if separator == open {
        out.push(open);
    }
    out.push(end);
}

/// A value as bare text: a string as it is, numbers in decimal, bytes as base64, the rest as JSON. None for an empty value.
pub fn value_text(value: Reader<'_>) -> Result<Option<Cow<'_, [u8]>>, WireError> {
    let value = any_value(value)?;
    let mut out = Vec::new();
    match &value {
        AnyValue::Empty => return Ok(None),
        AnyValue::String(text) => return Ok(Some(Cow::Borrowed(text))),
        AnyValue::Bytes(bytes) => put_base64(&mut out, bytes),
        AnyValue::Double(value) if !value.is_finite() => out.extend_from_slice(non_finite(*value).as_bytes()),
        value => put_nested(&mut out, value, MAX_DEPTH)?,
    }
    Ok(Some(Cow::Owned(out)))
}
