//! `ForwardFrame`: one PackedForward message on its way out.

use emp_core::fluent::encode::ForwardFrame;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// One PackedForward message of one tag; `chunk` is unique within its call (`<chunk>.<n>` after the first).
#[pyclass(name = "ForwardFrame", module = "emp_pipe._core", frozen)]
pub struct PyForwardFrame(pub ForwardFrame);

#[pymethods]
impl PyForwardFrame {
    /// The tag; what is not UTF-8 in it is repaired here, not in `data`.
    #[getter]
    fn tag(&self) -> String {
        String::from_utf8_lossy(&self.0.tag).into_owned()
    }

    #[getter]
    fn chunk(&self) -> &str {
        &self.0.chunk
    }

    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.data)
    }

    #[getter]
    fn records(&self) -> usize {
        self.0.records
    }
}
