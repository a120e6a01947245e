"""Promises of the OTLP receivers under pressure, through real sockets: a slow log, budgets, limits, slow and silent clients, stop."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.receivers import otlp_grpc_turns
from emp_pipe.receivers.otlp_http import OtlpHttpConfig
from tests.support.forward import PATIENCE_S, RecordingIntake, turns
from tests.support.otlp_receiving import METHODS, Running, Transport, connected, encoded, head, request, running
from tests.support.telemetry import log_record, log_request

PROTOBUF = {"Content-Type": "application/x-protobuf"}
GOOD = encoded(request("logs"))
MIB_64 = 64 << 20


async def until(holds: Any, what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


# --- the budget of all requests together ------------------------------------------------------------


async def test_what_all_requests_hold_until_they_are_durable_is_bounded(tmp_path: Path, transport: Transport) -> None:
    intake = RecordingIntake()
    intake.auto = False
    large = encoded(request("logs", 2000))
    limits = {"max_request_bytes": 100_000, "max_total_bytes": 150_000}
    async with running(transport, tmp_path, intake=intake, **limits) as server, connected(server) as first, connected(server) as second:
        asked = asyncio.ensure_future(first.send("logs", large))
        await intake.until(lambda one: one.waiting == 1)
        reply = await second.send("logs", large)
        assert reply.code == "UNAVAILABLE"
        assert 1 <= reply.retry_after_s <= 5
        assert "under way" in reply.message
        intake.auto = True
        intake.commit()
        assert (await asked).code == "OK"
        assert (await second.send("logs", large)).code == "OK"
        assert server.otlp.held_bytes == 0


async def test_a_body_that_is_being_received_counts_from_its_first_byte(tmp_path: Path) -> None:
    limits = {"max_request_bytes": 100_000, "max_total_bytes": 150_000}
    async with running("http", tmp_path, **limits) as server, connected(server) as slow, connected(server) as other:
        await slow.write(head("/v1/logs", PROTOBUF | {"Content-Length": "90000"}) + b"x")
        await until(lambda: server.otlp.held_bytes == 90_000, "the first body is granted")
        await other.write(head("/v1/logs", PROTOBUF | {"Content-Length": "90000"}))
        status, headers, _ = await other.answer()
        assert status == 503
        assert 1 <= int(headers["retry-after"]) <= 5
        await slow.write(b"y" * 89_999)
        assert (await slow.answer())[0] == 400


async def test_chunked_bodies_count_as_they_grow(tmp_path: Path) -> None:
    chunked = head("/v1/logs", PROTOBUF | {"Transfer-Encoding": "chunked"})
    part = b"4000\r\n" + b"\0" * 0x4000 + b"\r\n"
    limits = {"max_request_bytes": 100_000, "max_total_bytes": 100_000}
    async with running("http", tmp_path, **limits) as server, connected(server) as slow, connected(server) as other:
        await slow.write(chunked + 5 * part)
        await until(lambda: server.otlp.held_bytes == 5 * 0x4000, "five chunks are held")
        await other.write(chunked + part + part)
        assert (await other.answer())[0] == 503
        await until(lambda: server.otlp.held_bytes == 5 * 0x4000, "what was refused is free again")
        await slow.write(5 * part)
        assert (await slow.answer())[0] == 413
        await until(lambda: server.otlp.held_bytes == 0, "all is free again")


# --- 64 MiB and one byte ----------------------------------------------------------------------------


async def test_64_mib_and_one_byte_are_too_large_by_their_length_before_they_are_read(tmp_path: Path) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        await client.write(head("/v1/logs", PROTOBUF | {"Content-Length": str(MIB_64 + 1)}))
        assert (await client.answer())[0] == 413
        assert await client.closed() == b""
        assert server.otlp.held_bytes == 0


async def test_64_mib_and_one_byte_are_too_large_by_grpc(tmp_path: Path) -> None:
    async with running("grpc", tmp_path) as server, connected(server) as client:
        assert (await client.send("logs", bytes(MIB_64 + 1))).code == "RESOURCE_EXHAUSTED"
        assert (await client.send("logs", GOOD)).code == "OK"
        assert server.otlp.held_bytes == 0


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
async def test_a_bomb_that_inflates_to_64_mib_and_one_byte_is_too_large(tmp_path: Path, codec: Any) -> None:
    padded = GOOD + b"\x9a\x06" + _varint(MIB_64) + bytes(MIB_64)  # an unknown field makes it so long
    async with running("http", tmp_path) as server, connected(server) as client:
        reply = await client.send("logs", padded[: MIB_64 + 1], codec)
        assert (reply.code, reply.retry_after_s) == ("RESOURCE_EXHAUSTED", 0)
        assert (await client.send("logs", GOOD, codec)).code == "OK"
        assert server.intake.received == 3


async def test_a_request_of_64_mib_is_taken_where_all_others_are_small(tmp_path: Path, transport: Transport) -> None:
    size_bytes = MIB_64 - len(GOOD) - 2 - 4
    padded = GOOD + b"\x9a\x06" + _varint(size_bytes) + bytes(size_bytes)
    assert len(padded) == MIB_64
    async with running(transport, tmp_path) as server, connected(server) as client:
        assert (await client.send("logs", padded)).code == "OK"
        assert server.intake.received == 3


async def test_a_bomb_of_a_thousand_times_its_size_is_too_large_by_grpc(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(200 << 20))
    async with running("grpc", tmp_path) as server, connected(server) as client:
        export = client.channel.unary_unary(METHODS["logs"])
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await export(bytes(200 << 20), timeout=PATIENCE_S, compression=grpc.Compression.Gzip)
        assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(bomb) < 1 << 20
        assert (await client.send("logs", GOOD, "gzip")).code == "OK"


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


# --- slow and silent clients ------------------------------------------------------------------------

BEFORE_THE_DEFAULT_S = OtlpHttpConfig().head_timeout_s * 0.8


async def test_headers_that_come_too_slowly_end_the_connection(tmp_path: Path) -> None:
    async with running("http", tmp_path, head_timeout_s=0.05) as server, connected(server) as client:
        await client.write(b"POST /v1/logs HTTP/1.1\r\nHost: h\r\nX-A: ")
        assert await client.closed(BEFORE_THE_DEFAULT_S) == b""
        await until(lambda: server.receiver._service.places.taken == 0, "its place is free")


async def test_drops_of_a_header_do_not_extend_its_time(tmp_path: Path) -> None:
    async with running("http", tmp_path, head_timeout_s=0.5) as server, connected(server) as client:
        dripping = asyncio.ensure_future(_drip(client, b"POST /v1/logs HTTP/1.1\r\nHost: h\r\nX-A: " + b"a" * 4000))
        assert await client.closed(BEFORE_THE_DEFAULT_S) == b""
        dripping.cancel()


async def test_a_body_that_comes_too_slowly_is_told_so_and_its_memory_is_free(tmp_path: Path) -> None:
    async with running("http", tmp_path, request_timeout_s=0.5) as server, connected(server) as client:
        dripping = asyncio.ensure_future(_drip(client, head("/v1/logs", PROTOBUF | {"Content-Length": "9000"}) + bytes(8000)))
        status, headers, _ = await client.answer()
        assert (status, headers["content-type"], headers["connection"]) == (408, "application/x-protobuf", "close")
        dripping.cancel()
        assert server.otlp.held_bytes == 0


@pytest.mark.parametrize("kind", ["http", "http_json"])
async def test_a_request_whose_refused_body_does_not_come_is_answered_and_counted_once(tmp_path: Path, kind: Transport) -> None:
    async with running(kind, tmp_path, request_timeout_s=0.05) as server, connected(server) as client:
        await client.write(head("/v1/logs", {"Content-Type": "application/msgpack", "Content-Length": "1000"}) + b"a part")
        status, headers, _ = await client.answer()
        assert (status, headers.get("connection")) == (415, None), "the connection goes on, as far as can be seen"
        assert await client.closed() == b"", "a second answer would be taken for the next request's"
        assert server.metric("cut_connections_total", reason="request_timed_out") == 1
        assert sum(server.otlp.counts.requests.values()) == 1


async def _drip(client: Any, data: bytes) -> None:
    for at in range(len(data)):
        await client.write(data[at : at + 1])
        await asyncio.sleep(0.01)


async def test_a_connection_that_is_silent_between_requests_is_closed_by_setting(tmp_path: Path) -> None:
    async with running("http", tmp_path, idle_timeout_s=0.05) as server, connected(server) as client:
        assert (await client.send("logs", GOOD)).code == "OK"
        assert await client.closed() == b""


async def test_a_client_that_waits_for_a_slow_disk_is_not_taken_for_a_slow_client(tmp_path: Path, transport: Transport) -> None:
    intake = RecordingIntake()
    intake.auto = False
    limits = {"request_timeout_s": 0.05} | ({"head_timeout_s": 0.05, "idle_timeout_s": 0.05} if transport == "http" else {})
    async with running(transport, tmp_path, intake=intake, **limits) as server, connected(server) as client:
        asked = asyncio.ensure_future(client.send("logs", GOOD))
        await intake.until(lambda one: one.waiting == 1)
        await asyncio.sleep(1.2)  # a sweep goes by
        intake.commit()
        assert (await asked).code == "OK"


async def test_an_answer_that_nobody_reads_does_not_hold_a_connection_for_ever(tmp_path: Path) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        await client.write(b"nonsense\r\n\r\n")
        await until(lambda: not server.receiver._service.connections, "the connection is gone although the client keeps it open")


async def _never_a_message(begun: asyncio.Event) -> AsyncIterator[bytes]:
    begun.set()
    await asyncio.sleep(3600)
    yield b""


async def test_a_call_without_its_message_ends_after_its_time_and_frees_its_turn(tmp_path: Path) -> None:
    async with running("grpc", tmp_path, request_timeout_s=0.5, max_concurrent_reads=1) as server, connected(server) as client:
        begun = asyncio.Event()
        call = client.channel.stream_unary(METHODS["logs"])(_never_a_message(begun))
        await begun.wait()
        await until(lambda: server.receiver._service.turns.reading == 1, "it is being read")
        waiting = asyncio.ensure_future(client.send("logs", GOOD))
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await call
        assert told.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await waiting).code == "OK"


async def test_calls_that_never_send_their_message_have_their_turns_only_while_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_grpc_turns, "TURN_S", 0.2)
    async with running("grpc", tmp_path, request_timeout_s=3600, max_concurrent_reads=3) as server, connected(server) as client:
        turns = server.receiver._service.turns
        idle = [client.channel.stream_unary(METHODS["logs"])(_never_a_message(asyncio.Event())) for _ in range(7)]
        await until(lambda: turns.reading == 3, "three have a turn, the others wait for theirs")
        assert (await client.send("logs", GOOD)).code == "OK"
        # The server has ended them by now; the client may hear of it a moment later.
        await until(lambda: sum(call.done() for call in idle) >= 4, "all but three end, which may have a turn now that nobody waits")
        ended = [call for call in idle if call.done()]
        for call in ended:
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "while others wait" in await call.details()
        for call in idle:
            call.cancel()


async def test_stalled_calls_of_one_connection_hold_up_a_long_message_of_another_by_a_turn_or_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_grpc_turns, "TURN_S", 0.2)
    long_message = encoded(log_request([log_record("x" * (2 << 20))]))
    async with (
        running("grpc", tmp_path, request_timeout_s=3600, max_concurrent_reads=1) as server,
        connected(server) as stalled,
        connected(server) as client,
    ):
        calls = [stalled.channel.stream_unary(METHODS["logs"])(_never_a_message(asyncio.Event())) for _ in range(500)]
        # While the others come the first ones' turns end already. Those of 300 take three times as long as the message is waited for.
        await until(lambda: server.receiver._service.turns.waiting >= 300, "far more wait than could have their turn first")
        assert (await client.send("logs", long_message)).code == "OK"
        for call in calls:
            call.cancel()


async def test_a_call_that_ends_without_a_message_is_invalid(tmp_path: Path) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    async with running("grpc", tmp_path) as server, connected(server) as client:
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await client.channel.stream_unary(METHODS["logs"])(nothing())
        assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await client.send("logs", GOOD)).code == "OK"
        assert len(server.intake.arrivals) == 1
    assert server.metric("otlp_received_requests_total", signal="logs", code="INVALID_ARGUMENT") == 1


async def test_a_call_that_is_given_up_before_the_commit_loses_only_its_answer(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running("grpc", tmp_path, intake=intake) as server, connected(server) as client:
        asked = asyncio.ensure_future(client.send("logs", GOOD))
        await intake.until(lambda one: one.waiting == 1)
        asked.cancel()
        await turns()
        intake.commit()
        await until(lambda: server.otlp.held_bytes == 0, "nothing is held")
        assert intake.received == 3


# --- connections ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
async def test_more_connections_than_allowed_are_closed_and_a_place_is_free_again_afterwards(tmp_path: Path, limit: str) -> None:
    async with running("http", tmp_path, **{limit: 2}) as server:
        async with connected(server) as first, connected(server) as second:
            for client in (first, second):
                assert (await client.send("logs", GOOD)).code == "OK"
            async with connected(server) as third:
                assert await third.closed() == b""
        await until(lambda: server.receiver._service.places.taken == 0, "both places are free")
        async with connected(server) as fourth:
            assert (await fourth.send("logs", GOOD)).code == "OK"


async def test_more_connections_than_allowed_do_not_get_in_by_grpc(tmp_path: Path) -> None:
    async with running("grpc", tmp_path, max_connections=1) as server, connected(server) as first:
        assert (await first.send("logs", GOOD)).code == "OK"
        async with connected(server) as second:
            export = second.channel.unary_unary(METHODS["logs"])
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await export(GOOD, timeout=5)
            assert told.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert (await first.send("logs", GOOD)).code == "OK"


async def test_an_address_in_use_is_named_with_the_setting(tmp_path: Path, transport: Transport) -> None:
    async with running(transport, tmp_path) as server:
        port = server.address[1]
        with pytest.raises(ExceptionGroup) as caught:
            async with running(transport, tmp_path, listen=[f"127.0.0.1:{port}"]):
                pass
        error = caught.value.exceptions[0]
        assert isinstance(error, ConfigError)
        assert error.kind is ErrorKind.ADDRESS_IN_USE
        assert f"127.0.0.1:{port}" in str(error)
        assert f"otlp_{transport}: listen" in str(error)


# --- stop -------------------------------------------------------------------------------------------


def later(server: Running, wait_s: float) -> float:
    return server.receiver._context.clock.monotonic_s() + wait_s  # type: ignore[no-any-return]


async def test_a_stop_answers_what_becomes_durable_and_then_nobody_gets_in(tmp_path: Path, transport: Transport) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running(transport, tmp_path, intake=intake) as server, connected(server) as client:
        asked = asyncio.ensure_future(client.send("logs", GOOD))
        await intake.until(lambda one: one.waiting == 1)
        stopping = asyncio.ensure_future(server.receiver.stop(later(server, 3600)))
        await turns()
        assert not asked.done()
        assert not stopping.done()
        intake.commit()
        assert (await asked).code == "OK"
        await stopping
        with pytest.raises(OSError, match=r".*"):
            await asyncio.open_connection(*server.address)


async def test_a_stop_tells_senders_to_come_again_with_what_is_not_durable_by_its_deadline(tmp_path: Path, transport: Transport) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running(transport, tmp_path, intake=intake) as server, connected(server) as client:
        asked = asyncio.ensure_future(client.send("logs", GOOD))
        await intake.until(lambda one: one.waiting == 1)
        async with asyncio.timeout(PATIENCE_S):
            await server.receiver.stop(later(server, 1.0))
        reply = await asked
        assert reply.code == "UNAVAILABLE"
        assert 1 <= reply.retry_after_s <= 5
        intake.commit()  # late: nobody is told, and nothing breaks
        await turns()


async def test_a_stop_closes_what_is_silent_and_refuses_what_has_not_come_whole(tmp_path: Path) -> None:
    async with (
        running("http", tmp_path) as server,
        connected(server) as silent,
        connected(server) as in_body,
        connected(server) as in_head,
    ):
        assert (await silent.send("logs", GOOD)).code == "OK"
        await in_body.write(head("/v1/logs", PROTOBUF | {"Content-Length": "1000"}) + b"x")
        await in_head.write(b"POST /v1")
        await until(lambda: server.otlp.held_bytes == 1000 and len(server.receiver._service.connections) == 3, "all have begun")
        await until(lambda: any(one._filled for one in server.receiver._service.connections), "the head has begun")
        stopping = asyncio.ensure_future(server.receiver.stop(later(server, 3600)))
        for client in (in_body, in_head):
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (503, "close")
            assert "retry-after" in headers
            client.writer.close()
        assert server.metric("otlp_received_requests_total", signal="logs", code="UNAVAILABLE") == 1
        assert server.metric("otlp_received_requests_total", signal="", code="UNAVAILABLE") == 1, "whose head said not yet of what"
        assert await silent.closed() == b""
        async with asyncio.timeout(PATIENCE_S):
            await stopping
