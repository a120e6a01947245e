"""A small OTLP/HTTP endpoint that decodes with the official protobuf classes and keeps what it gets in memory.

It stands for the destination (Dash0, a Collector, any OTLP backend) while the demo runs on one machine without an account.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass(frozen=True, slots=True)
class LogRow:
    """One log record as it arrived, with the identity that its resource carries."""

    time_unix_nano: int
    severity_number: int
    severity_text: str
    body: Any
    resource: dict[str, Any]
    attributes: dict[str, Any]


@dataclass
class Received:
    """What has arrived so far; safe to read while requests come in."""

    rows: list[LogRow] = field(default_factory=list)
    requests: int = 0
    gzip_requests: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)


def plain_value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return plain_attributes(value.kvlist_value.values)
    if kind == "array_value":
        return [plain_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def plain_attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: plain_value(pair.value) for pair in pairs}


def log_rows(request: ExportLogsServiceRequest) -> Iterator[LogRow]:
    for resource_logs in request.resource_logs:
        resource = plain_attributes(resource_logs.resource.attributes)
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                yield LogRow(
                    record.time_unix_nano,
                    record.severity_number,
                    record.severity_text,
                    plain_value(record.body),
                    resource,
                    plain_attributes(record.attributes),
                )


class OtlpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    received: Received

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        is_gzip = self.headers.get("Content-Encoding") == "gzip"
        if self.path != "/v1/logs" or self.headers.get("Content-Type") != "application/x-protobuf":
            self.answer(404, b"")
            return
        rows = list(log_rows(ExportLogsServiceRequest.FromString(gzip.decompress(body) if is_gzip else body)))
        with self.received.changed:
            self.received.rows.extend(rows)
            self.received.requests += 1
            self.received.gzip_requests += is_gzip
            self.received.changed.notify_all()
        self.answer(200, ExportLogsServiceResponse().SerializeToString())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the demo prints what arrived, not every request."""


class OtlpEndpoint:
    """Listens on a free loopback port until `close`."""

    def __init__(self) -> None:
        self.received = Received()
        handler = type("BoundOtlpHandler", (OtlpHandler,), {"received": self.received})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="otlp-endpoint", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait_for_rows(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` rows have arrived. False: the time was up first."""
        with self.received.changed:
            return self.received.changed.wait_for(lambda: len(self.received.rows) >= count, timeout_s)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
