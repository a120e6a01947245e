"""Bytes on the OTLP/gRPC port that mean no good, each case by its name, with good requests on other connections before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.forward import RecordingIntake
from tests.support.h2 import (
    ACK,
    CALL,
    CALM,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    block,
    call,
    frame,
    h2_client,
    headers,
    message,
    settings,
)
from tests.support.otlp_receiving import Running, bodies_of, connected, encoded, request, running

GOOD = encoded(request("logs"))


async def takes_good_requests(server: Running) -> None:
    async with connected(server) as client:
        for codec in ("none", "gzip"):
            assert (await client.send("logs", GOOD, codec)).code == "OK"


def cut(server: Running, reason: str) -> float:
    value = server.metrics.registry.get_sample_value("emp_pipe_cut_connections_total", {"component": "otlp_grpc", "reason": reason})
    return value or 0.0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.005)


def resets(count: int) -> bytes:
    return b"".join(headers(stream) + frame(RST_STREAM, bytes(4), stream=stream) for stream in range(1, 2 * count, 2))


OPEN = headers(1)
BREAKING: dict[str, tuple[bytes, int, str]] = {
    "rapid reset": (resets(1100), CALM, "too_many_frames"),
    "resets of nothing": (OPEN + frame(RST_STREAM, bytes(4), stream=1) * 1100, CALM, "too_many_frames"),
    "a flood of CONTINUATION": (frame(HEADERS, stream=1) + frame(CONTINUATION, stream=1) * 100_000, CALM, "too_many_frames"),
    "a header without end": (
        frame(HEADERS, bytes(16_000), stream=1) + frame(CONTINUATION, bytes(16_000), stream=1) * 99,
        CALM,
        "too_many_frames",
    ),
    "a flood of SETTINGS": (frame(SETTINGS) * 1100, CALM, "too_many_frames"),
    "a flood of pings": (frame(PING, bytes(8)) * 10_000, CALM, "too_many_pings"),
    "a flood of PRIORITY": (frame(PRIORITY, bytes(5), stream=1) * 1100, CALM, "too_many_frames"),
    "a flood of empty DATA": (OPEN + frame(DATA, stream=1) * 1100, CALM, "too_many_frames"),
    "a flood of WINDOW_UPDATE": (frame(WINDOW_UPDATE, b"\0\0\0\1") * 1100, CALM, "too_many_frames"),
    "a flood of unknown frames": (frame(77, b"x") * 1100, CALM, "too_many_frames"),
    "a frame over 16 KiB": (OPEN + frame(DATA, bytes(16_385), stream=1), FRAME_SIZE_ERROR, "malformed"),
    "DATA before its call": (frame(DATA, b"x", stream=1), PROTOCOL_ERROR, "malformed"),
    "DATA on no stream": (frame(DATA, b"x"), PROTOCOL_ERROR, "malformed"),
    "an even stream": (headers(2), PROTOCOL_ERROR, "malformed"),
    "headers twice": (OPEN + OPEN, PROTOCOL_ERROR, "malformed"),
    "an interrupted header": (frame(HEADERS, block(CALL), stream=1) + frame(PING, bytes(8)), PROTOCOL_ERROR, "malformed"),
    "a header that is no HPACK": (frame(HEADERS, b"\x80", stream=1, flags=END_HEADERS), COMPRESSION_ERROR, "malformed"),
    "CONTINUATION of nothing": (frame(CONTINUATION, stream=1, flags=END_HEADERS), PROTOCOL_ERROR, "malformed"),
    "padding over its frame": (OPEN + frame(DATA, b"\xff1", stream=1, flags=PADDED), PROTOCOL_ERROR, "malformed"),
    "a push": (frame(PUSH_PROMISE, bytes(4), stream=1), PROTOCOL_ERROR, "malformed"),
    "a window over its limit": (frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff"), FLOW_CONTROL_ERROR, "malformed"),
    "a window that grows by nothing": (frame(WINDOW_UPDATE, bytes(4)), PROTOCOL_ERROR, "malformed"),
    "SETTINGS of five bytes": (frame(SETTINGS, bytes(5)), FRAME_SIZE_ERROR, "malformed"),
    "PING of a stream": (frame(PING, bytes(8), stream=1), PROTOCOL_ERROR, "malformed"),
}


@pytest.mark.parametrize("case", BREAKING)
async def test_what_breaks_http2_ends_its_connection_is_told_why_and_is_counted(tmp_path: Path, case: str) -> None:
    sent, code, reason = BREAKING[case]
    async with running("grpc", tmp_path) as server:
        await takes_good_requests(server)
        async with h2_client(server) as client:
            client.write(sent)
            told = await client.end()
            assert told is not None
            assert told[0] == code, told
            assert told[1], "the peer is told why"
        assert cut(server, reason) == 1
        await until(lambda: server.otlp.held_bytes == 0 and server.receiver._service.turns.reading == 0)
        await takes_good_requests(server)
        assert server.intake.received == 12, "nothing of it was taken"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"POST /v1/logs HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 505 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\x15\x03\x01\x00\x02\x02\x46"),
        (b"PRI * HTTP/2.0\r\n\r\nSN", b"HTTP/1.1 505 "),
        (bytes(100), b"HTTP/1.1 505 "),
    ],
    ids=["HTTP/1.1", "TLS", "almost HTTP/2", "zeros"],
)
async def test_another_protocol_is_answered_in_its_own_words_and_counted(tmp_path: Path, sent: bytes, said: bytes) -> None:
    async with running("grpc", tmp_path) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(sent)
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        assert answer.startswith(said)
        assert cut(server, "malformed") == 1
        await takes_good_requests(server)


@pytest.mark.parametrize("first", [frame(PING, bytes(8)), frame(SETTINGS, flags=ACK), headers(1)], ids=["a ping", "an ack", "a call"])
async def test_the_first_frame_must_be_settings(tmp_path: Path, first: bytes) -> None:
    async with running("grpc", tmp_path) as server, h2_client(server, PREFACE + first) as client:
        told = await client.end()
        assert told == (PROTOCOL_ERROR, "the first frame must be SETTINGS")
        await takes_good_requests(server)


# --- calls that are refused while their connection goes on ------------------------------------------


async def refused(server: Running, sent: bytes, **trailers: str) -> None:
    """Send a call; it is told so, and the next on its connection succeeds."""
    async with h2_client(server) as client:
        client.write(sent)
        await client.status(1)
        told = client.told[1].headers
        assert {name: told.get(name.replace("_", "-"), told.get(f":{name}")) for name in trailers} == trailers, told
        client.write(call(3, GOOD))
        assert await client.status(3) == "0"
    assert server.otlp.held_bytes == 0


async def test_metadata_over_16_kib_refuses_its_call(tmp_path: Path) -> None:
    async with running("grpc", tmp_path) as server:
        sent = frame(HEADERS, block(CALL) + block([("x-a", "a" * 9000)]), stream=1) + frame(
            CONTINUATION, block([("x-b", "b" * 9000)]), stream=1, flags=END_HEADERS
        )
        await refused(server, sent, grpc_status="8", grpc_message="the metadata is longer than 16,384 bytes")


async def test_a_bomb_of_references_to_a_long_header_takes_no_memory_and_refuses_its_call(tmp_path: Path) -> None:
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000  # kept in the table
    sent = frame(HEADERS, block(CALL) + entry + b"\xbe" * 12_000, stream=1, flags=END_HEADERS | END_STREAM)  # 48 MB if it were written out
    async with running("grpc", tmp_path) as server:
        await refused(server, sent, grpc_status="8")


@pytest.mark.parametrize(
    ("changed", "status"),
    [({":method": "GET"}, "405"), ({"content-type": "application/json"}, "415"), ({"content-type": "application/grpcx"}, "415")],
)
async def test_a_request_that_is_none_of_grpc_is_refused_in_https_words(tmp_path: Path, changed: dict[str, str], status: str) -> None:
    fields = [(name, changed.get(name, value)) for name, value in CALL]
    async with running("grpc", tmp_path) as server:
        await refused(server, headers(1, fields=fields), status=status)


@pytest.mark.parametrize(
    "fields",
    [
        CALL[1:],
        [*CALL, (":path", "/x")],
        [*CALL[1:], CALL[0]],
        [*CALL, ("X-Upper", "a")],
        [*CALL, ("a", "b\r\nc: d")],
        [*CALL, ("connection", "x")],
    ],
    ids=["no method", "two paths", "a method behind the others", "upper case", "a line end", "connection"],
)
async def test_a_malformed_request_is_reset(tmp_path: Path, fields: Any) -> None:
    async with running("grpc", tmp_path) as server, h2_client(server) as client:
        client.write(headers(1, fields=fields))
        assert await client.status(1) is None
        assert client.told[1].reset == PROTOCOL_ERROR
        client.write(call(3, GOOD))
        assert await client.status(3) == "0"


@pytest.mark.parametrize("flag", [1, 2, 255])
async def test_a_message_that_is_marked_as_compressed_without_a_word_how_is_invalid(tmp_path: Path, flag: int) -> None:
    async with running("grpc", tmp_path) as server:
        await refused(server, call(1, GOOD, flag=flag), grpc_status="3")


@pytest.mark.parametrize("sent", [headers(1, flags=END_STREAM), headers(1) + frame(DATA, message(GOOD)[:9], stream=1, flags=END_STREAM)])
async def test_a_message_that_does_not_come_whole_before_its_end_is_invalid(tmp_path: Path, sent: bytes) -> None:
    async with running("grpc", tmp_path) as server:
        await refused(server, sent, grpc_status="3")


async def test_a_length_over_the_limit_refuses_its_call_before_the_message_comes(tmp_path: Path) -> None:
    async with running("grpc", tmp_path) as server:
        await refused(server, headers(1) + frame(DATA, b"\0\xff\xff\xff\xff", stream=1), grpc_status="8")


async def test_calls_over_the_limit_of_a_connection_are_refused_untouched(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running("grpc", tmp_path, intake=intake, max_streams_per_connection=2) as server, h2_client(server) as client:
        client.write(call(1, GOOD), call(3, GOOD), call(5, GOOD))
        assert await client.status(5) is None
        assert client.told[5].reset == REFUSED_STREAM
        intake.auto = True
        intake.commit()
        assert [await client.status(stream) for stream in (1, 3)] == ["0", "0"]
        assert intake.received == 6


async def test_a_calls_own_timeout_ends_the_wait_for_its_message(tmp_path: Path) -> None:
    async with running("grpc", tmp_path) as server:
        await refused(server, headers(1, ("grpc-timeout", "50m")), grpc_status="4")


# --- memory, windows, ends --------------------------------------------------------------------------


async def test_messages_that_are_still_coming_count_against_max_total_bytes(tmp_path: Path) -> None:
    limits = {"max_request_bytes": 100_000, "max_total_bytes": 150_000}
    async with running("grpc", tmp_path, **limits) as server, h2_client(server) as slow, h2_client(server) as other:
        begun = headers(1) + frame(DATA, message(bytes(90_000))[:100], stream=1)
        slow.write(begun)
        await until(lambda: server.otlp.held_bytes == 90_000)
        other.write(begun)
        assert await other.status(1) == "14"
        assert other.told[1].headers["google.rpc.retryinfo-bin"]
        slow.close()
        await until(lambda: server.otlp.held_bytes == 0)
        other.write(call(3, GOOD))
        assert await other.status(3) == "0"


@pytest.mark.parametrize("how", ["resets its call", "goes away"])
async def test_a_client_that_gives_up_in_the_middle_of_a_message_leaves_nothing_behind(tmp_path: Path, how: str) -> None:
    async with running("grpc", tmp_path, max_concurrent_reads=1) as server, h2_client(server) as client:
        client.write(headers(1), frame(DATA, message(bytes(9000))[:5000], stream=1))
        await until(lambda: server.otlp.held_bytes > 0 and server.receiver._service.turns.reading == 1)
        if how == "goes away":
            client.close()
        else:
            client.write(frame(RST_STREAM, b"\0\0\0\x08", stream=1))
        await until(lambda: server.otlp.held_bytes == 0 and server.receiver._service.turns.reading == 0)
        await takes_good_requests(server)


async def test_frames_that_come_byte_by_byte_are_the_same_calls(tmp_path: Path) -> None:
    sent = PREFACE + frame(SETTINGS) + call(1, GOOD) + frame(PRIORITY, bytes(5), stream=1) + call(3, GOOD)
    async with running("grpc", tmp_path) as server, h2_client(server, b"") as client:
        for at in range(len(sent)):
            client.write(sent[at : at + 1])
            await asyncio.sleep(0)
        assert [await client.status(stream) for stream in (1, 3)] == ["0", "0"]
        assert bodies_of(server.intake.arrivals) == ["record 0", "record 1", "record 2"] * 2


async def test_answers_that_the_client_lets_not_through_are_bounded(tmp_path: Path) -> None:
    async with running("grpc", tmp_path) as server, h2_client(server, PREFACE + settings(window=0)) as client:
        client.write(*(call(stream, GOOD) for stream in range(1, 203, 2)))
        told = await client.end()
        assert told == (CALM, "answers are not taken")
        assert cut(server, "answers_unread") == 1
        await takes_good_requests(server)


async def test_after_answers_that_are_not_taken_nothing_of_the_same_read_is_looked_at(tmp_path: Path) -> None:
    empty = [call(stream, b"") for stream in range(3, 207, 2)]
    async with running("grpc", tmp_path) as server, h2_client(server, PREFACE + settings(window=0)) as client:
        client.write(headers(1), *empty, frame(DATA, message(GOOD), stream=1, flags=END_STREAM))
        assert await client.end() == (CALM, "answers are not taken")
        assert cut(server, "answers_unread") == 1
        await until(lambda: not server.receiver._service.connections and server.receiver._service.turns.reading == 0)
        await takes_good_requests(server)


async def test_calls_without_a_message_hold_up_none_that_is_whole(tmp_path: Path) -> None:
    async with running("grpc", tmp_path, max_concurrent_reads=2) as server, h2_client(server) as client:
        client.write(*(headers(stream) for stream in range(1, 1999, 2)))
        await until(lambda: server.receiver._service.turns.waiting == 997)
        await takes_good_requests(server)
        assert server.receiver._service.turns.reading == 2, "nobody's time was over"


async def test_a_window_that_opens_later_lets_the_answers_through(tmp_path: Path) -> None:
    async with running("grpc", tmp_path) as server, h2_client(server, PREFACE + settings(window=3)) as client:
        client.write(call(1, GOOD))
        while client.told.get(1) is None or len(client.told[1].data) < 3:
            assert await client.read() is not None
        client.write(frame(WINDOW_UPDATE, b"\0\0\0\1", stream=1))
        client.write(settings(window=100))
        assert await client.status(1) == "0"
        assert client.told[1].data == bytes(5)


async def test_a_client_that_says_nothing_at_first_is_closed_in_time_and_one_that_is_greeted_is_asked(tmp_path: Path) -> None:
    async with running("grpc", tmp_path, head_timeout_s=0.1, keepalive_s=0.1, keepalive_timeout_s=0.1) as server:
        async with h2_client(server, PREFACE[:10]) as client:
            assert await client.end() is None
        assert cut(server, "head_timed_out") == 1
        async with h2_client(server) as client:
            await client.end()
            assert PING in client.kinds
        assert cut(server, "silent") == 1


async def test_a_stop_says_goaway_answers_what_is_whole_and_refuses_what_is_not(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running("grpc", tmp_path, intake=intake) as server, h2_client(server) as client:
        client.write(call(1, GOOD), headers(3), frame(DATA, message(bytes(9000))[:5000], stream=3))
        await until(lambda: intake.waiting == 1 and server.otlp.held_bytes > 9000)
        stopping = asyncio.ensure_future(server.receiver.stop(server.receiver._context.clock.monotonic_s() + 3600))
        assert await client.status(3) == "14"
        client.write(call(5, GOOD))
        assert await client.status(5) is None
        assert client.told[5].reset == REFUSED_STREAM
        intake.commit()
        assert await client.status(1) == "0"
        assert await client.end() == (0, "")
        client.close()
        async with asyncio.timeout(30):
            await stopping
        assert intake.received == 3
