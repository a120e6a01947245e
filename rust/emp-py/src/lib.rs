//! Python bindings of emp-core, a file per exported class: convert, release the GIL, call the core, convert back.
//!
//! The surface is described in `python/emp_pipe/_core.pyi` and held against this module by stubtest.

mod batch;
mod block;
mod error;

use pyo3::prelude::*;

/// The native core: bytes to batches and batches to bytes.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("IS_DEBUG_BUILD", cfg!(debug_assertions))?;
    module.add("CoreError", py.get_type::<error::CoreError>())?;
    module.add_class::<batch::PyBatch>()?;
    module.add_class::<block::PyBlock>()?;
    module.add_function(wrap_pyfunction!(block::encode_block, module)?)?;
    if cfg!(debug_assertions) {
        warn_of_debug_build(py)?;
    }
    Ok(())
}

fn warn_of_debug_build(py: Python<'_>) -> PyResult<()> {
    let category = py.get_type::<pyo3::exceptions::PyRuntimeWarning>();
    PyErr::warn(py, &category, c"emp_pipe._core is a debug build: correct, but some ten times slower; build with --release", 1)
}
