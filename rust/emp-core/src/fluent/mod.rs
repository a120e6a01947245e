//! Fluent Forward: frames to rows.
//!
//! [`decoder::Decoder`] is the reader of one connection. Below it: [`cursor`] reads msgpack, [`message`] the head of a message, [`body`] its
//! entries, [`entry`] one of them, [`inflate`] compressed bodies, [`json`] JSON mode, [`group`] OTLP groups, [`buffer`] the memory that
//! bytes land in. What a record means is in [`crate::normalize`].

pub mod body;
pub mod buffer;
pub mod cursor;
pub mod decoder;
pub mod entry;
pub mod group;
pub mod inflate;
pub mod json;
pub mod message;
pub mod read;
