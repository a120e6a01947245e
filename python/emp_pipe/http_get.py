"""A small HTTP/1.1 server that answers GET and HEAD: all that the health and metrics port needs.

It is our own because aiohttp costs an idle edge 11 MB (measured), and most edges need it for nothing else. It takes no body, bounds how
many connections there are and how long each may be silent, drip its request or leave its answer untaken.
Not here: what is answered (`http_server.py`), the fields of a head (`http_head.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus

from emp_pipe.accepting import Acceptor, Cut, CutConnections, LimitedDoor, Places
from emp_pipe.clock import Clock, SystemClock
from emp_pipe.http_head import BadRequest, read_fields
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.self_metrics import Metrics
from emp_pipe.tls import WatchedContext

_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """What a peer asks for; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    address: str = ""
    """Who asks."""


@dataclass(frozen=True, slots=True)
class Response:
    """What it gets."""

    status: int
    body: bytes
    content_type: str = _JSON
    is_last: bool = False
    """The connection ends with it."""


@dataclass(frozen=True, slots=True)
class GetLimits:
    """What strangers may take of the port."""

    max_connections: int = 64
    max_connections_per_address: int = 64
    max_head_bytes: int = 8192
    timeout_s: float = 30.0
    """The time that TLS, a request, or taking its answer may take, each; and the silence between two requests."""


class HttpGetServer(LimitedDoor):
    """Serves one listening socket from `start` to `stop`; owns its connections' tasks. It is the acceptor's door too."""

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[Response]],
        *,
        limits: GetLimits | None = None,
        tls: WatchedContext | None = None,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._answer = answer
        self.limits = limits or GetLimits()
        places = Places(self.limits.max_connections, self.limits.max_connections_per_address)
        super().__init__(places, CutConnections(metrics or Metrics(), "http"), RateLimitedLogger(get_logger("http")))
        self._acceptor = Acceptor(self, tls=tls, handshake_timeout_s=self.limits.timeout_s, clock=clock or SystemClock(), log=self.log)
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(listener), name="http: accept")

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            async with asyncio.TaskGroup() as tasks:
                await self._acceptor.accept(listener, tasks)

    async def stop(self) -> None:
        ending = {*self._connections} | ({self._accepting} if self._accepting is not None else set())
        self._accepting = None
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    def open(self, address: str) -> _Connection:
        return _Connection(self, address)

    # --- a connection -------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(0)  # so that an answer counts as taken only when all of it is
        try:
            while await self._serve_one(reader, writer):
                pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the peer is gone, silent, or does not take its answer
        except asyncio.CancelledError:
            pass  # `stop`: it waits for this task
        finally:
            self._connections.discard(task)
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open for another."""
        keep = False
        method = ""
        async with asyncio.timeout(self.limits.timeout_s):
            first = await reader.readexactly(1)
        try:
            head = first + await self._rest_of_head(reader)
            method, request, keep = parse_head(head)
            response = await self._answer(replace(request, address=str((writer.get_extra_info("peername") or ("",))[0])))
            keep = keep and not response.is_last
        except asyncio.LimitOverrunError:
            self.cut.count(Cut.HEAD_TOO_LARGE)
            response = _of_status(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except BadRequest as error:
            self.cut.count(Cut.BODY_NOT_TAKEN if error.status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE else Cut.MALFORMED)
            response = _of_status(error.status)
        await self._send(writer, response, head_only=method == "HEAD", keep=keep)
        return keep

    async def _rest_of_head(self, reader: asyncio.StreamReader) -> bytes:
        """A drip of bytes does not extend the time."""
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                return await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            self.cut.count(Cut.HEAD_TIMED_OUT)
            raise

    async def _send(self, writer: asyncio.StreamWriter, response: Response, *, head_only: bool, keep: bool) -> None:
        head = (
            f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\nContent-Type: {response.content_type}\r\n"
            f"Content-Length: {len(response.body)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if head_only else response.body))
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                await writer.drain()
        except TimeoutError:
            self.cut.count(Cut.ANSWERS_UNREAD)
            writer.transport.abort()  # closing would wait for the peer to take it
            raise


class _Connection(asyncio.StreamReaderProtocol):
    """An `accepting.Accepted`: it gives its place back when it is lost, also where it was never made."""

    is_made = False

    def __init__(self, server: HttpGetServer, address: str) -> None:
        super().__init__(asyncio.StreamReader(limit=server.limits.max_head_bytes), server.serve)
        self._server_of = server
        self._address = address
        self._has_place = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.is_made = True
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._has_place:
            self._has_place = False
            self._server_of.places.leave(self._address)
        if self.is_made:
            super().connection_lost(exc)


def parse_head(head: bytes) -> tuple[str, Request, bool]:
    """Return method, request, and whether the peer keeps the connection. Raises BadRequest."""
    text = head.decode("latin-1").removesuffix("\r\n\r\n")
    line, _, _ = text.partition("\r\n")
    parts = line.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/") or not line.isprintable():
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the first line is no HTTP request")
    method, target, version = parts
    headers = read_fields(text, len(line) + 2)
    if method not in ("GET", "HEAD"):
        raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered here")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "no body is taken here")
    wished = headers.get("connection", "").lower()
    keep = wished != "close" if version != "HTTP/1.0" else wished == "keep-alive"
    return method, Request(target.partition("?")[0], headers), keep


def _of_status(status: HTTPStatus) -> Response:
    return Response(status, f"{status.phrase}\n".encode(), "text/plain; charset=utf-8")
