//! What a read of a socket left in a buffer, until it is read; and what is to be written, in a buffer that Python writes from.

use std::ffi::c_int;

use pyo3::buffer::PyBuffer;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::error::argument_error;

/// A buffer of Python's with what has been read of it.
#[derive(Default)]
pub struct Input {
    buffer: Option<PyBuffer<u8>>,
    size_bytes: usize,
    at: usize,
}

impl Input {
    /// Replaces what was there.
    pub fn set(&mut self, buffer: PyBuffer<u8>, size_bytes: usize) -> PyResult<()> {
        if size_bytes > buffer.len_bytes() || !buffer.is_c_contiguous() {
            return Err(argument_error("there are not so many bytes in the buffer".to_owned()));
        }
        (self.buffer, self.size_bytes, self.at) = (Some(buffer), size_bytes, 0);
        Ok(())
    }

    /// Runs `next` on what is there and has not been read; gives the buffer back when all was.
    pub fn read<T, E>(&mut self, next: impl FnOnce(&[u8], &mut usize) -> Result<Option<T>, E>) -> Result<Option<T>, E> {
        let Some(buffer) = self.buffer.as_ref().filter(|_| self.size_bytes > 0) else { return next(&[], &mut 0) };
        // SAFETY: the view keeps the memory where it is, its length was checked, and the interpreter is held: nobody writes meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), self.size_bytes) };
        let event = next(bytes, &mut self.at);
        if !matches!(event, Ok(Some(_))) {
            self.buffer = None;
        }
        event
    }
}

/// Text of a header: every byte is a character, as in HTTP.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Bytes to be sent, where the core wrote them. `memoryview(output)` is them, without a copy.
#[pyclass(name = "GrpcOutput", module = "emp_pipe._core", frozen)]
pub struct PyGrpcOutput(pub Vec<u8>);

#[pymethods]
impl PyGrpcOutput {
    /// # Safety
    /// Called by the interpreter with a view to fill, as the buffer protocol says.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let bytes: &[u8] = &slf.get().0;
        // SAFETY: the bytes are never moved or changed while the object lives, and the view keeps the object alive.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), bytes.as_ptr().cast_mut().cast(), bytes.len() as isize, 1, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }
}
