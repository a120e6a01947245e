//! `AnyValue`: reading one, and writing the scalars.

use super::fields::{any_value, key_value, list};
use super::scan::{KeyValue, key_value as read_key_value};
use super::wire::{Reader, WireError, for_each_field, put_bytes, put_message, put_uint, put_varint};

/// Values nested deeper than this are not followed: what reads them recurses.
pub const MAX_DEPTH: usize = 64;

/// An attribute's value or a body, as it lies in a row.
#[derive(Clone, Debug)]
pub enum AnyValue<'a> {
    /// No value set: null.
    Empty,
    /// A string; not certain to be UTF-8 where it came as OTLP.
    String(&'a [u8]),
    /// true or false
    Bool(bool),
    /// A 64-bit integer.
    Int(i64),
    /// A double; may be NaN or infinite.
    Double(f64),
    /// A reader of the `ArrayValue`.
    Array(Reader<'a>),
    /// A reader of the `KeyValueList`.
    KvList(Reader<'a>),
    /// Bytes.
    Bytes(&'a [u8]),
}

/// Reads an `AnyValue`; the last of its fields counts, as protobuf says of a oneof.
pub fn any_value(message: Reader<'_>) -> Result<AnyValue<'_>, WireError> {
    let mut usual = message.clone();
    if let Some(text) = usual.short_message(0x0a)
        && usual.rest().is_empty()
    {
        return Ok(AnyValue::String(text.rest()));
    }
    let mut value = AnyValue::Empty;
    for_each_field(message, |field| {
        let bytes = field.bytes();
        match (field.number, field.scalar()) {
            (any_value::STRING, _) => value = AnyValue::String(bytes.unwrap_or_default()),
            (any_value::BYTES, _) => value = AnyValue::Bytes(bytes.unwrap_or_default()),
            (any_value::ARRAY, _) => value = AnyValue::Array(field.message()),
            (any_value::KVLIST, _) => value = AnyValue::KvList(field.message()),
            (any_value::BOOL, Some(scalar)) => value = AnyValue::Bool(scalar != 0),
            (any_value::INT, Some(scalar)) => value = AnyValue::Int(scalar as i64),
            (any_value::DOUBLE, Some(scalar)) => value = AnyValue::Double(f64::from_bits(scalar)),
            _ => {}
        }
        Ok::<(), WireError>(())
    })?;
    Ok(value)
}

/// Calls `visit` with a reader of each element of an `ArrayValue`.
pub fn for_each_element<'a, E: From<WireError>>(array: Reader<'a>, mut visit: impl FnMut(Reader<'a>) -> Result<(), E>) -> Result<(), E> {
    for_each_field(array, |field| if field.number == list::VALUES { visit(field.message()) } else { Ok(()) })
}

/// Calls `visit` with each pair of a `KeyValueList`, or of any message whose field `number` is a repeated `KeyValue`.
pub fn for_each_pair<'a, E: From<WireError>>(
    message: Reader<'a>,
    number: u32,
    mut visit: impl FnMut(KeyValue<'a>) -> Result<(), E>,
) -> Result<(), E> {
    for_each_field(message, |field| if field.number == number { visit(read_key_value(field.message())?) } else { Ok(()) })
}

/// A value that an `AnyValue` is written from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// A string.
    String(&'a [u8]),
    /// true or false
    Bool(bool),
    /// A 64-bit integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// Bytes.
    Bytes(&'a [u8]),
}

/// Appends an `AnyValue` message (without tag and length).
pub fn put_scalar(out: &mut Vec<u8>, scalar: Scalar<'_>) {
    match scalar {
        Scalar::String(text) => put_bytes(out, any_value::STRING, text),
        Scalar::Bool(value) => put_uint(out, any_value::BOOL, u64::from(value)),
        Scalar::Int(value) => put_uint(out, any_value::INT, value as u64),
        Scalar::Double(value) => {
            put_varint(out, u64::from(any_value::DOUBLE) << 3 | 1);
            out.extend_from_slice(&value.to_bits().to_le_bytes());
        }
        Scalar::Bytes(bytes) => put_bytes(out, any_value::BYTES, bytes),
    }
}

/// Appends a `KeyValue` as field `number`; `value` is an encoded `AnyValue`.
pub fn put_key_value(out: &mut Vec<u8>, number: u32, key: &[u8], value: &[u8]) {
    put_message(out, number, |out| {
        put_bytes(out, key_value::KEY, key);
        put_bytes(out, key_value::VALUE, value);
    });
}
