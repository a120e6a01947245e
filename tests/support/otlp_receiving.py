"""What the tests of the OTLP receivers share: requests, raw clients over both transports, answers decoded by the official classes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
import grpc.aio
import zstandard
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from emp_pipe.component import Arrival
from emp_pipe.receivers.http_json import HttpJsonConfig, HttpJsonReceiver
from emp_pipe.receivers.otlp_grpc import OtlpGrpcConfig, OtlpGrpcReceiver
from emp_pipe.receivers.otlp_http import OtlpHttpConfig, OtlpHttpReceiver
from emp_pipe.self_metrics import Metrics
from tests.support.forward import PATIENCE_S, RecordingIntake, make_context, served
from tests.support.telemetry import log_record, log_request, metric_request, span_request

Signal = Literal["logs", "traces", "metrics"]
Codec = Literal["none", "gzip", "zstd"]
Encoding = Literal["protobuf", "json"]
Transport = Literal["http", "grpc", "http_json"]
SIGNALS: tuple[Signal, ...] = ("logs", "traces", "metrics")
METHODS = {
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
REQUESTS = {"logs": ExportLogsServiceRequest, "traces": ExportTraceServiceRequest, "metrics": ExportMetricsServiceRequest}
RESPONSES: dict[str, Any] = {
    "logs": ExportLogsServiceResponse,
    "traces": ExportTraceServiceResponse,
    "metrics": ExportMetricsServiceResponse,
}
REJECTED = {"logs": "rejected_log_records", "traces": "rejected_spans", "metrics": "rejected_data_points"}
CONTENT_TYPES = {"protobuf": "application/x-protobuf", "json": "application/json"}
STATUS_OF = {200: "OK", 400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 413: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}


def request(signal: Signal, count: int = 3) -> Any:
    """Return an export request of so many items."""
    if signal == "logs":
        return log_request([log_record(f"record {number}") for number in range(count)])
    return span_request(count) if signal == "traces" else metric_request(count)


def encoded(message: Message, encoding: Encoding = "protobuf", codec: Codec = "none") -> bytes:
    """Return a request as a client sends it. In OTLP's JSON ids are hex, where protobuf's own JSON has base64."""
    data = message.SerializeToString() if encoding == "protobuf" else json.dumps(_with_hex_ids(json_format.MessageToDict(message))).encode()
    return compressed(data, codec)


def compressed(data: bytes, codec: Codec) -> bytes:
    return gzip.compress(data) if codec == "gzip" else zstandard.compress(data) if codec == "zstd" else data


def _with_hex_ids(value: Any) -> Any:
    import base64

    if isinstance(value, dict):
        ids = ("traceId", "spanId", "parentSpanId")
        return {key: base64.b64decode(one).hex() if key in ids else _with_hex_ids(one) for key, one in value.items()}
    return [_with_hex_ids(one) for one in value] if isinstance(value, list) else value


def bodies_of(arrivals: Iterable[Arrival]) -> list[str]:
    """Return what tells the rows apart: bodies of logs, names of spans and metrics."""
    found = []
    for arrival in arrivals:
        if arrival.batch is None:
            continue
        block = arrival.batch.to_block("none", topic=arrival.batch.signal, block_id="test")
        message: Any = REQUESTS[block.signal].FromString(block.payload("none"))
        if block.signal == "logs":
            found += [log.body.string_value for r in message.resource_logs for s in r.scope_logs for log in s.log_records]
        elif block.signal == "traces":
            found += [span.name for r in message.resource_spans for s in r.scope_spans for span in s.spans]
        else:
            found += [metric.name for r in message.resource_metrics for s in r.scope_metrics for metric in s.metrics]
    return found


@dataclass
class Running:
    """A receiver that listens, its intake, and its metrics."""

    receiver: Any
    intake: RecordingIntake
    metrics: Metrics
    transport: Transport

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.receiver.addresses[0]
        return address

    @property
    def otlp(self) -> Any:
        """What both receivers share."""
        return self.receiver._service.otlp

    def metric(self, name: str, **labels: str) -> float:
        self.otlp.publish()
        return self.metrics.registry.get_sample_value(f"emp_pipe_{name}", {"component": self.receiver.id, **labels}) or 0.0


@contextlib.asynccontextmanager
async def running(
    transport: Transport, directory: Path, *, intake: RecordingIntake | None = None, stop_within_s: float = PATIENCE_S / 4, **settings: Any
) -> AsyncIterator[Running]:
    """Run a receiver on a free loopback port for the length of the block."""
    settings.setdefault("listen", ["127.0.0.1:0"])
    if "max_request_bytes" in settings:
        settings.setdefault("max_total_bytes", 4 * settings["max_request_bytes"])
    context = make_context(directory)
    receiver: Any
    if transport == "grpc":
        receiver = OtlpGrpcReceiver("otlp_grpc", OtlpGrpcConfig(**settings), context)
    elif transport == "http_json":
        receiver = HttpJsonReceiver("http_json", HttpJsonConfig(**settings), context)
    else:
        receiver = OtlpHttpReceiver("otlp_http", OtlpHttpConfig(**settings), context)
    intake = intake or RecordingIntake()
    async with served(receiver, intake, context, stop_within_s):
        yield Running(receiver, intake, context.metrics, transport)


@dataclass(frozen=True)
class Reply:
    """What a client was told, whatever told it; read with the official classes."""

    code: str
    message: str = ""
    rejected: int = 0
    has_partial_success: bool = False
    retry_after_s: float = 0.0
    headers: Mapping[str, Any] = field(default_factory=dict)


class GrpcClient:
    """A client that sends bytes as they are."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self.channel = channel
        self._metadata = metadata

    async def send(self, signal: Signal, data: bytes, codec: Codec = "none") -> Reply:
        compression = grpc.Compression.Gzip if codec == "gzip" else grpc.Compression.NoCompression
        export = self.channel.unary_unary(METHODS[signal])
        try:
            body = await export(data, timeout=PATIENCE_S, metadata=self._metadata, compression=compression)
        except grpc.aio.AioRpcError as error:
            trailers = {key: value for key, value in error.trailing_metadata() or ()}
            status = Status.FromString(trailers.get("grpc-status-details-bin", b""))
            if "google.rpc.retryinfo-bin" in trailers:
                direct = RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"])
                assert [_retry_info(status)] == [direct], "both trailers must say the same"
            return Reply(error.code().name, error.details() or "", retry_after_s=_delay_s(status), headers=trailers)
        return _success(signal, RESPONSES[signal].FromString(body))


