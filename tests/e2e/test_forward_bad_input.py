"""Promises of the Forward receiver about bad input, through a real socket.

In every mode what is good arrives, what is bad is counted and dead-lettered with its bytes and reason, and nobody can make the receiver
take much memory or stop serving others."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from emp_pipe.log.protocol import DeadReason
from tests.support.forward import (
    T0_S,
    Running,
    connected,
    entries_of,
    event_time,
    forward_frame,
    gzip_frame,
    message_frame,
    packed_frame,
    record,
    running,
    zstd_frame,
)
from tests.support.otlp_rows import plain_attributes

_MAX_INFLATED_BYTES = 1 << 20
_LIMITS = {"max_frame_bytes": 32 << 20, "max_inflated_bytes": _MAX_INFLATED_BYTES}
_GOOD_BEFORE, _GOOD_AFTER, _BAD = 1, 2, 3


def _entry(time: Any, rec: Any) -> bytes:
    return msgpack.packb([time, rec])


def _nested(depth: int) -> bytes:
    """An entry whose record is nested so deep; packed by hand, msgpack's own packer gives up at 512."""
    return b"\x92" + msgpack.packb(event_time(T0_S)) + b"\x81\xa1k" + b"\x91" * depth + b"\x00"


_BAD_ENTRIES: dict[str, bytes] = {
    "time is a map": _entry({"t": 1}, record(_BAD)),
    "time is a text": _entry("yesterday", record(_BAD)),
    "record is a number": _entry(event_time(T0_S), 42),
    "record is nil": _entry(event_time(T0_S), None),
    "record is a list": _entry(event_time(T0_S), [1, 2]),
    "entry of three": msgpack.packb([event_time(T0_S), record(_BAD), 0]),
    "entry is a text": msgpack.packb("entry"),
    "entry is a map": msgpack.packb({"time": 1}),
    "100,000-deep nesting": _nested(100_000),
}
"""What can be stepped over: the entries around it are kept in every mode."""

_ODD_ENTRIES: dict[str, bytes] = {
    "time 0": _entry(0, record(_BAD)),
    "time nil": _entry(None, record(_BAD)),
    "negative time": _entry(-5, record(_BAD)),
    "negative time, far": _entry(-(2**62), record(_BAD)),
    "year 2106": _entry(event_time(0xFFFF_FF00), record(_BAD)),
    "year 2106, integer": _entry(2**32 - 3, record(_BAD)),
    "time far beyond": _entry(2**63, record(_BAD)),
    "time is no number": _entry(float("nan"), record(_BAD)),
    "time is infinite": _entry(float("inf"), record(_BAD)),
    "invalid UTF-8": b"\x92" + msgpack.packb(event_time(T0_S)) + b"\x82\xa6number\x03\xa7message\xa4\xff\xfe\xc3\x28",
    "invalid UTF-8 in a key": b"\x92" + msgpack.packb(event_time(T0_S)) + b"\x82\xa6number\x03\xa2\xff\xfe\x01",
    "10 MB record": _entry(event_time(T0_S), record(_BAD, blob="x" * 10_000_000)),
    "keys that are no text": _entry(event_time(T0_S), {1: "a", None: "b", 2.5: "c", "number": _BAD}),
    "keys twice": b"\x92" + msgpack.packb(event_time(T0_S)) + b"\x83\xa6number\x03\xa1a\x01\xa1a\x02",
}
"""What is unusual: kept, or counted as invalid, and never more than that."""


def _modes(entry: bytes) -> dict[str, Callable[[], bytes]]:
    """A frame with good entries around a bad one, in each mode that holds several; in Message mode the bad one has a frame of its own."""
    around = entries_of([10]) + entry + entries_of([11])

    def message() -> bytes:
        unpacked = entry[1:] if entry[:1] == b"\x92" else entry
        return message_frame(10) + b"\x94" + msgpack.packb("app.web") + unpacked + msgpack.packb({"chunk": "bad"}) + message_frame(11)

    return {
        "message": message,
        "forward": lambda: b"\x93" + msgpack.packb("app.web") + b"\x93" + around + msgpack.packb({"chunk": "bad"}),
        "packed": lambda: packed_frame(around, chunk="bad"),
        "gzip": lambda: gzip_frame(around, chunk="bad"),
        "zstd": lambda: zstd_frame(around, chunk="bad"),
    }


_MODES = ("message", "forward", "packed", "gzip", "zstd")
_EACH_MODE = pytest.mark.parametrize("mode", _MODES)


