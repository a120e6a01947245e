"""The head of an HTTP/1.1 request, read strictly: what could be understood in two ways is refused, not guessed.

Not here: the body and the connection (`http_connection.py`), what is answered (a receiver), an answer's head (`http_reply.py`).
Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

# The blanks around a value are taken off afterwards: a pattern that looks for them tries all ways to share out a long run of them.
_FIELD = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):([^\x00-\x08\x0a-\x1f\x7f]*+)(?:\r\n|$)")
_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/(\d)\.(\d)(?:\r\n|$)")
_ABSOLUTE = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_DIGITS = re.compile(r"\d{1,18}")
_LENGTH_LINE = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (\d{1,18})(?=\r\n|\Z)")
_MOST_KNOWN = 128
_MOST_KNOWN_BYTES = 2048


class BadRequest(ValueError):
    """The peer's bytes are no request that can be answered: the status says which kind of wrong, the text where."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a peer asks for; header names are in lower case, a name that occurs twice has both values, joined by a comma.

    The length is not among the headers."""

    method: str
    path: str
    headers: Mapping[str, str]
    content_length: int
    """Bytes of the body; 0 where it is chunked."""
    chunked: bool
    keep_alive: bool
    expects_continue: bool
    query: str = ""
    """What stands behind the path's question mark, as it came."""


_known: dict[bytes, RequestHead] = {}
"""Heads without the line of their length: a client sends the same one again and again, and reading it anew takes 24 µs."""


def parse_head(data: bytes) -> RequestHead:
    """Return the head that stands in `data`, which ends before its empty line. Raises BadRequest."""
    length = _LENGTH_LINE.search(data)
    if length is None:
        return _read_head(data)
    rest = data[: length.start()] + data[length.end() :]
    head = _known.get(rest)
    if head is not None:  # its rest is good, and has no other length: so is this one, wherever the line stands
        return RequestHead(head.method, head.path, head.headers, int(length[1]), False, head.keep_alive, head.expects_continue, head.query)
    head = _read_head(data)
    if len(rest) <= _MOST_KNOWN_BYTES:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[rest] = head
    return head


def _read_head(data: bytes) -> RequestHead:
    text = data.decode("latin-1")
    line = _REQUEST_LINE.match(text)
    if line is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the first line is no HTTP request")
    method, target, major, minor = line.groups()
    if major != "1":
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 is spoken here")
    headers = read_fields(text, line.end())
    is_1_0 = minor == "0"
    if "host" not in headers and not is_1_0:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the header host is missing")
    content_length, chunked = _framing(headers, is_1_0)
    headers.pop("content-length", None)
    wished = headers.get("connection", "").lower()
    path, query = _path_and_query(target)
    return RequestHead(
        method,
        path,
        headers,
        content_length,
        chunked,
        "keep-alive" in wished if is_1_0 else "close" not in wished,
        not is_1_0 and headers.get("expect", "").lower() == "100-continue",
        query,
    )


def read_fields(text: str, at: int) -> dict[str, str]:
    """Return the header fields that stand in `text` from `at` to its end, as `RequestHead` has them. Raises BadRequest."""
    headers: dict[str, str] = {}
    end = len(text)
    while at < end:
        field = _FIELD.match(text, at)
        if field is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"the header at byte {at} is none")
        name, value = field[1].lower(), field[2].strip(" \t")
        if name in headers:
            if name in ("content-length", "transfer-encoding", "host"):
                raise BadRequest(HTTPStatus.BAD_REQUEST, f"the header {name} occurs twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
        at = field.end()
    return headers


def read_length(text: str) -> int:
    """Return a Content-Length. Raises BadRequest."""
    if not text.isascii() or _DIGITS.fullmatch(text) is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the header content-length is no number")
    return int(text)


def _framing(headers: Mapping[str, str], is_1_0: bool) -> tuple[int, bool]:
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or is_1_0:  # two lengths: how requests are smuggled past a proxy
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the header transfer-encoding is not allowed here")
        if coding.lower() != "chunked":
            raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "the only transfer-encoding understood is chunked")
        return 0, True
    return (0 if length is None else read_length(length)), False


def _path_and_query(target: str) -> tuple[str, str]:
    if not target.startswith("/") and (absolute := _ABSOLUTE.match(target)) is not None:
        target = target[absolute.end() :] or "/"
    path, _, query = target.partition("?")
    return path, query
