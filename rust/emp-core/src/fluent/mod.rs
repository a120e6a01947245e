//! Fluent Forward: frames to rows, and rows to frames.
//!
//! [`decoder::Decoder`] is the reader of one connection. Below it: [`cursor`] reads msgpack, [`message`] the head of a message, [`frame`] a whole one, [`body`] its
//! entries, [`entry`] one of them, [`inflate`] compressed bodies, [`json`] JSON mode, [`group`] OTLP groups, [`buffer`] the memory that
//! bytes land in. What a record means is in [`crate::normalize`].
//!
//! [`encode`] is the way out: [`record`] writes a row as a record that any peer reads, with a reserved map ([`meta`]) by which [`restore`]
//! makes it the same row again; [`msgpack`] writes the values.

pub mod body;
pub mod buffer;
pub mod cursor;
pub mod decoder;
pub mod encode;
pub mod entry;
pub mod frame;
pub mod group;
pub mod inflate;
pub mod json;
pub mod message;
pub mod meta;
pub mod msgpack;
pub mod read;
pub mod record;
pub mod restore;
