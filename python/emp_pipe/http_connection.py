"""One HTTP/1.1 connection of a receiver that takes large bodies: a body lands where it stays, in memory that was granted before.

    head ─▶ begin: refuse, or grant the body's bytes ─▶ body ─▶ complete ─▶ … durable … ─▶ respond ─▶ next head

Why it is not aiohttp's: `docs/decisions/007-otlp-http-server.md`. There is no task for a connection and none for a request; requests on
one are answered one by one. Not here: who may connect (`accepting.py`), what is said (a `Service`), a head's syntax (`http_head.py`).
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, cast

from emp_pipe.accepting import AcceptedProtocol
from emp_pipe.http_body import SizedBody, first_grant_bytes
from emp_pipe.http_chunks import ChunkedBody
from emp_pipe.http_head import BadRequest, RequestHead, parse_head
from emp_pipe.http_reply import Response, reply_head

if TYPE_CHECKING:
    from emp_pipe._core import Body, BodyPool

_HEAD_BYTES = 8192
_CHUNKED_READ_BYTES = 65_536
_DISCARD_BYTES = 262_144
"""A refused body of at most this much is read and thrown away, so that the connection can go on."""
_TLS_HANDSHAKE_RECORD = 0x16
_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
"""A fatal protocol_version alert: what a TLS client understands from a port without TLS."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_END_OF_HEAD = b"\r\n\r\n"

_scratch = memoryview(bytearray(65_536))


class Service(Protocol):
    """What a connection asks of its receiver."""

    max_head_bytes: int
    bodies: BodyPool
    """Where bodies land."""
    now_s: float
    """The monotonic time, a second old at most."""

    def begin(self, connection: HttpConnection, head: RequestHead) -> Response | None:
        """Return what to answer before the body is read; None: read it. `first_grant_bytes` of its body are granted by then."""
        ...

    def grant(self, connection: HttpConnection, more_bytes: int) -> Response | None:
        """Grant more of a body; return what to answer where that cannot be."""
        ...

    def release(self, granted_bytes: int) -> None:
        """A request ended before it was whole: its bytes are free again."""
        ...

    def complete(self, connection: HttpConnection, head: RequestHead, body: bytes | Body, granted_bytes: int) -> None:
        """Take a whole request, and what was granted for it; `connection.respond` is owed."""
        ...

    def malformed(self, connection: HttpConnection, error: BadRequest) -> Response:
        """Return what to answer to bytes that are no request."""
        ...

    def closed(self, connection: HttpConnection) -> None: ...


class State(Enum):
    """Where a connection is. What each waits for, and how long it may: `HttpConnection.waits_for`."""

    HEAD = auto()
    BODY = auto()
    CHUNKS = auto()
    BUSY = auto()
    DISCARD = auto()
    CLOSING = auto()


