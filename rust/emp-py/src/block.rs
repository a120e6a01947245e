//! `Block`: a header and a payload that lies in Rust's memory or in the `bytes` it came in; neither is copied to be read.

use std::borrow::Cow;
use std::ffi::c_int;
use std::sync::Arc;

use emp_core::block::{Block, Header, decode_block};
use emp_core::compress::Codec;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyTuple};

use crate::batch::PyBatch;
use crate::error::{argument_error, to_py_err};

/// A codec by its name.
#[derive(Clone, Copy)]
pub struct CodecArg(pub Codec);

impl CodecArg {
    /// The default where nothing is compressed.
    pub const NONE: Self = Self(Codec::None);
}

impl FromPyObject<'_, '_> for CodecArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let name: &str = &object.extract::<PyBackedStr>()?;
        Codec::from_name(name).map(Self).ok_or_else(|| argument_error(format!("a codec is none, gzip or zstd, not {name:?}")))
    }
}

impl<'py> IntoPyObject<'py> for CodecArg {
    type Target = pyo3::types::PyString;
    type Output = Bound<'py, Self::Target>;
    type Error = std::convert::Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(pyo3::types::PyString::new(py, self.0.name()))
    }
}

/// Payload bytes, shared by the blocks that differ only in their header.
pub enum Payload {
    /// Made by the core.
    Rust(Arc<Vec<u8>>),
    /// Given by Python; the same object goes back out.
    Python(PyBackedBytes),
}

impl Payload {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Rust(bytes) => Self::Rust(Arc::clone(bytes)),
            Self::Python(bytes) => Self::Python(bytes.clone_ref(py)),
        }
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        match self {
            Self::Rust(bytes) => PyBytes::new(py, bytes),
            Self::Python(bytes) => match bytes.into_pyobject(py) {
                Ok(bytes) => bytes,
            },
        }
    }
}

