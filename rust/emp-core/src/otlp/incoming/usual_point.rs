//! The hot path of metrics: a usual data point, checked in one pass. At anything else it gives up, and the point is checked by its
//! descriptors, which also say what is wrong.

use super::items::ITEM_DEPTH;
use super::usual::Bytes;
use crate::otlp::descriptors::EXEMPLAR;
use crate::otlp::validate::validate;
use crate::otlp::wire::Reader;

/// The fields of metrics (see [`crate::otlp::fields::metric::DATA`]) whose points are read here.
const NUMBERS: [u32; 2] = [5, 7];
const HISTOGRAM: u32 = 9;

/// Whether a point of the data in field `data` is a usual one, and whole.
#[inline]
pub fn is_usual(data: u32, point: &[u8]) -> bool {
    let bytes = Bytes::new(point);
    match data {
        HISTOGRAM => histogram(bytes).is_some(),
        _ if NUMBERS.contains(&data) => number(bytes).is_some(),
        _ => false,
    }
}

fn number(mut bytes: Bytes<'_>) -> Option<()> {
    while let Some(tag) = bytes.tag() {
        match tag {
            0x3a => drop(bytes.attribute()?),
            0x11 | 0x19 | 0x21 | 0x31 => drop(bytes.fixed64()?),
            0x40 => bytes.varint()?,
            0x2a => exemplar(bytes.bytes()?)?,
            _ => return None,
        }
    }
    Some(())
}

fn histogram(mut bytes: Bytes<'_>) -> Option<()> {
    while let Some(tag) = bytes.tag() {
        match tag {
            0x4a => drop(bytes.attribute()?),
            0x11 | 0x19 | 0x21 | 0x29 | 0x59 | 0x61 => drop(bytes.fixed64()?),
            0x32 | 0x3a if bytes.bytes()?.len().is_multiple_of(8) => {}
            0x50 => bytes.varint()?,
            0x42 => exemplar(bytes.bytes()?)?,
            _ => return None,
        }
    }
    Some(())
}

fn exemplar(bytes: &[u8]) -> Option<()> {
    validate(Reader::new(bytes), &EXEMPLAR, ITEM_DEPTH - 3).ok()
}
