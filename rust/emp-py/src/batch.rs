//! `Batch`: rows of one signal, shared and immutable.

use std::sync::Arc;

use emp_core::batch::from_arrow::RowDefaults;
use emp_core::batch::mark::Level;
use emp_core::batch::rewrite::Target;
use emp_core::batch::{Batch, FLAG_ERROR, FLAG_EVENT, Signal};
use emp_core::error::ErrorKind;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyMapping};

use crate::attributes::AttributesArg;
use crate::block::{CodecArg, PyBlock};
use crate::columns::{MaskArg, PyColumns, RecordsArg};
use crate::error::{argument_error, to_py_err};
use crate::forward_frame::PyForwardFrame;

/// A signal by its name.
pub struct SignalArg(pub Signal);

impl FromPyObject<'_, '_> for SignalArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let name: &str = &object.extract::<PyBackedStr>()?;
        Signal::from_name(name).map(Self).ok_or_else(|| argument_error(format!("a signal is logs, traces or metrics, not {name:?}")))
    }
}

/// `"resource"` or `"record"`.
pub struct TargetArg(Target);

impl FromPyObject<'_, '_> for TargetArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match &*object.extract::<PyBackedStr>()? {
            "resource" => Ok(Self(Target::Resource)),
            "record" => Ok(Self(Target::Record)),
            other => Err(argument_error(format!("a target is resource or record, not {other:?}"))),
        }
    }
}

