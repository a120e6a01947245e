"""One HTTP/1.1 connection of the client: a request out, its answer in, then the next. No task of its own: the transport's calls resolve
the answer's future.

Whatever the other side sends, it is bounded: the head, the interim answers, the body that is kept, the trailers. What is longer ends the
connection. A body goes out as it lies in memory. Not here: which connection (`http_client.py`), a head's syntax (`http_reply.py`).
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple, cast

from emp_pipe.http_chunks import ChunkedBody
from emp_pipe.http_head import BadRequest
from emp_pipe.http_reply import ReplyHead, parse_reply_head

_MOST_HEAD_BYTES = 32_768
_MOST_INTERIM = 16
MOST_BODY_BYTES = 65_536
"""More of an answer is not read: its beginning says all that anybody wants to know."""
_TLS_PIECE_BYTES = 262_144
"""TLS encrypts at once whatever it is given, so it is given no more than this before some of it has gone."""
_END_OF_HEAD = b"\r\n\r\n"
_START = b"HTTP/1."
_TLS_RECORDS = (0x15, 0x16)


@dataclass(frozen=True, slots=True)
class Reply:
    """A destination's answer. The body is whole, or cut off at `MOST_BODY_BYTES`."""

    head: ReplyHead
    raw: bytes = field(repr=False)

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def content_type(self) -> str:
        return self.head.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def body(self) -> bytes:
        """The body without its encoding; empty where that is one that nobody asked for and nobody knows."""
        coding = self.head.headers.get("content-encoding", "").lower()
        if coding in ("", "identity") or not self.raw:
            return self.raw
        if coding not in ("gzip", "x-gzip", "deflate"):
            return b""
        try:
            return zlib.decompressobj(wbits=47).decompress(self.raw, MOST_BODY_BYTES)
        except zlib.error:
            return b""


class LinkError(Exception):
    """An exchange came to no answer. `detail` says why; the host is the caller's to name."""

    def __init__(self, detail: str, *, advice: str = "") -> None:
        self.detail = detail
        self.advice = advice
        super().__init__(detail)


class LinkBroken(LinkError):
    """The connection ended. `unanswered`: before a single byte of an answer."""

    def __init__(self, detail: str, *, unanswered: bool) -> None:
        super().__init__(detail)
        self.unanswered = unanswered


class LinkOverdue(LinkError):
    """It took too long."""


class NotHttp(LinkError):
    """What came cannot be understood."""


class Deadlines(NamedTuple):
    """How long each part of an attempt may take; the whole of it is limited by who asks."""

    connect_s: float = 10.0
    """Until TLS stands."""
    write_s: float = 15.0
    """Without the other side taking a single byte of the request."""
    first_byte_s: float = 60.0
    """From the request's last byte to the answer's first."""
    answer_s: float = 10.0
    """From the answer's first byte to its last."""


DEADLINES = Deadlines()


