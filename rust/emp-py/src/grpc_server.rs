//! `GrpcServerConnection` and what happens on it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use emp_core::grpc::{Broken, Call, Message, Problem, ServerConnection, ServerEvent, ServerLimits};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyBytes;

use crate::grpc_input::{Input, latin1};

struct State {
    connection: ServerConnection,
    input: Input,
}

/// The server's end of one connection: bytes in, events out; answers in, bytes out.
#[pyclass(name = "GrpcServerConnection", module = "emp_pipe._core", frozen)]
pub struct PyGrpcServerConnection(Mutex<State>);

impl PyGrpcServerConnection {
    fn lock<'a>(&'a self, py: Python<'_>) -> MutexGuard<'a, State> {
        self.0.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyGrpcServerConnection {
    #[new]
    #[pyo3(signature = (*, max_concurrent_streams, min_ping_interval_s))]
    fn new(max_concurrent_streams: u32, min_ping_interval_s: f64) -> Self {
        let connection = ServerConnection::new(ServerLimits { max_concurrent_streams, min_ping_interval_s });
        Self(Mutex::new(State { connection, input: Input::default() }))
    }

    /// Take the first bytes of a buffer; `next` reads them, and the buffer must not change before that returns None.
    fn received(&self, py: Python<'_>, buffer: PyBuffer<u8>, size_bytes: usize) -> PyResult<()> {
        self.lock(py).input.set(buffer, size_bytes)
    }

    /// The next event; None when all that was received is read.
    fn next(&self, py: Python<'_>, now_s: f64) -> PyResult<Option<Py<PyAny>>> {
        let mut state = self.lock(py);
        let State { connection, input } = &mut *state;
        let event = input.read(|bytes, at| connection.next(bytes, at, now_s));
        drop(state);
        event_object(py, event)
    }

    fn give_turn(&self, py: Python<'_>, stream: u32) {
        self.lock(py).connection.give_turn(stream);
    }

    fn grant(&self, py: Python<'_>, stream: u32, more_bytes: usize) {
        self.lock(py).connection.grant(stream, more_bytes);
    }

    /// Answer a call. False: the peer does not take its answers, and the connection is to be closed.
    fn respond(&self, py: Python<'_>, stream: u32, message: &[u8]) -> bool {
        self.lock(py).connection.respond(stream, message.to_vec()).is_ok()
    }

    fn fail(&self, py: Python<'_>, stream: u32, status: u32, message: &str, trailers: Vec<(String, String)>) {
        self.lock(py).connection.fail(stream, status, message, &trailers);
    }

    fn reject(&self, py: Python<'_>, stream: u32, http_status: u16) {
        self.lock(py).connection.reject(stream, http_status);
    }

    fn drain(&self, py: Python<'_>) {
        self.lock(py).connection.drain();
    }

    fn ping(&self, py: Python<'_>) {
        self.lock(py).connection.ping();
    }

    /// What is to be sent now.
    fn output<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.lock(py).connection.output())
    }

    #[getter]
    fn awaits_pong(&self, py: Python<'_>) -> bool {
        self.lock(py).connection.awaits_pong()
    }

    #[getter]
    fn has_begun(&self, py: Python<'_>) -> bool {
        self.lock(py).connection.has_begun()
    }

    #[getter]
    fn is_greeted(&self, py: Python<'_>) -> bool {
        self.lock(py).connection.is_greeted()
    }

    #[getter]
    fn open_calls(&self, py: Python<'_>) -> usize {
        self.lock(py).connection.open_calls()
    }
}

fn event_object(py: Python<'_>, event: Result<Option<ServerEvent>, Broken>) -> PyResult<Option<Py<PyAny>>> {
    let object = match event {
        Err(broken) => Py::new(py, PyGrpcBroken(broken))?.into_any(),
        Ok(None) => return Ok(None),
        Ok(Some(ServerEvent::Call(call))) => Py::new(py, PyGrpcCall(call))?.into_any(),
        Ok(Some(ServerEvent::Wants { stream, size_bytes, granted_bytes, more_bytes })) => {
            Py::new(py, PyGrpcWants { stream, size_bytes, granted_bytes, more_bytes })?.into_any()
        }
        Ok(Some(ServerEvent::Message { stream, message })) => Py::new(py, PyGrpcMessage { stream, message })?.into_any(),
        Ok(Some(ServerEvent::NoMessage { stream, is_torn })) => Py::new(py, PyGrpcNoMessage { stream, is_torn })?.into_any(),
        Ok(Some(ServerEvent::Gone { stream })) => Py::new(py, PyGrpcGone { stream })?.into_any(),
    };
    Ok(Some(object))
}

/// A call begins.
#[pyclass(name = "GrpcCall", module = "emp_pipe._core", frozen)]
pub struct PyGrpcCall(Call);

#[pymethods]
impl PyGrpcCall {
    #[getter]
    fn stream(&self) -> u32 {
        self.0.stream
    }

    #[getter]
    fn path(&self) -> &str {
        &self.0.path
    }

    /// What is wrong with it: "metadata", "method", "content type"; "" where nothing is.
    #[getter]
    fn problem(&self) -> &'static str {
        match self.0.problem {
            None => "",
            Some(Problem::MetadataTooLong) => "metadata",
            Some(Problem::Method) => "method",
            Some(Problem::ContentType) => "content type",
        }
    }

    /// The values of all headers of that name, joined by commas; "" without one.
    fn header(&self, name: &str) -> String {
        let named = self.0.headers.fields.iter().filter(|(known, _)| known == name.as_bytes());
        named.map(|(_, value)| latin1(value)).collect::<Vec<_>>().join(",")
    }
}

/// A message needs memory.
#[pyclass(name = "GrpcWants", module = "emp_pipe._core", frozen, get_all)]
pub struct PyGrpcWants {
    stream: u32,
    size_bytes: usize,
    granted_bytes: usize,
    more_bytes: usize,
}

/// The message of a call, as it came. `len` is its bytes; `OtlpDecoder.decode` reads it where it lies.
#[pyclass(name = "GrpcMessage", module = "emp_pipe._core", frozen)]
pub struct PyGrpcMessage {
    stream: u32,
    message: Message,
}

impl PyGrpcMessage {
    /// Its bytes.
    pub fn data(&self) -> &[u8] {
        &self.message.data
    }
}

#[pymethods]
impl PyGrpcMessage {
    #[getter]
    fn stream(&self) -> u32 {
        self.stream
    }

    /// The first byte of its prefix: 1 where it is compressed.
    #[getter]
    fn flag(&self) -> u8 {
        self.message.flag
    }

    fn __len__(&self) -> usize {
        self.message.data.len()
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.message.data)
    }
}

/// The peer has ended a call before its message was whole.
#[pyclass(name = "GrpcNoMessage", module = "emp_pipe._core", frozen, get_all)]
pub struct PyGrpcNoMessage {
    stream: u32,
    is_torn: bool,
}

/// The peer has given a call up.
#[pyclass(name = "GrpcGone", module = "emp_pipe._core", frozen, get_all)]
pub struct PyGrpcGone {
    stream: u32,
}

/// The connection cannot go on; what it is told stands in the output.
#[pyclass(name = "GrpcBroken", module = "emp_pipe._core", frozen)]
pub struct PyGrpcBroken(pub Broken);

#[pymethods]
impl PyGrpcBroken {
    /// HTTP/2's error code.
    #[getter]
    fn code(&self) -> u32 {
        self.0.code
    }

    #[getter]
    fn why(&self) -> &'static str {
        self.0.why
    }
}
