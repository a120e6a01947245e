//! The pure core of emp-pipe: bytes to batches and batches to bytes.
//!
//! No sockets, no clock, no threads, no logging: bytes, times and limits come in as arguments, results and errors go out as values. Bytes
//! from outside never panic here. Read [`batch`] first, then [`fluent`] (in), [`normalize`] (what a record means) and [`otlp`] (out).

pub mod aggregate;
pub mod batch;
pub mod block;
pub mod compress;
pub mod error;
pub mod filter;
pub mod fluent;
pub mod grpc;
mod hash;
pub mod http_json;
pub mod json_lines;
pub mod landing;
pub mod limits;
pub mod lines;
pub mod normalize;
pub mod otlp;
pub mod redact;
pub mod sampling;
pub mod selection;
pub mod sharding;
pub mod syslog;
