//! `GrpcClientConnection` and what happens on it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use emp_core::compress::Codec;
use emp_core::grpc::{Answer, Broken, ClientConnection, ClientEvent};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyBytes;

use crate::block::{CodecArg, Payload, PyBlock};
use crate::grpc_input::{Input, PyGrpcOutput, latin1};
use crate::grpc_server::PyGrpcBroken;

struct State {
    connection: ClientConnection<Payload>,
    input: Input,
}

/// The client's end of one connection: calls in, bytes out; bytes in, answers out.
#[pyclass(name = "GrpcClientConnection", module = "emp_pipe._core", frozen)]
pub struct PyGrpcClientConnection(Mutex<State>);

impl PyGrpcClientConnection {
    fn lock<'a>(&'a self, py: Python<'_>) -> MutexGuard<'a, State> {
        self.0.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyGrpcClientConnection {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(State { connection: ClientConnection::default(), input: Input::default() }))
    }

    /// Begin a call with the block's request in a codec as its message. None: the server takes no more calls now.
    fn call(&self, py: Python<'_>, fields: Vec<(String, String)>, block: &Bound<'_, PyBlock>, codec: CodecArg) -> PyResult<Option<u32>> {
        let message = block.get().payload_in(py, codec.0)?;
        Ok(self.lock(py).connection.call(&fields, message, codec.0 != Codec::None))
    }

    fn cancel(&self, py: Python<'_>, stream: u32) {
        self.lock(py).connection.cancel(stream);
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

    /// What is to be sent now: of the messages at most about so many bytes.
    fn output(&self, py: Python<'_>, most_bytes: usize) -> PyGrpcOutput {
        PyGrpcOutput(self.lock(py).connection.output(most_bytes))
    }

    fn ping(&self, py: Python<'_>) {
        self.lock(py).connection.ping();
    }

    fn goaway(&self, py: Python<'_>) {
        self.lock(py).connection.goaway();
    }

    #[getter]
    fn has_room(&self, py: Python<'_>) -> bool {
        self.lock(py).connection.has_room()
    }

    #[getter]
    fn is_leaving(&self, py: Python<'_>) -> bool {
        self.lock(py).connection.is_leaving()
    }

    #[getter]
    fn awaits_pong(&self, py: Python<'_>) -> bool {
        self.lock(py).connection.awaits_pong()
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

fn event_object(py: Python<'_>, event: Result<Option<ClientEvent>, Broken>) -> PyResult<Option<Py<PyAny>>> {
    let object = match event {
        Err(broken) => Py::new(py, PyGrpcBroken(broken))?.into_any(),
        Ok(None) => return Ok(None),
        Ok(Some(ClientEvent::Answer { stream, answer })) => Py::new(py, PyGrpcAnswer { stream, answer })?.into_any(),
        Ok(Some(ClientEvent::Reset { stream, code, is_untouched })) => Py::new(py, PyGrpcReset { stream, code, is_untouched })?.into_any(),
        Ok(Some(ClientEvent::GoAway { code, debug })) => Py::new(py, PyGrpcGoAway { code, debug: latin1(&debug) })?.into_any(),
    };
    Ok(Some(object))
}

/// What the server says to a call.
#[pyclass(name = "GrpcAnswer", module = "emp_pipe._core", frozen)]
pub struct PyGrpcAnswer {
    stream: u32,
    answer: Answer,
}

#[pymethods]
impl PyGrpcAnswer {
    #[getter]
    fn stream(&self) -> u32 {
        self.stream
    }

    #[getter]
    fn http_status(&self) -> u16 {
        self.answer.http_status
    }

    /// gRPC's status; None where the server, or what stands before it, has not said one.
    #[getter]
    fn grpc_status(&self) -> Option<u32> {
        self.answer.grpc_status
    }

    #[getter]
    fn message(&self) -> &str {
        &self.answer.message
    }

    /// The content type, where it is not that of gRPC.
    #[getter]
    fn foreign_content_type(&self) -> Option<&str> {
        self.answer.foreign_content_type.as_deref()
    }

    #[getter]
    fn is_too_long(&self) -> bool {
        self.answer.is_too_long
    }

    /// The message, as it came; None where there is none that is whole.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.answer.body().map(|(body, _)| PyBytes::new(py, body))
    }

    #[getter]
    fn is_compressed(&self) -> bool {
        self.answer.body().is_some_and(|(_, is_compressed)| is_compressed)
    }

    #[getter]
    fn trailers(&self) -> Vec<(String, String)> {
        self.answer.trailers.iter().map(|(name, value)| (latin1(name), latin1(value))).collect()
    }
}

/// The server ended a call without an answer.
#[pyclass(name = "GrpcReset", module = "emp_pipe._core", frozen, get_all)]
pub struct PyGrpcReset {
    stream: u32,
    code: u32,
    is_untouched: bool,
}

/// The server takes no more calls on the connection.
#[pyclass(name = "GrpcGoAway", module = "emp_pipe._core", frozen, get_all)]
pub struct PyGrpcGoAway {
    code: u32,
    debug: String,
}
