//! `LineParser`: the lines of one file or stream as rows.

use std::sync::{Mutex, MutexGuard, PoisonError};

use emp_core::lines::formats::pattern::{self, Pattern};
use emp_core::lines::{Format, Settings, Source};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::sync::MutexExt;

use crate::batch::PyBatch;
use crate::error::argument_error;
use crate::normalizer::{PyNormalizer, TextMap};

/// Work above this many bytes is done with the GIL released.
const DETACH_ABOVE_BYTES: usize = 4 << 10;

/// A format by its name.
pub struct FormatArg(Format);

impl FromPyObject<'_, '_> for FormatArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let name: &str = &object.extract::<PyBackedStr>()?;
        Format::from_name(name).map(Self).ok_or_else(|| argument_error(format!("there is no format of lines {name:?}")))
    }
}

fn held<'a, T>(lock: Result<MutexGuard<'a, T>, PoisonError<MutexGuard<'a, T>>>) -> MutexGuard<'a, T> {
    lock.unwrap_or_else(PoisonError::into_inner)
}

/// The state of one file or stream of lines: any cut of bytes in, rows out.
#[pyclass(name = "LineParser", module = "emp_pipe._core", frozen)]
pub struct PyLineParser(Mutex<Source>);

impl PyLineParser {
    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, Source> {
        held(self.0.lock_py_attached(py))
    }
}

#[pymethods]
impl PyLineParser {
    #[new]
    #[pyo3(
        signature = (normalizer, tag, *, format=FormatArg(Format::Auto), resource=TextMap::default(), max_line_bytes=1_048_576, scope="emp-pipe/lines", parts=0, pattern=None, multiline=true, record_start=None, utc_offset_s=0, progress_interval_s=10.0),
        text_signature = "(normalizer, tag, *, format='auto', resource=..., max_line_bytes=1048576, scope='emp-pipe/lines', parts=0, pattern=None, multiline=True, record_start=None, utc_offset_s=0, progress_interval_s=10.0)"
    )]
    #[expect(clippy::too_many_arguments, reason = "all but two are keywords")]
    fn new(
        normalizer: &Bound<'_, PyNormalizer>,
        tag: &str,
        format: FormatArg,
        resource: TextMap,
        max_line_bytes: usize,
        scope: &str,
        parts: u32,
        pattern: Option<&str>,
        multiline: bool,
        record_start: Option<&str>,
        utc_offset_s: i64,
        progress_interval_s: f64,
    ) -> PyResult<Self> {
        let settings = Settings {
            format: format.0,
            max_line_bytes,
            scope: scope.into(),
            tag: tag.into(),
            resource: resource.0,
            pattern: pattern.map(Pattern::new).transpose().map_err(argument_error)?,
            multiline,
            record_start: record_start.map(pattern::compile).transpose().map_err(argument_error)?,
            utc_offset_s,
            progress_interval_ns: (progress_interval_s.clamp(0.0, 1e9) * 1e9) as i64,
        };
        Ok(Self(Mutex::new(Source::new(normalizer.get().0.clone(), &settings, parts))))
    }

    /// Raise ValueError where a pattern cannot be used; `named`: it must have a named group.
    #[staticmethod]
    #[pyo3(signature = (pattern, *, named))]
    fn check_pattern(pattern: &str, named: bool) -> PyResult<()> {
        let checked = if named { Pattern::new(pattern).map(drop) } else { pattern::compile(pattern).map(drop) };
        checked.map_err(argument_error)
    }

    /// Take the next bytes, which must not change before this returns.
    fn feed(&self, py: Python<'_>, data: PyBuffer<u8>, now_unix_nano: i64) -> PyResult<()> {
        if !data.is_c_contiguous() {
            return Err(argument_error("the bytes must lie one after another"));
        }
        let len = data.len_bytes();
        // SAFETY: the view keeps the memory where it is; that nobody writes to it meanwhile is what the caller promises.
        let bytes = if len == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(data.buf_ptr().cast::<u8>(), len) } };
        if len > DETACH_ABOVE_BYTES {
            py.detach(|| held(self.0.lock()).feed(bytes, now_unix_nano));
        } else {
            self.lock(py).feed(bytes, now_unix_nano);
        }
        Ok(())
    }

    /// End lines that wait for more of their kind; `at_end`: the last line too.
    #[pyo3(signature = (now_unix_nano, *, at_end=false))]
    fn flush(&self, py: Python<'_>, now_unix_nano: i64, at_end: bool) {
        self.lock(py).flush(now_unix_nano, at_end);
    }

    /// The rows so far.
    fn take(&self, py: Python<'_>) -> Option<PyBatch> {
        self.lock(py).take().map(PyBatch::from)
    }

    #[getter]
    fn pending_bytes(&self, py: Python<'_>) -> usize {
        self.lock(py).pending_bytes()
    }

    #[getter]
    fn parts(&self, py: Python<'_>) -> u32 {
        self.lock(py).parts()
    }

    #[getter]
    fn rows(&self, py: Python<'_>) -> u64 {
        self.lock(py).counts().rows
    }

    #[getter]
    fn blank(&self, py: Python<'_>) -> u64 {
        self.lock(py).counts().blank
    }

    #[getter]
    fn split(&self, py: Python<'_>) -> u64 {
        self.lock(py).counts().split
    }

    #[getter]
    fn unparsed(&self, py: Python<'_>) -> u64 {
        self.lock(py).counts().unparsed
    }

    #[getter]
    fn redrawn(&self, py: Python<'_>) -> u64 {
        self.lock(py).counts().redrawn
    }

    #[getter]
    fn nul_bytes(&self, py: Python<'_>) -> u64 {
        self.lock(py).counts().nul_bytes
    }
}
