"""What the strict OTLP endpoints share: what a right request is, read with the official protobuf classes, and what they remember.

A request is checked beyond what a parser refuses: id lengths, duplicate and empty attribute keys, metrics without a name.
Not here: the protocols, `otlp_endpoint.py` (HTTP) and `otlp_grpc_endpoint.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

_Answer = TypeVar("_Answer")
_Endpoint = TypeVar("_Endpoint", bound="StrictEndpoint[Any]")


@dataclass(frozen=True)
class Received:
    """A request that was read, and what it was answered with: an HTTP status, or 200 for gRPC's OK and 500 for all else there."""

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
class SignalTypes:
    request: type[Message]
    response: type[Message]
    rejected_field: str
    rows: Callable[[Any], Iterable[Any]]


SIGNALS = {
    "logs": SignalTypes(
        logs.ExportLogsServiceRequest,
        logs.ExportLogsServiceResponse,
        "rejected_log_records",
        lambda message: (row for resource in message.resource_logs for scope in resource.scope_logs for row in scope.log_records),
    ),
    "traces": SignalTypes(
        traces.ExportTraceServiceRequest,
        traces.ExportTraceServiceResponse,
        "rejected_spans",
        lambda message: (row for resource in message.resource_spans for scope in resource.scope_spans for row in scope.spans),
    ),
    "metrics": SignalTypes(
        metrics.ExportMetricsServiceRequest,
        metrics.ExportMetricsServiceResponse,
        "rejected_data_points",
        lambda message: (row for resource in message.resource_metrics for scope in resource.scope_metrics for row in scope.metrics),
    ),
}


class StrictEndpoint(Generic[_Answer]):
    """What was received, what was wrong with it, and how the next requests are answered."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.violations: list[str] = []
        self.requests = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._answers: deque[_Answer] = deque()
        self._always: _Answer | None = None
        self._changed = asyncio.Event()

    def script(self, *answers: _Answer) -> None:
        """Answer the next requests so, in this order."""
        self._answers.extend(answers)

    def always(self, answer: _Answer | None) -> None:
        """Answer every request so that no script covers; None: as a good endpoint does."""
        self._always = answer

    @property
    def scripted(self) -> int:
        """How many scripted answers have not been given yet."""
        return len(self._answers)

    def next_answer(self) -> _Answer | None:
        return self._answers.popleft() if self._answers else self._always

    def records(self, signal: str) -> list[Any]:
        """Return the rows of all requests that were accepted."""
        rows = SIGNALS[signal].rows
        return [row for request in self.received if request.signal == signal and request.status == 200 for row in rows(request.message)]

    def messages(self, signal: str) -> list[Any]:
        """Return the requests that were accepted."""
        return [request.message for request in self.received if request.signal == signal and request.status == 200]

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Return when the condition holds; it is looked at when a request begins and when it ends."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def wait_records(self, signal: str, count: int, timeout_s: float = 20.0) -> None:
        await self.wait_until(lambda: len(self.records(signal)) >= count, timeout_s)


def read_request(signal: str, body: bytes) -> tuple[Any, list[Any]]:
    """Return an export request and its rows. Raises Violation where it is none, or not a right one."""
    message: Any = SIGNALS[signal].request()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise Violation(f"no {signal} export request: {error}") from error
    rows = list(SIGNALS[signal].rows(message))
    check(message, rows, signal)
    return message, rows


def response_of(signal: str, rejected: int, warning: str) -> bytes:
    """Return an export response; `partial_success` is unset where nothing is to be said."""
    response: Any = SIGNALS[signal].response()
    if rejected or warning:
        setattr(response.partial_success, SIGNALS[signal].rejected_field, rejected)
        response.partial_success.error_message = warning
    return bytes(response.SerializeToString())


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


@contextmanager
def in_a_thread(endpoint: _Endpoint) -> Iterator[_Endpoint]:
    """Run an endpoint beside a test that blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def done(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(20.0)

    started: Any = endpoint
    done(started.__aenter__())
    try:
        yield endpoint
    finally:
        done(started.__aexit__())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20.0)
        loop.close()
