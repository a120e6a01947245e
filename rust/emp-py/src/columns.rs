//! Arrow in and out over the PyCapsule interface: columns, record batches, masks.

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};
use pyo3_arrow::input::{AnyArray, AnyRecordBatch};
use pyo3_arrow::{PyArray, PyRecordBatch};

use crate::error::argument_error;

/// Columns of a batch: a record batch for whoever speaks the Arrow PyCapsule interface, such as `pyarrow.record_batch(columns)`.
#[pyclass(name = "Columns", module = "emp_pipe._core", frozen)]
pub struct PyColumns(pub RecordBatch);

#[pymethods]
impl PyColumns {
    #[getter]
    fn names(&self) -> Vec<String> {
        self.0.schema_ref().fields().iter().map(|field| field.name().clone()).collect()
    }

    fn __len__(&self) -> usize {
        self.0.num_rows()
    }

    /// One column: an array for whoever speaks the Arrow PyCapsule interface, such as `pyarrow.array(columns["body"])`.
    fn __getitem__(&self, name: &str) -> PyResult<PyColumn> {
        let column = self.0.column_by_name(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok(PyColumn(PyArray::from_array_ref(column.clone())))
    }

    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(&self, py: Python<'py>, requested_schema: Option<Bound<'py, PyCapsule>>) -> PyResult<Bound<'py, PyAny>> {
        capsules(Bound::new(py, PyRecordBatch::new(self.0.clone()))?.into_any(), requested_schema)
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Bound::new(py, PyRecordBatch::new(self.0.clone()))?.call_method0("__arrow_c_schema__")
    }
}

/// One column of a batch.
#[pyclass(name = "Column", module = "emp_pipe._core", frozen)]
pub struct PyColumn(PyArray);

#[pymethods]
impl PyColumn {
    fn __len__(&self) -> usize {
        self.0.array().len()
    }

    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(&self, py: Python<'py>, requested_schema: Option<Bound<'py, PyCapsule>>) -> PyResult<Bound<'py, PyAny>> {
        capsules(Bound::new(py, PyArray::from_array_ref(self.0.array().clone()))?.into_any(), requested_schema)
    }
}

fn capsules<'py>(object: Bound<'py, PyAny>, requested_schema: Option<Bound<'py, PyCapsule>>) -> PyResult<Bound<'py, PyAny>> {
    object.call_method1("__arrow_c_array__", PyTuple::new(object.py(), [requested_schema])?)
}

/// One record batch out of a record batch or a table.
pub struct RecordsArg(pub RecordBatch);

impl FromPyObject<'_, '_> for RecordsArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let reader = object.extract::<AnyRecordBatch>()?.into_reader()?;
        let schema = reader.schema();
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|error| argument_error(error.to_string()))?;
        arrow_select::concat::concat_batches(&schema, &batches).map(Self).map_err(|error| argument_error(error.to_string()))
    }
}

/// One array out of an array or a chunked array.
pub fn one_array(object: Borrowed<'_, '_, PyAny>) -> PyResult<arrow_array::ArrayRef> {
    let (chunks, field) = object.extract::<AnyArray>()?.into_chunked_array()?.into_inner();
    let chunks: Vec<&dyn Array> = chunks.iter().map(AsRef::as_ref).collect();
    match chunks.as_slice() {
        [] => Ok(arrow_array::new_empty_array(field.data_type())),
        chunks => arrow_select::concat::concat(chunks).map_err(|error| argument_error(error.to_string())),
    }
}

/// Whether an object speaks the Arrow PyCapsule interface.
pub fn is_arrow(object: Borrowed<'_, '_, PyAny>) -> PyResult<bool> {
    Ok(object.hasattr("__arrow_c_array__")? || object.hasattr("__arrow_c_stream__")?)
}

/// A bool for each row; null is false.
pub struct MaskArg(pub Vec<bool>);

impl FromPyObject<'_, '_> for MaskArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if !is_arrow(object)? {
            return object.extract().map(Self);
        }
        let array = one_array(object)?;
        if *array.data_type() != DataType::Boolean {
            return Err(argument_error(format!("a mask is boolean, not {}", array.data_type())));
        }
        let array = array.as_boolean();
        Ok(Self((0..array.len()).map(|row| array.is_valid(row) && array.value(row)).collect()))
    }
}
