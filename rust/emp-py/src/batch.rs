//! `Batch`: rows of one signal, shared and immutable.

use std::sync::Arc;

use emp_core::batch::{Batch, FLAG_ERROR, FLAG_EVENT, Signal};
use emp_core::error::ErrorKind;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::block::{CodecArg, PyBlock};
use crate::error::{argument_error, to_py_err};

/// A signal by its name.
pub struct SignalArg(pub Signal);

impl FromPyObject<'_, '_> for SignalArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let name: &str = &object.extract::<pyo3::pybacked::PyBackedStr>()?;
        Signal::from_name(name).map(Self).ok_or_else(|| argument_error(format!("a signal is logs, traces or metrics, not {name:?}")))
    }
}

/// Rows of one signal in memory, each an encoded OTLP message, with Arrow columns beside them. Immutable.
#[pyclass(name = "Batch", module = "emp_pipe._core", frozen)]
pub struct PyBatch(pub Arc<Batch>);

impl From<Batch> for PyBatch {
    fn from(batch: Batch) -> Self {
        Self(Arc::new(batch))
    }
}

impl PyBatch {
    fn count_flag(&self, flag: u8) -> usize {
        self.0.columns.flags.iter().filter(|flags| **flags & flag != 0).count()
    }
}

#[pymethods]
impl PyBatch {
    /// The rows of an Export{Logs,Trace,Metrics}ServiceRequest; each keeps its own bytes. Raises CoreError with the offset.
    #[staticmethod]
    #[pyo3(
        signature = (data, *, signal, codec=CodecArg::NONE, max_inflated_bytes=268_435_456),
        text_signature = "(data, *, signal, codec='none', max_inflated_bytes=268435456)"
    )]
    fn from_otlp(py: Python<'_>, data: PyBackedBytes, signal: SignalArg, codec: CodecArg, max_inflated_bytes: usize) -> PyResult<Self> {
        py.detach(|| emp_core::otlp::decode::decode_compressed(signal.0, &data, codec.0, max_inflated_bytes, ErrorKind::BodyInvalid))
            .map(Self::from)
            .map_err(to_py_err)
    }

    #[getter]
    fn signal(&self) -> &'static str {
        self.0.signal.name()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// The bytes of the rows, as encoded and without their resources.
    #[getter]
    fn size_bytes(&self) -> usize {
        self.0.rows.len()
    }

    #[getter]
    fn resource_count(&self) -> usize {
        self.0.resources.len()
    }

    #[getter]
    fn error_count(&self) -> usize {
        self.count_flag(FLAG_ERROR)
    }

    #[getter]
    fn event_count(&self) -> usize {
        self.count_flag(FLAG_EVENT)
    }

    #[pyo3(signature = (codec, *, topic, block_id))]
    fn to_block(&self, py: Python<'_>, codec: CodecArg, topic: &str, block_id: &str) -> PyResult<PyBlock> {
        py.detach(|| emp_core::block::encode_block(&[&self.0], codec.0, 1, topic, block_id)).map(PyBlock::from).map_err(to_py_err)
    }
}