@pytest.mark.parametrize(
    ("case", "mode"),
    # Message mode has no entry around its time and record that could be wrong
    [(case, mode) for case in _BAD_ENTRIES for mode in _MODES if mode != "message" or not case.startswith("entry")],
)
async def test_an_entry_that_cannot_be_used_is_set_aside_and_its_neighbours_are_kept(tmp_path: Path, mode: str, case: str):
    entry = _BAD_ENTRIES[case]
    async with _between_good_records(tmp_path, _modes(entry)[mode](), neighbours=[10, 11]) as server:
        assert server.intake.invalid == 1
        (letter,) = server.intake.dead
        assert letter.reason in (DeadReason.ENTRY_INVALID, DeadReason.FRAME_INVALID)
        assert letter.payload
        assert letter.detail
        assert letter.peer == "127.0.0.1"
        assert letter.payload[: 1 << 20].find(entry[1:64] if mode == "message" else entry[:64]) >= 0, "the dead letter has the bytes"


@_EACH_MODE
@pytest.mark.parametrize("case", [*_ODD_ENTRIES])
async def test_an_unusual_entry_costs_nothing_else(tmp_path: Path, mode: str, case: str):
    async with _between_good_records(tmp_path, _modes(_ODD_ENTRIES[case])[mode](), neighbours=[10, 11]) as server:
        numbers = server.intake.numbers()
        assert numbers.count(_BAD) + server.intake.invalid == 1
        if case in ("time 0", "time nil"):
            (row,) = [one for one in server.intake.rows() if one.attributes.get("number") == _BAD]
            now = server.receiver._context.clock.unix_nano()
            assert 0 <= now - row.time_unix_nano < 60 * 10**9, "time 0 means now"
        if case in ("invalid UTF-8", "10 MB record", "year 2106", "keys that are no text"):
            assert numbers.count(_BAD) == 1, "it is valid"


_BAD_FRAMES: dict[str, Callable[[], bytes]] = {
    "truncated in its tag": lambda: packed_frame(entries_of([_BAD]))[:4],
    "truncated in its body": lambda: packed_frame(entries_of([_BAD]))[:-20],
    "truncated gzip body": lambda: packed_frame(gzip.compress(entries_of(range(100, 200)))[:-30], compressed="gzip", chunk="bad"),
    "truncated zstd body": lambda: packed_frame(zstandard.compress(entries_of(range(100, 200)))[:-30], compressed="zstd", chunk="bad"),
    "truncated last entry": lambda: packed_frame(entries_of([100, _BAD])[:-5], chunk="bad"),
    "garbage said to be gzip": lambda: packed_frame(random.Random(5).randbytes(500), compressed="gzip", chunk="bad"),
    "garbage said to be zstd": lambda: packed_frame(random.Random(6).randbytes(500), compressed="zstd", chunk="bad"),
    "over-long frame": lambda: b"\x93\xa1t\xdb" + struct.pack(">I", (32 << 20) + 1) + b"\xc1" * (9 << 20),
    "4 GB body header": lambda: b"\x93\xa1t\xdb\xff\xff\xff\xff" + b"x" * 100_000,
    "4 GB bin header": lambda: b"\x93\xa1t\xc6\xff\xff\xff\xff" + b"x" * 100_000,
    "4 GB array header": lambda: b"\x93\xa1t\xdd\xff\xff\xff\xff" + b"\xc0" * 100_000,
    "4 GB map header": lambda: b"\x94\xa1t\x00\xdf\xff\xff\xff\xff" + b"\xc0" * 100_000,
    "4 GB tag header": lambda: b"\x93\xdb\xff\xff\xff\xff" + b"t" * 100_000,
    "4 GB ext header": lambda: b"\x94\xa1t\xc9\xff\xff\xff\xff\x00" + b"t" * 100_000,
    "4 GB header within a body": lambda: packed_frame(entries_of([100]) + b"\x92\x00\x81\xa1k\xdb\xff\xff\xff\xff", chunk="bad"),
    "100,000-deep frame": lambda: b"\x91" * 100_000 + b"\xc0",
    "a number": lambda: b"\x07",
    "a map": lambda: msgpack.packb({"tag": "app"}),
    "a text": lambda: msgpack.packb("hello"),
    "an empty array": lambda: b"\x90",
    "an array of one": lambda: msgpack.packb(["app"]),
    "an array of six": lambda: msgpack.packb(["app", 1, {}, {}, 5, 6]),
    "a tag that is a number": lambda: msgpack.packb([5, 1, {"a": 1}]),
    "a tag that is nil": lambda: msgpack.packb([None, 1, {"a": 1}]),
    "a body that is a number": lambda: msgpack.packb(["app", 5]),
    "options that are a list": lambda: msgpack.packb(["app", 1, {"number": 100}, [1]]),
    "a chunk that is a map": lambda: msgpack.packb(["app", 1, {"number": 100}, {"chunk": {"a": 1}}]),
    "the byte that msgpack never uses": lambda: b"\xc1" * 10,
    "an ext of another type": lambda: msgpack.packb(["app", msgpack.ExtType(7, b"12345678"), {"a": 1}]),
    "gzip bomb": lambda: packed_frame(gzip.compress(b"\0" * (64 << 20)), compressed="gzip", chunk="bad"),
    "zstd bomb": lambda: packed_frame(zstandard.compress(b"\0" * (256 << 20)), compressed="zstd", chunk="bad"),
    "gzip bomb of good entries": lambda: gzip_frame(entries_of(range(1000)) * 50, chunk="bad"),
    "zstd bomb of good entries": lambda: zstd_frame(entries_of(range(1000)) * 50, chunk="bad"),
    "gzip members without end": lambda: packed_frame(gzip.compress(b"") * 20_000, compressed="gzip", chunk="bad"),
}


