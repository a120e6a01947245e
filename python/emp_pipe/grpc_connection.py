"""One HTTP/2 connection of a gRPC receiver: socket bytes go to the core, its events to a `Service`, its bytes to the socket.

    bytes ─▶ GrpcServerConnection ─▶ call begins: refuse? ─▶ message wants memory: grant? ─▶ message is whole ─▶ … durable … ─▶ respond

There is no task for a connection and none for a call, and nothing of a message is kept before it is granted. What HTTP/2 is, is in the core
(`docs/decisions/011-grpc-in-rust.md`). Not here: who may connect (`accepting.py`), what is said (a `Service`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from emp_pipe.accepting import AcceptedProtocol

if TYPE_CHECKING:
    from emp_pipe._core import GrpcCall, GrpcMessage, GrpcNoMessage, GrpcWants

_PROTOCOL_ERROR = 1
_ENHANCE_YOUR_CALM = 11
_TLS_HANDSHAKE_RECORD = 0x16
_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
"""A fatal protocol_version alert: what a TLS client understands from a port without TLS."""
_HTTP1_ANSWER = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nContent-Length: 44\r\nConnection: close\r\n\r\n"
    b"This port speaks gRPC: HTTP/2 and no other.\r\n"
)

_scratch = memoryview(bytearray(256 << 10))
"""Where all connections' reads land: the core has read them before the next one comes."""


class Service(Protocol):
    """What a connection asks of its receiver. What is not whole when its connection ends is told by `gone`."""

    now_s: float
    """The monotonic time, a second old at most."""

    def monotonic_s(self) -> float: ...
    def new_core(self) -> Any: ...
    def begin(self, connection: GrpcConnection, call: GrpcCall) -> None:
        """Judge a call by its headers."""
        ...

    def wants(self, connection: GrpcConnection, wants: GrpcWants) -> None:
        """Grant the memory or end the call."""
        ...

    def message(self, connection: GrpcConnection, message: GrpcMessage) -> None: ...
    def no_message(self, connection: GrpcConnection, ended: GrpcNoMessage) -> None: ...
    def gone(self, connection: GrpcConnection, stream: int) -> None: ...
    def broken(self, connection: GrpcConnection, why: str, code: int) -> None:
        """Say that a connection ends for what the peer sent; `code` is HTTP/2's."""
        ...

    def closed(self, connection: GrpcConnection) -> None: ...


