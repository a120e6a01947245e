"""The load generator of Fluent Forward: a process of its own that sends prebuilt frames over plain sockets, and measures acks.

Frames are built before the timed part, so that sending costs a copy into the kernel and nothing else.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import msgpack

from bench.load_process import LoadProcess, LoadReport, run_together, serve
from bench.records import Pool, message_mode, packed_forward

ACK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: records [first, first + count) of the pool, in segments of `per_segment` records, over `connections` sockets.

    A segment is one PackedForward message, or with `messages` that many Message mode frames in one write. `repeat`: send it all n times.
    `ack`: a chunk id on each, and a connection sends its next segment when the ack of the last came.
    `records_per_s`: paced, open loop: a segment goes at its scheduled time whether or not earlier ones were acked, and latencies count
    from the scheduled time."""

    first: int
    count: int
    per_segment: int = 1000
    connections: int = 4
    ack: bool = False
    messages: bool = False
    records_per_s: float | None = None
    repeat: int = 1

    @property
    def records(self) -> int:
        return self.count * self.repeat


class LoadGenerator(LoadProcess[Load]):
    """The process that sends records of a pool."""

    def __init__(self, pool_file: Path) -> None:
        super().__init__("bench-load", _serve, pool_file, answer_timeout_s=ACK_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class _Segment:
    data: bytes
    chunk: str | None
    records: int


def _serve(control: Connection, pool_file: Path) -> None:
    serve(control, partial(_build, Pool.load(pool_file)), _run)


def _build(pool: Pool, load: Load) -> list[_Segment]:
    segments = []
    end = load.first + load.count
    if end > len(pool.entries):
        raise ValueError("the pool is smaller than the load")
    for start in range(load.first, end, load.per_segment):
        entries = pool.entries[start : min(start + load.per_segment, end)]
        if load.messages:
            segments.append(_Segment(b"".join(map(message_mode, entries)), None, len(entries)))
        else:
            chunk = f"bench-{pool.ids[start].decode()}" if load.ack else None
            segments.append(_Segment(packed_forward(entries, chunk), chunk, len(entries)))
    return segments * load.repeat


def _run(load: Load, segments: Sequence[_Segment], port: int) -> LoadReport:
    report = LoadReport(segments=len(segments))
    sockets = [socket.create_connection(("127.0.0.1", port), timeout=ACK_TIMEOUT_S) for _ in range(load.connections)]
    for connection in sockets:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    due_s = [0.0] * len(segments)
    if load.records_per_s:
        at = 0.0
        for index, segment in enumerate(segments):
            due_s[index] = at
            at += segment.records / load.records_per_s
    report.started_monotonic_s = time.monotonic()
    threads = []
    for index, connection in enumerate(sockets):
        step = len(sockets)
        mine = [(report.started_monotonic_s + at, segment) for at, segment in zip(due_s[index::step], segments[index::step], strict=True)]
        paced = load.records_per_s is not None
        thread = threading.Thread(target=_guard, args=(report, _paced if paced else _closed_loop, connection, mine))
        threads.append(thread)
    run_together(threads)
    report.ended_monotonic_s = time.monotonic()
    for connection in sockets:
        connection.close()
    return report


def _guard(report: LoadReport, function: object, connection: socket.socket, segments: Sequence[tuple[float, _Segment]]) -> None:
    try:
        function(report, connection, segments)  # type: ignore[operator]
    except Exception as error:
        report.error = f"{type(error).__name__}: {error}"


def _closed_loop(report: LoadReport, connection: socket.socket, segments: Sequence[tuple[float, _Segment]]) -> None:
    for _, segment in segments:
        sent_at = time.monotonic()
        connection.sendall(segment.data)
        if segment.chunk is not None:
            expected = msgpack.packb({"ack": segment.chunk})
            answer = b""
            while len(answer) < len(expected):
                part = connection.recv(4096)
                if not part:
                    raise ConnectionError("closed before the ack")
                answer += part
            if answer != expected:
                raise ConnectionError(f"{answer!r} is not the ack of {segment.chunk}")
            report.ack_latency_s.append(time.monotonic() - sent_at)


def _paced(report: LoadReport, connection: socket.socket, segments: Sequence[tuple[float, _Segment]]) -> None:
    acked = [(at, segment) for at, segment in segments if segment.chunk is not None]
    reader = None
    if acked:
        reader = threading.Thread(target=_guard, args=(report, _read_acks, connection, acked))
        reader.start()
    for at, segment in segments:
        wait_s = at - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        report.late_s = max(report.late_s, time.monotonic() - at)
        connection.sendall(segment.data)
    if reader is not None:
        reader.join()


def _read_acks(report: LoadReport, connection: socket.socket, segments: Sequence[tuple[float, _Segment]]) -> None:
    scheduled = {segment.chunk: at for at, segment in segments}
    unpacker = msgpack.Unpacker()
    while scheduled:
        part = connection.recv(65536)
        if not part:
            raise ConnectionError(f"closed with {len(scheduled)} acks owed")
        now = time.monotonic()
        unpacker.feed(part)
        for answer in unpacker:
            report.ack_latency_s.append(now - scheduled.pop(answer["ack"]))
