//! Parts of a batch: ranges, masks, flags. Row bytes are copied in runs, views are shifted, tables keep only what the rows use.

use super::{Batch, Columns, Extremes, View};

/// A run of rows, `start..end`.
type Run = std::ops::Range<usize>;

impl Batch {
    /// Rows `start..end`, both clamped to the batch.
    pub fn slice(&self, start: usize, end: usize) -> Self {
        let end = end.min(self.len());
        self.of_runs(std::slice::from_ref(&(start.min(end)..end)))
    }

    /// The rows for which `keep` says true.
    pub fn filter(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for row in (0..self.len()).filter(|&row| keep(row)) {
            match runs.last_mut() {
                Some(run) if run.end == row => run.end += 1,
                _ => runs.push(row..row + 1),
            }
        }
        self.of_runs(&runs)
    }

    /// The rows with a flag; None when there is none.
    pub fn select_flag(&self, flag: u8) -> Option<Self> {
        let selected = self.filter(|row| self.columns.flags[row] & flag != 0);
        (!selected.is_empty()).then_some(selected)
    }

    fn of_runs(&self, runs: &[Run]) -> Self {
        let mut out = Self::new(self.signal);
        out.extremes = Extremes { max_body_bytes: 0, ..self.extremes };
        let bytes = runs.iter().map(|run| self.row_start(run.end) - self.row_start(run.start)).sum();
        out.rows.reserve_exact(bytes);
        out.reserve_columns(runs.iter().map(Run::len).sum());
        let mut resources = Renumber::new(self.resources.len());
        let mut scopes = Renumber::new(self.scopes.len());
        for run in runs {
            let (start, end) = (self.row_start(run.start), self.row_start(run.end));
            let at = out.rows.len();
            out.rows.extend_from_slice(&self.rows[start..end]);
            let (from, to) = (start as u32, at as u32);
            let shift = |view: &View| if view.len == View::ABSENT { *view } else { View { offset: view.offset - from + to, ..*view } };
            let (theirs, ours) = (&self.columns, &mut out.columns);
            out.row_end.extend(self.row_end[run.clone()].iter().map(|row_end| row_end - from + to));
            ours.time_unix_nano.extend_from_slice(&theirs.time_unix_nano[run.clone()]);
            ours.severity_number.extend_from_slice(&theirs.severity_number[run.clone()]);
            ours.flags.extend_from_slice(&theirs.flags[run.clone()]);
            ours.trace_id.extend_from_slice(&theirs.trace_id[run.clone()]);
            ours.span_id.extend_from_slice(&theirs.span_id[run.clone()]);
            ours.body.extend(theirs.body[run.clone()].iter().map(shift));
            ours.job_id.extend(theirs.job_id[run.clone()].iter().map(shift));
            ours.event_type.extend(theirs.event_type[run.clone()].iter().map(shift));
            if !theirs.points.is_empty() {
                ours.points.extend_from_slice(&theirs.points[run.clone()]);
            }
            ours.resource.extend(theirs.resource[run.clone()].iter().map(|index| resources.number(*index)));
            ours.scope.extend(theirs.scope[run.clone()].iter().map(|index| scopes.number(*index)));
        }
        // The other extremes stay what they were: upper bounds, which is all that a limit needs.
        out.extremes.max_body_bytes = match self.extremes.max_body_bytes {
            0 => 0,
            bound => longest(&out.columns, bound),
        };
        out.resources = resources.used.iter().map(|&index| self.resources[index as usize].clone()).collect();
        out.scopes = scopes.used.iter().map(|&index| self.scopes[index as usize].clone()).collect();
        out
    }