@pytest.mark.parametrize("case", [*_BAD_FRAMES])
async def test_a_frame_that_cannot_be_used_harms_no_other(tmp_path: Path, case: str):
    frame = _BAD_FRAMES[case]()
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss
    async with _between_good_records(tmp_path, frame) as server:
        grown = process.memory_info().rss - before
        assert grown < 200 << 20, f"grew by {grown >> 20} MiB"
        for letter in server.intake.dead:
            assert letter.detail
            assert len(letter.payload) <= 1 << 20
        torn = server.metric("forward_received_torn_connections_total")
        frames = server.metric("forward_received_frames_total")
        good = len(server.intake.rows())
        assert torn or server.intake.invalid or frames > 2, "it left no trace"
        assert server.intake.invalid == sum(letter.records for letter in server.intake.dead)
        assert server.intake.received == server.intake.invalid + good


@_EACH_MODE
@pytest.mark.parametrize("seed", range(8))
async def test_randomly_mutated_frames_harm_no_other(tmp_path: Path, mode: str, seed: int):
    print(f"seed {seed}")
    chance = random.Random(f"{mode} {seed}")
    frames = {
        "message": lambda: message_frame(100, chunk="bad"),
        "forward": lambda: forward_frame([100, 101, 102], chunk="bad"),
        "packed": lambda: packed_frame(entries_of([100, 101, 102]), chunk="bad"),
        "gzip": lambda: gzip_frame(entries_of([100, 101, 102]), chunk="bad"),
        "zstd": lambda: zstd_frame(entries_of([100, 101, 102]), chunk="bad"),
    }
    async with running(tmp_path, **_LIMITS) as server:
        for _ in range(25):
            data = bytearray(frames[mode]())
            for _ in range(chance.randint(1, 4)):
                match chance.randrange(3):
                    case 0:
                        data[chance.randrange(len(data))] = chance.randrange(256)
                    case 1:
                        del data[chance.randrange(len(data))]
                    case _:
                        data.insert(chance.randrange(len(data)), chance.randrange(256))
            async with connected(server.address) as peer:
                with contextlib.suppress(ConnectionError):
                    await peer.send(message_frame(_GOOD_BEFORE, chunk="before"))
                    assert await peer.ack() == "before"
                    await peer.send(bytes(data))
        async with connected(server.address) as peer:
            await peer.send(message_frame(_GOOD_AFTER, chunk="after"))
            assert await peer.ack() == "after"
        numbers = server.intake.numbers()
        assert numbers.count(_GOOD_BEFORE) >= 25
        assert numbers.count(_GOOD_AFTER) >= 1
        assert server.intake.received == server.intake.invalid + len(numbers)


async def test_a_bad_connection_does_not_disturb_another_one(tmp_path: Path):
    async with running(tmp_path, **_LIMITS) as server, connected(server.address) as good:
        for n, make in enumerate(_BAD_FRAMES.values()):
            async with connected(server.address) as bad:
                with contextlib.suppress(ConnectionError):
                    await bad.send(make())
                await good.send(message_frame(n, chunk=f"c{n}"))
                assert await good.ack() == f"c{n}"


