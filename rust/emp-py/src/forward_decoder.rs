//! `ForwardDecoder` and what a read gives: `ForwardRead`, `Chunk`, `Rejected`.
//!
//! The decoder is a buffer: socket bytes land in its memory. While a view of it is out its memory stays where it is, so `reserve` and
//! `feed` refuse what would move it; `received` moves nothing and works under a view.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use emp_core::fluent::decoder::{Decoder, Limits};
use emp_core::fluent::read::{Chunk, Read, Rejected};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyBytes;

use crate::batch::PyBatch;
use crate::block::PyBlock;
use crate::normalizer::PyNormalizer;

/// Work above this many bytes is done with the GIL released.
const DETACH_ABOVE_BYTES: usize = 64 << 10;

/// The sans-IO reader of one Fluent Forward connection, after its handshake. A buffer: socket bytes may land in its memory.
#[pyclass(name = "ForwardDecoder", module = "emp_pipe._core", frozen)]
pub struct PyForwardDecoder {
    decoder: Mutex<Decoder>,
    /// Views that are out.
    exports: AtomicUsize,
}

fn held<'a, T>(lock: Result<MutexGuard<'a, T>, PoisonError<MutexGuard<'a, T>>>) -> MutexGuard<'a, T> {
    lock.unwrap_or_else(PoisonError::into_inner)
}

impl PyForwardDecoder {
    fn lock<'a>(&'a self, py: Python<'_>) -> MutexGuard<'a, Decoder> {
        held(self.decoder.lock_py_attached(py))
    }

    /// Runs `work` on the decoder, with the GIL released where there is much of it.
    fn run(&self, py: Python<'_>, new_bytes: usize, work: impl FnOnce(&mut Decoder) -> Read + Send) -> PyResult<PyForwardRead> {
        let mut decoder = self.lock(py);
        let read = if decoder.pending_bytes() + new_bytes > DETACH_ABOVE_BYTES {
            // Not held while the GIL is awaited: another thread may wait for the lock with the GIL in its hands.
            drop(decoder);
            py.detach(|| work(&mut held(self.decoder.lock())))
        } else {
            work(&mut decoder)
        };
        PyForwardRead::new(py, read)
    }

    fn refuse_under_view(&self) -> PyResult<()> {
        if self.exports.load(Ordering::Acquire) > 0 {
            return Err(PyBufferError::new_err("a view of the decoder's memory is out: its memory cannot be moved"));
        }
        Ok(())
    }
}

#[pymethods]
impl PyForwardDecoder {
    #[new]
    #[pyo3(signature = (
        normalizer, *, max_frame_bytes=268_435_456, max_inflated_bytes=268_435_456, max_entry_bytes=67_108_864, max_depth=64,
        stream_above_bytes=8_388_608, accept_blocks=false, peer=""
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        normalizer: &Bound<'_, PyNormalizer>,
        max_frame_bytes: usize,
        max_inflated_bytes: usize,
        max_entry_bytes: usize,
        max_depth: usize,
        stream_above_bytes: usize,
        accept_blocks: bool,
        peer: &str,
    ) -> Self {
        // Callers name the peer in what they log and count; the core has no use for it yet.
        let _ = peer;
        let limits = Limits { max_frame_bytes, max_inflated_bytes, max_entry_bytes, max_depth, stream_above_bytes, accept_blocks };
        Self { decoder: Mutex::new(Decoder::new(normalizer.get().0.clone(), limits)), exports: AtomicUsize::new(0) }
    }

    /// # Safety
    /// Called by the interpreter with a view to fill, as the buffer protocol says.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let mut decoder = this.lock(slf.py());
        let free = decoder.free();
        // SAFETY: the memory stays where it is while `exports` is not 0, and the view keeps the object alive. Of the free part nothing
        // is read before `received` says that it was written.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), free.as_mut_ptr().cast(), free.len() as isize, 0, flags) };
        if filled != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        this.exports.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// # Safety
    /// Called by the interpreter when a view that `__getbuffer__` filled is released.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.exports.fetch_sub(1, Ordering::AcqRel);
    }

    /// Make room for a read of about that many bytes; 0 gives memory back where nothing is pending. BufferError under a view.
    fn reserve(slf: Bound<'_, Self>, size_hint_bytes: usize) -> PyResult<Bound<'_, Self>> {
        slf.get().refuse_under_view()?;
        slf.get().lock(slf.py()).reserve(size_hint_bytes);
        Ok(slf)
    }

    fn received(&self, py: Python<'_>, size_bytes: usize, now_unix_nano: i64) -> PyResult<PyForwardRead> {
        self.run(py, size_bytes, |decoder| decoder.received(size_bytes, now_unix_nano))
    }

    fn feed(&self, py: Python<'_>, data: &Bound<'_, PyAny>, now_unix_nano: i64) -> PyResult<PyForwardRead> {
        self.refuse_under_view()?;
        if let Ok(bytes) = data.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            return self.run(py, bytes.len(), |decoder| decoder.feed(bytes, now_unix_nano));
        }
        // Memory that someone else may write to is copied first.
        let bytes = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        self.run(py, bytes.len(), |decoder| decoder.feed(&bytes, now_unix_nano))
    }

    /// The connection has ended: what is pending was a frame that never came whole, which is no error.
    fn eof(&self, py: Python<'_>) -> PyResult<PyForwardRead> {
        PyForwardRead::new(py, self.lock(py).eof())
    }

    fn set_time_correction_ns(&self, py: Python<'_>, correction_ns: i64) {
        self.lock(py).set_time_correction_ns(correction_ns);
    }

    #[getter]
    fn pending_bytes(&self, py: Python<'_>) -> usize {
        self.lock(py).pending_bytes()
    }
}

