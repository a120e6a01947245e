//! Whether bytes from outside are the message that they are taken for, all the way down: what passes can be read by any destination.
//!
//! A row that a protobuf parser refuses would cost its whole request at the destination, again and again. So requests are checked where
//! they come in; blocks of our own are not checked again.

use super::descriptors::{Descriptor, Kind};
use super::wire::{Field, Reader, Value, WireError};

/// Messages may lie in each other this deep. Parsers of protobuf allow 100 as a rule.
pub const MAX_MESSAGE_DEPTH: usize = 100;

/// Refuses a message that has a broken field, a known field of another wire type, a string that is not UTF-8, an id of the wrong length,
/// or too deep a nesting, at any level that is known.
pub fn validate(mut message: Reader<'_>, descriptors: &[Descriptor], depth: usize) -> Result<(), WireError> {
    while let Some(field) = message.next_field()? {
        if let Some(descriptor) = descriptors.iter().find(|descriptor| descriptor.number == field.number) {
            check(&field, descriptor, depth)?;
        }
    }
    Ok(())
}

/// Refuses a known field that is not what its descriptor says.
pub fn check(field: &Field<'_>, descriptor: &Descriptor, depth: usize) -> Result<(), WireError> {
    let broken = |detail| Err(WireError { offset: field.bytes_offset(), detail });
    let Value::Bytes(bytes) = field.value else {
        // protobuf calls such a field unknown, but the Collector's parser refuses the whole request.
        return if field.wire_type() == descriptor.kind.wire_type() {
            Ok(())
        } else {
            Err(WireError { offset: field.offset, detail: "protobuf: a field has another wire type than it should" })
        };
    };
    match descriptor.kind {
        Kind::Message(_) if depth == 0 => broken("protobuf: messages are nested too deep"),
        Kind::Message(inner) => validate(field.message(), inner, depth - 1),
        Kind::String if !is_utf8(bytes) => broken("protobuf: a string is not UTF-8"),
        Kind::TraceId if !matches!(bytes.len(), 0 | 16) => broken("a trace id has not 16 bytes"),
        Kind::SpanId if !matches!(bytes.len(), 0 | 8) => broken("a span id has not 8 bytes"),
        Kind::String | Kind::Base64 | Kind::TraceId | Kind::SpanId => Ok(()),
        _ if !descriptor.repeated => {
            Err(WireError { offset: field.offset, detail: "protobuf: a field has another wire type than it should" })
        }
        kind => match kind.wire_type() {
            1 if bytes.len() % 8 != 0 => broken("protobuf: packed numbers end early"),
            0 => {
                let mut packed = field.message();
                while packed.next_varint()?.is_some() {}
                Ok(())
            }
            _ => Ok(()),
        },
    }
}

/// Most strings are short and ASCII.
#[inline]
pub fn is_utf8(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}
