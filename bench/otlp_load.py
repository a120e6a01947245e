"""The load generator of OTLP: a process of its own that sends prebuilt requests by HTTP (keep-alive connections) or gRPC (channels).

Requests are built (and compressed) before the timed part. Each connection is a closed loop: it sends its next request when the last one was
answered. A refusal that asks for patience (503, UNAVAILABLE) is sent again and counted; any other answer than full success ends the run.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

import grpc

from bench.load_process import LoadProcess, LoadReport, run_together, serve
from bench.otlp_data import OtlpData, build

ANSWER_TIMEOUT_S = 120.0
_SERVICES = {
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}


@dataclass(frozen=True, slots=True)
class OtlpLoad:
    """What to send and how: over `connections` connections, each a closed loop; `rows_per_s` paces them together."""

    data: OtlpData
    protocol: Literal["http", "grpc"]
    compression: Literal["none", "gzip"] = "none"
    connections: int = 4
    rows_per_s: float | None = None

    @property
    def records(self) -> int:
        return self.data.items


class OtlpLoadGenerator(LoadProcess[OtlpLoad]):
    """The process that sends requests."""

    def __init__(self) -> None:
        super().__init__("bench-otlp-load", _serve, answer_timeout_s=ANSWER_TIMEOUT_S)


def _serve(control: Connection) -> None:
    serve(control, _build, _run)


def _build(load: OtlpLoad) -> list[bytes]:
    bodies = build(load.data).requests
    return [_gzip(body) for body in bodies] if load.compression == "gzip" else bodies


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(level=1, wbits=31)
    return packer.compress(body) + packer.flush()


def _run(load: OtlpLoad, bodies: Sequence[bytes], port: int) -> LoadReport:
    report = LoadReport(segments=len(bodies))
    senders: list[_HttpSender | _GrpcSender] = [
        _HttpSender(port, load) if load.protocol == "http" else _GrpcSender(port, load) for _ in range(load.connections)
    ]
    step = load.data.per_request / load.rows_per_s if load.rows_per_s else 0.0
    report.started_monotonic_s = time.monotonic()
    threads = [
        threading.Thread(target=_send_all, args=(report, sender.send, list(enumerate(bodies))[index :: len(senders)], step))
        for index, sender in enumerate(senders)
    ]
    run_together(threads)
    report.ended_monotonic_s = time.monotonic()
    for sender in senders:
        sender.close()
    return report


def _send_all(report: LoadReport, send: Callable[[bytes], bool], mine: Sequence[tuple[int, bytes]], step_s: float) -> None:
    try:
        for index, body in mine:
            wait_s = report.started_monotonic_s + index * step_s - time.monotonic()
            if step_s and wait_s > 0:
                time.sleep(wait_s)
            report.late_s = max(report.late_s, -wait_s if step_s else 0.0)
            sent_at = time.monotonic()
            while not send(body):
                report.refused += 1
                if time.monotonic() - sent_at > ANSWER_TIMEOUT_S:
                    raise TimeoutError("refused for too long")
                time.sleep(0.05)
            report.ack_latency_s.append(time.monotonic() - sent_at)
    except Exception as error:
        report.error = f"{type(error).__name__}: {error}"


class _HttpSender:
    def __init__(self, port: int, load: OtlpLoad) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")
        encoding = "Content-Encoding: gzip\r\n" if load.compression == "gzip" else ""
        self._head = f"POST /v1/{load.data.signal} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/x-protobuf\r\n{encoding}"

    def send(self, body: bytes) -> bool:
        self._socket.sendall(b"%sContent-Length: %d\r\n\r\n%s" % (self._head.encode(), len(body), body))
        status = int(self._answers.readline().split(b" ")[1])
        length = 0
        while (line := self._answers.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answer = self._answers.read(length)
        if status == 503:
            return False
        # An Export…ServiceResponse without partial_success is empty; an empty partial_success (0a 00) is full success too.
        if status != 200 or answer not in (b"", b"\x0a\x00"):
            raise ConnectionError(f"status {status}, {answer[:200]!r}")
        return True

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class _GrpcSender:
    def __init__(self, port: int, load: OtlpLoad) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        if load.compression == "gzip":
            raise ValueError("grpcio cannot send bytes that are compressed already; its own compression would be timed with the load")
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._export = self._channel.unary_unary(_SERVICES[load.data.signal])
        grpc.channel_ready_future(self._channel).result(ANSWER_TIMEOUT_S)

    def send(self, body: bytes) -> bool:
        try:
            answer = self._export(body, timeout=ANSWER_TIMEOUT_S)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        if answer not in (b"", b"\x0a\x00"):
            raise ConnectionError(f"not a full success: {answer[:200]!r}")
        return True

    def close(self) -> None:
        self._channel.close()
