//! What OTLP destinations answer: partial successes and statuses.

use emp_core::otlp::response;
use pyo3::prelude::*;

use crate::error::to_py_err;

/// The partial success of an Export...ServiceResponse: how many rows were refused, and why.
#[pyclass(name = "ExportResponse", module = "emp_pipe._core", frozen)]
pub struct PyExportResponse {
    #[pyo3(get)]
    rejected: u64,
    #[pyo3(get)]
    message: String,
}

/// The partial success of an Export...ServiceResponse (protobuf). Raises CoreError (body_invalid) where it is none.
#[pyfunction]
pub fn parse_export_response(data: pyo3::buffer::PyBuffer<u8>, py: Python<'_>) -> PyResult<PyExportResponse> {
    let parsed = response::parse_export_response(&data.to_vec(py)?).map_err(to_py_err)?;
    Ok(PyExportResponse { rejected: parsed.rejected, message: parsed.message })
}

/// The message of a google.rpc.Status (protobuf); "" where it is none.
#[pyfunction]
pub fn parse_status(data: pyo3::buffer::PyBuffer<u8>, py: Python<'_>) -> PyResult<String> {
    Ok(response::parse_status(&data.to_vec(py)?))
}

/// The seconds that a RetryInfo asks to wait; None where it says nothing usable. `in_status`: it is a detail of a google.rpc.Status.
#[pyfunction]
#[pyo3(signature = (data, *, in_status))]
pub fn parse_retry_delay_s(data: pyo3::buffer::PyBuffer<u8>, in_status: bool, py: Python<'_>) -> PyResult<Option<f64>> {
    let data = data.to_vec(py)?;
    let delay_ns = if in_status { response::parse_status_retry_info(&data) } else { response::parse_retry_info(&data) };
    Ok(delay_ns.map(|delay_ns| delay_ns as f64 / 1e9))
}
