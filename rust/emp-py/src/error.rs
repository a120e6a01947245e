//! `CoreError`: the core's error as a Python exception with its kind and offset.

use emp_core::error::CoreError as Error;
use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

create_exception!(
    emp_pipe._core,
    CoreError,
    PyValueError,
    "Bytes or arguments that the core cannot use. `kind` is an `ErrorKind` value, `offset` the byte at which it was seen."
);

/// The Python exception of a core error.
pub fn to_py_err(error: Error) -> PyErr {
    Python::attach(|py| {
        let exception = CoreError::new_err(error.to_string());
        let value = exception.value(py);
        let set = value.setattr("kind", error.kind.name()).and_then(|()| value.setattr("offset", error.offset));
        set.err().unwrap_or(exception)
    })
}

/// The exception for an argument that cannot be used.
pub fn argument_error(detail: impl Into<String>) -> PyErr {
    to_py_err(Error::new(emp_core::error::ErrorKind::ConfigInvalid, 0, detail))
}