class HttpClient:
    """A raw HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: Mapping[str, str]) -> None:
        self.reader = reader
        self.writer = writer
        self._headers = headers

    async def send(self, signal: Signal, data: bytes, codec: Codec = "none", encoding: Encoding = "protobuf") -> Reply:
        """Send a whole request; `data` is not compressed yet."""
        headers = {"Content-Type": CONTENT_TYPES[encoding]} | ({"Content-Encoding": codec} if codec != "none" else {})
        status, got, body = await self.post(f"/v1/{signal}", compressed(data, codec), headers)
        assert got["content-type"] == CONTENT_TYPES[encoding], "the answer is in the request's content type"
        if status == 200:
            response = RESPONSES[signal]()
            return _success(signal, _parsed(body, response, encoding))
        told = _parsed(body, Status(), encoding)
        retry_after_s = float(got.get("retry-after", 0))
        assert retry_after_s == _delay_s(told)
        assert Code.Name(told.code) == STATUS_OF[status]
        return Reply(STATUS_OF[status], told.message, retry_after_s=retry_after_s, headers=got)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str], method: str = "POST") -> tuple[int, dict[str, str], bytes]:
        await self.write(head(path, {"Content-Length": str(len(body))} | self._headers | headers, method) + body)
        return await self.answer()

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):  # the server may answer and close before it has read all
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the next answer."""
        async with asyncio.timeout(PATIENCE_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
            return int(lines[0].split()[1]), headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def closed(self, within_s: float = PATIENCE_S) -> bytes:
        """Return what still came until the server closed."""
        async with asyncio.timeout(within_s):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
            return b""


def head(path: str, headers: Mapping[str, str], method: str = "POST", host: str = "127.0.0.1") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _parsed(body: bytes, message: Any, encoding: Encoding) -> Any:
    if encoding == "json":
        return json_format.Parse(body, message)
    message.ParseFromString(body)
    return message


def _success(signal: Signal, response: Any) -> Reply:
    partial = response.partial_success
    return Reply("OK", partial.error_message, getattr(partial, REJECTED[signal]), response.HasField("partial_success"))


def _retry_info(status: Status) -> RetryInfo | None:
    info = RetryInfo()
    return info if any(detail.Unpack(info) for detail in status.details) else None


def _delay_s(status: Status) -> float:
    info = _retry_info(status)
    return info.retry_delay.seconds + info.retry_delay.nanos / 1e9 if info is not None else 0.0


@contextlib.asynccontextmanager
async def connected(server: Running, *, token: str = "", headers: Sequence[tuple[str, str]] = (), **tls: Any) -> AsyncIterator[Any]:
    """Connect a client of the server's transport that sends the headers with each request."""
    sent = [("authorization", f"Bearer {token}"), *headers] if token else [*headers]
    if server.transport != "grpc":
        reader, writer = await asyncio.open_connection(*server.address, **tls)
        try:
            yield HttpClient(reader, writer, dict(sent))
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await writer.wait_closed()
        return
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    host, port = server.address
    async with grpc.aio.insecure_channel(f"{host}:{port}", options=options) as channel:
        yield GrpcClient(channel, tuple(sent))


GOOD = {signal: encoded(request(signal, 2)) for signal in SIGNALS}


async def among_good(
    tmp_path: Path, transport: Transport, signal: Signal, data: bytes, codec: Codec = "none", **how: Any
) -> tuple[Reply, list[str], int, int]:
    """Send bytes between two good requests; return the answer to them, the rows they left, and what the books say of them."""
    async with running(transport, tmp_path) as server, connected(server) as client:
        assert (await client.send(signal, GOOD[signal])).code == "OK"
        before = len(server.intake.arrivals)
        reply: Reply = await client.send(signal, data, codec, **how)
        after = len(server.intake.arrivals)
        assert (await client.send(signal, GOOD[signal])).code == "OK"
        assert len(server.intake.arrivals) == after + 1, "the good request behind it has arrived"
        assert server.otlp.held_bytes == 0
        of_case = server.intake.arrivals[before:after]
        dead = sum(letter.records for arrival in of_case for letter in arrival.dead)
        received, invalid = sum(one.received for one in of_case), sum(one.invalid for one in of_case)
        kept = sum(one.batch.record_count for one in of_case if one.batch is not None)
        assert received == kept + invalid, "the books balance"
        assert dead == invalid == reply.rejected
        return reply, bodies_of(of_case), received, invalid
