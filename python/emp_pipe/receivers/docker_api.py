"""Docker's HTTP API on its Unix socket: one request a connection, answers in bounded memory and time, long ones as they come.

An answer that stops half-way, is no HTTP, or never comes is a `DockerError` with a reason from a short list. Paths carry the version that
the daemon itself names, for old ones are refused by new daemons.
Not here: what answers mean. Source: Docker Engine API; RFC 9112.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

PIECE_BYTES = 64 << 10
_MOST_HEAD_BYTES = 64 << 10
_MOST_JSON_BYTES = 32 << 20
_MOST_MESSAGE = 300

Reason = Literal["missing", "permission", "unreachable", "timed_out", "closed", "garbage", "refused"]


class DockerError(Exception):
    """Why the daemon could not be asked. `status` is that of an answer that says no."""

    def __init__(self, reason: Reason, what: str, status: int = 0) -> None:
        super().__init__(what)
        self.reason: Reason = reason
        self.status = status


class Answer:
    """The body of an answer, piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: Mapping[str, str]) -> None:
        self._reader = reader
        self.status = status
        self.headers = headers
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length", "")
        if not self._chunked and length and not (length.isascii() and length.isdigit() and len(length) <= 18):
            raise DockerError("garbage", "its length is no number")
        self._left: int | None = 0 if self._chunked else int(length) if length else None
        self._ended = False

    async def read(self) -> bytes:
        """Return the next piece; b"" at the end. Raises DockerError where the connection ends before the body does."""
        if self._ended:
            return b""
        try:
            piece = await self._piece()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise DockerError("closed", "the answer ends half-way") from error
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise DockerError("garbage", f"the answer is no HTTP ({error})") from error
        self._ended = not piece
        return piece

    async def _piece(self) -> bytes:
        reader = self._reader
        if self._left is None:  # until the connection ends
            return await reader.read(PIECE_BYTES)
        if self._chunked and self._left == 0:
            line = await reader.readuntil(b"\r\n")
            size = line.partition(b";")[0].strip()
            if not size or len(size) > 8 or size.strip(b"0123456789abcdefABCDEF"):
                raise ValueError("a chunk's size is no number")
            self._left = int(size, 16)
            if self._left == 0:
                while await reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                return b""
        if self._left == 0:
            return b""
        piece = await reader.read(min(self._left, PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", self._left)
        self._left -= len(piece)
        if self._chunked and self._left == 0 and await reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk is longer than it says")
        return piece

    async def whole(self, most_bytes: int) -> bytes:
        body = bytearray()
        while piece := await self.read():
            body += piece
            if len(body) > most_bytes:
                raise DockerError("garbage", f"the answer is over {most_bytes:,} bytes")
        return bytes(body)


class DockerApi:
    """A daemon. Any number of requests may be under way."""

    def __init__(self, socket: Path, timeout_s: float) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._version = ""

    async def get(self, path: str, **query: str | int) -> Any:
        """Return what a path says, as JSON. Raises DockerError."""
        await self._negotiate()
        async with self._in_time(), self._asked(f"/v{self._version}{path}", query) as answer:
            body = await answer.whole(_MOST_JSON_BYTES)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise DockerError("garbage", f"{path} answers with no JSON") from error

    @contextlib.asynccontextmanager
    async def stream(self, path: str, **query: str | int) -> AsyncIterator[Answer]:
        """Ask for a long answer; its head comes in time, its body when there is something to say."""
        await self._negotiate()
        async with self._asked(f"/v{self._version}{path}", query) as answer:
            yield answer

    async def _negotiate(self) -> None:
        if self._version:
            return
        async with self._in_time(), self._asked("/_ping", {}) as answer:
            version = answer.headers.get("api-version", "")
            await answer.whole(PIECE_BYTES)
        parts = version.split(".")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
            raise DockerError("garbage", "what answers there names no Docker API version")
        self._version = version

    def forget_version(self) -> None:
        """Ask anew which version it speaks: it may be another daemon by now."""
        self._version = ""

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise DockerError("timed_out", f"no answer within {self._timeout_s:g} s") from error

    @contextlib.asynccontextmanager
    async def _asked(self, path: str, query: Mapping[str, str | int]) -> AsyncIterator[Answer]:
        target = f"{path}?{urlencode(query)}" if query else path
        async with self._in_time():
            reader, writer = await self._connected()
        try:
            async with self._in_time():
                answer = await self._head(reader, writer, target)
                if answer.status != 200:
                    raise DockerError("refused", await _message(answer), answer.status)
            yield answer
        finally:
            writer.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_unix_connection(self._socket, limit=_MOST_HEAD_BYTES)
        except OSError as error:
            reason: Reason = "unreachable"
            if isinstance(error, FileNotFoundError):
                reason = "missing"
            elif isinstance(error, PermissionError):
                reason = "permission"
            raise DockerError(reason, error.strerror or str(error)) from error

    async def _head(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> Answer:
        writer.write(f"GET {target} HTTP/1.1\r\nHost: docker\r\nUser-Agent: emp-pipe\r\nConnection: close\r\n\r\n".encode())
        try:
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise DockerError("closed", "the connection ends before an answer") from error
        except asyncio.LimitOverrunError as error:
            raise DockerError("garbage", "what answers there speaks no HTTP") from error
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not (words[1].isascii() and words[1].isdigit() and len(words[1]) == 3):
            raise DockerError("garbage", "what answers there speaks no HTTP")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        return Answer(reader, int(words[1]), headers)


async def _message(answer: Answer) -> str:
    """Return what the daemon says of a refusal."""
    said = ""
    with contextlib.suppress(DockerError, ValueError, AttributeError, RecursionError):
        said = str(json.loads(await answer.whole(PIECE_BYTES)).get("message", ""))
    return f"HTTP {answer.status}{': ' if said else ''}{said[:_MOST_MESSAGE]}"
