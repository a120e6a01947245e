//! `RedMetrics`: calls and durations out of spans.

use std::sync::{Mutex, MutexGuard, PoisonError};

use emp_core::aggregate::emit::BlockForm;
use emp_core::aggregate::red::{Red, RedSettings, RedTaken};
use emp_core::aggregate::red_emit::Span;
use pyo3::prelude::*;

use crate::block::{CodecArg, PyBlock};
use crate::error::{argument_error, to_py_err};

/// Counts spans; one call at a time takes effect.
#[pyclass(name = "RedMetrics", module = "emp_pipe._core", frozen)]
pub struct PyRedMetrics(Mutex<Red>);

impl PyRedMetrics {
    fn lock(&self) -> MutexGuard<'_, Red> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyRedMetrics {
    #[new]
    #[pyo3(signature = (*, namespace, unit, bounds, dimensions, max_span_names, max_exemplars))]
    fn new(
        namespace: String,
        unit: &str,
        bounds: Option<Vec<f64>>,
        dimensions: Vec<String>,
        max_span_names: usize,
        max_exemplars: usize,
    ) -> PyResult<Self> {
        let milliseconds = match unit {
            "ms" => true,
            "s" => false,
            other => return Err(argument_error(format!("a unit is s or ms, not {other:?}"))),
        };
        if bounds
            .as_ref()
            .is_some_and(|bounds| !bounds.iter().all(|bound| bound.is_finite()) || !bounds.is_sorted_by(|one, next| one < next))
        {
            return Err(argument_error("bounds must be finite and increase"));
        }
        let settings = RedSettings { namespace, bounds, milliseconds, dimensions, max_names: max_span_names, max_exemplars };
        Ok(Self(Mutex::new(Red::new(settings))))
    }

    /// Count the spans of a block. Raises CoreError (block_invalid), with nothing counted, where it cannot be read.
    #[pyo3(signature = (block, *, now_unix_nano, max_inflated_bytes=268_435_456))]
    fn take(&self, py: Python<'_>, block: &Bound<'_, PyBlock>, now_unix_nano: u64, max_inflated_bytes: usize) -> PyResult<PyRedTaken> {
        let block = block.get();
        let taken = py.detach(|| self.lock().take(&block.header, &block.payload, max_inflated_bytes, now_unix_nano));
        taken.map(PyRedTaken).map_err(to_py_err)
    }

    /// What was counted since the last flush, as blocks of at most 1 MiB: points of the time between two flushes.
    #[pyo3(signature = (codec, *, topic, block_prefix, start_unix_nano, end_unix_nano, level=1))]
    #[expect(clippy::too_many_arguments, reason = "all but one are keywords")]
    fn flush(
        &self,
        py: Python<'_>,
        codec: CodecArg,
        topic: &str,
        block_prefix: &str,
        start_unix_nano: u64,
        end_unix_nano: u64,
        level: i32,
    ) -> PyResult<Vec<PyBlock>> {
        let form = BlockForm { codec: codec.0, level, topic, id_prefix: block_prefix };
        let blocks = py.detach(|| self.lock().flush(form, Span { start_unix_nano, end_unix_nano })).map_err(to_py_err)?;
        Ok(blocks.into_iter().map(PyBlock::from).collect())
    }

    /// Forget what was counted.
    fn reset(&self, py: Python<'_>) {
        py.detach(|| self.lock().reset());
    }
}

/// What was taken of a block of spans.
#[pyclass(name = "RedTaken", module = "emp_pipe._core", frozen)]
pub struct PyRedTaken(RedTaken);

#[pymethods]
impl PyRedTaken {
    #[getter]
    fn spans(&self) -> u64 {
        self.0.spans
    }

    /// Spans past the limit of names: counted without their name.
    #[getter]
    fn overflowed(&self) -> u64 {
        self.0.overflowed
    }

    /// Spans that cannot be read: not counted.
    #[getter]
    fn unreadable(&self) -> u64 {
        self.0.unreadable
    }
}
