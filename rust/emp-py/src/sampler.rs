//! `Sampler` and `Sampled`: rows left out by chance, before the log.

use std::collections::HashMap;

use emp_core::sampling::head::HeadSampler;
use pyo3::prelude::*;

use crate::batch::PyBatch;
use crate::error::to_py_err;

/// Keeps a percentage of rows by rules, the same ones on every machine.
#[pyclass(name = "Sampler", module = "emp_pipe._core", frozen)]
pub struct PySampler(HeadSampler);

#[pymethods]
impl PySampler {
    /// `rules` is JSON. Raises CoreError (config_invalid).
    #[new]
    fn new(rules: &str) -> PyResult<Self> {
        HeadSampler::parse(rules).map(Self).map_err(to_py_err)
    }

    /// What is left of a batch; its `batch` is the very one where nothing changes.
    fn apply(&self, py: Python<'_>, batch: &Bound<'_, PyBatch>) -> PyResult<PySampled> {
        let rows = &batch.get().0;
        let sampled = py.detach(|| self.0.apply(rows)).map_err(to_py_err)?;
        let dropped = self.0.names().iter().cloned().zip(sampled.dropped).filter(|(_, rows)| *rows > 0).collect();
        let kept = match sampled.batch {
            Some(kept) => Some(Py::new(py, PyBatch::from(kept))?),
            None => sampled.unchanged.then(|| batch.clone().unbind()),
        };
        Ok(PySampled { batch: kept, dropped, malformed: sampled.malformed })
    }
}

/// What sampling left of a batch.
#[pyclass(name = "Sampled", module = "emp_pipe._core", frozen)]
pub struct PySampled {
    batch: Option<Py<PyBatch>>,
    dropped: HashMap<String, u64>,
    malformed: u64,
}

#[pymethods]
impl PySampled {
    /// None: nothing is left.
    #[getter]
    fn batch(&self, py: Python<'_>) -> Option<Py<PyBatch>> {
        self.batch.as_ref().map(|batch| batch.clone_ref(py))
    }

    /// Rows that were left out, by the rule's name, where there are any.
    #[getter]
    fn dropped(&self) -> HashMap<String, u64> {
        self.dropped.clone()
    }

    /// Spans whose tracestate is malformed or full, and was left as it is.
    #[getter]
    fn malformed_tracestate(&self) -> u64 {
        self.malformed
    }
}
