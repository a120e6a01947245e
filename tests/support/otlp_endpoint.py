"""A strict OTLP/HTTP endpoint on loopback: what it accepts is right by the specification, read with the official protobuf classes.

Every request is checked: path, content type and encoding, gzip and zstd that end where they should, headers, id lengths, duplicate
attribute keys, size. What is wrong is answered 400 and kept in `violations`. Answers can be scripted: a status, Retry-After, a partial
success, a delay, a broken connection, a row that is refused.

    async with OtlpEndpoint() as endpoint:
        endpoint.script(Answer(status=503, retry_after="1"))    # the next request gets it, those after it succeed
        ... endpoint.url ...; endpoint.records("logs")

    python -m tests.support.otlp_endpoint --port 4318 --out received.jsonl      # for demonstrations: one JSON line per request
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

PROTOBUF = "application/x-protobuf"
_MOST_BYTES = 4 << 20


def status_message(message: str) -> bytes:
    """Return a google.rpc.Status with a message: field 2, by hand, for the class is in another package."""
    text = message.encode()
    size, length = len(text), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return b"\x12" + bytes([*length, size]) + text


@dataclass(frozen=True)
class Answer:
    """What a request is answered with. `drop`: break the connection; "before" without an answer, "mid" in the middle of one."""

    status: int = 200
    message: str = ""
    retry_after: str | None = None
    location: str | None = None
    rejected: int = 0
    warning: str = ""
    delay_s: float = 0.0
    drop: str = ""
    body: bytes | None = None
    content_type: str = PROTOBUF


@dataclass(frozen=True)
class Received:
    """A request that was read, and what it was answered with."""

    signal: str
    headers: dict[str, str]
    message: Any
    records: int
    wire_bytes: int
    inflated_bytes: int
    status: int


class Violation(Exception):
    """What a request does that the specification forbids."""


@dataclass(frozen=True)
class _Signal:
    request: type[Message]
    response: type[Message]
    rejected_field: str
    rows: Callable[[Any], Iterable[Any]]


SIGNALS = {
    "logs": _Signal(
        logs.ExportLogsServiceRequest,
        logs.ExportLogsServiceResponse,
        "rejected_log_records",
        lambda message: (row for resource in message.resource_logs for scope in resource.scope_logs for row in scope.log_records),
    ),
    "traces": _Signal(
        traces.ExportTraceServiceRequest,
        traces.ExportTraceServiceResponse,
        "rejected_spans",
        lambda message: (row for resource in message.resource_spans for scope in resource.scope_spans for row in scope.spans),
    ),
    "metrics": _Signal(
        metrics.ExportMetricsServiceRequest,
        metrics.ExportMetricsServiceResponse,
        "rejected_data_points",
        lambda message: (row for resource in message.resource_metrics for scope in resource.scope_metrics for row in scope.metrics),
    ),
}


@dataclass
class OtlpEndpoint:
    """See the module's head. `token` and `required_headers` are demanded of every request."""

    port: int = 0
    token: str | None = None
    required_headers: dict[str, str] = field(default_factory=dict)
    refuse_row: Callable[[Any], bool] | None = None
    """Rows for which it is true make their whole request a 400, as a poisoned row does."""
    refuse_status: int = 400
    most_bytes: int = _MOST_BYTES
    keep: bool = True
    on_received: Callable[[Received], None] | None = None
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self.received: list[Received] = []
        self.violations: list[str] = []
        self.requests = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.connections: set[Any] = set()
        self._answers: deque[Answer] = deque()
        self._always: Answer | None = None
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    def script(self, *answers: Answer) -> None:
        """Answer the next requests so, in this order."""
        self._answers.extend(answers)

    def always(self, answer: Answer | None) -> None:
        """Answer every request so that no script covers; None: as a good endpoint does."""
        self._always = answer

    def records(self, signal: str) -> list[Any]:
        """Return the rows of all requests that were accepted."""
        rows = SIGNALS[signal].rows
        return [row for request in self.received if request.signal == signal and request.status == 200 for row in rows(request.message)]

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Return when the condition holds; it is looked at after each request."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def wait_records(self, signal: str, count: int, timeout_s: float = 20.0) -> None:
        await self.wait_until(lambda: len(self.records(signal)) >= count, timeout_s)

    async def __aenter__(self) -> OtlpEndpoint:
        app = web.Application(client_max_size=256 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, auto_decompress=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        assert self._runner.addresses
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.connections.add(request.transport)
        try:
            wire = await request.read()
            answer = self._answers.popleft() if self._answers else self._always
            if answer is not None and answer.delay_s:
                await asyncio.sleep(answer.delay_s)
            return await self._answer(request, wire, answer)
        finally:
            self.in_flight -= 1
            self._changed.set()

    async def _answer(self, request: web.Request, wire: bytes, answer: Answer | None) -> web.StreamResponse:
        transport = request.transport
        if answer is not None and answer.drop:
            assert transport is not None
            if answer.drop == "mid":
                transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\nhalf")
                await asyncio.sleep(0.01)
            transport.abort()
            return web.Response()
        try:
            received = self._read(request, wire, answer)
        except Violation as violation:
            self.violations.append(str(violation))
            return self._response(request, Answer(status=400, message=str(violation)))
        answer = answer or Answer()
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            answer = Answer(status=401, message="the token is not known")
        elif any(request.headers.get(name) != value for name, value in self.required_headers.items()):
            answer = Answer(status=403, message="a header is missing")
        elif received.inflated_bytes > self.most_bytes:
            answer = Answer(status=413, message=f"{received.inflated_bytes} bytes are too many")
        elif self.refuse_row is not None and any(self.refuse_row(row) for row in SIGNALS[received.signal].rows(received.message)):
            answer = Answer(status=self.refuse_status, message="a row is refused")
        received = Received(**{**received.__dict__, "status": answer.status})
        if self.keep:
            self.received.append(received)
        if self.on_received is not None:
            self.on_received(received)
        return self._response(request, answer, received.signal)

    def _response(self, request: web.Request, answer: Answer, signal: str = "") -> web.Response:
        given = {"Retry-After": answer.retry_after, "Location": answer.location}
        headers = {name: value for name, value in given.items() if value is not None}
        if answer.body is not None:
            body = answer.body
        elif answer.status == 200 and signal:
            response: Any = SIGNALS[signal].response()
            if answer.rejected or answer.warning:
                setattr(response.partial_success, SIGNALS[signal].rejected_field, answer.rejected)
                response.partial_success.error_message = answer.warning
            body = response.SerializeToString()
        else:
            body = status_message(answer.message)
        return web.Response(status=answer.status, body=body, content_type=answer.content_type, headers=headers)

    def _read(self, request: web.Request, wire: bytes, answer: Answer | None) -> Received:
        signal = request.path.rpartition("/v1/")[2]
        if request.method != "POST" or signal not in SIGNALS:
            raise Violation(f"{request.method} {request.path} is no OTLP request")
        if request.headers.get("Content-Type") != PROTOBUF:
            raise Violation(f"content type {request.headers.get('Content-Type')!r}")
        if int(request.headers.get("Content-Length", -1)) != len(wire):
            raise Violation("no right Content-Length")
        body = inflate(wire, request.headers.get("Content-Encoding", "identity"))
        message: Any = SIGNALS[signal].request()
        try:
            message.ParseFromString(body)
        except DecodeError as error:
            raise Violation(f"no {signal} export request: {error}") from error
        rows = list(SIGNALS[signal].rows(message))
        check(message, rows, signal)
        return Received(signal, dict(request.headers), message, len(rows), len(wire), len(body), 200)


def inflate(wire: bytes, encoding: str) -> bytes:
    """Return the body; members and frames may follow each other, nothing else may."""
    if encoding == "identity":
        return wire
    if encoding == "zstd":
        try:
            with zstandard.ZstdDecompressor().stream_reader(wire, read_across_frames=True) as reader:
                return reader.read()
        except zstandard.ZstdError as error:
            raise Violation(f"broken zstd: {error}") from error
    if encoding != "gzip":
        raise Violation(f"content encoding {encoding!r}")
    body, rest = b"", wire
    while rest:
        member = zlib.decompressobj(wbits=31)
        try:
            body += member.decompress(rest)
        except zlib.error as error:
            raise Violation(f"broken gzip: {error}") from error
        if not member.eof:
            raise Violation("gzip that does not end")
        rest = member.unused_data
    return body


def check(message: Any, rows: list[Any], signal: str) -> None:
    """Raise Violation for what a parser lets pass and the specification does not."""
    groups = {
        "logs": ("resource_logs", "scope_logs"),
        "traces": ("resource_spans", "scope_spans"),
        "metrics": ("resource_metrics", "scope_metrics"),
    }
    of_resource, of_scope = groups[signal]
    for resource in getattr(message, of_resource):
        _unique(resource.resource.attributes, "resource")
        for scope in getattr(resource, of_scope):
            _unique(scope.scope.attributes, "scope")
    for row in rows:
        if signal == "metrics":
            if not row.name:
                raise Violation("a metric without a name")
            continue
        _unique(row.attributes, "row")
        for name, size in (("trace_id", 16), ("span_id", 8), ("parent_span_id", 8)):
            value = getattr(row, name, b"")
            if value and (len(value) != size or not any(value)):
                raise Violation(f"{name} of {len(value)} bytes, or all zero")
        if signal == "traces" and not (row.trace_id and row.span_id):
            raise Violation("a span without ids")


def _unique(attributes: Iterable[Any], where: str) -> None:
    keys = [attribute.key for attribute in attributes]
    if len(keys) != len(set(keys)):
        raise Violation(f"a duplicate attribute key in a {where}: {sorted(keys)}")
    if "" in keys:
        raise Violation(f"an empty attribute key in a {where}")


async def _serve(port: int, out: Path | None) -> None:
    sink = out.open("a", encoding="utf-8") if out is not None else None

    def write(received: Received) -> None:
        line = json.dumps({"signal": received.signal, "records": received.records, "request": MessageToDict(received.message)})
        print(line, file=sink or sys.stdout, flush=True)

    try:
        async with OtlpEndpoint(port=port, on_received=write, keep=False) as endpoint:
            print(f"OTLP/HTTP on {endpoint.url}", file=sys.stderr, flush=True)
            await asyncio.Event().wait()
    finally:
        if sink is not None:
            sink.close()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="A strict OTLP/HTTP endpoint on loopback.")
    arguments.add_argument("--port", type=int, default=4318)
    arguments.add_argument("--out", type=Path, help="append one JSON line per accepted request to this file")
    given = arguments.parse_args()
    try:
        asyncio.run(_serve(given.port, given.out))
    except KeyboardInterrupt:
        sys.exit(130)