    /// Where row `index` begins in `rows`; the end of `rows` for the row behind the last.
    pub fn row_start(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.row_end[index - 1] as usize }
    }

    /// The message of row `index`, without its prefix.
    pub fn message(&self, index: usize) -> &[u8] {
        let row = self.row(index);
        // One byte of tag, then a length of up to five bytes, the last one without its high bit.
        let width = row[1..].iter().position(|byte| *byte < 0x80).map_or(row.len(), |at| at + 2);
        &row[width..]
    }

    /// Makes room for `rows` rows more in every column.
    pub fn reserve_columns(&mut self, rows: usize) {
        let columns = &mut self.columns;
        self.row_end.reserve(rows);
        columns.time_unix_nano.reserve(rows);
        columns.severity_number.reserve(rows);
        columns.resource.reserve(rows);
        columns.scope.reserve(rows);
        columns.flags.reserve(rows);
        columns.trace_id.reserve(rows);
        columns.span_id.reserve(rows);
        columns.body.reserve(rows);
        columns.job_id.reserve(rows);
        columns.event_type.reserve(rows);
    }
}

/// The longest body; a row whose body is no string proves nothing, so the bound stays.
fn longest(columns: &Columns, bound: u32) -> u32 {
    if columns.body.iter().any(|body| body.len == View::ABSENT) {
        return bound;
    }
    columns.body.iter().map(|body| body.len).max().unwrap_or(0)
}

/// New numbers for table entries, given in order of first use.
struct Renumber {
    numbers: Vec<u32>,
    used: Vec<u32>,
}

impl Renumber {
    const UNUSED: u32 = u32::MAX;

    fn new(len: usize) -> Self {
        Self { numbers: vec![Self::UNUSED; len], used: Vec::new() }
    }

    fn number(&mut self, index: u32) -> u32 {
        let number = &mut self.numbers[index as usize];
        if *number == Self::UNUSED {
            *number = self.used.len() as u32;
            self.used.push(index);
        }
        *number
    }
}

#[cfg(test)]
mod tests {
    use crate::batch::{Batch, Signal, TableEntry, View};
    use crate::otlp::fields::log;
    use crate::otlp::value::{Scalar, put_key_value, put_scalar};
    use crate::otlp::wire::put_bytes;

    fn batch_of(bodies: &[&str]) -> Batch {
        let mut batch = Batch::new(Signal::Logs);
        (batch.resources, batch.scopes) = (vec![TableEntry::default()], vec![TableEntry::default()]);
        for body in bodies {
            let (mut message, mut value) = (Vec::new(), Vec::new());
            put_scalar(&mut value, Scalar::String(body.as_bytes()));
            put_bytes(&mut message, log::BODY, &value);
            put_key_value(&mut message, log::ATTRIBUTES, b"job_id", &value);
            put_key_value(&mut message, log::ATTRIBUTES, b"event_type", &value);
            batch.push_message(&message, 0, 0).unwrap();
        }
        batch
    }

    #[test]
    fn the_views_of_a_selection_name_the_bytes_of_its_rows() {
        let batch = batch_of(&["zero", "one", "two", "three and more", "four"]);
        let copied = batch.rewritten(|_, message, out| {
            out.extend_from_slice(message);
            Ok(true)
        });
        for (selected, bodies) in [
            (batch.slice(1, 4), vec!["one", "two", "three and more"]),
            (batch.filter(|row| row % 2 == 0), vec!["zero", "two", "four"]),
            (copied.unwrap().slice(3, 5), vec!["three and more", "four"]),
        ] {
            let text = |view: &View| std::str::from_utf8(selected.view(*view).unwrap()).unwrap();
            for column in [&selected.columns.body, &selected.columns.job_id, &selected.columns.event_type] {
                assert_eq!(column.iter().map(text).collect::<Vec<_>>(), bodies);
            }
        }
    }

    #[test]
    fn the_longest_body_of_a_selection_is_known() {
        let batch = batch_of(&["a", "long body", "b"]);
        assert_eq!(batch.extremes.max_body_bytes, 9);
        assert_eq!(batch.filter(|row| row != 1).extremes.max_body_bytes, 1);
    }
}
