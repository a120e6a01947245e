"""What the tests of Forward share: frames as real clients write them, an intake that the test controls, certificates, the rows."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgpack
import trustme
import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from emp_pipe.clock import SystemClock
from emp_pipe.component import Arrival, Context, Receiver
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import ChunkKey, DeadLetter
from emp_pipe.receivers.forward import ForwardConfig, ForwardReceiver
from emp_pipe.self_metrics import Metrics
from emp_pipe.tls import TlsServerConfig

PATIENCE_S = 20.0
"""How long a test waits for what must happen: far longer than it takes, so that a slow machine fails no test."""
T0_S = 1_760_000_000


def event_time(seconds: int, nanoseconds: int = 0) -> msgpack.ExtType:
    return msgpack.ExtType(0, struct.pack(">II", seconds & 0xFFFFFFFF, nanoseconds))


def record(number: int, **more: Any) -> dict[str, Any]:
    return {"message": f"record {number}", "number": number, **more}


def message_frame(number: int, *, tag: str = "app.web", time: Any = None, chunk: str | None = None, **more: Any) -> bytes:
    """Message mode, as fluent-logger writes it."""
    frame = [tag, event_time(T0_S) if time is None else time, record(number, **more)]
    return msgpack.packb([*frame, {"chunk": chunk}] if chunk else frame)


def forward_frame(numbers: Iterable[int], *, chunk: str | None = None, tag: str = "app.web") -> bytes:
    """Forward mode, as Fluent Bit writes it: each entry `[[time, {}], record]`."""
    entries = [[[event_time(T0_S, number), {}], record(number)] for number in numbers]
    return msgpack.packb([tag, entries, {"size": len(entries)} | ({"chunk": chunk} if chunk else {})])


def entries_of(numbers: Iterable[int], **more: Any) -> bytes:
    return b"".join(msgpack.packb([event_time(T0_S, number), record(number, **more)]) for number in numbers)


def packed_frame(entries: bytes, *, chunk: str | None = None, tag: str = "app.web", compressed: str = "text") -> bytes:
    """PackedForward, as fluentd writes it: the body typed `str` whatever is in it, the compression always named."""
    options = {"compressed": compressed} | ({"chunk": chunk} if chunk else {})
    body = struct.pack(">BI", 0xDB, len(entries)) + entries
    return b"\x93" + msgpack.packb(tag) + body + msgpack.packb(options)


def gzip_frame(entries: bytes, *, chunk: str | None = None, members: int = 1) -> bytes:
    """CompressedPackedForward in gzip; several members one after another, as fluentd's buffer concatenates them."""
    body = b"".join(gzip.compress(entries) for _ in range(members))
    return packed_frame(body, chunk=chunk, compressed="gzip")


def zstd_frame(entries: bytes, *, chunk: str | None = None) -> bytes:
    return packed_frame(zstandard.compress(entries), chunk=chunk, compressed="zstd")


@dataclass(frozen=True)
class Row:
    """A log record as the core made it, read back with the official protobuf classes."""

    body: str
    attributes: dict[str, Any]
    time_unix_nano: int
    tag: str


def rows_of_request(data: bytes) -> list[Row]:
    def value(any_value: Any) -> Any:
        kind = any_value.WhichOneof("value")
        return getattr(any_value, kind) if kind else None

    rows = []
    for resource_logs in ExportLogsServiceRequest.FromString(data).resource_logs:
        for scope_logs in resource_logs.scope_logs:
            tags = [value(one.value) for one in scope_logs.scope.attributes if one.key == "fluent.tag"]
            for log in scope_logs.log_records:
                attributes = {one.key: value(one.value) for one in log.attributes}
                rows.append(Row(value(log.body) or "", attributes, log.time_unix_nano, tags[0] if tags else ""))
    return rows


def rows_of(arrivals: Iterable[Arrival]) -> list[Row]:
    rows = []
    for arrival in arrivals:
        blocks = list(arrival.blocks)
        if arrival.batch is not None:
            blocks.append(arrival.batch.to_block("none", topic="logs", block_id="test"))
        for block in blocks:
            rows += rows_of_request(block.payload("none"))
    return rows


