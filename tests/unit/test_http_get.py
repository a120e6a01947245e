"""The small HTTP server: hostile bytes are answered with an error or closed, nothing is held without bound."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_pipe.http_get import GetLimits, HttpGetServer, Request, Response, parse_head
from emp_pipe.http_head import BadRequest


async def echo(request: Request) -> Response:
    return Response(200, request.path.encode(), "text/plain")


@asynccontextmanager
async def served(*, silence_s: float = 30.0) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpGetServer(echo, limits=GetLimits(timeout_s=silence_s))
    await server.start(listener)
    try:
        yield listener.getsockname()[1]
    finally:
        await asyncio.wait_for(server.stop(), 20)


async def exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_several_requests_pass_over_one_connection_in_order() -> None:
    async with served() as port:
        answer = await exchange(
            port, b"GET /a?x=1 HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\n\r\nGET /c HTTP/1.1\r\n\r\n"
        )
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.endswith(b"\r\n\r\n/b")


async def test_a_request_in_pieces_is_answered() -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in b"GET /a HTTP/1.0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await asyncio.wait_for(reader.read(), 20)).endswith(b"/a")
        writer.close()


async def test_head_gets_the_length_and_no_body() -> None:
    async with served() as port:
        answer = await exchange(port, b"HEAD /abc HTTP/1.0\r\n\r\n")
    assert b"Content-Length: 4" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"GET /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET /a\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nhello", 400),
        (b"GET /a HTTP/1.1\r\nX: a\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET /a HTTP/1.1\r\nX: a\rContent-Length: 5\r\n\r\nhello", 400),
        (b"GET /a HTTP/1.1\r\nTransfer-Encoding\x0b: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /a\nX: HTTP/1.1\r\n\r\n", 400),
        (b"\xff\xfe\x00\r\n\r\n", 400),
        (b"\x16\x03\x01 a TLS hello \r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"x" * 20_000, 431),
    ],
)
async def test_what_is_not_answered_is_refused_with_its_status_and_closed(data: bytes, status: int) -> None:
    async with served() as port:
        answer = await exchange(port, data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) or (status == 431 and answer == b"")  # closed with bytes unread: maybe a reset
    assert answer.count(b"HTTP/1.1") <= 1


async def test_a_silent_connection_is_closed() -> None:
    async with served(silence_s=0.05) as port:
        assert await exchange(port, b"GET /a HT") == b""


async def test_the_number_of_connections_is_bounded_and_free_again_when_they_end() -> None:
    async with served() as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(64)]
        assert await exchange(port, b"GET /a HTTP/1.0\r\n\r\n") == b""
        for _, writer in held:
            writer.close()
        answer = b""
        for _ in range(1000):
            answer = answer or await exchange(port, b"GET /a HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_stop_does_not_wait_for_open_connections() -> None:
    async with served() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(head: bytes) -> None:
    try:
        method, request, _ = parse_head(head + b"\r\n\r\n")
    except BadRequest:
        return
    assert method in ("GET", "HEAD")
    assert request.path.startswith("/")
