//! `HttpJsonDecoder`: the bodies of requests with records in JSON.

use emp_core::compress::Codec;
use emp_core::http_json::{Coding, Decoder, Form, Request};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::PyBytes;

use crate::body::PyBody;
use crate::error::{argument_error, to_py_err};
use crate::normalizer::PyNormalizer;
use crate::otlp_decoder::PyOtlpRead;

/// A content coding by its name.
pub struct CodingArg(Coding);

impl FromPyObject<'_, '_> for CodingArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match &*object.extract::<PyBackedStr>()? {
            "deflate" => Ok(Self(Coding::Deflate)),
            name => match Codec::from_name(name) {
                Some(codec) => Ok(Self(Coding::Codec(codec))),
                None => Err(argument_error(format!("a coding is none, gzip, zstd or deflate, not {name:?}"))),
            },
        }
    }
}

/// A body's layout by its name.
pub struct FormArg(Form);

impl FromPyObject<'_, '_> for FormArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match &*object.extract::<PyBackedStr>()? {
            "json" => Ok(Self(Form::Json)),
            "lines" => Ok(Self(Form::Lines)),
            "urlencoded" => Ok(Self(Form::UrlEncoded)),
            other => Err(argument_error(format!("a form is json, lines or urlencoded, not {other:?}"))),
        }
    }
}

/// The decoder of a receiver of records in JSON; any number of threads may use it.
#[pyclass(name = "HttpJsonDecoder", module = "emp_pipe._core", frozen)]
pub struct PyHttpJsonDecoder(Decoder);

#[pymethods]
impl PyHttpJsonDecoder {
    #[new]
    #[pyo3(signature = (normalizer, *, max_inflated_bytes=67_108_864))]
    fn new(normalizer: &Bound<'_, PyNormalizer>, max_inflated_bytes: usize) -> Self {
        Self(Decoder::new(normalizer.get().0.clone(), max_inflated_bytes))
    }

    /// Read the body of one request.
    #[pyo3(
        signature = (data, *, coding=CodingArg(Coding::Codec(Codec::None)), form=FormArg(Form::Json), tag, time, now_unix_nano),
        text_signature = "($self, data, *, coding='none', form='json', tag, time, now_unix_nano)"
    )]
    #[allow(clippy::too_many_arguments)]
    fn decode(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        coding: CodingArg,
        form: FormArg,
        tag: PyBackedBytes,
        time: PyBackedBytes,
        now_unix_nano: i64,
    ) -> PyResult<PyOtlpRead> {
        let request = Request { coding: coding.0, form: form.0, tag: &tag, time: &time, now_unix_nano };
        let read = if let Ok(bytes) = data.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            py.detach(|| self.0.decode(bytes, &request))
        } else if let Ok(body) = data.cast::<PyBody>() {
            let body = body.get();
            py.detach(|| body.read(|bytes| self.0.decode(bytes, &request)))
        } else {
            let bytes = PyBuffer::<u8>::get(data)?.to_vec(py)?; // someone else may write to it
            py.detach(|| self.0.decode(&bytes, &request))
        };
        PyOtlpRead::new(py, read.map_err(to_py_err)?)
    }
}