/// A chunk that asks for an ack.
#[pyclass(name = "Chunk", module = "emp_pipe._core", frozen)]
pub struct PyChunk(Chunk);

#[pymethods]
impl PyChunk {
    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.id)
    }

    #[getter]
    fn ack<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.ack)
    }

    #[getter]
    fn row_start(&self) -> usize {
        self.0.row_start
    }

    #[getter]
    fn row_end(&self) -> usize {
        self.0.row_end
    }

    #[getter]
    fn block_index(&self) -> isize {
        self.0.block_index.map_or(-1, |index| index as isize)
    }
}

/// Bytes that could not be used.
#[pyclass(name = "Rejected", module = "emp_pipe._core", frozen)]
pub struct PyRejected(pub Rejected);

#[pymethods]
impl PyRejected {
    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind.name()
    }

    #[getter]
    fn detail(&self) -> &str {
        &self.0.detail
    }

    #[getter]
    fn offset(&self) -> u64 {
        self.0.offset
    }

    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.data)
    }

    #[getter]
    fn records(&self) -> u64 {
        self.0.records
    }
}

/// What one read of a socket completed.
#[pyclass(name = "ForwardRead", module = "emp_pipe._core", frozen)]
pub struct PyForwardRead {
    batch: Option<Py<PyBatch>>,
    blocks: Vec<Py<PyBlock>>,
    chunks: Vec<Py<PyChunk>>,
    rejected: Vec<Py<PyRejected>>,
    fatal: Option<Py<PyRejected>>,
    counts: Counts,
}

struct Counts {
    received: u64,
    frames: u64,
    foreign_blocks: u64,
    min_age_ns: i64,
    resources_over_limit: u64,
    more: bool,
}

impl PyForwardRead {
    fn new(py: Python<'_>, read: Read) -> PyResult<Self> {
        let counts = Counts {
            received: read.received,
            frames: read.frames,
            foreign_blocks: read.foreign_blocks,
            min_age_ns: read.min_age_ns,
            resources_over_limit: read.resources_over_limit,
            more: read.more,
        };
        Ok(Self {
            batch: read.batch.map(|batch| Py::new(py, PyBatch::from(batch))).transpose()?,
            blocks: read.blocks.into_iter().map(|block| Py::new(py, PyBlock::from(block))).collect::<PyResult<_>>()?,
            chunks: read.chunks.into_iter().map(|chunk| Py::new(py, PyChunk(chunk))).collect::<PyResult<_>>()?,
            rejected: read.rejected.into_iter().map(|rejected| Py::new(py, PyRejected(rejected))).collect::<PyResult<_>>()?,
            fatal: read.fatal.map(|fatal| Py::new(py, PyRejected(fatal))).transpose()?,
            counts,
        })
    }
}

fn list<T>(py: Python<'_>, items: &[Py<T>]) -> Vec<Py<T>> {
    items.iter().map(|item| item.clone_ref(py)).collect()
}

#[pymethods]
impl PyForwardRead {
    #[getter]
    fn batch(&self, py: Python<'_>) -> Option<Py<PyBatch>> {
        self.batch.as_ref().map(|batch| batch.clone_ref(py))
    }

    #[getter]
    fn blocks(&self, py: Python<'_>) -> Vec<Py<PyBlock>> {
        list(py, &self.blocks)
    }

    #[getter]
    fn chunks(&self, py: Python<'_>) -> Vec<Py<PyChunk>> {
        list(py, &self.chunks)
    }

    #[getter]
    fn rejected(&self, py: Python<'_>) -> Vec<Py<PyRejected>> {
        list(py, &self.rejected)
    }

    #[getter]
    fn received(&self) -> u64 {
        self.counts.received
    }

    #[getter]
    fn frames(&self) -> u64 {
        self.counts.frames
    }

    #[getter]
    fn fatal(&self, py: Python<'_>) -> Option<Py<PyRejected>> {
        self.fatal.as_ref().map(|fatal| fatal.clone_ref(py))
    }

    #[getter]
    fn foreign_blocks(&self) -> u64 {
        self.counts.foreign_blocks
    }

    #[getter]
    fn min_age_ns(&self) -> i64 {
        self.counts.min_age_ns
    }

    #[getter]
    fn resources_over_limit(&self) -> u64 {
        self.counts.resources_over_limit
    }

    #[getter]
    fn more(&self) -> bool {
        self.counts.more
    }
}
