"""A strict OTLP/gRPC endpoint on loopback, of grpcio's own server: what it accepts is right by the specification.

Requests are read with the official protobuf classes and checked as `otlp_endpoint.py` does; what is wrong is answered INVALID_ARGUMENT and
kept in `violations`. Size is grpcio's own limit, in grpcio's own words. Answers can be scripted: a status, a RetryInfo in either trailer, a
partial success, a delay, no answer at all, a row that is refused.

    async with OtlpGrpcEndpoint() as endpoint:
        endpoint.script(GrpcAnswer("UNAVAILABLE", retry_info_s=1.0))
        ... endpoint.url ...; endpoint.records("logs")
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tests.support.otlp_strict import SIGNALS, Received, StrictEndpoint, Violation, read_request, response_of

_SERVICES = {"LogsService": "logs", "TraceService": "traces", "MetricsService": "metrics"}
_PACKAGES = {"logs": "logs", "traces": "trace", "metrics": "metrics"}


@dataclass(frozen=True)
class GrpcAnswer:
    """What a call is answered with. `retry_in`: the trailers that carry `retry_info_s`."""

    code: str = "OK"
    message: str = ""
    retry_info_s: float | None = None
    retry_in: tuple[str, ...] = ("google.rpc.retryinfo-bin", "grpc-status-details-bin")
    rejected: int = 0
    warning: str = ""
    delay_s: float = 0.0
    never: bool = False
    body: bytes | None = None
    trailers: tuple[tuple[str, bytes], ...] = ()


def retry_trailers(answer: GrpcAnswer) -> tuple[tuple[str, bytes], ...]:
    """Return the trailers of an answer, a RetryInfo among them where it has one."""
    if answer.retry_info_s is None:
        return answer.trailers
    delay = Duration()
    delay.FromNanoseconds(int(answer.retry_info_s * 1e9))
    info = RetryInfo(retry_delay=delay)
    detail = AnyMessage()
    detail.Pack(info)
    status = Status(code=grpc.StatusCode[answer.code].value[0], message=answer.message, details=[detail])
    values = {"google.rpc.retryinfo-bin": info.SerializeToString(), "grpc-status-details-bin": status.SerializeToString()}
    return (*answer.trailers, *((name, values[name]) for name in answer.retry_in))


@dataclass
class OtlpGrpcEndpoint(StrictEndpoint[GrpcAnswer]):
    """See the module's head. `token` and `required_headers` are demanded of every call."""

    port: int = 0
    token: str | None = None
    required_headers: dict[str, str] = field(default_factory=dict)
    refuse_row: Callable[[Any], bool] | None = None
    """Rows for which it is true make their whole request a refusal, as a poisoned row does."""
    refuse_code: str = "INVALID_ARGUMENT"
    most_bytes: int = 4 << 20
    credentials: grpc.ServerCredentials | None = None

    def __post_init__(self) -> None:
        StrictEndpoint.__init__(self)
        self.peers: set[str] = set()
        self._server: Any = None

    @property
    def url(self) -> str:
        return f"{'http' if self.credentials is None else 'https'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> OtlpGrpcEndpoint:
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", self.most_bytes), ("grpc.so_reuseport", 0)])
        for service, signal in _SERVICES.items():
            handler = grpc.unary_unary_rpc_method_handler(self._handler(signal))
            name = f"opentelemetry.proto.collector.{_PACKAGES[signal]}.v1.{service}"
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
        address = f"127.0.0.1:{self.port}"
        if self.credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self.credentials)
        await self._server.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._server.stop(None)

    def _handler(self, signal: str) -> Callable[[bytes, Any], Any]:
        async def export(body: bytes, context: Any) -> bytes:
            self.requests += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._changed.set()
            self.peers.add(context.peer())
            try:
                answer = self.next_answer()
                if answer is not None and answer.never:
                    await asyncio.Event().wait()
                if answer is not None and answer.delay_s:
                    await asyncio.sleep(answer.delay_s)
                return await self._answer(signal, body, context, answer)
            finally:
                self.in_flight -= 1
                self._changed.set()

        return export

    async def _answer(self, signal: str, body: bytes, context: Any, answer: GrpcAnswer | None) -> bytes:
        headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        try:
            message, rows = read_request(signal, body)
        except Violation as violation:
            self.violations.append(str(violation))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(violation))
        answer = answer or GrpcAnswer()
        if self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            answer = GrpcAnswer("UNAUTHENTICATED", "the token is not known")
        elif any(headers.get(name) != value for name, value in self.required_headers.items()):
            answer = GrpcAnswer("PERMISSION_DENIED", "a header is missing")
        elif self.refuse_row is not None and any(self.refuse_row(row) for row in SIGNALS[signal].rows(message)):
            answer = GrpcAnswer(self.refuse_code, "a row is refused")
        status = 200 if answer.code == "OK" else 500
        self.received.append(Received(signal, headers, message, len(rows), len(body), len(body), status))
        trailers = retry_trailers(answer)
        if answer.code != "OK":
            await context.abort(grpc.StatusCode[answer.code], answer.message, trailers)
        context.set_trailing_metadata(trailers)
        return answer.body if answer.body is not None else response_of(signal, answer.rejected, answer.warning)
