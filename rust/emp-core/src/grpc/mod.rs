//! gRPC over HTTP/2 without sockets: what a server and a client of unary calls make of bytes, and which bytes they answer with.
//!
//! A subset of HTTP/2 (RFC 9113) that is whole for this: no priorities, no push, no table of our own for headers. Why not a crate:
//! `docs/decisions/011-grpc-in-rust.md`. Read `wire.rs` first, then `server.rs`.

mod answer;
mod client;
mod control;
mod frame;
mod header_block;
#[cfg(test)]
mod hostile_tests;
mod hpack;
mod hpack_table;
#[cfg(test)]
mod hpack_tests;
mod huffman;
mod incoming;
mod outgoing;
mod request;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use answer::Answer;
pub use client::{ClientConnection, Event as ClientEvent, MOST_ANSWER_BYTES};
pub use control::MOST_USELESS_FRAMES;
pub use frame::code;
pub use header_block::{HeaderList, MOST_HEADER_LIST_BYTES};
pub use incoming::Message;
pub use request::{Call, Problem};
pub use server::{Event as ServerEvent, FIRST_GRANT_BYTES, ServerConnection, ServerLimits};
pub use wire::Broken;
