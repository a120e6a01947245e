//! OTLP: export requests to batches ([`decode`]) and batches to export requests ([`encode`]), over a small protobuf reader and writer
//! ([`wire`]). Field numbers are in [`fields`]; what a row says to the columns is read in [`scan`].

pub mod decode;
pub mod encode;
pub mod fields;
pub mod response;
pub mod scan;
pub mod value;
pub mod wire;