class RecordingIntake:
    """An intake that keeps what it is handed. `auto`: durable at once; else when the test says so. Drops repeated chunks."""

    def __init__(self) -> None:
        self.auto = True
        self.arrivals: list[Arrival] = []
        self.duplicates: list[Arrival] = []
        self.fail_with: LogError | None = None
        self._seen: set[ChunkKey] = set()
        self._open: list[tuple[Arrival, asyncio.Future[None]]] = []
        self._admits = asyncio.Event()
        self._admits.set()
        self._changed = asyncio.Event()

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open.append((arrival, future))
        if self.fail_with is not None:
            self.fail(self.fail_with.kind)
        elif self.auto:
            self.commit()
        self._changed.set()
        return future

    @property
    def admitting(self) -> bool:
        return self._admits.is_set()

    async def wait_admitting(self) -> None:
        await self._admits.wait()

    def admit(self, admits: bool) -> None:
        if admits:
            self._admits.set()
        else:
            self._admits.clear()

    def commit(self) -> None:
        waiting, self._open = self._open, []
        for arrival, future in waiting:
            if arrival.chunks and self._seen.issuperset(arrival.chunks):
                self.duplicates.append(arrival)
            else:
                self.arrivals.append(arrival)
            self._seen.update(arrival.chunks)
            if not future.done():
                future.set_result(None)
        self._changed.set()

    def fail(self, kind: ErrorKind) -> None:
        waiting, self._open = self._open, []
        for _, future in waiting:
            future.set_exception(LogError(kind))

    @property
    def waiting(self) -> int:
        return len(self._open)

    @property
    def dead(self) -> list[DeadLetter]:
        return [letter for arrival in self.arrivals for letter in arrival.dead]

    @property
    def received(self) -> int:
        return sum(arrival.received for arrival in self.arrivals)

    @property
    def invalid(self) -> int:
        return sum(arrival.invalid for arrival in self.arrivals)

    def rows(self) -> list[Row]:
        return rows_of(self.arrivals)

    def numbers(self) -> list[Any]:
        return [row.attributes.get("number") for row in self.rows()]

    async def until(self, holds: Callable[[RecordingIntake], bool], what: str = "") -> None:
        """Return when a condition on this intake holds."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not holds(self):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"never happened: {what or 'the condition'}; {self.received} records ({self.invalid} invalid) arrived, {self.waiting} wait"
            ) from None

    async def until_records(self, count: int) -> None:
        await self.until(lambda intake: intake.received - intake.invalid >= count, f"{count} records")


@dataclass
class Running:
    """A receiver that listens, its intake, and its metrics."""

    receiver: ForwardReceiver
    intake: RecordingIntake
    metrics: Metrics

    @property
    def address(self) -> tuple[str, int]:
        return self.receiver.addresses[0]

    @property
    def port(self) -> int:
        return self.address[1]

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value; 0 where it was never set."""
        if self.receiver._hub is not None:
            self.receiver._hub.publish()
        return self.metrics.registry.get_sample_value(f"emp_pipe_{name}", {"component": self.receiver.id, **labels}) or 0.0


def make_context(data_dir: Path, **changes: Any) -> Context:
    values: dict[str, Any] = {"clock": SystemClock(), "metrics": Metrics(), "data_dir": data_dir, "machine_id": "gpu-7", "role": "central"}
    return Context(**(values | changes))


@contextlib.asynccontextmanager
async def served(
    receiver: Receiver, intake: RecordingIntake, context: Context, stop_within_s: float = PATIENCE_S / 4
) -> AsyncIterator[None]:
    """Run a receiver for the length of the block: from when it listens until it has stopped."""
    started = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(receiver.run(intake, started))
        waiting = tasks.create_task(started.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
        if task.done():
            waiting.cancel()
            await task
        try:
            yield
        finally:
            await receiver.stop(context.clock.monotonic_s() + stop_within_s)


@contextlib.asynccontextmanager
async def running(
    directory: Path, *, intake: RecordingIntake | None = None, id: str = "forward", **settings: Any
) -> AsyncIterator[Running]:
    """Run a receiver on a free loopback port (or what `settings` say) for the length of the block."""
    settings.setdefault("listen", ["127.0.0.1:0"])
    context = make_context(directory)
    receiver = ForwardReceiver(id, ForwardConfig(**settings), context)
    intake = intake or RecordingIntake()
    async with served(receiver, intake, context):
        yield Running(receiver, intake, context.metrics)


@dataclass
class Peer:
    """A raw client connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    _unpacker: msgpack.Unpacker = field(default_factory=lambda: msgpack.Unpacker(raw=True, strict_map_key=False))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def value(self) -> Any:
        """The next msgpack value from the server. Raises EOFError when it closes instead."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return self._unpacker.unpack()
                except msgpack.OutOfData:
                    data = await self.reader.read(65_536)
                    if not data:
                        raise EOFError from None
                    self._unpacker.feed(data)

    async def ack(self) -> str:
        answer = await self.value()
        return answer[b"ack"].decode()

    async def closed(self) -> bytes:
        """Return what came until the server closed the connection."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(where: tuple[str, int] | Path, **tls: Any) -> AsyncIterator[Peer]:
    """Connect to host and port, or to a Unix socket."""
    async with asyncio.timeout(PATIENCE_S):
        if isinstance(where, Path):
            reader, writer = await asyncio.open_unix_connection(where)
        else:
            reader, writer = await asyncio.open_connection(*where, **tls)
    peer = Peer(reader, writer)
    try:
        yield peer
    finally:
        await peer.close()


class Certificates:
    """An authority of its own, and files of certificates that it issued."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)

    def issue(self, name: str, *identities: str, not_after: datetime | None = None) -> tuple[Path, Path]:
        """Return the files of a certificate and its key."""
        issued = self.authority.issue_cert(*(identities or ("localhost", "127.0.0.1")), not_after=not_after)
        cert, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return cert, key

    def server(self, *, mutual: bool = False) -> TlsServerConfig:
        cert, key = self.issue("server")
        return TlsServerConfig(cert_file=cert, key_file=key, client_ca_file=self.ca_file if mutual else None)


async def turns() -> None:
    """Give the server every chance to do what it must not: several whole turns of its event loop."""
    for _ in range(50):
        await asyncio.sleep(0.001)


async def until_connections(server: Running, count: int) -> None:
    """Return when a receiver has so many connections."""
    async with asyncio.timeout(PATIENCE_S):
        while server.receiver._hub is None or len(server.receiver._hub.connections) != count:  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.005)