class GrpcConnection(AcceptedProtocol):
    """One peer."""

    def __init__(self, service: Service, address: str) -> None:
        self.address = address
        self.since_s = service.now_s
        """When it was last heard of, or was told to close."""
        self.asked_s = 0.0
        """When it was last asked whether it is there."""
        self.is_closing = False
        self.is_draining = False
        self.closed = asyncio.Event()
        self.calls: dict[int, Any] = {}
        """What the service notes about the calls under way, by their streams."""
        self._service = service
        self._core = service.new_core()
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._has_spoken = False
        self._is_reading = False
        self.answers_unread = False
        """It does not take its answers, and so is not read."""

    @property
    def peer(self) -> str:
        return self.address or "a peer"

    @property
    def is_greeted(self) -> bool:
        """The peer has begun to speak HTTP/2."""
        return bool(self._core.is_greeted)

    @property
    def awaits_pong(self) -> bool:
        return bool(self._core.awaits_pong)

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
        self.is_closing = True
        self._give_up_calls()
        self.closed.set()
        self._service.closed(self)

    def eof_received(self) -> bool:
        """A client of gRPC that sends no more waits for no answer."""
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        return _scratch

    def buffer_updated(self, nbytes: int) -> None:
        if self.is_closing:
            return
        self.since_s = self._service.now_s
        if not self._has_spoken:
            self._has_spoken = True
            if _scratch[0] == _TLS_HANDSHAKE_RECORD:
                self._turn_away("this port speaks no TLS", _TLS_ALERT)
                return
        self._core.received(_scratch, nbytes)
        self._read()

    def pause_writing(self) -> None:
        """A peer that sends calls and does not read their answers is not read either, else they would pile up here."""
        if not self.answers_unread and not self.is_closing:
            self.answers_unread = True
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.answers_unread:
            self.answers_unread = False
            self._transport.resume_reading()

    # --- what the service calls ---------------------------------------------------------------------

    def grant(self, stream: int, more_bytes: int) -> None:
        self._core.grant(stream, more_bytes)

    def give_turn(self, stream: int) -> None:
        self._core.give_turn(stream)
        self.flush()

    def respond(self, stream: int, message: bytes) -> None:
        if self.is_closing:
            return  # the peer has gone
        if not self._core.respond(stream, message):
            self._service.broken(self, "answers are not taken", _ENHANCE_YOUR_CALM)
            self._send()  # also in the middle of what is being read: nothing more of that will be
            self.linger()
            return
        self._answered()

    def fail(self, stream: int, status: int, message: str, trailers: Sequence[tuple[str, str]]) -> None:
        if not self.is_closing:
            self._core.fail(stream, status, message, trailers)
            self._answered()

    def reject(self, stream: int, http_status: int) -> None:
        self._core.reject(stream, http_status)
        self._answered()

    def ping(self) -> None:
        self.asked_s = self._service.now_s
        self._core.ping()
        self.flush()

    def drain(self) -> None:
        """The receiver stops: calls that are whole get their answers, no other is taken, and then the connection ends."""
        if self.is_closing:
            return
        self.is_draining = True
        if not self._has_spoken:
            self.linger()
            return
        self._core.drain()
        self._answered()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None and not self.closed.is_set():
            self._transport.abort()

    def flush(self) -> None:
        """Send what the core has to say, unless it is being fed: then it is sent after that."""
        if not self._is_reading and not self.is_closing:
            self._send()

    # --- small steps --------------------------------------------------------------------------------

    def _send(self) -> None:
        output = self._core.output()
        if output:
            self._transport.write(output)

    def _read(self) -> None:
        from emp_pipe._core import GrpcBroken, GrpcCall, GrpcGone, GrpcMessage, GrpcWants

        service, core = self._service, self._core
        now_s = service.monotonic_s()
        self._is_reading = True
        broken = None
        try:
            while not self.is_closing and (event := core.next(now_s)) is not None:
                kind = type(event)
                if kind is GrpcWants:
                    service.wants(self, event)
                elif kind is GrpcMessage:
                    service.message(self, event)
                elif kind is GrpcCall:
                    service.begin(self, event)
                elif kind is GrpcGone:
                    service.gone(self, event.stream)
                elif kind is GrpcBroken:
                    broken = event
                    break
                else:
                    service.no_message(self, event)
        finally:
            self._is_reading = False
        if broken is None:
            self.flush()
            if self.is_draining and not core.open_calls:
                self.linger()
        elif self._core.has_begun:
            service.broken(self, broken.why, broken.code)
            self.flush()
            self.linger()
        else:
            service.broken(self, broken.why, broken.code)
            self._turn_away("", _HTTP1_ANSWER)

    def _turn_away(self, why: str, said: bytes) -> None:
        if why:
            self._service.broken(self, why, _PROTOCOL_ERROR)
        self._transport.write(said)
        self.linger()

    def _answered(self) -> None:
        self.flush()
        if self.is_draining and not self._is_reading and not self._core.open_calls:
            self.linger()

    def linger(self) -> None:
        """Say that nothing more comes, and read on until the peer has gone: closing at once could overtake the answer with a reset."""
        if self.is_closing or self._transport is None:
            return
        self.is_closing = True
        self.since_s = self._service.now_s
        self._give_up_calls()
        self.resume_writing()
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
                return
        except OSError:  # the peer has gone before
            pass
        self._transport.close()

    def _give_up_calls(self) -> None:
        for stream in list(self.calls):
            self._service.gone(self, stream)
