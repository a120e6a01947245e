//! `OtlpDecoder` and what a request gives: `OtlpRead`.

use emp_core::batch::Signal;
use emp_core::otlp::incoming::{Decoder, Encoding, Read};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyBytes;

use crate::batch::{PyBatch, SignalArg};
use crate::block::CodecArg;
use crate::body::PyBody;
use crate::error::{argument_error, to_py_err};
use crate::forward_decoder::PyRejected;
use crate::grpc_server::PyGrpcMessage;
use crate::normalizer::PyNormalizer;

/// An encoding by its name.
pub struct EncodingArg(Encoding);

impl FromPyObject<'_, '_> for EncodingArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match &*object.extract::<PyBackedStr>()? {
            "protobuf" => Ok(Self(Encoding::Protobuf)),
            "json" => Ok(Self(Encoding::Json)),
            other => Err(argument_error(format!("an encoding is protobuf or json, not {other:?}"))),
        }
    }
}

/// The decoder of a receiver's export requests of one signal; any number of threads may use it.
#[pyclass(name = "OtlpDecoder", module = "emp_pipe._core", frozen)]
pub struct PyOtlpDecoder {
    decoder: Decoder,
    signal: Signal,
}

#[pymethods]
impl PyOtlpDecoder {
    #[new]
    #[pyo3(signature = (normalizer, *, signal, max_inflated_bytes=67_108_864))]
    fn new(normalizer: &Bound<'_, PyNormalizer>, signal: SignalArg, max_inflated_bytes: usize) -> Self {
        Self { decoder: Decoder::new(normalizer.get().0.clone(), signal.0, max_inflated_bytes), signal: signal.0 }
    }

    #[getter]
    fn signal(&self) -> &'static str {
        self.signal.name()
    }

    /// Read one Export{Logs,Trace,Metrics}ServiceRequest.
    #[pyo3(
        signature = (data, *, codec=CodecArg::NONE, encoding=EncodingArg(Encoding::Protobuf), now_unix_nano),
        text_signature = "($self, data, *, codec='none', encoding='protobuf', now_unix_nano)"
    )]
    fn decode(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        codec: CodecArg,
        encoding: EncodingArg,
        now_unix_nano: i64,
    ) -> PyResult<PyOtlpRead> {
        let decode = |bytes: &[u8]| py.detach(|| self.decoder.decode(bytes, codec.0, encoding.0, now_unix_nano)).map_err(to_py_err);
        let read = if let Ok(bytes) = data.cast::<PyBytes>() {
            decode(bytes.as_bytes())?
        } else if let Ok(body) = data.cast::<PyBody>() {
            let body = body.get();
            py.detach(|| body.read(|bytes| self.decoder.decode(bytes, codec.0, encoding.0, now_unix_nano))).map_err(to_py_err)?
        } else if let Ok(message) = data.cast::<PyGrpcMessage>() {
            decode(message.get().data())?
        } else {
            decode(&PyBuffer::<u8>::get(data)?.to_vec(py)?)? // someone else may write to it
        };
        PyOtlpRead::new(py, read)
    }
}

/// What an export request held.
#[pyclass(name = "OtlpRead", module = "emp_pipe._core", frozen)]
pub struct PyOtlpRead {
    batch: Option<Py<PyBatch>>,
    rejected: Vec<Py<PyRejected>>,
    #[pyo3(get)]
    received: u64,
    #[pyo3(get)]
    rejected_items: u64,
    #[pyo3(get)]
    resources_over_limit: u64,
}

impl PyOtlpRead {
    pub fn new(py: Python<'_>, read: Read) -> PyResult<Self> {
        Ok(Self {
            batch: read.batch.map(|batch| Py::new(py, PyBatch::from(batch))).transpose()?,
            rejected: read.rejected.into_iter().map(|rejected| Py::new(py, PyRejected(rejected))).collect::<PyResult<_>>()?,
            received: read.received,
            rejected_items: read.rejected_items,
            resources_over_limit: read.resources_over_limit,
        })
    }
}

#[pymethods]
impl PyOtlpRead {
    #[getter]
    fn batch(&self, py: Python<'_>) -> Option<Py<PyBatch>> {
        self.batch.as_ref().map(|batch| batch.clone_ref(py))
    }

    #[getter]
    fn rejected(&self, py: Python<'_>) -> Vec<Py<PyRejected>> {
        self.rejected.iter().map(|rejected| rejected.clone_ref(py)).collect()
    }
}
