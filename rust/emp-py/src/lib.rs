//! Python bindings of emp-core.
use pyo3::prelude::*;

/// The native core.
#[pymodule]
fn _core(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
