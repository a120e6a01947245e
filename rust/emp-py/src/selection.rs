//! `Selection`: a compiled `only:` / `except:` rule.

use std::sync::Arc;

use emp_core::selection::{Match, Selection};
use pyo3::prelude::*;

use crate::batch::PyBatch;
use crate::block::PyBlock;
use crate::error::to_py_err;

/// A compiled `only:` / `except:` rule (JSON of SelectionConfig, by field name).
#[pyclass(name = "Selection", module = "emp_pipe._core", frozen)]
pub struct PySelection(Selection);

#[pymethods]
impl PySelection {
    #[new]
    #[pyo3(signature = (*, only=None, except_=None))]
    fn new(only: Option<&str>, except_: Option<&str>) -> PyResult<Self> {
        Selection::new(only, except_).map(Self).map_err(to_py_err)
    }

    /// What the header alone proves; "some" means: open the block.
    fn of_block(&self, block: &Bound<'_, PyBlock>) -> &'static str {
        match self.0.of_header(&block.get().header) {
            Match::All => "all",
            Match::None => "none",
            Match::Some => "some",
        }
    }

    /// The rows that are selected; None when none is.
    fn apply(&self, py: Python<'_>, batch: &Bound<'_, PyBatch>) -> PyResult<Option<PyBatch>> {
        let batch = &batch.get().0;
        let selected = py.detach(|| {
            Ok(match self.0.of_rows(batch)? {
                None => Arc::clone(batch),
                Some(selected) => Arc::new(batch.filter(|row| selected[row])),
            })
        });
        let selected = selected.map_err(to_py_err)?;
        Ok((!selected.is_empty()).then_some(PyBatch(selected)))
    }
}
