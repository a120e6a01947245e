"""A small HTTP/1.1 server that answers GET and HEAD: all that the health and metrics port needs.

It is our own because aiohttp costs an idle edge 11 MB (measured), and most edges need it for nothing else. It takes no body, holds
at most 8 KiB of a request, closes silent connections, and bounds how many there are. Not here: what is answered (`http_server.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

_MOST_HEAD_BYTES = 8192
_MOST_CONNECTIONS = 64
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """What a peer asks for; header names are in lower case."""

    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """What it gets."""

    status: int
    body: bytes
    content_type: str = _JSON


class BadRequest(ValueError):
    """The peer's bytes are no request that is answered here."""

    def __init__(self, status: HTTPStatus) -> None:
        self.status = status
        super().__init__(status.phrase)


class HttpGetServer:
    """Serves one listening socket from `start` to `stop`; owns its connections' tasks."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]], *, silence_s: float = 30.0) -> None:
        self._answer = answer
        self._silence_s = silence_s
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=_MOST_HEAD_BYTES)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) <= _MOST_CONNECTIONS:
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
        try:
            async with asyncio.timeout(self._silence_s):
                head = await reader.readuntil(b"\r\n\r\n")
            method, request, keep = parse_head(head)
            response = await self._answer(request)
        except asyncio.LimitOverrunError:
            response = _of_status(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except BadRequest as error:
            response = _of_status(error.status)
        await self._send(writer, response, head_only=method == "HEAD", keep=keep)
        return keep

    async def _send(self, writer: asyncio.StreamWriter, response: Response, *, head_only: bool, keep: bool) -> None:
        head = (
            f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\nContent-Type: {response.content_type}\r\n"
            f"Content-Length: {len(response.body)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if head_only else response.body))
        async with asyncio.timeout(self._silence_s):
            await writer.drain()


def parse_head(head: bytes) -> tuple[str, Request, bool]:
    """Return method, request, and whether the peer keeps the connection. Raises BadRequest."""
    lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    method, target, version = parts
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    if method not in ("GET", "HEAD"):
        raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED)
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    wished = headers.get("connection", "").lower()
    keep = wished != "close" if version != "HTTP/1.0" else wished == "keep-alive"
    return method, Request(target.partition("?")[0], headers), keep


def _of_status(status: HTTPStatus) -> Response:
    return Response(status, f"{status.phrase}\n".encode(), "text/plain; charset=utf-8")
