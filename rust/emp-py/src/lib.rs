//! Python bindings of emp-core, a file per exported class: convert, release the GIL, call the core, convert back.
//!
//! The surface is described in `python/emp_pipe/_core.pyi` and held against this module by stubtest.

mod aggregator;
mod attributes;
mod batch;
mod block;
mod body;
mod columns;
mod error;
mod filter;
mod forward_decoder;
mod forward_frame;
mod grpc_client;
mod grpc_input;
mod grpc_server;
mod http_json_decoder;
mod limits;
mod line_parser;
mod normalizer;
mod otlp_decoder;
mod red;
mod redactor;
mod response;
mod sampler;
mod selection;
mod syslog_decoder;
mod tail_sampler;

use pyo3::prelude::*;

/// Batches and blocks are short-lived pieces of some 100 kB: glibc's allocator gives them back to the system and faults them in again.
/// Without transparent huge pages: each fault would clear 2 MiB.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The native core: bytes to batches and batches to bytes.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("IS_DEBUG_BUILD", cfg!(debug_assertions))?;
    module.add("CoreError", py.get_type::<error::CoreError>())?;
    module.add_class::<aggregator::PyAggregator>()?;
    module.add_class::<aggregator::PyAggregatorTaken>()?;
    module.add_class::<aggregator::PyAggregatorFlushed>()?;
    module.add_class::<red::PyRedMetrics>()?;
    module.add_class::<red::PyRedTaken>()?;
    module.add_class::<batch::PyBatch>()?;
    module.add_class::<block::PyBlock>()?;
    module.add_class::<body::PyBody>()?;
    module.add_class::<body::PyBodyPool>()?;
    module.add_class::<columns::PyColumn>()?;
    module.add_class::<columns::PyColumns>()?;
    module.add_class::<filter::PyFilter>()?;
    module.add_class::<filter::PyFiltered>()?;
    module.add_class::<filter::PyRateLimiter>()?;
    module.add_class::<forward_frame::PyForwardFrame>()?;
    module.add_class::<grpc_client::PyGrpcAnswer>()?;
    module.add_class::<grpc_client::PyGrpcClientConnection>()?;
    module.add_class::<grpc_client::PyGrpcGoAway>()?;
    module.add_class::<grpc_client::PyGrpcReset>()?;
    module.add_class::<grpc_input::PyGrpcOutput>()?;
    module.add_class::<grpc_server::PyGrpcBroken>()?;
    module.add_class::<grpc_server::PyGrpcCall>()?;
    module.add_class::<grpc_server::PyGrpcGone>()?;
    module.add_class::<grpc_server::PyGrpcMessage>()?;
    module.add_class::<grpc_server::PyGrpcNoMessage>()?;
    module.add_class::<grpc_server::PyGrpcServerConnection>()?;
    module.add_class::<grpc_server::PyGrpcWants>()?;
    module.add_class::<http_json_decoder::PyHttpJsonDecoder>()?;
    module.add_class::<limits::PyDestinationLimits>()?;
    module.add_class::<limits::PyLimited>()?;
    module.add_class::<line_parser::PyLineParser>()?;
    module.add_class::<redactor::PyRedactor>()?;
    module.add_class::<redactor::PyRedacted>()?;
    module.add_class::<redactor::PyRedactedBytes>()?;
    module.add_class::<response::PyExportResponse>()?;
    module.add_class::<sampler::PySampled>()?;
    module.add_class::<sampler::PySampler>()?;
    module.add_class::<selection::PySelection>()?;
    module.add_class::<syslog_decoder::PySyslogDecoder>()?;
    module.add_class::<syslog_decoder::PySyslogRead>()?;
    module.add_class::<syslog_decoder::PySyslogStream>()?;
    module.add_class::<tail_sampler::PyTailSampler>()?;
    module.add_class::<tail_sampler::PyTailTick>()?;
    module.add_class::<normalizer::PyNormalizer>()?;
    module.add_class::<forward_decoder::PyForwardDecoder>()?;
    module.add_class::<forward_decoder::PyForwardRead>()?;
    module.add_class::<forward_decoder::PyChunk>()?;
    module.add_class::<forward_decoder::PyRejected>()?;
    module.add_class::<otlp_decoder::PyOtlpDecoder>()?;
    module.add_class::<otlp_decoder::PyOtlpRead>()?;
    module.add_function(wrap_pyfunction!(block::encode_block, module)?)?;
    module.add_function(wrap_pyfunction!(block::merge_blocks, module)?)?;
    module.add_function(wrap_pyfunction!(response::parse_export_response, module)?)?;
    module.add_function(wrap_pyfunction!(response::parse_status, module)?)?;
    module.add_function(wrap_pyfunction!(response::parse_retry_delay_s, module)?)?;
    if cfg!(debug_assertions) {
        warn_of_debug_build(py)?;
    }
    Ok(())
}

fn warn_of_debug_build(py: Python<'_>) -> PyResult<()> {
    let category = py.get_type::<pyo3::exceptions::PyRuntimeWarning>();
    PyErr::warn(py, &category, c"emp_pipe._core is a debug build: correct, but some ten times slower; build with --release", 1)
}
