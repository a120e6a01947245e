"""Telemetry of OpenTelemetry's SDK for Python with all that it can express, its exporters over each transport, and what must arrive."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.exporter.otlp.common.http import Compression as JsonCompression
from opentelemetry.exporter.otlp.json.http._log_exporter import OTLPLogExporter as JsonLogs
from opentelemetry.exporter.otlp.json.http.metric_exporter import OTLPMetricExporter as JsonMetrics
from opentelemetry.exporter.otlp.json.http.trace_exporter import OTLPSpanExporter as JsonSpans
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.metrics import Observation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, StatusCode

COMPRESSIONS = {
    "grpc": {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip},
    "http/protobuf": {"none": HttpCompression.NoCompression, "gzip": HttpCompression.Gzip},
    "http/json": {"none": JsonCompression.NONE, "gzip": JsonCompression.GZIP},
}
_EXPORTERS: dict[str, dict[str, Any]] = {
    "grpc": {"logs": GrpcLogs, "traces": GrpcSpans, "metrics": GrpcMetrics},
    "http/protobuf": {"logs": HttpLogs, "traces": HttpSpans, "metrics": HttpMetrics},
    "http/json": {"logs": JsonLogs, "traces": JsonSpans, "metrics": JsonMetrics},
}


def exporter(transport: str, signal: str, port: int, compression: str = "none", ca_file: Path | None = None, **more: Any) -> Any:
    """Return the SDK's exporter of a signal to a port of this machine; by TLS where there is an authority to check it by."""
    path = f"/v1/{signal}" if transport.startswith("http") else ""
    if transport == "grpc":
        more |= {"insecure": True} if ca_file is None else {"credentials": grpc.ssl_channel_credentials(ca_file.read_bytes())}
    elif ca_file is not None:
        more["certificate_file"] = str(ca_file)
    scheme = "http" if ca_file is None else "https"
    return _EXPORTERS[transport][signal](f"{scheme}://127.0.0.1:{port}{path}", compression=COMPRESSIONS[transport][compression], **more)


@dataclass(frozen=True)
class Telemetry:
    """What an application made, as its exporters take it."""

    logs: Sequence[Any]
    traces: Sequence[Any]
    metrics: Any

    def expected(self, signal: str) -> Any:
        """Return the request that the SDK itself makes of it."""
        encode: Any = {"logs": encode_logs, "traces": encode_spans, "metrics": encode_metrics}[signal]
        return encode(getattr(self, signal))


def make(jobs: int = 3) -> Telemetry:
    """Run two small applications for some jobs: spans with links and events, logs inside and outside of them, every kind of metric."""
    spans, logs, reader = InMemorySpanExporter(), InMemoryLogRecordExporter(), InMemoryMetricReader()
    api, renderer = (_Application(name, spans, logs) for name in ("api", "renderer"))
    view = View(instrument_type=Histogram, instrument_name="size", aggregation=ExponentialBucketHistogramAggregation())
    meters = MeterProvider([reader], Resource.create({"service.name": "renderer"}), views=[view])
    meter = meters.get_meter("renders", "2.0", "https://opentelemetry.io/schemas/1.30.0", {"scope.key": "value"})
    meter.create_observable_gauge("temperature", [lambda _: [Observation(61.5, {"gpu": 0}), Observation(-3, {"gpu": 1})]], unit="Cel")
    counter, changes = meter.create_counter("renders", unit="{render}", description="So many."), meter.create_up_down_counter("waiting")
    seconds, sizes = meter.create_histogram("duration", unit="s"), meter.create_histogram("size")
    previous = None
    for number in range(jobs):
        with api.tracer.start_as_current_span("submit", kind=SpanKind.CLIENT, attributes={"job_id": f"job-{number}"}) as submit:
            api.logger.warning("submitting %d", number, extra={"job_id": f"job-{number}", "share": number / 8, "käse": "🧀"})
            links = [Link(previous, {"why": "retry"})] if previous is not None else []
            with renderer.tracer.start_as_current_span("render", kind=SpanKind.SERVER, links=links, attributes=_EVERY_TYPE) as render:
                render.add_event("loaded", {"model": "sdxl", "bytes": 2**53 + 1})
                renderer.logger.info("rendering %d", number)
                counter.add(number + 1, {"model": "sdxl"})  # within a sampled span: with an exemplar
                changes.add(-number)
                seconds.record(0.25 * number, {"model": "sdxl"})
                sizes.record(1000.0 * number)
                if number == 1:
                    try:
                        raise RuntimeError("out of memory")
                    except RuntimeError as error:
                        render.record_exception(error)
                        renderer.logger.exception("failed")
                        render.set_status(StatusCode.ERROR, "out of memory")
            previous = submit.get_span_context()
    api.logger.error("outside of any span")
    made = Telemetry(logs.get_finished_logs(), spans.get_finished_spans(), reader.get_metrics_data())
    for provider in (api, renderer, meters):
        provider.shutdown()
    return made


_EVERY_TYPE: dict[str, Any] = {
    "text": "käse \u0000 🧀",
    "whole": -(2**62),
    "share": 0.1,
    "yes": True,
    "texts": ("a", ""),
    "wholes": (1, -2),
    "none": (),
    "infinite": float("inf"),
}


class _Application:
    def __init__(self, name: str, spans: InMemorySpanExporter, logs: InMemoryLogRecordExporter) -> None:
        # All of its identity, as `emp-pipe exec` sets it: what would be lacking would be added.
        identity = {"service.instance.id": "machine-gpu-1.w-1", "machine_id": "gpu-1", "worker_id": "w-1", "host.name": "gpu-1.local"}
        resource = Resource.create({"service.name": name, **identity})
        self._tracers, self._loggers = TracerProvider(resource=resource), LoggerProvider(resource=resource)
        self._tracers.add_span_processor(SimpleSpanProcessor(spans))
        self._loggers.add_log_record_processor(SimpleLogRecordProcessor(logs))
        self.tracer = self._tracers.get_tracer(name, "1.0", "https://opentelemetry.io/schemas/1.30.0", {"scope.key": 1})
        self.logger = logging.Logger(name, logging.DEBUG)
        self.logger.addHandler(LoggingHandler(logger_provider=self._loggers))

    def shutdown(self) -> None:
        self._tracers.shutdown()
        self._loggers.shutdown()
