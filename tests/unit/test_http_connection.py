"""What one peer may hold of an HTTP receiver: memory only for bytes that it has sent, and no answers that it does not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from emp_pipe._core import BodyPool
from emp_pipe.http_body import SizedBody, first_grant_bytes
from emp_pipe.http_connection import HttpConnection, State
from emp_pipe.otlp_answers import DONE
from tests.support.forward import PATIENCE_S
from tests.support.otlp_receiving import CONTENT_TYPES, connected, encoded, head, request, running

MIB = 1 << 20


async def until(is_so: Any, what: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110  # states without an event of their own
            await asyncio.sleep(0.005)
    assert is_so(), what


async def test_lengths_that_are_only_told_hold_no_memory_and_keep_nobody_out(tmp_path: Path) -> None:
    limits = {"max_request_bytes": 16 * MIB, "max_total_bytes": 16 * MIB}
    async with running("http", tmp_path, **limits) as server, contextlib.AsyncExitStack() as idle:
        for _ in range(20):
            client = await idle.enter_async_context(connected(server))
            await client.write(head("/v1/logs", {"Content-Type": CONTENT_TYPES["protobuf"], "Content-Length": str(16 * MIB // 8)}))
        connections = await _connections(server, 20)
        await until(lambda: all(one.state is State.BODY for one in connections), "all wait for their bodies")
        assert server.otlp.held_bytes == 20 * first_grant_bytes(2 * MIB)
        async with connected(server) as client:
            assert (await client.send("logs", encoded(request("logs")))).code == "OK"
    assert server.otlp.held_bytes == 0


async def test_a_body_that_finds_no_more_room_in_its_middle_is_told_to_come_again(tmp_path: Path) -> None:
    async with running("http", tmp_path, max_request_bytes=4 * MIB, max_total_bytes=4 * MIB) as server:
        async with connected(server) as slow, connected(server) as client:
            await slow.write(head("/v1/logs", {"Content-Type": CONTENT_TYPES["protobuf"], "Content-Length": str(4 * MIB)}) + bytes(MIB))
            await until(lambda: server.otlp.held_bytes >= MIB, "a part of the first body is there")
            status, headers, _ = await client.post("/v1/logs", bytes(4 * MIB - 1), {"Content-Type": CONTENT_TYPES["protobuf"]})
            assert (status, "retry-after" in headers) == (503, True)
            server.otlp.reserve(2 * MIB)
            await slow.write(bytes(3 * MIB))
            status, headers, _ = await slow.answer()
            assert (status, "retry-after" in headers) == (503, True)
            await slow.closed()
            server.otlp.release(2 * MIB)
        await until(lambda: server.otlp.held_bytes == 0, "all is given back")


@pytest.mark.parametrize("size", [0, 1, 131_071, 131_072, 131_073, 262_144, 1_000_003])
async def test_a_body_of_any_length_arrives_whole(tmp_path: Path, size: int) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        sent = b"\x0a" + size.to_bytes(4, "little") + bytes(index * 7 % 251 for index in range(size))
        received: list[bytes] = []
        server.otlp.take = lambda signal, body, answer, **more: received.append(bytes(body)) or answer(DONE)
        await client.write(head("/v1/logs", {"Content-Type": CONTENT_TYPES["protobuf"], "Content-Length": str(len(sent))}) + sent)
        await until(lambda: received, "it is taken")
        assert received == [sent]


async def test_bodies_after_each_other_land_in_the_same_memory_and_show_nothing_of_each_other(tmp_path: Path) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        pool = server.receiver._service.bodies
        received: list[bytes] = []
        server.otlp.take = lambda signal, body, answer, **more: received.append(bytes(body)) or answer(DONE)
        sent = [bytes([number]) * (400_000 - 50_000 * number) for number in range(1, 6)]
        for body in sent:
            assert (await client.post("/v1/logs", body, {"Content-Type": CONTENT_TYPES["protobuf"]}))[0] == 200
            await until(lambda: pool.spare_pieces == 1, "what the body had is there for the next one")
        assert received == sent


async def test_peers_that_hold_all_the_memory_that_bodies_share_keep_nobody_out(tmp_path: Path) -> None:
    async with running("http", tmp_path) as server, contextlib.AsyncExitStack() as idle:
        pool = server.receiver._service.bodies
        for _ in range(20):
            client = await idle.enter_async_context(connected(server))
            await client.write(head("/v1/logs", {"Content-Type": CONTENT_TYPES["protobuf"], "Content-Length": str(MIB)}) + b"begun")
        connections = await _connections(server, 20)
        await until(lambda: all(one.state is State.BODY for one in connections), "all wait for their bodies")
        async with connected(server) as client:
            status, _, _ = await client.post("/v1/logs", encoded(request("logs")) * 3000, {"Content-Type": CONTENT_TYPES["protobuf"]})
            assert status == 200
        assert pool.spare_pieces == 0
        await idle.aclose()
        await until(lambda: pool.spare_pieces == 8, "it is given back with the connections, and there are no more pieces than these")


def test_memory_that_a_view_holds_in_its_place_is_not_moved() -> None:
    body = BodyPool(piece_bytes=4).begin(b"ab", 4)
    view = memoryview(body)
    view[:] = b"cd"
    assert body.landed(2)
    body.grant(4)
    with pytest.raises(BufferError, match="cannot be moved"):
        memoryview(body)
    view.release()
    memoryview(body)[:] = b"efgh"
    assert body.landed(4)
    assert bytes(body) == b"abcdefgh"


def test_grants_of_a_body_double_so_that_they_are_few() -> None:
    body, grown = SizedBody(BodyPool(), 64 * MIB, memoryview(b"ab")), 0
    while True:
        room = body.room()
        landed = len(room)
        room.release()
        if body.filled(landed):
            if not body.wanted_bytes:
                break
            body.grow()
            grown += 1
    assert (len(body.body), bytes(body.body)[:2], grown) == (64 * MIB, b"ab", 9)


async def test_a_peer_that_reads_no_answers_is_not_read_either_and_closed_in_the_end(tmp_path: Path) -> None:
    async with running("http", tmp_path, head_timeout_s=2.0, idle_timeout_s=2.0) as server:
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect(server.address)
            peer.setblocking(False)
            requests, [connection] = head("/nowhere", {}, "GET") * 1000, await _connections(server, 1)
            unread_bytes = connection._transport.get_write_buffer_size

            async def send_for_ever() -> None:
                while unread_bytes() < MIB:
                    await asyncio.get_running_loop().sock_sendall(peer, requests)

            sending = asyncio.create_task(send_for_ever())
            await until(lambda: connection.answers_unread or sending.done(), "its answers are stuck")
            assert not sending.done(), "its answers pile up here"
            assert 0 < unread_bytes() < MIB // 4
            sending.cancel()
            await asyncio.wait([sending])
            await until(lambda: not server.receiver._service.connections, "it is closed, though its answers cannot be written")


async def test_a_peer_that_reads_its_answers_late_gets_all_of_them(tmp_path: Path) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        client.writer.transport.pause_reading()
        count = 60_000
        client.writer.write(head("/nowhere", {}, "GET") * count)
        [connection] = await _connections(server, 1)
        await until(lambda: connection.answers_unread, "the answers are stuck")
        assert connection.state is State.HEAD
        client.writer.transport.resume_reading()
        for _ in range(count):
            status, _, _ = await client.answer()
            assert status == 404


async def _connections(server: Any, count: int) -> list[HttpConnection]:
    connections = server.receiver._service.connections
    await until(lambda: len(connections) == count and all(one.is_made for one in connections), f"{count} are connected")
    return list(connections)


async def test_a_peer_that_has_gone_does_not_disturb_the_stop(tmp_path: Path) -> None:
    async with running("http", tmp_path) as server:
        with socket.create_connection(server.address) as peer:
            peer.sendall(head("/v1/logs", {"Content-Type": CONTENT_TYPES["protobuf"], "Content-Length": "100"}))
            [connection] = await _connections(server, 1)
            await until(lambda: connection.state is State.BODY, "it waits for its body")
        # The end has come, and the event loop has not yet seen it.
        await server.receiver.stop(server.receiver._context.clock.monotonic_s() + PATIENCE_S)
        assert server.otlp.held_bytes == 0


async def test_one_empty_line_before_a_request_is_forgiven_and_more_end_the_connection(tmp_path: Path) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        for _ in range(2):
            await client.write(b"\r\n")
            assert (await client.send("logs", encoded(request("logs")))).code == "OK"
        await client.write(2000 * b"\r\n")
        status, _, _ = await client.answer()
        assert status == 400
        await client.closed()
        assert server.metric("otlp_received_requests_total", signal="", code="INVALID_ARGUMENT") == 1