/// Rows of one signal in memory, each an encoded OTLP message, with Arrow columns beside them. Immutable.
#[derive(Clone)]
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
    /// A request that a protobuf parser would refuse is refused, at whatever level it is broken.
    #[staticmethod]
    #[pyo3(
        signature = (data, *, signal, codec=CodecArg::NONE, max_inflated_bytes=268_435_456),
        text_signature = "(data, *, signal, codec='none', max_inflated_bytes=268435456)"
    )]
    fn from_otlp(py: Python<'_>, data: PyBackedBytes, signal: SignalArg, codec: CodecArg, max_inflated_bytes: usize) -> PyResult<Self> {
        py.detach(|| emp_core::otlp::decode::decode_foreign(signal.0, &data, codec.0, max_inflated_bytes, ErrorKind::BodyInvalid))
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

    /// What the books count: log records, spans, data points of metrics.
    #[getter]
    fn record_count(&self) -> u64 {
        self.0.record_count()
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

    /// A record batch (Arrow PyCapsule interface: `pyarrow.record_batch(...)` takes it) of the asked columns.
    #[pyo3(signature = (columns=None))]
    fn to_arrow(&self, py: Python<'_>, columns: Option<Vec<String>>) -> PyResult<PyColumns> {
        py.detach(|| self.0.to_arrow(columns.as_deref())).map(PyColumns).map_err(to_py_err)
    }

    /// Log rows out of columns named as in `to_arrow`; every other column becomes an attribute, typed as the column is.
    #[staticmethod]
    #[pyo3(signature = (records, *, resource=StringMap::default(), tag="", observed_time_unix_nano=0))]
    fn from_arrow(py: Python<'_>, records: RecordsArg, resource: StringMap, tag: &str, observed_time_unix_nano: i64) -> PyResult<Self> {
        let defaults = RowDefaults { resource: &resource.0, tag, observed_time_unix_nano };
        py.detach(|| Batch::from_arrow(&records.0, &defaults)).map(Self::from).map_err(to_py_err)
    }

    /// Rows `start` to `end`, both clamped to the batch.
    fn slice(&self, py: Python<'_>, start: usize, end: usize) -> Self {
        py.detach(|| self.0.slice(start, end)).into()
    }

    /// The rows where `mask` (a boolean Arrow array, or a sequence of bools) is true.
    fn filter(&self, py: Python<'_>, mask: MaskArg) -> PyResult<Self> {
        if mask.0.len() != self.0.len() {
            return Err(argument_error(format!("a mask for {} rows is needed, not {}", self.0.len(), mask.0.len())));
        }
        Ok(py.detach(|| self.0.filter(|row| mask.0[row])).into())
    }

    /// The rows that are events, or errors; None when there is none.
    fn select_flag(&self, py: Python<'_>, flag: &str) -> PyResult<Option<Self>> {
        let flag = match flag {
            "event" => FLAG_EVENT,
            "error" => FLAG_ERROR,
            other => return Err(argument_error(format!("a flag is event or error, not {other:?}"))),
        };
        Ok(py.detach(|| self.0.select_flag(flag)).map(Self::from))
    }

    /// A copy with attributes set: each value a scalar (str, int, float, bool, bytes) or an Arrow array with a value (or null) per row.
    #[pyo3(signature = (attributes, *, target=TargetArg(Target::Resource), overwrite=false))]
    fn with_attributes(&self, py: Python<'_>, attributes: AttributesArg, target: TargetArg, overwrite: bool) -> PyResult<Self> {
        py.detach(|| self.0.with_attributes(&attributes.0, target.0, overwrite)).map(Self::from).map_err(to_py_err)
    }

    /// A copy without attributes of these keys, on rows (of metrics: not on points) and on resources.
    fn without_attributes(&self, py: Python<'_>, keys: Vec<String>) -> PyResult<Self> {
        let keys: Vec<_> = keys.into_iter().map(String::into_bytes).collect();
        py.detach(|| self.0.without_attributes(&keys)).map(Self::from).map_err(to_py_err)
    }

    /// The rows that hold these bytes, ascending.
    fn rows_with(&self, py: Python<'_>, needle: PyBackedBytes) -> Vec<usize> {
        py.detach(|| self.0.rows_with(&needle))
    }

    /// A copy in which some rows (by number) have another level, and attributes put over their own.
    #[pyo3(signature = (marks, *, severity_number, severity_text))]
    fn marked(&self, py: Python<'_>, marks: Vec<(usize, AttributesArg)>, severity_number: u8, severity_text: &str) -> PyResult<Self> {
        let marks: Vec<_> = marks.into_iter().map(|(row, attributes)| (row, attributes.0)).collect();
        let level = Level { number: severity_number, text: severity_text.as_bytes() };
        py.detach(|| self.0.marked(&marks, level)).map(Self::from).map_err(to_py_err)
    }

    #[pyo3(signature = (codec, *, topic, block_id))]
    fn to_block(&self, py: Python<'_>, codec: CodecArg, topic: &str, block_id: &str) -> PyResult<PyBlock> {
        py.detach(|| emp_core::block::encode_block(&[&self.0], codec.0, 1, topic, block_id)).map(PyBlock::from).map_err(to_py_err)
    }

    /// The fleet's standardised JSON for logs, OTLP JSON lines for traces and metrics; one line a row.
    fn to_json_lines<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let lines = py.detach(|| emp_core::json_lines::json_lines(&self.0)).map_err(to_py_err)?;
        Ok(PyBytes::new(py, &lines))
    }

    /// PackedForward messages of a batch of logs, one tag each. CoreError (config_invalid) for other signals.
    #[pyo3(signature = (codec, *, chunk, default_tag="emp"))]
    fn to_forward(&self, py: Python<'_>, codec: CodecArg, chunk: &str, default_tag: &str) -> PyResult<Vec<PyForwardFrame>> {
        let frames = py.detach(|| emp_core::fluent::encode::encode(&self.0, codec.0, chunk, default_tag)).map_err(to_py_err)?;
        Ok(frames.into_iter().map(PyForwardFrame).collect())
    }
}

/// A mapping of strings to strings, in its order.
#[derive(Default)]
pub struct StringMap(Vec<(String, String)>);

impl StringMap {
    /// Keys and values.
    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

impl FromPyObject<'_, '_> for StringMap {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        object.cast::<PyMapping>()?.items()?.extract().map(Self)
    }
}

impl<'py> IntoPyObject<'py> for StringMap {
    type Target = PyDict;
    type Output = Bound<'py, PyDict>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        self.0.into_py_dict(py)
    }
}
