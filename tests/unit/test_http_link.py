"""One connection of the HTTP client, without a socket: whatever bytes come in whatever pieces are an answer or an error."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emp_pipe.delivery.http_client import Origin, Target
from emp_pipe.delivery.http_link import MOST_BODY_BYTES, HttpLink, LinkError, Reply
from emp_pipe.errors import ConfigError
from emp_pipe.http_head import BadRequest
from emp_pipe.http_reply import _read_head, parse_reply_head

OK = b"HTTP/1.1 200 OK\r\n"
LINES = st.sampled_from(
    [
        b"Date: Tue, 24 Nov 2026 12:00:00 GMT",
        b"date: x",
        b"Date: \x01",
        b"Content-Length: 3",
        b"Content-Length: x",
        b"Transfer-Encoding: chunked",
        b"Connection: close",
        b"X: y",
        b" folded",
    ]
)


class Transport:
    """Takes what is written, and is closed or not."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, parts: Any) -> None:
        for part in parts:
            self.written += part


async def answered(pieces: list[bytes], then: Exception | None = None, *, ends: bool = True) -> tuple[Reply | LinkError | None, bool]:
    """Return what a request is answered by these pieces, and whether the connection goes on; None: it still waits."""
    link, transport = HttpLink(lambda link: None, is_tls=False, now_s=lambda: 0.0), Transport()
    link.connection_made(transport)  # type: ignore[arg-type]
    task = asyncio.ensure_future(link.send(b"head", memoryview(b"body")))
    await asyncio.sleep(0)
    assert transport.written == b"headbody"
    for piece in pieces:
        if transport.closed or task.done():
            break
        link.data_received(piece)
        await asyncio.sleep(0)
    goes_on = not transport.closed
    if ends:
        link.connection_lost(then)
    await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        return None, goes_on
    error = task.exception()
    assert error is None or isinstance(error, LinkError)
    return (task.result() if error is None else error), goes_on  # type: ignore[return-value]


def outcome(result: Reply | LinkError | None) -> Any:
    return (result.status, result.raw) if isinstance(result, Reply) else type(result)


@given(st.binary(max_size=300), st.sampled_from([b"", OK, OK + b"Transfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]))
@example(b"", b"")
async def test_any_bytes_give_an_answer_or_an_error(data: bytes, start: bytes) -> None:
    result, _ = await answered([start + data] if start + data else [])
    assert isinstance(result, Reply | LinkError)


ANSWERS = st.sampled_from(
    [
        OK + b"Content-Length: 3\r\n\r\nabc",
        OK + b"Content-Length: 0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nT: x\r\n\r\n",
        OK + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"\r\nuntil the end",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.0 503 Busy\r\nRetry-After: 1\r\n\r\nbusy",
        OK + b"Content-Length: x\r\n\r\n",
        OK + b"Content-Length: 10\r\n\r\ntorn",
        OK + b"Content-Length: 70000\r\n\r\n" + b"x" * 70_000,
        b"\x15\x03\x01",
    ]
)


@given(ANSWERS.map(memoryview), st.lists(st.integers(1, 200), min_size=1, max_size=8))
async def test_an_answer_is_the_same_in_whatever_pieces_it_comes(answer: memoryview, sizes: list[int]) -> None:
    data = bytes(answer)  # a memoryview is not printed in full
    pieces: list[bytes] = []
    at = 0
    while at < len(data):
        size = sizes[len(pieces) % len(sizes)] * (100 if len(data) > 1000 else 1)
        pieces.append(data[at : at + size])
        at += size
    whole, in_pieces = await answered([data]), await answered(pieces)
    assert outcome(whole[0]) == outcome(in_pieces[0])
    if isinstance(whole[0], Reply):
        assert len(whole[0].raw) <= MOST_BODY_BYTES
        assert whole[1] == in_pieces[1]


async def test_a_body_that_ends_with_the_connection_is_none_when_the_connection_breaks() -> None:
    assert isinstance((await answered([OK + b"\r\nhalf"], ConnectionResetError("reset")))[0], LinkError)
    assert outcome((await answered([OK + b"\r\nall"]))[0]) == (200, b"all")


@given(st.lists(st.lists(LINES, max_size=4), min_size=1, max_size=12))
def test_a_head_is_read_as_if_none_had_been_read_before(heads: list[list[bytes]]) -> None:
    for lines in heads:
        data = b"\r\n".join([OK[:-2], *lines])
        try:
            wanted = _read_head(data)
        except BadRequest:
            with pytest.raises(BadRequest):
                parse_reply_head(data)
        else:
            found = parse_reply_head(data)
            assert {k: v for k, v in wanted.headers.items() if k != "date"} == {k: v for k, v in found.headers.items() if k != "date"}
            assert (wanted.content_length, wanted.chunked, wanted.keep_alive) == (found.content_length, found.chunked, found.keep_alive)


# --- where a request goes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "origin", "path", "host"),
    [
        ("http://h/v1/logs", Origin("h", 80, False), "/v1/logs", "h"),
        ("https://H.example/v1/logs?a=b c&d=%20", Origin("h.example", 443, True), "/v1/logs?a=b%20c&d=%20", "h.example"),
        ("http://h:8080", Origin("h", 8080, False), "/", "h:8080"),
        ("https://h:80/ä#part", Origin("h", 80, True), "/%C3%A4", "h:80"),
        ("http://[::1]:4318/x", Origin("::1", 4318, False), "/x", "[::1]:4318"),
        ("http://[fe80::1%25eth0]/", Origin("fe80::1%25eth0", 80, False), "/", "[fe80::1]"),
        ("http://bücher.example/", Origin("xn--bcher-kva.example", 80, False), "/", "xn--bcher-kva.example"),
    ],
)
def test_an_address_says_whom_to_reach_and_what_to_ask_for(address: str, origin: Origin, path: str, host: str) -> None:
    target = Target.of(address, {"X-Key": "v"}, "here")
    lines = target.start.decode().split("\r\n")
    assert target.origin == origin
    assert lines[:2] == [f"POST {path} HTTP/1.1", f"Host: {host}"]
    assert lines[2].startswith("User-Agent: emp-pipe/")
    assert lines[3:] == ["X-Key: v", ""]


def test_a_user_agent_that_is_set_is_the_one_that_is_sent() -> None:
    assert Target.of("http://h/", {"user-agent": "mine"}, "here").start.endswith(b"Host: h\r\nuser-agent: mine\r\n")


@pytest.mark.parametrize(
    "headers", [{"a b": "c"}, {"": "c"}, {"X": "a\r\nHost: evil"}, {"X": "a\x00"}, {"X": "ä"}, {"Host": "h"}, {"content-length": "1"}]
)
def test_a_header_that_would_break_out_or_say_where_the_body_ends_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="here: headers"):
        Target.of("http://h/", headers, "here")
