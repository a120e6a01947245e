//! `SyslogDecoder`, the `SyslogStream` of a connection, and what they give: `SyslogRead`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use emp_core::syslog::frames::Framing;
use emp_core::syslog::{Counts, Decoder, Settings, Stream, When};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::sync::MutexExt;

use crate::batch::PyBatch;
use crate::error::argument_error;
use crate::forward_decoder::PyRejected;
use crate::normalizer::PyNormalizer;

/// A framing by its name.
pub struct FramingArg(Framing);

impl FromPyObject<'_, '_> for FramingArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match &*object.extract::<PyBackedStr>()? {
            "auto" => Ok(Self(Framing::Auto)),
            "octet_counting" => Ok(Self(Framing::OctetCounting)),
            "newline" => Ok(Self(Framing::Newline)),
            other => Err(argument_error(format!("a framing is auto, octet_counting or newline, not {other:?}"))),
        }
    }
}

/// The state of one connection.
#[pyclass(name = "SyslogStream", module = "emp_pipe._core", frozen)]
pub struct PySyslogStream {
    stream: Mutex<Stream>,
    peer: String,
}

#[pymethods]
impl PySyslogStream {
    #[getter]
    fn pending_bytes(&self, py: Python<'_>) -> usize {
        held(self.stream.lock_py_attached(py)).pending_bytes()
    }
}

/// The decoder of a syslog receiver, for all of its connections and datagrams.
#[pyclass(name = "SyslogDecoder", module = "emp_pipe._core", frozen)]
pub struct PySyslogDecoder(Mutex<Decoder>);

fn held<'a, T>(lock: Result<MutexGuard<'a, T>, PoisonError<MutexGuard<'a, T>>>) -> MutexGuard<'a, T> {
    lock.unwrap_or_else(PoisonError::into_inner)
}

fn live(now_unix_nano: i64, utc_offset_s: i64) -> When {
    When { now_unix_nano, utc_offset_s, most_ahead_s: When::LIVE_AHEAD_S }
}

#[pymethods]
impl PySyslogDecoder {
    #[new]
    #[pyo3(
        signature = (normalizer, *, framing=FramingArg(Framing::Auto), max_message_bytes=65_536),
        text_signature = "(normalizer, *, framing='auto', max_message_bytes=65536)"
    )]
    fn new(normalizer: &Bound<'_, PyNormalizer>, framing: FramingArg, max_message_bytes: usize) -> Self {
        Self(Mutex::new(Decoder::new(normalizer.get().0.clone(), Settings { framing: framing.0, max_message_bytes })))
    }

    /// The state of a new connection.
    fn stream(&self, py: Python<'_>, peer: String) -> PySyslogStream {
        PySyslogStream { stream: Mutex::new(held(self.0.lock_py_attached(py)).stream()), peer }
    }

    /// Read datagrams: each with the address that it came from.
    fn datagrams(
        &self,
        py: Python<'_>,
        packets: Vec<(PyBackedBytes, PyBackedStr)>,
        now_unix_nano: i64,
        utc_offset_s: i64,
    ) -> PyResult<PySyslogRead> {
        let when = live(now_unix_nano, utc_offset_s);
        let taken = py.detach(|| {
            let mut decoder = held(self.0.lock());
            for (data, peer) in &packets {
                decoder.datagram(peer.as_bytes(), data, &when);
            }
            decoder.take()
        });
        PySyslogRead::new(py, taken)
    }

    /// Read what has come on a connection.
    fn feed(
        &self,
        py: Python<'_>,
        stream: &Bound<'_, PySyslogStream>,
        data: PyBuffer<u8>,
        now_unix_nano: i64,
        utc_offset_s: i64,
    ) -> PyResult<PySyslogRead> {
        let (when, data, stream) = (live(now_unix_nano, utc_offset_s), data.to_vec(py)?, stream.get());
        let taken = py.detach(|| {
            let mut decoder = held(self.0.lock());
            decoder.feed(&mut held(stream.stream.lock()), stream.peer.as_bytes(), &data, &when);
            decoder.take()
        });
        PySyslogRead::new(py, taken)
    }

    /// Nothing follows on a connection, or nothing has for long: what is there of a message is one.
    fn flush(&self, py: Python<'_>, stream: &Bound<'_, PySyslogStream>, now_unix_nano: i64, utc_offset_s: i64) -> PyResult<PySyslogRead> {
        let (when, stream) = (live(now_unix_nano, utc_offset_s), stream.get());
        let taken = py.detach(|| {
            let mut decoder = held(self.0.lock());
            decoder.flush(&mut held(stream.stream.lock()), stream.peer.as_bytes(), &when);
            decoder.take()
        });
        PySyslogRead::new(py, taken)
    }

    /// What was seen since the decoder was made, by name.
    #[getter]
    fn counts(&self, py: Python<'_>) -> Vec<(&'static str, u64)> {
        let Counts { rows, malformed, without_priority, split, blank, misframed, torn } = held(self.0.lock_py_attached(py)).counts();
        vec![
            ("rows", rows),
            ("malformed", malformed),
            ("without_priority", without_priority),
            ("split", split),
            ("blank", blank),
            ("misframed", misframed),
            ("torn", torn),
        ]
    }
}

/// What a read gave.
#[pyclass(name = "SyslogRead", module = "emp_pipe._core", frozen)]
pub struct PySyslogRead {
    batch: Option<Py<PyBatch>>,
    rejected: Vec<Py<PyRejected>>,
    #[pyo3(get)]
    received: u64,
    #[pyo3(get)]
    resources_over_limit: u64,
    ages: Vec<(String, i64)>,
}

type Taken = (emp_core::otlp::incoming::Read, Vec<(Vec<u8>, i64)>);

impl PySyslogRead {
    fn new(py: Python<'_>, (read, ages): Taken) -> PyResult<Self> {
        Ok(Self {
            batch: read.batch.map(|batch| Py::new(py, PyBatch::from(batch))).transpose()?,
            rejected: read.rejected.into_iter().map(|rejected| Py::new(py, PyRejected(rejected))).collect::<PyResult<_>>()?,
            received: read.received,
            resources_over_limit: read.resources_over_limit,
            ages: ages.into_iter().map(|(peer, age)| (String::from_utf8_lossy(&peer).into_owned(), age)).collect(),
        })
    }
}

#[pymethods]
impl PySyslogRead {
    #[getter]
    fn batch(&self, py: Python<'_>) -> Option<Py<PyBatch>> {
        self.batch.as_ref().map(|batch| batch.clone_ref(py))
    }

    #[getter]
    fn rejected(&self, py: Python<'_>) -> Vec<Py<PyRejected>> {
        self.rejected.iter().map(|rejected| rejected.clone_ref(py)).collect()
    }

    /// By address of those that said a time: the least of arrival minus time, nanoseconds.
    #[getter]
    fn ages(&self) -> Vec<(String, i64)> {
        self.ages.clone()
    }
}
