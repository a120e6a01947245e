//! OTLP: export requests to batches ([`incoming`] from outside, [`decode`] our own) and batches to export requests ([`encode`]), over a small protobuf reader and writer
//! ([`wire`]). Field numbers are in [`fields`]; what a row says to the columns is read in [`scan`];
//! whole messages are described in [`descriptors`], for [`validate`] and for JSON.

pub mod decode;
pub mod descriptors;
pub mod encode;
pub mod fields;
pub mod incoming;
pub mod json;
pub mod points;
pub mod response;
pub mod scan;
pub mod validate;
pub mod value;
pub mod wire;