class HttpConnection(AcceptedProtocol):
    """One peer. `since_s` is when it came into its state; the receiver's sweep closes who is there for too long, and who does not take its
    answers (`answers_unread`): the next request is not looked at before it does."""

    def __init__(self, service: Service, address: str) -> None:
        self.address = address
        self.state = State.HEAD
        self.since_s = service.now_s
        self.request: Any = None
        """What the service notes about the request under way."""
        self.closed = asyncio.Event()
        self.last = False
        """Close after the next answer."""
        self._service = service
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._buffer = bytearray(_HEAD_BYTES)
        self._filled = 0
        self._scanned = 0
        self._head: RequestHead | None = None
        self._body: SizedBody | None = None
        self._chunks: ChunkedBody | None = None
        self._discard_bytes = 0
        self._had_empty_line = False
        self.granted_bytes = 0
        """What the service granted for the request that is being received."""
        self._half_closed = self._is_working = False
        self._is_paused = False
        self.answers_unread = False

    @property
    def is_idle(self) -> bool:
        """Between two requests."""
        return self.state is State.HEAD and not self._filled

    @property
    def peer(self) -> str:
        return self.address or "a peer"

    def certificate(self) -> Any:
        """Return the client's certificate as `ssl` gives it; None where there is none."""
        return self._transport.get_extra_info("peercert")

    # --- what the event loop calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_made = True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed.is_set():
            return
        self.state = State.CLOSING
        self._give_up_request()
        self.closed.set()
        self._service.closed(self)

    def eof_received(self) -> bool:
        """A peer that has sent all it wants to send still gets its answer."""
        if self.state is State.BUSY and self._transport.get_extra_info("sslcontext") is None:  # TLS cannot be half closed
            self._half_closed = True
            self.last = True
            return True
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        state = self.state
        if state is State.BODY:
            assert self._body is not None
            return self._body.room()
        if state is State.DISCARD:
            return _scratch[: self._discard_bytes]
        if state is State.CLOSING:
            return _scratch
        if self._filled == len(self._buffer):
            self._resize(min(2 * self._filled, max(self._service.max_head_bytes, self._filled + 1)))
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        state = self.state
        if state is State.BODY:
            assert self._body is not None
            if self._body.filled(nbytes):
                self._grow(self._body)
        elif state is State.DISCARD:
            self._discard_bytes -= nbytes
            if not self._discard_bytes:
                self._enter(State.HEAD)
        elif state is not State.CLOSING:
            if state is State.HEAD and not self._filled:
                self.since_s = self._service.now_s
            self._filled += nbytes
            if state is State.BUSY:  # the peer's next request: it waits
                if self._filled >= _HEAD_BYTES:
                    self._is_paused = True
                    self._transport.pause_reading()
            else:
                self._work()

    def begin_with(self, data: bytes) -> None:
        """Go on with what was read before anybody knew that the peer speaks HTTP."""
        self._buffer, self._filled = bytearray(data), len(data)
        self._work()

    def pause_writing(self) -> None:
        """A peer that sends requests and does not read their answers is not read either, else they would pile up here."""
        self.answers_unread = True
        if self.state is not State.CLOSING and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.answers_unread = False
        if self.state not in (State.BUSY, State.CLOSING):
            self._resume()
            if not self._is_working:
                self._work()

    # --- what the service calls ---------------------------------------------------------------------

    def respond(self, response: Response) -> None:
        """Send the answer to the request under way, and go on with the next one."""
        if self.state is not State.BUSY:
            return  # the peer has gone
        self._send(response, last=self.last)
        if self.last:
            self._linger()
            return
        self._enter(State.HEAD)
        if not self.answers_unread:
            self._resume()
            if self._filled and not self._is_working:
                self._work()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None and not self.closed.is_set():
            self._transport.abort()

    def close(self) -> None:
        """Close after what was written."""
        if self._transport is not None and self.state is not State.CLOSING:
            self._give_up_request()
            self._enter(State.CLOSING)  # a peer that does not read what was written is closed at once a little later
            self._transport.close()

    def refuse(self, response: Response) -> None:
        """Answer a request that is not whole, and close."""
        self._give_up_request()
        self._send(response, last=True)
        self._linger()

    def drain(self) -> bool:
        """The receiver stops: the connection ends after the answer to a request that is whole. Return whether one is not: refuse it."""
        self.last = True
        if self.is_idle or self.state is State.DISCARD:
            self.close()
            return False
        return self.state in (State.HEAD, State.BODY, State.CHUNKS)

    # --- the way of a request -----------------------------------------------------------------------

    def _work(self) -> None:
        """Read as many requests as stand in the buffer, or as much as is there of one."""
        self._is_working = True
        try:
            while self._filled and not self.answers_unread and self._step():
                pass
        except BadRequest as error:
            self.refuse(self._service.malformed(self, error))
        finally:
            self._is_working = False

    def _step(self) -> bool:
        """Return whether there may be more to do at once."""
        if self.state is State.CHUNKS:
            return self._read_chunks()
        if self.state is not State.HEAD:
            return False
        buffer = self._buffer
        if buffer[0] == _TLS_HANDSHAKE_RECORD:
            self._service.malformed(self, BadRequest(HTTPStatus.BAD_REQUEST, "this port speaks no TLS"))
            self._transport.write(_TLS_ALERT)
            self._linger()
            return False
        if buffer.startswith(b"\r\n", 0, self._filled):
            if self._had_empty_line:
                raise BadRequest(HTTPStatus.BAD_REQUEST, "there is nothing but empty lines")
            self._had_empty_line = True  # one is forgiven (RFC 9112, 2.2): they cost, and say nothing
            self._consume(2)
            return True
        end = buffer.find(_END_OF_HEAD, max(self._scanned - 3, 0), self._filled)
        if (end if end >= 0 else self._filled) >= self._service.max_head_bytes:
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too long")
        if end < 0:
            self._scanned = self._filled
            return False
        head = parse_head(bytes(memoryview(buffer)[:end]))
        self._had_empty_line = False
        self._consume(end + 4)
        if not head.keep_alive:
            self.last = True
        refusal = self._service.begin(self, head)
        if refusal is not None:
            self._refuse_body(head, refusal)
            return True
        self._head = head
        self.granted_bytes = first_grant_bytes(head.content_length)
        if head.expects_continue and (head.chunked or head.content_length > self._filled):
            self._transport.write(_CONTINUE)
        if head.chunked:
            self._chunks = ChunkedBody()
            self._enter(State.CHUNKS)
            self._resize(_CHUNKED_READ_BYTES)
        elif head.content_length <= self._filled:
            body = bytes(memoryview(self._buffer)[: head.content_length])
            self._consume(head.content_length)
            self._whole(body)
        else:
            self._body = SizedBody(self._service.bodies, head.content_length, memoryview(self._buffer)[: self._filled])
            self._filled = self._scanned = 0
            self._enter(State.BODY)
        return True

    def _grow(self, body: SizedBody) -> None:
        """Get room for more of a body; where it is whole go on with it."""
        more_bytes = body.wanted_bytes
        if not more_bytes:
            self._whole(body.body)
            self._work()
            return
        refusal = self._service.grant(self, more_bytes)
        if refusal is not None:
            self.refuse(refusal)
            return
        self.granted_bytes += more_bytes
        body.grow()

    def _read_chunks(self) -> bool:
        chunks = self._chunks
        assert chunks is not None
        used, size_bytes = chunks.feed(memoryview(self._buffer)[: self._filled])
        self._consume(used)
        if size_bytes:
            refusal = self._service.grant(self, size_bytes)
            if refusal is not None:
                self.refuse(refusal)
                return False
            self.granted_bytes += size_bytes
        if chunks.is_whole:
            self._chunks = None
            self._resize(_HEAD_BYTES)
            self._whole(chunks.body())
            return True
        return used > 0

    def _whole(self, body: bytes | Body) -> None:
        head, granted_bytes = self._head, self.granted_bytes
        assert head is not None
        self._head = self._body = None
        self.granted_bytes = 0
        self._enter(State.BUSY)
        self._service.complete(self, head, body, granted_bytes)

    def _refuse_body(self, head: RequestHead, refusal: Response) -> None:
        """Answer before the body; read it away where that is cheap and the peer goes on, else close."""
        rest = max(head.content_length - self._filled, 0)
        if head.chunked or rest > _DISCARD_BYTES or (head.expects_continue and head.content_length):
            self.last = True
        self._send(refusal, last=self.last)
        if self.last:
            self._linger()
            return
        self._consume(min(head.content_length, self._filled))
        self._discard_bytes = rest
        self._enter(State.DISCARD if rest else State.HEAD)

    # --- small steps --------------------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        self.state = state
        self.since_s = self._service.now_s

    def _resize(self, size_bytes: int) -> None:
        """Give the buffer another size, at least what is in it. It is replaced: the event loop may still hold a view of the old one."""
        buffer = bytearray(max(size_bytes, self._filled))
        buffer[: self._filled] = memoryview(self._buffer)[: self._filled]
        self._buffer = buffer

    def _consume(self, size_bytes: int) -> None:
        self._filled, rest = self._filled - size_bytes, self._buffer[size_bytes : self._filled]
        self._buffer[: self._filled] = rest
        self._scanned = 0

    def _send(self, response: Response, *, last: bool) -> None:
        status, body, content_type, headers = response
        self._transport.write(reply_head(status, content_type, len(body), headers, last) + body)

    def _linger(self) -> None:
        """Say that nothing more comes, and read on until the peer has gone: closing at once could overtake the answer with a reset."""
        self._enter(State.CLOSING)
        self._filled = 0
        self._resume()
        try:
            if not self._half_closed and self._transport.can_write_eof():
                self._transport.write_eof()
                return
        except OSError:  # the peer has gone before
            pass
        self._transport.close()

    def _give_up_request(self) -> None:
        self._service.release(self.granted_bytes)
        self.granted_bytes = 0
        self._head = self._body = self._chunks = None

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