impl std::ops::Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Rust(bytes) => bytes,
            Self::Python(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// A batch as an OTLP export request, compressed, with its header. `memoryview(block)` is the payload, without a copy.
#[pyclass(name = "Block", module = "emp_pipe._core", frozen)]
pub struct PyBlock {
    /// What the payload is.
    pub header: Header,
    /// The compressed export request.
    pub payload: Payload,
}

impl From<Block> for PyBlock {
    fn from(block: Block) -> Self {
        Self { header: block.header, payload: Payload::Rust(Arc::new(block.payload)) }
    }
}

impl PyBlock {
    /// The export request in a codec; the same bytes, shared, where it is the block's own.
    pub fn payload_in(&self, py: Python<'_>, codec: Codec) -> PyResult<Payload> {
        if codec == self.header.codec {
            return Ok(self.payload.clone_ref(py));
        }
        let recoded = py.detach(|| emp_core::block::recode(&self.header, &self.payload, codec)).map_err(to_py_err)?;
        Ok(Payload::Rust(Arc::new(recoded)))
    }

    fn with_header(&self, py: Python<'_>, change: impl FnOnce(&mut Header)) -> Self {
        let mut header = self.header.clone();
        change(&mut header);
        Self { header, payload: self.payload.clone_ref(py) }
    }
}

#[pymethods]
impl PyBlock {
    #[new]
    fn new(header: PyBackedBytes, payload: PyBackedBytes) -> PyResult<Self> {
        Ok(Self { header: Header::parse(&header).map_err(to_py_err)?, payload: Payload::Python(payload) })
    }

    /// # Safety
    /// Called by the interpreter with a view to fill, as the buffer protocol says.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let payload: &[u8] = &slf.get().payload;
        // SAFETY: the payload is never moved or changed while the object lives, and the view keeps the object alive.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), payload.as_ptr().cast_mut().cast(), payload.len() as isize, 1, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    #[getter]
    fn header<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.header.to_bytes())
    }

    #[getter]
    fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    #[getter]
    fn block_id(&self) -> &str {
        &self.header.block_id
    }

    #[getter]
    fn topic(&self) -> &str {
        &self.header.topic
    }

    #[getter]
    fn signal(&self) -> &'static str {
        self.header.signal.name()
    }

    #[getter]
    fn codec(&self) -> &'static str {
        self.header.codec.name()
    }

    #[getter]
    fn records(&self) -> u64 {
        self.header.records
    }

    #[getter]
    fn errors(&self) -> u64 {
        self.header.errors
    }

    #[getter]
    fn events(&self) -> u64 {
        self.header.events
    }

    #[getter]
    fn uncompressed_bytes(&self) -> u64 {
        self.header.uncompressed_bytes
    }

    #[getter]
    fn min_time_unix_nano(&self) -> i64 {
        self.header.min_time_unix_nano
    }

    #[getter]
    fn max_time_unix_nano(&self) -> i64 {
        self.header.max_time_unix_nano
    }

    #[getter]
    fn decided(&self) -> bool {
        self.header.decided
    }

    #[getter]
    fn red_done(&self) -> bool {
        self.header.red_done
    }

    #[getter]
    fn aggregated(&self) -> bool {
        self.header.aggregated
    }

    /// The Fluent tags, sorted, "" for rows without one. None: too many to list (more than 16).
    #[getter]
    fn tags<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        self.header.tags.as_ref().map(|tags| PyTuple::new(py, tags)).transpose()
    }

    /// The `service.name`s, sorted, "" for rows without one. None: too many to list (more than 16).
    #[getter]
    fn services<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        self.header.services.as_ref().map(|services| PyTuple::new(py, services)).transpose()
    }

    #[getter]
    fn severities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.header.severities)
    }

    /// The rows. Raises CoreError (block_invalid) with the offset in the inflated payload.
    #[pyo3(signature = (max_inflated_bytes=268_435_456))]
    fn decode(&self, py: Python<'_>, max_inflated_bytes: usize) -> PyResult<PyBatch> {
        py.detach(|| decode_block(&self.header, &self.payload, max_inflated_bytes)).map(PyBatch::from).map_err(to_py_err)
    }

    /// The export request in a codec; the same bytes where it is the block's own.
    fn payload<'py>(&self, py: Python<'py>, codec: CodecArg) -> PyResult<Bound<'py, PyBytes>> {
        Ok(self.payload_in(py, codec.0)?.to_bytes(py))
    }

    /// The same block for another topic; the payload is shared.
    fn with_topic(&self, py: Python<'_>, topic: String) -> Self {
        self.with_header(py, |header| header.topic = topic)
    }

    /// The same block under another id; the payload is shared.
    fn with_block_id(&self, py: Python<'_>, block_id: String) -> Self {
        self.with_header(py, |header| header.block_id = block_id)
    }

    /// The same block with flags set or cleared; the payload is shared.
    #[pyo3(signature = (*, decided=None, red_done=None, aggregated=None))]
    fn with_flags(&self, py: Python<'_>, decided: Option<bool>, red_done: Option<bool>, aggregated: Option<bool>) -> Self {
        self.with_header(py, |header| {
            header.decided = decided.unwrap_or(header.decided);
            header.red_done = red_done.unwrap_or(header.red_done);
            header.aggregated = aggregated.unwrap_or(header.aggregated);
        })
    }

    /// The frame between two emp-pipes: the block verbatim, its chunk the block id.
    fn to_forward_frame<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| emp_core::fluent::encode::block_frame(&self.header, &self.payload)))
    }

    /// Two blocks of half the rows each; None when it is one row.
    fn halve(&self, py: Python<'_>, block_ids: (String, String)) -> PyResult<Option<(Self, Self)>> {
        let halves = py.detach(|| emp_core::block::halve(&self.header, &self.payload, [&block_ids.0, &block_ids.1]));
        Ok(halves.map_err(to_py_err)?.map(|[first, second]| (first.into(), second.into())))
    }

    /// The parts that belong to each of `shards` shards, by shard.
    fn split(&self, py: Python<'_>, shards: u32) -> PyResult<Vec<(u32, Self)>> {
        let parts = py.detach(|| emp_core::sharding::split(&self.header, &self.payload, shards)).map_err(to_py_err)?;
        let part = |(shard, header, payload)| {
            let payload = match payload {
                Cow::Borrowed(_) => self.payload.clone_ref(py), // the whole's
                Cow::Owned(own) => Payload::Rust(Arc::new(own)),
            };
            (shard, Self { header, payload })
        };
        Ok(parts.into_iter().map(part).collect())
    }
}

/// One block out of several of one signal: inflate, concatenate, compress.
#[pyfunction]
#[pyo3(signature = (blocks, codec, *, block_id))]
pub fn merge_blocks(py: Python<'_>, blocks: Vec<Bound<'_, PyBlock>>, codec: CodecArg, block_id: &str) -> PyResult<PyBlock> {
    let parts: Vec<(&Header, &[u8])> = blocks.iter().map(|block| (&block.get().header, &*block.get().payload)).collect();
    py.detach(|| emp_core::block::merge_blocks(&parts, codec.0, block_id)).map(PyBlock::from).map_err(to_py_err)
}

/// One block out of batches of one signal: equal resources and scopes are merged, rows copied once, then compressed.
#[pyfunction]
#[pyo3(signature = (batches, codec, *, topic, block_id, level=1))]
pub fn encode_block(
    py: Python<'_>,
    batches: Vec<PyRef<'_, PyBatch>>,
    codec: CodecArg,
    topic: &str,
    block_id: &str,
    level: i32,
) -> PyResult<PyBlock> {
    let batches: Vec<_> = batches.iter().map(|batch| Arc::clone(&batch.0)).collect();
    py.detach(|| {
        let batches: Vec<_> = batches.iter().map(|batch| &**batch).collect();
        emp_core::block::encode_block(&batches, codec.0, level, topic, block_id)
    })
    .map(PyBlock::from)
    .map_err(to_py_err)
}
