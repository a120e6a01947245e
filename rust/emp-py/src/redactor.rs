//! `Redactor`: secrets out of rows, texts and bytes.

use std::collections::HashMap;

use emp_core::redact::{Counts, Redactor, Rules, pattern_names};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::batch::{PyBatch, StringMap};
use crate::error::to_py_err;
use crate::filter::by_name;

/// Compiled rules of what is a secret; any number of threads may use it.
#[pyclass(name = "Redactor", module = "emp_pipe._core", frozen)]
pub struct PyRedactor(Redactor);

#[pymethods]
impl PyRedactor {
    /// Compiled rules. CoreError (config_invalid) names the pattern that cannot be one.
    #[new]
    #[pyo3(signature = (*, keys, kept_keys, patterns, own_patterns, mask, hash_key=None))]
    fn new(
        keys: Vec<String>,
        kept_keys: Vec<String>,
        patterns: Vec<String>,
        own_patterns: StringMap,
        mask: String,
        hash_key: Option<String>,
    ) -> PyResult<Self> {
        let hash_key = hash_key.map(String::into_bytes);
        let rules = Rules { keys, kept_keys, patterns, own_patterns: own_patterns.into_pairs(), mask, hash_key };
        Redactor::new(&rules).map(Self).map_err(to_py_err)
    }

    /// The names of the built-in patterns.
    #[staticmethod]
    fn pattern_names() -> Vec<&'static str> {
        pattern_names().collect()
    }

    /// A batch with its secrets replaced; its `batch` is the very one where it has none.
    fn batch(&self, py: Python<'_>, batch: &Bound<'_, PyBatch>) -> PyResult<PyRedacted> {
        let rows = &batch.get().0;
        let redacted = py.detach(|| self.0.batch(rows)).map_err(to_py_err)?;
        let out = match redacted.batch {
            Some(out) => Py::new(py, PyBatch::from(out))?,
            None => batch.clone().unbind(),
        };
        Ok(PyRedacted { batch: out, counts: self.named(&redacted.counts) })
    }

    /// Bytes of whatever kind with their secrets written over: as long as before.
    fn bytes(&self, py: Python<'_>, data: PyBackedBytes) -> PyRedactedBytes {
        let (data, counts) = py.detach(|| self.0.bytes(&data));
        PyRedactedBytes { data, counts: self.named(&counts) }
    }

    /// A text with its secrets replaced.
    fn text(&self, py: Python<'_>, text: &str) -> String {
        String::from_utf8_lossy(&py.detach(|| self.0.text(text.as_bytes()))).into_owned()
    }
}

impl PyRedactor {
    fn named(&self, counts: &Counts) -> HashMap<String, u64> {
        by_name(self.0.rules(), counts)
    }
}

/// A batch without its secrets.
#[pyclass(name = "Redacted", module = "emp_pipe._core", frozen)]
pub struct PyRedacted {
    batch: Py<PyBatch>,
    counts: HashMap<String, u64>,
}

#[pymethods]
impl PyRedacted {
    /// The rows.
    #[getter]
    fn batch(&self, py: Python<'_>) -> Py<PyBatch> {
        self.batch.clone_ref(py)
    }

    /// Values that were masked, by the rule's name, where there are any.
    #[getter]
    fn counts(&self) -> HashMap<String, u64> {
        self.counts.clone()
    }
}

/// Bytes without their secrets.
#[pyclass(name = "RedactedBytes", module = "emp_pipe._core", frozen)]
pub struct PyRedactedBytes {
    data: Vec<u8>,
    counts: HashMap<String, u64>,
}

#[pymethods]
impl PyRedactedBytes {
    /// The bytes.
    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.data)
    }

    /// Values that were masked, by the rule's name, where there are any.
    #[getter]
    fn counts(&self) -> HashMap<String, u64> {
        self.counts.clone()
    }
}