async def test_bytes_that_cannot_be_followed_are_set_aside_and_the_connection_is_closed_without_an_ack(tmp_path: Path):
    async with running(tmp_path, **_LIMITS) as server, connected(server.address) as peer:
        await peer.send(message_frame(1, chunk="good") + b"\xc1 what is this")
        assert await peer.ack() == "good", "what was good before is acknowledged"
        assert await peer.closed() == b""
        (letter,) = server.intake.dead
        assert letter.reason is DeadReason.FRAME_INVALID
        assert letter.payload.startswith(b"\xc1 what is this")
        assert letter.offset == len(message_frame(1, chunk="good"))
        assert server.metric("forward_received_unreadable_connections_total") == 1


async def test_group_markers_of_fluent_bit_are_consumed_and_never_records_of_2106(tmp_path: Path):
    start = _entry([event_time(0xFFFF_FFFF), {"schema": "otlp"}], {"resource": {"attributes": {"service.name": "api"}}})
    end = _entry([event_time(0xFFFF_FFFE), {}], {})
    async with running(tmp_path) as server, connected(server.address) as peer:
        await peer.send(packed_frame(start + entries_of([1, 2]) + end, chunk="c"))
        assert await peer.ack() == "c"
        assert server.intake.numbers() == [1, 2]
        assert server.intake.invalid == 0


async def test_the_resource_and_scope_of_a_group_stand_over_its_records_and_over_no_others(tmp_path: Path):
    inside = {"resource": {"attributes": {"service.name": "api", "gpus": 2}}, "scope": {"name": "otel.js", "version": "1.2"}}
    start, end = _entry([event_time(0xFFFF_FFFF), {"schema": "otlp"}], inside), _entry([event_time(0xFFFF_FFFE), {}], {})
    async with running(tmp_path) as server, connected(server.address) as peer:
        await peer.send(packed_frame(start + entries_of([1]) + end + entries_of([2]), chunk="c"))
        assert await peer.ack() == "c"
        (batch,) = (arrival.batch for arrival in server.intake.arrivals)
        assert batch is not None
        request = ExportLogsServiceRequest.FromString(batch.to_block("none", topic="logs", block_id="b").payload("none"))
    grouped, other = sorted(request.resource_logs, key=lambda resource: -len(resource.resource.attributes))
    assert plain_attributes(grouped.resource.attributes) == {"service.name": "api", "gpus": 2}
    scope = grouped.scope_logs[0].scope
    assert (scope.name, scope.version, plain_attributes(scope.attributes)) == ("otel.js", "1.2", {"fluent.tag": "app.web"})
    assert plain_attributes(other.resource.attributes) == {}


@pytest.mark.parametrize("signal", [1, 2])
async def test_metrics_and_traces_of_fluent_bit_are_set_aside_acknowledged_and_counted(tmp_path: Path, signal: int):
    async with running(tmp_path) as server, connected(server.address) as peer:
        await peer.send(msgpack.packb(["app", b"\x81\xa1m\x01", {"fluent_signal": signal, "chunk": "c"}]))
        assert await peer.ack() == "c"
        (letter,) = server.intake.dead
        assert letter.reason is DeadReason.BODY_INVALID
        assert "fluent_signal" in letter.detail
        assert b"\x81\xa1m\x01" in letter.payload
        assert server.intake.invalid == letter.records == 1


# --- helpers ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _between_good_records(directory: Path, bad: bytes, neighbours: list[int] | None = None) -> Any:
    """Send a good record, the bad bytes, and a good record; yield the server when both have arrived.

    The second one goes over the same connection where that is still open, else over a new one, as a client would do it."""
    limits = _LIMITS | ({"max_inflated_bytes": 24 << 20} if neighbours else {})
    async with running(directory, **limits) as server:
        async with connected(server.address) as peer:
            await peer.send(message_frame(_GOOD_BEFORE, chunk="before"))
            assert await peer.ack() == "before"
            with contextlib.suppress(ConnectionError):
                await peer.send(bad)
                if neighbours:
                    await server.intake.until(lambda intake: set(neighbours) <= set(intake.numbers()), f"entries {neighbours}")
                    await peer.send(message_frame(_GOOD_AFTER, chunk="after"))
                    while await peer.ack() != "after":
                        pass
                else:
                    peer.writer.write_eof()
                    await peer.closed()
        if not neighbours:
            async with connected(server.address) as again:
                await again.send(message_frame(_GOOD_AFTER, chunk="after"))
                assert await again.ack() == "after"
        await _quiet(server)
        numbers = server.intake.numbers()
        assert numbers.count(_GOOD_BEFORE) >= 1
        assert numbers.count(_GOOD_AFTER) >= 1
        yield server


async def _quiet(server: Running) -> None:
    async with asyncio.timeout(20):
        while server.receiver._hub.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
