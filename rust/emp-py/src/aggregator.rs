//! `Aggregator`: metrics added up to one point per stream and window, and what a take and a flush give.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use emp_core::aggregate::emit::{BlockForm, Flushed};
use emp_core::aggregate::{Aggregator, Settings, Taken};
use emp_core::error::ErrorKind;
use emp_core::fluent::read::Rejected;
use pyo3::prelude::*;

use crate::block::{CodecArg, PyBlock};
use crate::error::to_py_err;
use crate::forward_decoder::PyRejected;

/// Adds metrics up; one call at a time takes effect.
#[pyclass(name = "Aggregator", module = "emp_pipe._core", frozen)]
pub struct PyAggregator(Mutex<Aggregator>);

impl PyAggregator {
    fn lock(&self) -> MutexGuard<'_, Aggregator> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyAggregator {
    #[new]
    #[pyo3(signature = (*, max_streams=2000, max_exemplars=5, idle_windows=10))]
    fn new(max_streams: usize, max_exemplars: usize, idle_windows: u32) -> Self {
        Self(Mutex::new(Aggregator::new(Settings { max_streams, max_exemplars, idle_windows })))
    }

    /// Take a block of metrics in. Raises CoreError (block_invalid), with nothing taken, where it cannot be read.
    #[pyo3(signature = (block, *, max_inflated_bytes=268_435_456))]
    fn take(&self, py: Python<'_>, block: &Bound<'_, PyBlock>, max_inflated_bytes: usize) -> PyResult<PyAggregatorTaken> {
        let block = block.get();
        let taken = py.detach(|| self.lock().take_block(&block.header, &block.payload, max_inflated_bytes));
        PyAggregatorTaken::new(py, taken.map_err(to_py_err)?)
    }

    /// Everything taken since the last flush, as blocks of at most 1 MiB that are flagged as aggregated.
    #[pyo3(signature = (codec, *, topic, block_prefix, level=1))]
    fn flush(&self, py: Python<'_>, codec: CodecArg, topic: &str, block_prefix: &str, level: i32) -> PyResult<PyAggregatorFlushed> {
        let form = BlockForm { codec: codec.0, level, topic, id_prefix: block_prefix };
        PyAggregatorFlushed::new(py, py.detach(|| self.lock().flush(form)).map_err(to_py_err)?)
    }

    /// Forget everything.
    fn reset(&self, py: Python<'_>) {
        py.detach(|| self.lock().reset());
    }

    /// Forget, right after a flush, which streams there are but for those flushed: for when memory is short.
    fn shrink(&self, py: Python<'_>) {
        py.detach(|| self.lock().shrink());
    }

    /// About how many bytes it takes.
    #[getter]
    fn size_bytes(&self) -> usize {
        self.lock().size_bytes()
    }

    /// Streams that it knows, those without a point in this window included.
    #[getter]
    fn stream_count(&self) -> usize {
        self.lock().stream_count()
    }
}

/// What was taken of a block.
#[pyclass(name = "AggregatorTaken", module = "emp_pipe._core", frozen)]
pub struct PyAggregatorTaken {
    #[pyo3(get)]
    points: u64,
    #[pyo3(get)]
    skipped: u64,
    unreadable: Vec<Py<PyRejected>>,
}

impl PyAggregatorTaken {
    fn new(py: Python<'_>, taken: Taken) -> PyResult<Self> {
        let rejected = taken.unreadable.into_iter().map(|unreadable| {
            let rejected = Rejected {
                kind: ErrorKind::BodyInvalid,
                detail: unreadable.detail.to_owned(),
                offset: 0,
                data: unreadable.data,
                records: unreadable.points,
            };
            Py::new(py, PyRejected(rejected))
        });
        Ok(Self { points: taken.points, skipped: taken.skipped, unreadable: rejected.collect::<PyResult<_>>()? })
    }
}

#[pymethods]
impl PyAggregatorTaken {
    /// Points that cannot be read, each with its metric's own fields.
    #[getter]
    fn unreadable(&self, py: Python<'_>) -> Vec<Py<PyRejected>> {
        self.unreadable.iter().map(|rejected| rejected.clone_ref(py)).collect()
    }
}

/// A flushed window.
#[pyclass(name = "AggregatorFlushed", module = "emp_pipe._core", frozen)]
pub struct PyAggregatorFlushed {
    blocks: Vec<Py<PyBlock>>,
    #[pyo3(get)]
    points: u64,
    overflowed: BTreeMap<String, u64>,
}

impl PyAggregatorFlushed {
    fn new(py: Python<'_>, flushed: Flushed) -> PyResult<Self> {
        let mut overflowed = BTreeMap::new();
        for (name, points) in flushed.overflowed {
            *overflowed.entry(name).or_default() += points;
        }
        let blocks = flushed.blocks.into_iter().map(|block| Py::new(py, PyBlock::from(block))).collect::<PyResult<_>>()?;
        Ok(Self { blocks, points: flushed.points, overflowed })
    }
}

#[pymethods]
impl PyAggregatorFlushed {
    #[getter]
    fn blocks(&self, py: Python<'_>) -> Vec<Py<PyBlock>> {
        self.blocks.iter().map(|block| block.clone_ref(py)).collect()
    }

    /// By metric name: points past the limit of streams.
    #[getter]
    fn overflowed(&self) -> BTreeMap<String, u64> {
        self.overflowed.clone()
    }
}
