//! [`Fields`]: what a format found in a line, as a record for the normaliser.

use crate::normalize::json::{put_float, put_int, put_str};

/// A record that is being written, a msgpack map; its memory is used again. Names as in the fleet's JSON (`message`, `level`, `timestamp`).
#[derive(Debug)]
pub struct Fields {
    out: Vec<u8>,
    count: u32,
}

impl Default for Fields {
    fn default() -> Self {
        let mut new = Self { out: Vec::new(), count: 0 };
        new.clear();
        new
    }
}

impl Fields {
    /// Begins a record.
    pub fn clear(&mut self) {
        self.count = 0;
        self.out.clear();
        self.out.extend_from_slice(&[0xdf, 0, 0, 0, 0]);
        // A quiet file keeps little.
        self.out.shrink_to(64 << 10);
    }

    /// A text; bytes that are not UTF-8 are repaired by the normaliser.
    pub fn text(&mut self, key: &[u8], value: &[u8]) {
        self.key(key);
        put_str(&mut self.out, value);
    }

    /// A whole number.
    pub fn int(&mut self, key: &[u8], value: i64) {
        self.key(key);
        put_int(&mut self.out, value);
    }

    /// A number.
    pub fn float(&mut self, key: &[u8], value: f64) {
        self.key(key);
        put_float(&mut self.out, value);
    }

    /// True or false.
    pub fn bool(&mut self, key: &[u8], value: bool) {
        self.key(key);
        self.out.push(0xc2 | u8::from(value));
    }

    /// Several texts.
    pub fn texts(&mut self, key: &[u8], values: &[Vec<u8>]) {
        self.key(key);
        self.out.push(0xdd);
        self.out.extend_from_slice(&(values.len() as u32).to_be_bytes());
        values.iter().for_each(|text| put_str(&mut self.out, text));
    }

    /// A value in msgpack.
    pub fn raw(&mut self, key: &[u8], value: &[u8]) {
        self.key(key);
        self.out.extend_from_slice(value);
    }

    /// The fields of a record that is written already, a map of the widest kind, in place of what is here.
    pub(super) fn set(&mut self, record: &[u8]) {
        self.out.clear();
        self.out.extend_from_slice(record);
        self.count = match record {
            [0xdf, a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]),
            _ => 0,
        };
    }

    /// The number of fields so far.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The record.
    pub fn record(&mut self) -> &mut Vec<u8> {
        self.out[1..5].copy_from_slice(&self.count.to_be_bytes());
        &mut self.out
    }

    fn key(&mut self, key: &[u8]) {
        self.count += 1;
        put_str(&mut self.out, key);
    }
}