class HttpLink(asyncio.Protocol):
    """An open connection. `send` is called when nothing is under way on it."""

    def __init__(self, lost: Callable[[HttpLink], None], *, is_tls: bool, now_s: Callable[[], float]) -> None:
        self.since_s = 0.0
        """When the part that is under way began, or when it was put back; as of the last sweep."""
        self._lost = lost
        self._is_tls = is_tls
        self._now_s = now_s
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._reply: asyncio.Future[Reply] | None = None
        self._rest = memoryview(b"")
        """Of the request's body, what the transport has not been given yet."""
        self._unsent_bytes = 0
        """As the last sweep saw it."""
        self._is_full = False
        self._buffer = bytearray()
        self._scanned = 0
        self._interim = 0
        self._head: ReplyHead | None = None
        self._chunks: ChunkedBody | None = None
        self._chunked_bytes = 0

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    # --- what the client calls ----------------------------------------------------------------------

    async def send(self, head: bytes, body: memoryview) -> Reply:
        """Return the answer to a request. Raises LinkError; then, or when it is cancelled, the connection is closed."""
        if self._transport.is_closing():
            raise LinkBroken("it was closed", unanswered=True)
        self.since_s = self._now_s()
        self._reply = asyncio.get_running_loop().create_future()
        try:
            if self._is_tls:
                self._rest = body
                self._transport.write(head)
                self._write_more()
            else:
                self._transport.writelines((head, body))
            return await self._reply
        finally:
            if self._reply is not None:
                self._reply = None
                self._transport.abort()

    def overdue(self, now_s: float, deadlines: Deadlines) -> None:
        """End an exchange of which a part takes too long."""
        reply = self._reply
        if reply is None:
            return
        unsent_bytes = self._unsent()
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            self.since_s = now_s
            return
        waited_s = now_s - self.since_s
        if self._is_answering:
            late = f"its answer did not come whole within {deadlines.answer_s:g} s" if waited_s >= deadlines.answer_s else ""
        elif unsent_bytes:
            late = f"it took nothing of the request for {deadlines.write_s:g} s" if waited_s >= deadlines.write_s else ""
        else:
            late = f"no answer within {deadlines.first_byte_s:g} s" if waited_s >= deadlines.first_byte_s else ""
        if late:
            self._fail(LinkOverdue(late))

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # --- what the event loop calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reply is not None:
            self._ended(exc)
        self._rest = memoryview(b"")
        self._lost(self)

    def eof_received(self) -> bool:
        """Who has sent all it wants to send and has not answered, will not."""
        if self._reply is not None:
            self._ended(None)
            self._transport.abort()
        return False

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._write_more()

    def data_received(self, data: bytes) -> None:
        if self._reply is None:  # nobody has asked: whatever it is, no later answer can be told from it
            self._transport.abort()
            return
        try:
            if not self._is_answering:
                # The usual case: the whole answer in one read.
                if not data.startswith(_START) and not _START.startswith(data[: len(_START)]):
                    raise self._not_http(data)
                end = data.find(_END_OF_HEAD, 0, _MOST_HEAD_BYTES)
                if end >= 0:
                    head = parse_reply_head(data[:end])
                    body = data[end + 4 :]
                    if head.content_length == len(body) <= MOST_BODY_BYTES and head.status >= 200:
                        self._finish(head, body, is_clean=True)
                        return
                self.since_s = self._now_s()
            self._buffer += data
            while self._step():
                pass
        except BadRequest as error:
            self._fail(NotHttp(error.message))
        except NotHttp as error:
            self._fail(error)

    # --- the way of an answer -----------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        """An answer has begun; one that only says that another will follow is none."""
        return bool(self._buffer) or self._head is not None

    def _step(self) -> bool:
        """Return whether there may be more to do at once."""
        return self._read_head() if self._head is None else self._read_body(self._head)

    def _read_head(self) -> bool:
        buffer = self._buffer
        if not buffer.startswith(_START) and not _START.startswith(buffer[: len(_START)]):
            raise self._not_http(buffer)
        end = buffer.find(_END_OF_HEAD, self._scanned)
        if (end if end >= 0 else len(buffer)) >= _MOST_HEAD_BYTES:
            raise NotHttp("its headers are too long")
        if end < 0:
            self._scanned = max(len(buffer) - 3, 0)
            return False
        head = parse_reply_head(bytes(buffer[:end]))
        del buffer[: end + 4]
        self._scanned = 0
        if head.status < 200:
            self._interim += 1
            if head.status == HTTPStatus.SWITCHING_PROTOCOLS or self._interim > _MOST_INTERIM:
                raise NotHttp(f"HTTP {head.status} was not asked for")
            return bool(buffer)
        self._head = head
        if head.chunked:
            self._chunks = ChunkedBody()
        return True

    def _read_body(self, head: ReplyHead) -> bool:
        buffer, chunks = self._buffer, self._chunks
        if chunks is not None:
            used, size_bytes = chunks.feed(memoryview(bytes(buffer)))
            del buffer[:used]
            self._chunked_bytes += size_bytes
            if chunks.is_whole or self._chunked_bytes > MOST_BODY_BYTES:
                body = chunks.body()[:MOST_BODY_BYTES]
                self._finish(head, body, is_clean=chunks.is_whole and not buffer and self._chunked_bytes <= MOST_BODY_BYTES)
                return False
            return used > 0 and bool(buffer)
        length = head.content_length
        wanted_bytes = MOST_BODY_BYTES if length is None else min(length, MOST_BODY_BYTES)
        if len(buffer) >= wanted_bytes:
            self._finish(head, bytes(buffer[:wanted_bytes]), is_clean=length == len(buffer) <= MOST_BODY_BYTES)
        return False

    def _finish(self, head: ReplyHead, body: bytes, *, is_clean: bool) -> None:
        """The answer is there. The connection goes on where nothing is left on it, in either direction."""
        reply, self._reply = self._reply, None
        assert reply is not None
        unsent_bytes = self._unsent()
        self._begin_anew()
        if not is_clean or unsent_bytes:
            self._transport.abort()
        elif not head.keep_alive:
            self._transport.close()
        if reply.done():
            return
        if unsent_bytes and 200 <= head.status < 300:
            # A success for what it cannot have read would be a loss.
            reply.set_exception(NotHttp(f"HTTP {head.status} when {unsent_bytes:,} bytes of the request were still to come"))
        else:
            reply.set_result(Reply(head, body))

    def _ended(self, exc: Exception | None) -> None:
        """Nothing more comes: the end of an answer that has no other, or a broken connection."""
        head = self._head
        if exc is None and head is not None and head.content_length is None and self._chunks is None:
            self._finish(head, bytes(self._buffer), is_clean=False)
            return
        self._fail(LinkBroken(str(exc or "") or "it was closed", unanswered=not self._is_answering and not self._interim))

    def _fail(self, error: LinkError) -> None:
        reply, self._reply = self._reply, None
        self._begin_anew()
        self._transport.abort()
        if reply is not None and not reply.done():
            reply.set_exception(error)

    def _begin_anew(self) -> None:
        self._rest = memoryview(b"")
        self._unsent_bytes = 0
        if self._is_answering or self._interim:
            self._buffer = bytearray()
            self._scanned = self._interim = self._chunked_bytes = 0
            self._head = self._chunks = None

    @staticmethod
    def _not_http(data: bytes | bytearray) -> NotHttp:
        is_tls = len(data) > 0 and data[0] in _TLS_RECORDS
        return NotHttp("what it says is no HTTP/1.1", advice="check `endpoint`: the port speaks TLS, so it is https://" if is_tls else "")

    # --- the way of a request -----------------------------------------------------------------------

    def _write_more(self) -> None:
        while self._rest and not self._is_full and not self._transport.is_closing():
            piece, self._rest = self._rest[:_TLS_PIECE_BYTES], self._rest[_TLS_PIECE_BYTES:]
            self._transport.write(piece)

    def _unsent(self) -> int:
        return len(self._rest) + self._transport.get_write_buffer_size()
