"""The head of an HTTP/1.1 answer: ours is written, a destination's is read as strictly as a request's: where its body ends must be clear.

Not here: the bodies and the connections (`http_connection.py`, `delivery/http_link.py`), what a status means
(`delivery/http_answers.py`). Source: RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from emp_pipe.http_head import BadRequest, read_fields, read_length

_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9]\d\d)(?: [^\x00-\x08\x0a-\x1f\x7f]*)?(?:\r\n|$)", re.ASCII)
_DATE_LINE = re.compile(rb"\r\n[Dd]ate: [\x20-\x7e]*(?=\r\n|\Z)")
_BODILESS = frozenset({204, 304})
_MOST_KNOWN = 64
_MOST_KNOWN_BYTES = 1024


class Response(NamedTuple):
    """What a peer gets of ours. `headers` are whole lines, each with its line end."""

    status: HTTPStatus
    body: bytes = b""
    content_type: str = ""
    headers: str = ""


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """How a destination answers; header names are in lower case. The date is among the headers only beside a Retry-After."""

    status: int
    headers: Mapping[str, str]
    content_length: int | None
    """Bytes of the body; None where it is chunked, or ends with the connection."""
    chunked: bool
    keep_alive: bool


_known: dict[bytes, ReplyHead] = {}
"""Heads without the line of their date: a destination sends the same one again and again."""


def parse_reply_head(data: bytes) -> ReplyHead:
    """Return the head that stands in `data`, which ends before its empty line. Raises BadRequest."""
    date = _DATE_LINE.search(data)
    if date is not None:
        data = data[: date.start()] + data[date.end() :]
    head = _known.get(data)
    if head is None:
        head = _read_head(data)
        if len(data) <= _MOST_KNOWN_BYTES:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[data] = head
    if date is not None and "retry-after" in head.headers:
        said = date[0].partition(b":")[2].strip().decode("latin-1")
        return replace(head, headers={**head.headers, "date": said})
    return head


def _read_head(data: bytes) -> ReplyHead:
    text = data.decode("latin-1")
    line = _STATUS_LINE.match(text)
    if line is None:
        raise BadRequest(HTTPStatus.BAD_GATEWAY, "the first line is no HTTP answer")
    is_1_0, status = line[1] == "0", int(line[2])
    headers = read_fields(text, line.end())
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None and (length is not None or is_1_0):
        raise BadRequest(HTTPStatus.BAD_GATEWAY, "the header transfer-encoding is not allowed here")
    if coding is not None and coding.lower() != "chunked":
        raise BadRequest(HTTPStatus.BAD_GATEWAY, "the only transfer-encoding understood is chunked")
    content_length = None if length is None else read_length(length)
    if status < 200 or status in _BODILESS:
        content_length, coding = 0, None
    wished = headers.get("connection", "").lower()
    keep_alive = "keep-alive" in wished if is_1_0 else "close" not in wished
    return ReplyHead(status, headers, content_length, coding is not None, keep_alive)


@lru_cache(512)
def reply_head(status: HTTPStatus, content_type: str, body_bytes: int, headers: str, last: bool) -> bytes:
    """Return the head of an answer of ours. `headers` are whole lines; `last`: the connection ends with it."""
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    length = "" if status is HTTPStatus.NO_CONTENT else f"Content-Length: {body_bytes}\r\n"
    ending = "Connection: close\r\n\r\n" if last else "\r\n"
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{kind}{length}{headers}{ending}".encode("latin-1", "replace")
