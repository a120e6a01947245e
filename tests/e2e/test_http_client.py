"""The HTTP client against servers that answer what they should not, through real sockets; good requests before and after each.

How connections are kept, and how long things may take: `test_http_client_connections.py`."""

from __future__ import annotations

import asyncio
import zlib

import pytest

from emp_pipe.delivery.http_link import MOST_BODY_BYTES
from emp_pipe.errors import ErrorKind
from tests.support.http_client import LARGE, OK, talking, until
from tests.support.scripted_http import Behaviour, Conversation, closes_after, endless, says

# --- what is no answer --------------------------------------------------------------------------------


async def resets_in_its_answer(conversation: Conversation) -> None:
    await conversation.body()
    await conversation.say(OK + b"Content-Length: 100\r\n\r\nhalf")
    conversation.writer.transport.abort()


async def says_nothing_more_and_reads_no_further(conversation: Conversation) -> None:
    conversation.writer.write_eof()
    conversation.writer.transport.pause_reading()
    await asyncio.Event().wait()


async def succeeds_before_the_request_was_read(conversation: Conversation) -> None:
    conversation.writer.transport.pause_reading()
    await conversation.say(OK + b"Content-Length: 0\r\n\r\n")
    await asyncio.Event().wait()


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
NO_HTTP, BROKEN = ErrorKind.SERVER_ERROR, ErrorKind.UNREACHABLE
NO_ANSWERS: dict[str, tuple[Behaviour, ErrorKind]] = {
    "headers without end": (endless(OK, b"X-Header: value\r\n" * 100), NO_HTTP),
    "one header without end": (endless(OK + b"X: ", b"v" * 4096), NO_HTTP),
    "a status line without end": (endless(b"HTTP/1.1 200 ", b"O" * 4096), NO_HTTP),
    "interim answers without end": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10), NO_HTTP),
    "headers of an interim answer without end": (endless(b"HTTP/1.1 103 Early Hints\r\n", b"Link: x\r\n" * 100), NO_HTTP),
    "an upgrade that nobody asked for": (says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"), NO_HTTP),
    "chunks with extensions without end": (endless(CHUNKED + b"1;", b"x" * 4096), NO_HTTP),
    "trailers without end": (endless(CHUNKED + b"0\r\n", b"Trailer: x\r\n" * 100), NO_HTTP),
    "two lengths": (says(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), NO_HTTP),
    "a length and chunks": (says(OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), NO_HTTP),
    "a negative length": (says(OK + b"Content-Length: -1\r\n\r\n"), NO_HTTP),
    "a length of a hundred digits": (says(OK + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n"), NO_HTTP),
    "an unknown transfer coding": (says(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n"), NO_HTTP),
    "a folded header": (says(OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n"), NO_HTTP),
    "a header without a name": (says(OK + b": a\r\nContent-Length: 0\r\n\r\n"), NO_HTTP),
    "a zero in a header": (says(OK + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n"), NO_HTTP),
    "a chunk without a size": (says(CHUNKED + b"size\r\n"), NO_HTTP),
    "a chunk that is longer than its size": (says(CHUNKED + b"1\r\nabc\r\n"), NO_HTTP),
    "a status that is none": (says(b"HTTP/1.1 999999\r\n\r\n"), NO_HTTP),
    "another version of HTTP": (says(b"HTTP/2.0 200 OK\r\n\r\n"), NO_HTTP),
    "frames of HTTP/2": (says(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"), NO_HTTP),
    "TLS on a port that was thought plain": (says(b"\x15\x03\x01\x00\x02\x02\x46"), NO_HTTP),
    "a greeting of another protocol": (says(b"220 mail.example ESMTP\r\n"), NO_HTTP),
    "zeros": (endless(b"", bytes(4096)), NO_HTTP),
    "a close after bare line feeds": (closes_after(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"), BROKEN),
    "a close in the status line": (closes_after(b"HTTP/1."), BROKEN),
    "a close in the headers": (closes_after(OK + b"Content-Length: 0\r\n"), BROKEN),
    "a close in the body": (closes_after(OK + b"Content-Length: 100\r\n\r\nhalf"), BROKEN),
    "a close in a chunk": (closes_after(CHUNKED + b"10\r\nhalf"), BROKEN),
    "a close before the last chunk": (closes_after(CHUNKED + b"1\r\na\r\n"), BROKEN),
    "a close after an interim answer": (closes_after(b"HTTP/1.1 100 Continue\r\n\r\n"), BROKEN),
    "a reset in the body": (resets_in_its_answer, BROKEN),
}


@pytest.mark.parametrize("case", NO_ANSWERS)
async def test_what_is_no_answer_fails_that_request_alone(case: str) -> None:
    behaviour, kind = NO_ANSWERS[case]
    async with talking() as (server, client):
        await client.good(server)
        server.script(behaviour)
        error = await client.error()
        assert error.kind is kind
        assert (await client.good(server), client.resent) == (2, 0), "on a new connection"
        assert len(server.requests) == 3, "the one that failed went once"
        if case.startswith("TLS"):
            assert "https://" in str(error)


NO_ANSWERS_TO_LARGE_REQUESTS: dict[str, tuple[Behaviour, ErrorKind]] = {
    "half closed while the request goes out": (says_nothing_more_and_reads_no_further, BROKEN),
    "a success before the request was read": (succeeds_before_the_request_was_read, NO_HTTP),
}


@pytest.mark.parametrize("case", NO_ANSWERS_TO_LARGE_REQUESTS)
async def test_who_cannot_have_read_the_request_has_not_succeeded(case: str) -> None:
    behaviour, kind = NO_ANSWERS_TO_LARGE_REQUESTS[case]
    async with talking() as (server, client):
        server.script(behaviour)
        assert (await client.error(LARGE)).kind is kind
        await client.good(server)


# --- what is one, in whatever form --------------------------------------------------------------------


def in_single_bytes(data: bytes) -> Behaviour:
    async def behave(conversation: Conversation) -> None:
        await conversation.body()
        for at in range(len(data)):
            await conversation.say(data[at : at + 1])
            await asyncio.sleep(0)

    return behave


KEPT, CLOSED = True, False
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
ANSWERS: dict[str, tuple[Behaviour, bytes, bool]] = {
    "a length": (says(OK + b"Content-Length: 3\r\n\r\nabc"), b"abc", KEPT),
    "byte by byte": (in_single_bytes(OK + b"Content-Length: 3\r\n\r\nabc"), b"abc", KEPT),
    "chunks": (says(CHUNKED + b"1\r\na\r\n2;x=y\r\nbc\r\n0\r\nTrailer: x\r\n\r\n"), b"abc", KEPT),
    "chunks byte by byte": (in_single_bytes(CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"), b"abc", KEPT),
    "no body at all": (says(b"HTTP/1.1 204 No Content\r\n\r\n"), b"", KEPT),
    "interim answers first": (says(INTERIM + HINTS + OK + b"Content-Length: 1\r\n\r\na"), b"a", KEPT),
    "interim answers byte by byte": (in_single_bytes(INTERIM + OK + b"Content-Length: 1\r\n\r\na"), b"a", KEPT),
    "as much as is read": (says(OK + b"Content-Length: 65536\r\n\r\n" + b"x" * MOST_BODY_BYTES), b"x" * MOST_BODY_BYTES, KEPT),
    "connection: close": (says(OK + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc", then_closes=True), b"abc", CLOSED),
    "connection: close that does not close": (says(OK + b"Connection: Close\r\nContent-Length: 3\r\n\r\nabc"), b"abc", CLOSED),
    "the end of the connection": (says(OK + b"\r\nabc", then_closes=True), b"abc", CLOSED),
    "HTTP/1.0": (says(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc"), b"abc", CLOSED),
    "HTTP/1.0 that keeps": (says(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc"), b"abc", KEPT),
    "a body without end, of a length": (
        endless(OK + b"Content-Length: 99999999999\r\n\r\n", b"x" * 65_536),
        b"x" * MOST_BODY_BYTES,
        CLOSED,
    ),
    "a body without end, in chunks": (endless(CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n"), b"x" * MOST_BODY_BYTES, CLOSED),
    "a body without end, of no length": (endless(OK + b"\r\n", b"x" * 65_536), b"x" * MOST_BODY_BYTES, CLOSED),
    "a second answer behind it": (says((OK + b"Content-Length: 1\r\n\r\na") * 2), b"a", CLOSED),
    "stray bytes behind it": (says(OK + b"Content-Length: 1\r\n\r\nabc"), b"a", CLOSED),
    "stray bytes behind the last chunk": (says(CHUNKED + b"1\r\na\r\n0\r\n\r\nHTTP/1.1"), b"a", CLOSED),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_an_answer_in_this_form_is_read_and_the_connection_goes_on_only_where_it_can(case: str) -> None:
    behaviour, body, is_kept = ANSWERS[case]
    async with talking() as (server, client):
        await client.good(server)
        server.script(behaviour)
        reply = await client.post()
        assert (reply.status in (200, 204), reply.body) == (True, body)
        assert await client.good(server) == (1 if is_kept else 2)
        assert (len(server.requests), client.resent) == (3, 0)
        await until(lambda: server.open_connections == 1)


def compressed(data: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "raw", "body"),
    [
        ("gzip", compressed(b"slow down", 31), b"slow down"),
        ("deflate", compressed(b"slow down", 15), b"slow down"),
        ("gzip", compressed(bytes(50 << 20), 31), bytes(MOST_BODY_BYTES)),
        ("gzip", b"not gzip", b""),
        ("br", b"anything", b""),
    ],
    ids=["gzip", "deflate", "a bomb", "broken", "unknown"],
)
async def test_an_answer_that_comes_compressed_unasked_is_inflated_no_further_than_one_is_read(
    coding: str, raw: bytes, body: bytes
) -> None:
    async with talking() as (server, client):
        server.script(
            says(b"HTTP/1.1 429 Too Many\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s" % (coding.encode(), len(raw), raw))
        )
        reply = await client.post()
        assert (reply.status, reply.body) == (429, body)
        await client.good(server)


async def refuses_before_the_request_was_read(conversation: Conversation) -> None:
    conversation.writer.transport.pause_reading()
    await conversation.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    await asyncio.Event().wait()


async def refuses_and_closes_before_the_request_was_read(conversation: Conversation) -> None:
    await conversation.say(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
    conversation.writer.write_eof()
    await conversation.closed()


@pytest.mark.parametrize(
    "behaviour", [refuses_before_the_request_was_read, refuses_and_closes_before_the_request_was_read], ids=["reads on", "closes"]
)
async def test_a_refusal_that_overtakes_the_request_is_its_answer(behaviour: Behaviour) -> None:
    async with talking() as (server, client):
        await client.good(server)
        server.script(behaviour)
        reply = await client.post(LARGE)
        assert (reply.status, reply.body) == (413, b"no")
        assert await client.good(server) == 2, "nobody knows where the next request would begin on the first"
        assert client.resent == 0
