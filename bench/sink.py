"""The sink: a process of its own that takes OTLP requests by HTTP and by gRPC, answers success at once, and afterwards proves what arrived.

In the timed part it only reads bodies into memory. Afterwards it inflates them, finds every row's id, and compares a sample of rows field
by field through the official protobuf classes (`proof.py`, `otlp_proof.py`). It is never counted in anybody's CPU.
"""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from bench.otlp_data import OtlpData
from bench.otlp_proof import Sampled, verify_otlp
from bench.proof import Arrived, Verdict, verify_forward
from bench.records import Pool

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
_ANSWER_TIMEOUT_S = 120.0
_PATHS = ("/v1/logs", "/v1/traces", "/v1/metrics")


@dataclass(frozen=True, slots=True)
class SinkAddress:
    """Where the sink listens on loopback."""

    http_port: int
    grpc_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


class Sink:
    """The process that receives. `count` says how many records arrived since `reset`, `verify` whether they are the right ones."""

    def __init__(self, pool_file: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, pool_file), name="bench-sink", daemon=True)
        self._process.start()
        theirs.close()  # so that its end is noticed
        self.address: SinkAddress = self._control.recv()

    @property
    def port(self) -> int:
        return self.address.http_port

    def reset(self, *, keep: bool = True) -> None:
        """Forget what arrived. `keep=False`: from now on count only, for runs too long to hold in memory (no `verify` then)."""
        self._ask("reset", keep)

    def count(self) -> int:
        """How many records arrived. Inflates what is new: ask after the load is sent, not during it."""
        return int(self._ask("count"))

    def last_monotonic_s(self) -> float:
        """When the last request was read whole."""
        return float(self._ask("last"))

    def verify(self, first: int, count: int) -> Verdict:
        """Compare with records [first, first + count) of the pool, each expected exactly once."""
        verdict = self._ask("verify", first, count)
        assert isinstance(verdict, Verdict)
        return verdict

    def verify_otlp(self, sent: Sequence[OtlpData], sampled: Sampled | None = None, merged: bool = False) -> Verdict:
        """Compare with all rows of these recipes, each expected exactly once; or with what a sampler or an aggregator makes of them."""
        verdict = self._ask("verify_otlp", sent, sampled, merged)
        assert isinstance(verdict, Verdict)
        return verdict

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _ask(self, command: str, *arguments: object) -> Any:
        self._control.send((command, arguments))
        if not self._control.poll(_ANSWER_TIMEOUT_S):
            raise RuntimeError("the sink does not answer")
        answer = self._control.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Bodies:
    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self._lock = threading.Lock()
        self.received: list[tuple[str, bytes]] = []
        self.inflated: list[bytes] = []
        self.records = 0
        self.body_bytes = 0
        self.last_monotonic_s = 0.0
        self.problems: list[str] = []

    def add(self, path: str, encoding: str, body: bytes) -> None:
        if path not in _PATHS:
            self.problems.append(f"a request to {path}")
        records = 0 if self.keep else _inflate(encoding, body).count(b"job-")
        with self._lock:
            self.last_monotonic_s = time.monotonic()
            self.body_bytes += len(body)
            self.records += records
            if self.keep:
                self.received.append((encoding, body))

    def count(self) -> int:
        while len(self.inflated) < len(self.received):
            body = _inflate(*self.received[len(self.inflated)])
            self.received[len(self.inflated)] = ("", b"")
            self.inflated.append(body)
            self.records += body.count(b"job-")
        return self.records

    def arrived(self) -> Arrived:
        self.count()
        return Arrived(self.inflated, self.body_bytes, self.problems)


def _inflate(encoding: str, body: bytes) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding == "gzip":
        return zlib.decompress(body, wbits=31)
    raise ValueError(f"a body in an encoding that was not asked for: {encoding}")


def _serve(control: Connection, pool_file: Path) -> None:
    bodies = _Bodies()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=_accept, args=(listener, lambda: bodies), daemon=True).start()
    server, grpc_port = _grpc_server(lambda: bodies)
    control.send(SinkAddress(listener.getsockname()[1], grpc_port))
    while True:
        try:
            command, arguments = control.recv()
        except EOFError:
            server.stop(None)
            return
        try:
            if command == "reset":
                bodies = _Bodies(*arguments)
                control.send(None)
            elif command == "count":
                control.send(bodies.count())
            elif command == "last":
                control.send(bodies.last_monotonic_s)
            elif command == "verify":
                control.send(verify_forward(Pool.load(pool_file), bodies.arrived(), *arguments))
            else:
                control.send(verify_otlp(arguments[0], bodies.arrived(), *arguments[1:]))
        except Exception as error:
            control.send(RuntimeError(f"sink: {type(error).__name__}: {error}"))


def _accept(listener: socket.socket, bodies: Callable[[], _Bodies]) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_receive, args=(connection, bodies), daemon=True).start()


def _receive(connection: socket.socket, bodies: Callable[[], _Bodies]) -> None:
    with connection, connection.makefile("rb", buffering=1 << 20) as stream:
        while request_line := stream.readline():
            path = request_line.split(b" ")[1].decode()
            headers: dict[bytes, bytes] = {}
            while (line := stream.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                headers[name.lower()] = value.strip()
            if b"content-length" not in headers:
                bodies().problems.append("a request without Content-Length, which this sink does not read")
                return
            body = stream.read(int(headers[b"content-length"]))
            connection.sendall(_ANSWER)
            bodies().add(path, headers.get(b"content-encoding", b"").decode(), body)


def _grpc_server(bodies: Callable[[], _Bodies]) -> tuple[grpc.Server, int]:
    """grpcio inflates what came compressed, so `body_bytes` counts the uncompressed size here."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
    for signal, service in (("logs", "logs.v1.LogsService"), ("traces", "trace.v1.TraceService"), ("metrics", "metrics.v1.MetricsService")):

        def export(body: bytes, _: grpc.ServicerContext, path: str = f"/v1/{signal}") -> bytes:
            bodies().add(path, "", body)
            return b""

        handler = grpc.method_handlers_generic_handler(
            f"opentelemetry.proto.collector.{service}", {"Export": grpc.unary_unary_rpc_method_handler(export)}
        )
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port
