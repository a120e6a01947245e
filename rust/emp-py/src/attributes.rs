//! A mapping of attribute keys to values: scalars, or Arrow arrays with a value per row.

use emp_core::batch::values::{Attribute, Values};
use emp_core::otlp::value::Scalar;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyMapping, PyString};

use crate::columns::{is_arrow, one_array};
use crate::error::{argument_error, to_py_err};

/// Attributes to set.
pub struct AttributesArg(pub Vec<Attribute>);

impl FromPyObject<'_, '_> for AttributesArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let mut attributes = Vec::new();
        for item in object.cast::<PyMapping>()?.items()?.iter() {
            let (key, value): (String, Bound<'_, PyAny>) = item.extract()?;
            let values = values(value.as_borrowed())?;
            attributes.push(Attribute { key: key.into_bytes(), values });
        }
        Ok(Self(attributes))
    }
}

fn values(value: Borrowed<'_, '_, PyAny>) -> PyResult<Values> {
    // A bool is an int in Python, so it is asked first.
    if value.is_instance_of::<PyBool>() {
        Ok(Values::scalar(Scalar::Bool(value.extract()?)))
    } else if value.is_instance_of::<PyInt>() {
        Ok(Values::scalar(Scalar::Int(value.extract()?)))
    } else if value.is_instance_of::<PyFloat>() {
        Ok(Values::scalar(Scalar::Double(value.extract()?)))
    } else if value.is_instance_of::<PyString>() {
        Ok(Values::scalar(Scalar::String(value.extract::<PyBackedStr>()?.as_bytes())))
    } else if value.is_instance_of::<PyBytes>() {
        Ok(Values::scalar(Scalar::Bytes(&value.extract::<PyBackedBytes>()?)))
    } else if is_arrow(value)? {
        Values::of_array(&one_array(value)?).map_err(to_py_err)
    } else {
        Err(argument_error(format!("an attribute is str, int, float, bool, bytes or an Arrow array, not {}", value.get_type().name()?)))
    }
}
