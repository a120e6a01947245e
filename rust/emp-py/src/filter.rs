//! `Filter`, `RateLimiter` and `Filtered`: rows left out by rule, before the log.

use std::collections::HashMap;

use emp_core::filter::{Filter, Filtered, RateLimiter};
use pyo3::prelude::*;

use crate::batch::PyBatch;
use crate::error::to_py_err;

/// Drops rows by rules, or keeps one in so many.
#[pyclass(name = "Filter", module = "emp_pipe._core", frozen)]
pub struct PyFilter(Filter);

#[pymethods]
impl PyFilter {
    /// `rules` is JSON. Raises CoreError (config_invalid).
    #[new]
    fn new(rules: &str) -> PyResult<Self> {
        Filter::parse(rules).map(Self).map_err(to_py_err)
    }

    /// What is left of a batch; its `batch` is the very one where nothing is left out.
    fn apply(&self, py: Python<'_>, batch: &Bound<'_, PyBatch>) -> PyResult<PyFiltered> {
        let rows = &batch.get().0;
        let filtered = py.detach(|| self.0.apply(rows)).map_err(to_py_err)?;
        PyFiltered::new(py, filtered, batch, self.0.names())
    }
}

/// Keeps so many records a second of each source, tag or service.
#[pyclass(name = "RateLimiter", module = "emp_pipe._core", frozen)]
pub struct PyRateLimiter(RateLimiter);

#[pymethods]
impl PyRateLimiter {
    /// `rules` is JSON. Raises CoreError (config_invalid).
    #[new]
    fn new(rules: &str, max_buckets: usize) -> PyResult<Self> {
        RateLimiter::parse(rules, max_buckets).map(Self).map_err(to_py_err)
    }

    /// What is left of a batch at a time of a clock that does not jump; its `batch` is the very one where nothing is left out.
    fn apply(&self, py: Python<'_>, batch: &Bound<'_, PyBatch>, now_nano: u64) -> PyResult<PyFiltered> {
        let rows = &batch.get().0;
        let filtered = py.detach(|| self.0.apply(rows, now_nano)).map_err(to_py_err)?;
        PyFiltered::new(py, filtered, batch, self.0.names())
    }

    /// How many buckets there are.
    #[getter]
    fn bucket_count(&self) -> usize {
        self.0.bucket_count()
    }
}

/// The counts that are not zero, by the rules' names; rules of one name are counted together.
pub fn by_name<'a>(names: impl Iterator<Item = &'a str>, counts: &[u64]) -> HashMap<String, u64> {
    let mut out = HashMap::new();
    for (name, count) in names.zip(counts).filter(|(_, count)| **count > 0) {
        *out.entry(name.to_owned()).or_default() += count;
    }
    out
}

/// What rules left of a batch.
#[pyclass(name = "Filtered", module = "emp_pipe._core", frozen)]
pub struct PyFiltered {
    batch: Option<Py<PyBatch>>,
    dropped: HashMap<String, u64>,
}

impl PyFiltered {
    fn new(py: Python<'_>, filtered: Filtered, batch: &Bound<'_, PyBatch>, names: &[String]) -> PyResult<Self> {
        let dropped = by_name(names.iter().map(String::as_str), &filtered.dropped);
        let batch = match filtered.batch {
            Some(left) => Some(Py::new(py, PyBatch::from(left))?),
            None => filtered.unchanged.then(|| batch.clone().unbind()),
        };
        Ok(Self { batch, dropped })
    }
}

#[pymethods]
impl PyFiltered {
    /// None: nothing is left.
    #[getter]
    fn batch(&self, py: Python<'_>) -> Option<Py<PyBatch>> {
        self.batch.as_ref().map(|batch| batch.clone_ref(py))
    }

    /// Records that were left out, by the rule's name, where there are any.
    #[getter]
    fn dropped(&self) -> HashMap<String, u64> {
        self.dropped.clone()
    }
}
