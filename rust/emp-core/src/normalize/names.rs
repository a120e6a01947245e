//! The names under which the fields of a record are kept.

use std::collections::HashSet;

use super::careful::Field;

/// The names of a row's attributes, so that no two are the same.
pub(super) struct Names {
    taken: HashSet<Vec<u8>>,
}

impl Names {
    pub(super) fn new(fields: &[Field<'_>], winners: &[bool]) -> Self {
        let canonical = fields.iter().zip(winners).filter(|(_, wins)| **wins).map(|(field, _)| field.meaning.canonical.to_vec());
        Self { taken: canonical.collect() }
    }

    /// The name under which a field that does not get its canonical name is kept: its own, with underscores where that is taken.
    pub(super) fn own(&mut self, field: &Field<'_>) -> Vec<u8> {
        let mut name = field.key.to_vec();
        while !self.taken.insert(name.clone()) {
            name.push(b'_');
        }
        name
    }
}
