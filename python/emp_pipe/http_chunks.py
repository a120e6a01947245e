"""A chunked HTTP body, read as it comes: sizes and extensions are checked, trailers are read over. Not here: limits (`Service.grant`)."""

from __future__ import annotations

import re
from http import HTTPStatus

from emp_pipe.http_head import BadRequest

_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_MOST_LINE_BYTES = 4096
_MOST_TRAILER_BYTES = 16_384


class ChunkedBody:
    """Collects the chunks of one body. `is_whole` after the last one and its trailers."""

    def __init__(self) -> None:
        self.is_whole = False
        self._parts = bytearray()
        self._left_bytes = 0
        """Of the chunk that is being read, its line end included; 0: a size comes next."""
        self._in_trailers = False
        self._trailer_bytes = 0

    def body(self) -> bytes:
        return bytes(self._parts)

    def feed(self, data: memoryview) -> tuple[int, int]:
        """Return how many bytes were used, and how many of them were the body's. Raises BadRequest."""
        at = 0
        before = len(self._parts)
        while at < len(data) and not self.is_whole:
            used = self._trailer(data[at:]) if self._in_trailers else self._data(data[at:]) if self._left_bytes else self._size(data[at:])
            if not used:
                break
            at += used
        return at, len(self._parts) - before

    def _size(self, data: memoryview) -> int:
        line = bytes(data[:_MOST_LINE_BYTES])
        found = _SIZE.match(line)
        if found is None:
            if b"\n" in line or len(line) == _MOST_LINE_BYTES:
                raise BadRequest(HTTPStatus.BAD_REQUEST, "a chunk has no size")
            return 0
        size = int(found[1], 16)
        if size:
            self._left_bytes = size + 2
        else:
            self._in_trailers = True
        return found.end()

    def _data(self, data: memoryview) -> int:
        of_body = min(max(self._left_bytes - 2, 0), len(data))
        if of_body:
            self._parts += data[:of_body]
            self._left_bytes -= of_body
            return of_body
        end = data[: self._left_bytes]
        if end != b"\r\n"[2 - self._left_bytes :][: len(end)]:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "a chunk is longer than its size says")
        self._left_bytes -= len(end)
        return len(end)

    def _trailer(self, data: memoryview) -> int:
        line, found, _ = bytes(data[:_MOST_LINE_BYTES]).partition(b"\r\n")
        if not found:
            if len(line) == _MOST_LINE_BYTES:
                raise BadRequest(HTTPStatus.BAD_REQUEST, "a trailer is too long")
            return 0
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > _MOST_TRAILER_BYTES:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the trailers are too long")
        self.is_whole = not line
        return len(line) + 2
