"""The head of an HTTP request, and chunked bodies: what is read, and that nothing is guessed."""

from __future__ import annotations

import contextlib
import time
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_pipe import http_head
from emp_pipe.http_chunks import ChunkedBody
from emp_pipe.http_head import BadRequest, parse_head

START = b"POST /v1/logs HTTP/1.1\r\nHost: h"


def status_of(data: bytes) -> HTTPStatus:
    with pytest.raises(BadRequest) as error:
        parse_head(data)
    return error.value.status


def test_a_head_is_read_with_its_names_in_lower_case_and_its_values_trimmed() -> None:
    head = parse_head(START + b"\r\nContent-LENGTH:  12 \r\nX-Empty:\r\nUser-Agent: a b\tc")
    assert (head.method, head.path, head.content_length, head.chunked) == ("POST", "/v1/logs", 12, False)
    assert head.headers == {"host": "h", "x-empty": "", "user-agent": "a b\tc"}


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/v1/logs?a=b", "/v1/logs"),
        (b"http://h:1/v1/logs", "/v1/logs"),
        (b"HTTPS://h", "/"),
        (b"*", "*"),
        (b"//v1/logs", "//v1/logs"),
    ],
    ids=["a query", "an absolute form", "an absolute form without path", "an asterisk", "two slashes"],
)
def test_the_path_is_what_the_target_names(target: bytes, path: str) -> None:
    assert parse_head(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: h").path == path


def test_a_name_that_occurs_twice_has_both_values() -> None:
    assert parse_head(START + b"\r\nAccept: a\r\nAccept: b").headers["accept"] == "a, b"


@pytest.mark.parametrize(
    ("data", "keeps"),
    [
        (START, True),
        (START + b"\r\nConnection: close", False),
        (START + b"\r\nConnection: Keep-Alive", True),
        (b"POST / HTTP/1.0", False),
        (b"POST / HTTP/1.0\r\nConnection: keep-alive", True),
    ],
    ids=["1.1", "1.1 close", "1.1 keep-alive", "1.0", "1.0 keep-alive"],
)
def test_the_connection_is_kept_as_the_version_and_the_peer_say(data: bytes, keeps: bool) -> None:
    assert parse_head(data).keep_alive is keeps


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST /v1/logs",
        b"POST  /v1/logs HTTP/1.1\r\nHost: h",
        b"post /v1/logs HTTP/1.1\r\nHost: h",
        b"POST /v1 logs HTTP/1.1\r\nHost: h",
        b"POST /v1/logs\x00 HTTP/1.1\r\nHost: h",
        b"POST /v1/logs HTTP/1.1",
        START + b"\r\nHost: other",
        START + b"\r\nName : value",
        START + b"\r\n: value",
        START + b"\r\nno colon",
        START + b"\r\nA: b\r\n folded",
        START + b"\r\nA: b\nB: c",
        START + b"\r\nA: b\rc",
        START + b"\r\nA: b\x00",
        START + b"\r\nContent-Length: 1\r\nContent-Length: 1",
        START + b"\r\nContent-Length: 1, 1",
        START + b"\r\nContent-Length: -1",
        START + b"\r\nContent-Length: +1",
        START + b"\r\nContent-Length: 0x1",
        START + b"\r\nContent-Length: \xb2",
        START + b"\r\nContent-Length:",
        START + b"\r\nContent-Length: 1" + b"0" * 30,
        START + b"\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        START + b"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(data: bytes) -> None:
    assert status_of(data) == HTTPStatus.BAD_REQUEST


LINES = st.sampled_from(
    [
        *(b"Host: h", b"A: b", b"Bad line", b" folded", b"Connection: close", b"Transfer-Encoding: chunked", b"Expect: 100-continue"),
        *(b"Content-Length: 7", b"content-length: 8", b"Content-Length:9", b"X: Content-Length: 1"),
    ]
)


@given(st.lists(st.lists(LINES, max_size=4), min_size=1, max_size=12))
def test_a_head_is_read_as_if_none_had_been_read_before(heads: list[list[bytes]]) -> None:
    for lines in heads:
        data = b"\r\n".join([START, *lines])
        try:
            wanted = http_head._read_head(data)
        except BadRequest as error:
            assert status_of(data) == error.status  # noqa: PT017 — the two must agree
        else:
            assert parse_head(data) == wanted


@pytest.mark.parametrize("end", [b"b", b"\x01"], ids=["a value", "a value that is none"])
@pytest.mark.parametrize("blank", [b" ", b"\t"], ids=["spaces", "tabs"])
@pytest.mark.parametrize("before", [b"a", b""], ids=["within", "before"])
def test_a_head_as_long_as_heads_may_be_takes_no_longer_for_being_blank(before: bytes, blank: bytes, end: bytes) -> None:
    data = START + b"\r\nX:" + before + 2000 * blank + end  # in cubes that was minutes, in squares 0.1 s
    began_s = time.process_time()
    for _ in range(20):
        with contextlib.suppress(BadRequest):
            parse_head(data)
    assert time.process_time() - began_s < 0.5


def test_what_is_known_of_heads_is_bounded() -> None:
    for number in range(1000):
        parse_head(START + b"\r\nX: %d\r\nContent-Length: 1" % number)
    parse_head(START + b"\r\nX: " + b"x" * 5000 + b"\r\nContent-Length: 1")
    assert len(http_head._known) <= 128
    assert max(map(len, http_head._known)) <= 2048


def test_another_version_and_another_transfer_encoding_are_named() -> None:
    assert status_of(b"PRI * HTTP/2.0") == HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
    assert status_of(START + b"\r\nTransfer-Encoding: gzip, chunked") == HTTPStatus.NOT_IMPLEMENTED


@given(st.binary(max_size=200))
def test_any_bytes_give_a_head_or_a_refusal(data: bytes) -> None:
    for beginning in (b"", START + b"\r\n"):
        with contextlib.suppress(BadRequest):  # anything else fails the test
            assert parse_head(beginning + data).content_length >= 0


def read_whole(data: bytes, piece_bytes: int) -> tuple[bytes, int]:
    """Feed a body in pieces, as a connection does; return it and what was used of the data."""
    chunks, waiting, used_in_all = ChunkedBody(), b"", 0
    for start in range(0, len(data), piece_bytes):
        waiting += data[start : start + piece_bytes]
        used, _ = chunks.feed(memoryview(waiting))
        waiting = waiting[used:]
        used_in_all += used
        if chunks.is_whole:
            break
    assert chunks.is_whole
    return chunks.body(), used_in_all


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.integers(1, 400), st.sampled_from([b"", b";ext=1", b" ; a=b"]))
def test_a_chunked_body_is_read_whatever_pieces_it_comes_in(parts: list[bytes], piece_bytes: int, extension: bytes) -> None:
    data = b"".join(b"%X%s\r\n%s\r\n" % (len(part), extension, part) for part in parts) + b"0\r\nTrailer: x\r\n\r\n"
    assert read_whole(data + b"POST ", piece_bytes) == (b"".join(parts), len(data))


@pytest.mark.parametrize(
    "data",
    [b"x\r\n", b"-1\r\n", b"123456789\r\n", b"1\n", b"1\r\nabc", b"1\r\na\n\n", b";" * 5000, b"1" + b" " * 5000, b"0\r\n" + b"t" * 5000],
    ids=[
        "no number",
        "negative",
        "too many digits",
        "bare line feed",
        "longer than said",
        "a wrong end",
        "no size",
        "spaces",
        "a long trailer",
    ],
)
def test_chunks_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        ChunkedBody().feed(memoryview(data))


def test_trailers_without_end_are_refused() -> None:
    chunks = ChunkedBody()
    chunks.feed(memoryview(b"0\r\n"))
    with pytest.raises(BadRequest):
        chunks.feed(memoryview(b"a: b\r\n" * 10_000))


@given(st.binary(max_size=200))
def test_any_bytes_as_chunks_give_a_body_or_a_refusal(data: bytes) -> None:
    chunks = ChunkedBody()
    try:
        used, size_bytes = chunks.feed(memoryview(data))
    except BadRequest:
        return
    assert used <= len(data)
    assert size_bytes == len(chunks.body()) <= used
