//! `BodyPool` and `Body`: memory in which the bytes of a request's body land, and from which it is decoded without a copy.
//!
//! A body is a buffer: `memoryview(body)` is its room. While a view is out its memory stays where it is, so a view that would move it is
//! refused; `landed` moves nothing and works under a view.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use emp_core::landing::{Body, Shelf};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyBytes;

fn held<'a, T>(lock: Result<MutexGuard<'a, T>, PoisonError<MutexGuard<'a, T>>>) -> MutexGuard<'a, T> {
    lock.unwrap_or_else(PoisonError::into_inner)
}

/// The memory that the bodies of one receiver take after each other.
#[pyclass(name = "BodyPool", module = "emp_pipe._core", frozen)]
pub struct PyBodyPool(Arc<Mutex<Shelf>>);

#[pymethods]
impl PyBodyPool {
    #[new]
    #[pyo3(signature = (*, piece_bytes=524_288, most_pieces=8))]
    fn new(piece_bytes: usize, most_pieces: usize) -> Self {
        Self(Arc::new(Mutex::new(Shelf::new(piece_bytes, most_pieces))))
    }

    /// Return a body that begins with these bytes and was granted so many in all.
    fn begin(&self, py: Python<'_>, start: &Bound<'_, PyAny>, granted_bytes: usize) -> PyResult<PyBody> {
        let start = PyBuffer::<u8>::get(start)?.to_vec(py)?;
        let body = held(self.0.lock_py_attached(py)).begin(&start, granted_bytes);
        Ok(PyBody { body: Mutex::new(body), exports: AtomicUsize::new(0), shelf: self.0.clone() })
    }

    /// Pieces that no body has.
    #[getter]
    fn spare_pieces(&self, py: Python<'_>) -> usize {
        held(self.0.lock_py_attached(py)).spare_pieces()
    }
}

/// A request's body; its memory goes back to the pool with its last reference.
#[pyclass(name = "Body", module = "emp_pipe._core", frozen)]
pub struct PyBody {
    body: Mutex<Body>,
    /// Views that are out.
    exports: AtomicUsize,
    shelf: Arc<Mutex<Shelf>>,
}

impl PyBody {
    /// Hands the bytes that have landed to `work`. Not under the GIL: another thread may wait for the lock with the GIL in its hands.
    pub fn read<R>(&self, work: impl FnOnce(&[u8]) -> R) -> R {
        work(held(self.body.lock()).filled())
    }
}

impl Drop for PyBody {
    fn drop(&mut self) {
        let body = std::mem::take(&mut *held(self.body.lock()));
        held(self.shelf.lock()).give_back(body);
    }
}

#[pymethods]
impl PyBody {
    /// # Safety
    /// Called by the interpreter with a view to fill, as the buffer protocol says.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let mut body = held(this.body.lock_py_attached(slf.py()));
        if body.must_move() && this.exports.load(Ordering::Acquire) > 0 {
            return Err(PyBufferError::new_err("a view of the body's memory is out: its memory cannot be moved"));
        }
        let room = body.room();
        // SAFETY: the memory stays where it is while `exports` is not 0, and the view keeps the object alive. Of the room nothing is read
        // before `landed` says that it was written.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), room.as_mut_ptr().cast(), room.len() as isize, 0, flags) };
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

    /// So many bytes were written into the room; return whether there is none left.
    fn landed(&self, py: Python<'_>, size_bytes: usize) -> bool {
        held(self.body.lock_py_attached(py)).landed(size_bytes)
    }

    /// Grant so many bytes more; the next view has them.
    fn grant(&self, py: Python<'_>, more_bytes: usize) {
        held(self.body.lock_py_attached(py)).grant(more_bytes);
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        held(self.body.lock_py_attached(py)).filled().len()
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, held(self.body.lock_py_attached(py)).filled())
    }
}
