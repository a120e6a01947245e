//! `DestinationLimits` and `Limited`: what a destination accepts, and a batch made to fit.

use std::collections::BTreeMap;

use emp_core::limits::DestinationLimits;
use pyo3::prelude::*;

use crate::batch::PyBatch;
use crate::block::PyBlock;
use crate::error::{argument_error, to_py_err};

/// What a destination accepts; 0 means no limit.
#[pyclass(name = "DestinationLimits", module = "emp_pipe._core", frozen)]
pub struct PyDestinationLimits(DestinationLimits);

/// Seconds as nanoseconds.
fn nanoseconds(name: &str, seconds: f64) -> PyResult<i64> {
    if seconds.is_finite() && (0.0..9e9).contains(&seconds) {
        Ok((seconds * 1e9) as i64)
    } else {
        Err(argument_error(format!("{name} must be between 0 and 9e9 seconds, not {seconds}")))
    }
}

#[pymethods]
impl PyDestinationLimits {
    #[new]
    #[pyo3(signature = (
        *, max_age_s=0.0, max_ahead_s=0.0, max_body_bytes=0, max_log_attributes=0, max_span_attributes=0, max_span_events=0,
        max_trace_spans=0, max_key_bytes=0, max_value_bytes=0
    ))]
    #[expect(clippy::too_many_arguments, reason = "all are keywords")]
    fn new(
        max_age_s: f64,
        max_ahead_s: f64,
        max_body_bytes: u32,
        max_log_attributes: u32,
        max_span_attributes: u32,
        max_span_events: u32,
        max_trace_spans: u32,
        max_key_bytes: u32,
        max_value_bytes: u32,
    ) -> PyResult<Self> {
        let limits = DestinationLimits {
            max_age_ns: nanoseconds("max_age_s", max_age_s)?,
            max_ahead_ns: nanoseconds("max_ahead_s", max_ahead_s)?,
            max_body_bytes,
            max_log_attributes,
            max_span_attributes,
            max_span_events,
            max_trace_spans,
            max_key_bytes,
            max_value_bytes,
        };
        limits.checked().map(Self).map_err(to_py_err)
    }

    /// Whether the header proves that no limit applies to the block.
    fn block_passes(&self, block: &Bound<'_, PyBlock>, now_unix_nano: i64) -> bool {
        self.0.block_passes(&block.get().header, now_unix_nano)
    }

    /// The rows made to fit.
    fn apply(&self, py: Python<'_>, batch: &Bound<'_, PyBatch>, now_unix_nano: i64) -> PyResult<PyLimited> {
        let batch = &batch.get().0;
        let limited = py.detach(|| self.0.apply(batch, now_unix_nano)).map_err(to_py_err)?;
        Ok(PyLimited {
            batch: limited.batch.map(|batch| batch.into()),
            expired: limited.expired.map(|batch| batch.into()),
            trace_too_large: limited.trace_too_large.map(|batch| batch.into()),
            truncated: limited.applied,
        })
    }
}

/// A batch made to fit: what passes, what the destination would refuse, and how often each limit applied.
#[pyclass(name = "Limited", module = "emp_pipe._core", frozen)]
pub struct PyLimited {
    batch: Option<PyBatch>,
    expired: Option<PyBatch>,
    trace_too_large: Option<PyBatch>,
    truncated: BTreeMap<&'static str, u64>,
}

#[pymethods]
impl PyLimited {
    #[getter]
    fn batch(&self) -> Option<PyBatch> {
        self.batch.clone()
    }

    /// Too old or too far ahead: dead letters.
    #[getter]
    fn expired(&self) -> Option<PyBatch> {
        self.expired.clone()
    }

    /// Spans past those that the destination takes of a trace: dead letters.
    #[getter]
    fn trace_too_large(&self) -> Option<PyBatch> {
        self.trace_too_large.clone()
    }

    /// How often each limit applied, by its name; rows set apart are counted too.
    #[getter]
    fn truncated(&self) -> BTreeMap<&'static str, u64> {
        self.truncated.clone()
    }
}
