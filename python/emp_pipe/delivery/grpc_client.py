"""A connection to a gRPC server that carries unary calls: socket bytes to the core and back, an answer to whoever waits for it.

    line = GrpcLine(...)
    answer = await line.call(fields, block, "gzip")      # connects where that has not been done; raises LineLost

A line that is lost is not mended: whoever holds it gets another. HTTP/2 is in the core (`docs/decisions/011-grpc-in-rust.md`). Not here:
what an answer means (`grpc_answers.py`), how long a call may take and what is tried again (`exporters/otlp_grpc.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from emp_pipe.delivery.dial import dial

if TYPE_CHECKING:
    from emp_pipe._core import Block, GrpcAnswer

_CONNECT_TIMEOUT_S = 10.0
_PONG_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 1.0
_TLS_GOODBYE_S = 1.0
_WRITE_BYTES = 1 << 20
"""What is taken from the core at a time: it keeps a message where it lies until there is room for it in the socket."""

_scratch = memoryview(bytearray(64 << 10))
"""Where all lines' reads land: the core has read them before the next one comes."""


class LineLost(Exception):
    """The connection could not be made, or ended before the answer."""

    def __init__(self, why: str, *, is_untouched: bool = False, is_untrusted: bool = False) -> None:
        super().__init__(why)
        self.is_untouched = is_untouched
        """The server has done nothing about the call."""
        self.is_untrusted = is_untrusted
        """TLS failed."""


