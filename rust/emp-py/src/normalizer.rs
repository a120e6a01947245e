//! `Normalizer`: the rules of a receiver, shared by its decoders.

use std::sync::Arc;

use emp_core::normalize::Normalizer;
use pyo3::prelude::*;
use pyo3::types::{PyMapping, PyMappingMethods};

/// A mapping of text to text, in its own order.
#[derive(Default)]
pub struct TextMap(pub Vec<(String, String)>);

impl FromPyObject<'_, '_> for TextMap {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let items = object.cast::<PyMapping>()?.items()?;
        Ok(Self(items.extract()?))
    }
}

/// The rules that turn what a sender wrote into OTLP log records; one per receiver, shared by its decoders.
#[pyclass(name = "Normalizer", module = "emp_pipe._core", frozen)]
pub struct PyNormalizer(pub Arc<Normalizer>);

#[pymethods]
impl PyNormalizer {
    #[new]
    #[pyo3(
        signature = (*, stamp=TextMap::default(), unfold=true, aliases=TextMap::default(), max_resources=1024),
        text_signature = "(*, stamp=..., unfold=True, aliases=..., max_resources=1024)"
    )]
    fn new(stamp: TextMap, unfold: bool, aliases: TextMap, max_resources: usize) -> Self {
        Self(Arc::new(Normalizer::new(stamp.0, &aliases.0, unfold, max_resources)))
    }
}
