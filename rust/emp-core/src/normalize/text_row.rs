//! A record that is nothing but its text, such as a line of a file: the row that [`Builder::push`] makes of a map with one body.

use super::identity::Identity;
use super::wire::{put_bytes, put_varint, varint_len};
use super::{Builder, unfold};
use crate::batch::View;
use crate::batch::build::RowFacts;

impl Builder {
    /// Writes a text as the body of a row; false, and nothing written, where the general way has to look at it: it may hold a record, it
    /// is not UTF-8, or it has NUL bytes or nothing but space in it.
    #[inline]
    pub fn push_text(&mut self, text: &[u8]) -> bool {
        if (self.rules.unfold && unfold::may_be_folded(text)) || text.first().is_none_or(|byte| *byte <= b' ') {
            return false;
        }
        if memchr::memchr(0, text).is_some() || simdutf8::basic::from_utf8(text).is_err() {
            return false;
        }
        let Some(resource) = self.identities.resource(&self.rules, &mut self.batch.resources, Identity::default()) else { return false };
        let rows = &mut self.batch.rows;
        let start = self.template.begin(rows);
        rows.push(0x2a);
        put_varint(rows, (1 + varint_len(text.len() as u64) + text.len()) as u64);
        put_bytes(rows, 0x0a, text);
        let mut row = RowFacts::new(self.scope);
        row.resource = resource;
        row.body = View { offset: (rows.len() - text.len()) as u32, len: text.len() as u32 };
        self.end_row(start, row, None);
        true
    }
}