class CallReset(Exception):
    """The server ended a call without an answer; the connection goes on."""

    def __init__(self, code: int) -> None:
        super().__init__(f"HTTP/2 error {code}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Address:
    """Where a line leads. `server_name` is what the certificate must be for."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    server_name: str | None


class GrpcLine(asyncio.BufferedProtocol):
    """One connection. `in_flight` and `unanswered` are its user's to count by."""

    def __init__(self, address: Address, *, keepalive_s: float) -> None:
        from emp_pipe._core import GrpcClientConnection

        self.address = address
        self.in_flight = 0
        self.unanswered = 0
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self._core = GrpcClientConnection()
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[GrpcAnswer]] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        """Calls for which the server has no room yet."""
        self._lost: LineLost | None = None
        self._ended = asyncio.Event()
        self._is_full = False
        self._timer: asyncio.TimerHandle | None = None
        self._heard_s = 0.0

    @property
    def is_usable(self) -> bool:
        """A call may be begun on it, now or when there is room."""
        return self._lost is None and not self._core.is_leaving

    @property
    def was_connected(self) -> bool:
        return self._transport is not None

    async def call(self, fields: Sequence[tuple[str, str]], block: Block, codec: Literal["none", "gzip"]) -> GrpcAnswer:
        """Return the answer to a block's request. Raises LineLost and CallReset; who gives it up tells the server so."""
        if self._transport is None:
            await self._connected()
        while True:
            if self._lost is not None:
                raise self._lost
            stream = self._core.call(fields, block, codec)
            if stream is not None:
                break
            if self._core.is_leaving:
                raise LineLost("the server takes no more calls on this connection", is_untouched=True)
            await self._room()
        answer = self._answers[stream] = self._loop.create_future()
        self._flush()
        if self._timer is None:
            self._heard_s = self._loop.time()
            self._timer = self._loop.call_later(self._keepalive_s, self._look_whether_it_lives)
        try:
            answered: GrpcAnswer = await answer
            return answered
        finally:
            if self._answers.pop(stream, None) is not None:
                self._core.cancel(stream)
                self._flush()
            self._make_room()

    async def close(self) -> None:
        """End it, with what is under way."""
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._transport is None:
            return
        if self._lost is None:
            self._core.goaway()
            self._flush()
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._ended.wait()
                return
        self._transport.abort()

    # --- connecting ---------------------------------------------------------------------------------

    async def _connected(self) -> None:
        if self._connecting is None:
            self._connecting = self._loop.create_task(self._connect(), name=f"connect to {self.address.host}:{self.address.port}")
        await asyncio.shield(self._connecting)

    async def _connect(self) -> None:
        """Connect, or say in `_lost` why that cannot be."""
        address = self.address
        tls: dict[str, Any] = {}
        if address.tls is not None:
            tls = {
                "ssl": address.tls,
                "server_hostname": address.server_name or address.host,
                "ssl_handshake_timeout": _CONNECT_TIMEOUT_S,
                "ssl_shutdown_timeout": _TLS_GOODBYE_S,
            }
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                sock = await dial(address.host, address.port)
                try:
                    await self._loop.create_connection(lambda: self, sock=sock, **tls)
                except BaseException:
                    sock.close()
                    raise
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or (error.reason or str(error)).replace("_", " ").lower()
            self._lose(LineLost(f"TLS handshake failed: {reason}", is_untouched=True, is_untrusted=True))
        except TimeoutError:
            self._lose(LineLost(f"it did not answer within {_CONNECT_TIMEOUT_S:g} s", is_untouched=True))
        except OSError as error:
            self._lose(LineLost(f"failed to connect: {error.strerror or error}", is_untouched=True))

    # --- what the event loop calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        untrusted = isinstance(exc, ssl.SSLError)
        self._lose(LineLost(f"the connection ended{f' ({exc})' if exc is not None else ''}", is_untrusted=untrusted))
        self._ended.set()

    def eof_received(self) -> bool:
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        return _scratch

    def buffer_updated(self, nbytes: int) -> None:
        if self._lost is not None:
            return
        self._heard_s = now_s = self._loop.time()
        self._core.received(_scratch, nbytes)
        self._read(now_s)
        self._flush()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._flush()

    # --- small steps --------------------------------------------------------------------------------

    def _read(self, now_s: float) -> None:
        from emp_pipe._core import GrpcAnswer, GrpcBroken, GrpcReset

        while (event := self._core.next(now_s)) is not None:
            kind = type(event)
            if kind is GrpcAnswer:
                answer = self._answers.pop(event.stream, None)  # type: ignore[union-attr]
                if answer is not None and not answer.done():
                    answer.set_result(event)  # type: ignore[arg-type]
            elif kind is GrpcReset:
                self._fail(event)
            elif kind is GrpcBroken:
                if self._transport is not None:
                    self._flush()
                    self._transport.close()
                why = f"it does not speak HTTP/2 as it should: {event.why}"  # type: ignore[union-attr]
                self._lose(LineLost(why))
                return
            else:  # GOAWAY: who waits for room finds out that there will be none
                self._make_room(everybody=True)

    def _fail(self, reset: Any) -> None:
        waiting = self._answers.pop(reset.stream, None)
        if waiting is not None and not waiting.done():
            is_leaving = reset.is_untouched and self._core.is_leaving
            waiting.set_exception(LineLost("the server leaves", is_untouched=True) if is_leaving else CallReset(reset.code))

    def _flush(self) -> None:
        transport = self._transport
        while transport is not None and not self._is_full:
            output = self._core.output(_WRITE_BYTES)
            if not output:
                return
            transport.write(memoryview(output))

    async def _room(self) -> None:
        waiting = self._loop.create_future()
        self._waiting.append(waiting)
        await waiting

    def _make_room(self, *, everybody: bool = False) -> None:
        while self._waiting and (everybody or self._core.has_room):
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                if not everybody:
                    return

    def _lose(self, lost: LineLost) -> None:
        if self._lost is None:
            self._lost = lost
            if self._timer is not None:
                self._timer.cancel()
            answers, self._answers = self._answers, {}
            for answer in answers.values():
                if not answer.done():
                    answer.set_exception(lost)
            self._make_room(everybody=True)

    def _look_whether_it_lives(self) -> None:
        """Ask a server that is silent while calls are under way; one that does not answer that is given up."""
        self._timer = None
        if not self._answers:
            return
        silent_s = self._loop.time() - self._heard_s
        if self._core.awaits_pong and silent_s >= _PONG_TIMEOUT_S:
            self._lose(LineLost("it does not answer a ping"))
            if self._transport is not None:
                self._transport.abort()
            return
        if silent_s >= self._keepalive_s and not self._core.awaits_pong:
            self._core.ping()
            self._flush()
        wait_s = _PONG_TIMEOUT_S if self._core.awaits_pong else self._keepalive_s - silent_s
        self._timer = self._loop.call_later(max(wait_s, 0.1), self._look_whether_it_lives)
