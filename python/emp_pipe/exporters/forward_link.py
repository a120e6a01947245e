"""One connection of the Forward exporter: handshake, frames out, acks in. No task of its own: the transport's calls resolve futures.

A link to another emp-pipe carries many chunks at once, told apart by their ids; a foreign peer is sent one at a time by the exporter.
Not here: which host, how many links, what is in a frame (`forward.py`).
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import cast

import msgpack  # type: ignore[import-untyped]

from emp_pipe.errors import DeliveryError, ErrorKind, InputError, Retry
from emp_pipe.forward_handshake import MAX_RECEIVED_BYTES, ClientHandshake


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer listens. `path` is that of a Unix socket; else host and port hold."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are to the peer. Without a shared key there is no handshake."""

    hostname: str
    shared_key: str = ""
    username: str = ""
    password: str = ""


class Link(asyncio.Protocol):
    """An open connection. `deliver` returns when the peer has acknowledged a chunk."""

    def __init__(self, endpoint: Endpoint, identity: Identity) -> None:
        self.endpoint = endpoint
        self.is_emp_pipe = False
        self.keepalive = True
        loop = asyncio.get_running_loop()
        self._handshake = (
            ClientHandshake(identity.hostname, identity.shared_key, identity.username, identity.password) if identity.shared_key else None
        )
        self._ready: asyncio.Future[None] = loop.create_future()
        self._pending: dict[bytes, asyncio.Future[None]] = {}
        self._unpacker = msgpack.Unpacker(raw=True, strict_map_key=False, max_buffer_size=MAX_RECEIVED_BYTES)
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None
        self._retired = False

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        identity: Identity,
        *,
        tls: ssl.SSLContext | None,
        server_name: str,
        connect_timeout_s: float,
        handshake_timeout_s: float,
    ) -> Link:
        """Return a link that is ready for chunks. Raises DeliveryError: UNREACHABLE, TIMED_OUT, UNAUTHENTICATED."""
        loop = asyncio.get_running_loop()
        link = cls(endpoint, identity)
        try:
            async with asyncio.timeout(connect_timeout_s):
                if endpoint.path:
                    await loop.create_unix_connection(lambda: link, endpoint.path)
                else:
                    await loop.create_connection(
                        lambda: link, endpoint.host, endpoint.port, ssl=tls, server_hostname=server_name if tls is not None else None
                    )
        except TimeoutError:
            raise link._error(ErrorKind.UNREACHABLE, f"no connection within {connect_timeout_s:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise link._error(
                ErrorKind.UNREACHABLE,
                f"its certificate is not trusted ({error.verify_message})",
                advice="set `tls.ca_file` to its authority, or `tls.server_name` to the name in the certificate",
                retry=Retry.AFTER_CONFIG_CHANGE,
            ) from None
        except ssl.SSLError as error:
            raise link._error(
                ErrorKind.UNREACHABLE,
                f"the TLS handshake failed ({(error.reason or str(error)).replace('_', ' ').lower()})",
                advice="check that the port speaks TLS, and the certificates on both sides",
            ) from None
        except OSError as error:
            raise link._error(ErrorKind.UNREACHABLE, error.strerror or str(error)) from None
        try:
            async with asyncio.timeout(handshake_timeout_s):
                await link._ready
        except TimeoutError:
            link.abort()
            raise link._error(
                ErrorKind.TIMED_OUT,
                f"no handshake within {handshake_timeout_s:g} s",
                advice="check that `shared_key` (and TLS) are set on both sides",
            ) from None
        except BaseException:
            link.abort()
            raise
        return link

    @property
    def is_open(self) -> bool:
        """It takes more chunks."""
        return not self.is_closed and not self._retired

    @property
    def is_closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    async def deliver(self, chunk: bytes, frame: bytes, timeout_s: float) -> None:
        """Send a frame and return when its chunk is acknowledged. Raises DeliveryError; after TIMED_OUT the link is closed."""
        try:
            async with asyncio.timeout(timeout_s):
                acked = self._write(chunk, frame)
                await self._writable.wait()
                await acked
        except TimeoutError:
            self.abort()
            raise self._error(ErrorKind.TIMED_OUT, f"no ack within {timeout_s:g} s") from None
        finally:
            self._pending.pop(chunk, None)
            if self._retired and not self._pending:
                self.close()

    async def deliver_unacknowledged(self, frame: bytes, timeout_s: float) -> None:
        """Send a frame and return when the socket has taken it: what the peer did with it is not known."""
        try:
            async with asyncio.timeout(timeout_s):
                self._write(b"", frame)
                await self._writable.wait()
        except TimeoutError:
            self.abort()
            raise self._error(ErrorKind.TIMED_OUT, f"not taken within {timeout_s:g} s") from None
        finally:
            self._pending.pop(b"", None)

    def retire(self) -> None:
        """Take no more chunks; close when those under way are acknowledged."""
        self._retired = True
        if not self._pending:
            self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self, chunk: bytes, frame: bytes) -> asyncio.Future[None]:
        if self._transport is None or self._transport.is_closing():
            raise self._error(ErrorKind.UNREACHABLE, "the peer closed the connection")
        acked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending[chunk] = acked
        self._transport.write(frame)
        return acked

    # --- the transport's calls ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._handshake is None:
            self._ready.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            if self._handshake is not None:
                data = self._shake(data)
            if data:
                self._read_acks(data)
        except InputError as error:
            self._fail(self._error(ErrorKind.UNAUTHENTICATED, error.detail, advice="set the same `shared_key` (and user) on both sides"))
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            self._fail(self._error(ErrorKind.UNREACHABLE, "it answers with something else than acks", advice="check the port"))

    def connection_lost(self, exc: Exception | None) -> None:
        why = f"the connection was lost ({exc})" if exc is not None else "the peer closed the connection"
        self._fail(self._error(ErrorKind.UNREACHABLE, why))
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _shake(self, data: bytes) -> bytes:
        """Feed the handshake; return what lies behind it."""
        assert self._handshake is not None
        assert self._transport is not None
        step = self._handshake.received(data)
        while step is not None:
            if step.send:
                self._transport.write(step.send)
            if step.done:
                self._handshake = None
                self.is_emp_pipe = step.emp_pipe_version > 0
                self.keepalive = step.keepalive
                if not self._ready.done():
                    self._ready.set_result(None)
                return step.rest
            step = self._handshake.received(b"")
        return b""

    def _read_acks(self, data: bytes) -> None:
        self._unpacker.feed(data)
        for answer in self._unpacker:
            chunk = answer.get(b"ack") if isinstance(answer, dict) else None
            acked = self._pending.get(chunk) if isinstance(chunk, bytes) else None
            if acked is not None and not acked.done():
                acked.set_result(None)

    def _fail(self, error: DeliveryError) -> None:
        self.abort()
        waiting = [self._ready, *self._pending.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # retrieved: nobody may be waiting any more

    def _error(self, kind: ErrorKind, detail: str, *, advice: str = "", retry: Retry | None = None) -> DeliveryError:
        return DeliveryError(kind, place=str(self.endpoint), detail=detail, advice=advice, retry=retry)
