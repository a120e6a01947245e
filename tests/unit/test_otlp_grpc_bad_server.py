"""What the gRPC exporter makes of servers that break HTTP/2 or gRPC, each case by its name: an error, and the next call succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from emp_pipe.component import Parcel, Sent
from emp_pipe.errors import DeliveryError, ErrorKind, Retry
from emp_pipe.exporters.otlp_grpc import OtlpGrpcConfig, OtlpGrpcExporter
from tests.support.context import make_context
from tests.support.h2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    block,
    frame,
    message,
    settings,
)
from tests.support.telemetry import log_block

Writer = asyncio.StreamWriter
WIDE = settings(window=1 << 20) + frame(WINDOW_UPDATE, (1 << 20).to_bytes(4, "big"))


def headers(stream: int, *fields: tuple[str, str], end: bool = False) -> bytes:
    return frame(HEADERS, block(fields), stream=stream, flags=END_HEADERS | (END_STREAM if end else 0))


def answer(stream: int, status: int = 0) -> bytes:
    begun = headers(stream, (":status", "200"), ("content-type", "application/grpc"))
    return begun + frame(DATA, message(b""), stream=stream) + headers(stream, ("grpc-status", str(status)), end=True)


class Server:
    """Says `first` to the first call (where it is a function: to all of the first connection), and `answer` to all others.

    `calls` are the streams with their messages."""

    def __init__(self, first: bytes | Callable[[Writer, int], Awaitable[None]], greeting: bytes = WIDE) -> None:
        self.first = first
        self.greeting = greeting
        self.connections = 0
        self.calls: list[tuple[int, bytes]] = []
        self.frames: list[tuple[int, int, bytes]] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        first = self.first if self.connections == 1 else b""
        writer.write(self.greeting)
        messages: dict[int, bytes] = {}
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            assert await reader.readexactly(len(PREFACE)) == PREFACE
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                self.frames.append((kind, stream, payload))
                if kind == SETTINGS and not flags & ACK:
                    writer.write(frame(SETTINGS, flags=ACK))
                if kind != DATA:
                    continue
                messages[stream] = messages.get(stream, b"") + payload
                if not flags & END_STREAM:
                    continue
                self.calls.append((stream, messages.pop(stream)))
                if callable(first):
                    await first(writer, stream)
                else:
                    writer.write(first if first and len(self.calls) == 1 else answer(stream))
        writer.close()


@contextlib.asynccontextmanager
async def exporting(server: Server, **config: object) -> AsyncIterator[OtlpGrpcExporter]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    exporter = OtlpGrpcExporter("otlp_grpc", OtlpGrpcConfig(endpoint=f"http://127.0.0.1:{port}", **config), make_context())  # type: ignore[arg-type]
    async with listening:
        await exporter.open()
        try:
            yield exporter
        finally:
            await exporter.close(0.0)


async def send(exporter: OtlpGrpcExporter, records: int = 3, within_s: float = 10.0) -> Sent:
    return await exporter.send(Parcel(log_block(records), 1, exporter._clock.monotonic_s() + within_s))


OK_HEAD = headers(1, (":status", "200"), ("content-type", "application/grpc"))
BAD: dict[str, tuple[bytes, ErrorKind]] = {
    "a frame over its limit": (b"\xff\xff\xff\0\0\0\0\0\1", ErrorKind.UNREACHABLE),
    "a push": (frame(PUSH_PROMISE, bytes(4), stream=1), ErrorKind.UNREACHABLE),
    "headers that are no HPACK": (frame(HEADERS, b"\x80", stream=1, flags=END_HEADERS), ErrorKind.UNREACHABLE),
    "a header without end": (frame(HEADERS, bytes(9), stream=1) + frame(CONTINUATION, stream=1) * 1000, ErrorKind.UNREACHABLE),
    "an answer to a call that was not made": (answer(3), ErrorKind.UNREACHABLE),
    "an answer on an even stream": (answer(2), ErrorKind.UNREACHABLE),
    "data before headers": (frame(DATA, message(b"x"), stream=1), ErrorKind.UNREACHABLE),
    "headers in the middle": (OK_HEAD + OK_HEAD, ErrorKind.UNREACHABLE),
    "a flood of SETTINGS": (frame(SETTINGS) * 1100, ErrorKind.UNREACHABLE),
    "a flood of pings": (frame(PING, bytes(8)) * 1100, ErrorKind.UNREACHABLE),
    "a flood of headers before the answer": (headers(1, (":status", "100")) * 1100, ErrorKind.UNREACHABLE),
    "a window over its limit": (frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff"), ErrorKind.UNREACHABLE),
    "no grpc-status": (OK_HEAD + frame(DATA, message(b""), stream=1, flags=END_STREAM), ErrorKind.SERVER_ERROR),
    "a grpc-status that is no number": (headers(1, (":status", "200"), ("grpc-status", "fine"), end=True), ErrorKind.SERVER_ERROR),
    "a grpc-status that there is not": (headers(1, (":status", "200"), ("grpc-status", "4711"), end=True), ErrorKind.SERVER_ERROR),
    "a proxy's 503": (headers(1, (":status", "503"), ("content-type", "text/html"), end=True), ErrorKind.SERVER_ERROR),
    "a proxy's 413": (headers(1, (":status", "413"), end=True), ErrorKind.TOO_LARGE),
    "a proxy's 401": (headers(1, (":status", "401"), end=True), ErrorKind.UNAUTHENTICATED),
    "a status that is no number": (headers(1, (":status", "abc"), end=True), ErrorKind.SERVER_ERROR),
    "a reset": (frame(RST_STREAM, b"\0\0\0\2", stream=1), ErrorKind.SERVER_ERROR),
    "a reset that asks for calm": (frame(RST_STREAM, b"\0\0\0\x0b", stream=1), ErrorKind.SERVER_ERROR),
    "trailers over 16 KiB": (
        frame(HEADERS, block([(":status", "200"), ("a", "a" * 9000)]), stream=1, flags=END_STREAM)
        + frame(CONTINUATION, block([("b", "b" * 9000), ("grpc-status", "0")]), stream=1, flags=END_HEADERS),
        ErrorKind.SERVER_ERROR,
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_server_that_breaks_the_rules_is_an_error_and_the_next_call_succeeds(case: str) -> None:
    said, kind = BAD[case]
    server = Server(said)
    async with exporting(server) as exporter:
        with pytest.raises(DeliveryError) as caught:
            await send(exporter)
        assert caught.value.kind is kind, str(caught.value)
        assert str(caught.value).isprintable()
        assert await send(exporter) == Sent()
        assert exporter._replaced == []


async def test_a_block_that_is_compressed_goes_out_as_it_lies_in_a_frame_that_says_so() -> None:
    server = Server(b"")
    async with exporting(server, compression="gzip") as exporter:
        assert exporter.codec == "gzip"
        payload = log_block(3, codec="gzip")
        await exporter.send(Parcel(payload, 1, 1e9))
        await exporter.send(Parcel(log_block(3, codec="none"), 1, 1e9))
        (_, as_it_lies), (_, recoded) = server.calls
        assert as_it_lies == message(payload.payload("gzip"), flag=1)
        assert (recoded[0], gzip.decompress(recoded[5:])) == (1, log_block(3, codec="none").payload("none"))
        assert any(b"grpc-encoding\x04gzip" in sent for kind, _, sent in server.frames if kind == HEADERS)


async def test_a_message_is_sent_on_as_the_servers_windows_open() -> None:
    server = Server(b"", greeting=settings(window=1000))
    async with exporting(server) as exporter, asyncio.timeout(30):
        sending = asyncio.ensure_future(send(exporter, 2000))
        while not server.frames or server.frames[-1][0] != DATA:  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.005)
        assert sum(len(sent) for kind, _, sent in server.frames if kind == DATA) <= 65_535
        assert not sending.done()
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        while server.frames[-1] != (RST_STREAM, 1, b"\0\0\0\x08"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_no_more_calls_are_under_way_than_the_server_takes() -> None:
    most = under_way = 0

    async def slowly(writer: Writer, stream: int) -> None:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)

        def end() -> None:
            nonlocal under_way
            under_way -= 1
            writer.write(answer(stream))

        asyncio.get_running_loop().call_later(0.01, end)

    server = Server(slowly, greeting=settings(streams=2, window=1 << 20))
    async with exporting(server) as exporter:
        await send(exporter)  # from now on it knows
        await asyncio.gather(*(send(exporter) for _ in range(12)))
        assert most <= 2
        assert (len(server.calls), server.connections) == (13, 1)


async def test_a_call_that_a_leaving_server_has_not_touched_goes_to_the_next_connection_at_once() -> None:
    leaving = frame(GOAWAY, bytes(8))  # no stream was touched
    server = Server(leaving)
    async with exporting(server) as exporter:
        assert await send(exporter) == Sent()
        assert server.connections == 2


async def test_a_server_that_never_stops_leaving_is_unreachable() -> None:
    async def leave(writer: Writer, stream: int) -> None:
        writer.write(frame(GOAWAY, bytes(8)))

    server = Server(leave)
    serve = server.serve

    async def always_first(reader: asyncio.StreamReader, writer: Writer) -> None:
        server.connections = 0
        await serve(reader, writer)

    server.serve = always_first  # type: ignore[method-assign]
    async with exporting(server) as exporter:
        with pytest.raises(DeliveryError) as caught:
            await send(exporter)
        assert (caught.value.kind, caught.value.retry) == (ErrorKind.UNREACHABLE, Retry.LATER)


async def test_a_silent_server_is_asked_whether_it_lives_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emp_pipe.delivery.grpc_client._PONG_TIMEOUT_S", 0.2)

    async def nothing(writer: Writer, stream: int) -> None: ...

    server = Server(nothing)
    async with exporting(server) as exporter:
        line = exporter._line("logs")
        line._keepalive_s = 0.1
        with pytest.raises(DeliveryError) as caught:
            await send(exporter)
        assert caught.value.kind is ErrorKind.UNREACHABLE
        assert "ping" in str(caught.value)
        assert any(kind == PING for kind, _, _ in server.frames)
        assert await send(exporter) == Sent()
