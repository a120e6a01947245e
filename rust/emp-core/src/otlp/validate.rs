//! Whether bytes from outside are the message that they are taken for, all the way down: what passes can be read by any destination.
//!
//! A row that a protobuf parser refuses would cost its whole request at the destination, again and again. So requests are checked where
//! they come in; blocks of our own are not checked again.

use super::descriptors::{Descriptor, Kind};
use super::wire::{Reader, Value, WireError};

/// Messages may lie in each other this deep. Parsers of protobuf allow 100 as a rule.
pub const MAX_MESSAGE_DEPTH: usize = 100;

/// Refuses a message that has a broken field, a string that is not UTF-8, or too deep a nesting, at any level that is known.
pub fn validate(mut message: Reader<'_>, descriptors: &[Descriptor], depth: usize) -> Result<(), WireError> {
    while let Some(field) = message.next_field()? {
        let Some(descriptor) = descriptors.iter().find(|descriptor| descriptor.number == field.number) else { continue };
        // A field of another wire type than it should have is an unknown field, as protobuf says.
        let Value::Bytes(bytes) = field.value else { continue };
        let broken = |detail| Err(WireError { offset: field.bytes_offset(), detail });
        match descriptor.kind {
            Kind::Message(_) if depth == 0 => return broken("protobuf: messages are nested too deep"),
            Kind::Message(inner) => validate(field.message(), inner, depth - 1)?,
            Kind::String if simdutf8::basic::from_utf8(bytes).is_err() => return broken("protobuf: a string is not UTF-8"),
            Kind::Fixed64 | Kind::Double if descriptor.repeated && bytes.len() % 8 != 0 => {
                return broken("protobuf: packed numbers end early");
            }
            Kind::Uint64 if descriptor.repeated => {
                let mut packed = field.message();
                while packed.next_varint()?.is_some() {}
            }
            _ => {}
        }
    }
    Ok(())
}
