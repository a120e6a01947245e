"""An HTTP server of bare sockets: what it does with a request can be anything. A request that nothing is scripted for gets a right answer.

async with ScriptedServer() as server:
    server.script(says(b"HTTP/1.1 200 OK\\r\\n\\r\\n"))      # the next request gets this
    ... server.url ...; server.requests
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S = 30.0
_MOST_SENT_BYTES = 64 << 20


@dataclass
class Seen:
    """A request: its head, and its body when it was read."""

    head: bytes
    connection: int
    body: bytes = b""

    @property
    def length(self) -> int:
        return next(int(line[15:]) for line in self.head.split(b"\r\n") if line.lower().startswith(b"content-length:"))


@dataclass
class Conversation:
    """One connection, as a scripted behaviour has it."""

    server: ScriptedServer
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    request: Seen = field(default_factory=lambda: Seen(b"", 0))

    async def body(self) -> bytes:
        self.request.body = await self.reader.readexactly(self.request.length)
        return self.request.body

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def endlessly(self, piece: bytes) -> None:
        """Send until the other side has had enough; who never has, is found out."""
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < _MOST_SENT_BYTES:
                await self.say(piece)
                sent += len(piece)
            self.server.problems.append(f"it read {sent} bytes of an answer without end")

    def close(self) -> None:
        self.writer.close()

    async def closed(self) -> None:
        """Return when the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass


Behaviour = Callable[[Conversation], Awaitable[None]]


def says(data: bytes, *, then_closes: bool = False) -> Behaviour:
    """Read the request, and answer with these bytes."""

    async def behave(conversation: Conversation) -> None:
        await conversation.body()
        await conversation.say(data)
        if then_closes:
            conversation.close()

    return behave


def endless(start: bytes, piece: bytes) -> Behaviour:
    async def behave(conversation: Conversation) -> None:
        await conversation.body()
        await conversation.say(start)
        await conversation.endlessly(piece)

    return behave


def closes_after(data: bytes) -> Behaviour:
    return says(data, then_closes=True)


class ScriptedServer:
    """See the module's head. `answer(n)` is what the n-th request gets when nothing is scripted: each has a body of its own."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.requests: list[Seen] = []
        self.problems: list[str] = []
        self.certificates: list[Any] = []
        self.connections = 0
        self.port = 0
        self._host = host
        self._tls = tls
        self._script: deque[Behaviour] = deque()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def script(self, *behaviours: Behaviour) -> None:
        self._script.extend(behaviours)

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}/v1/logs"

    @property
    def open_connections(self) -> int:
        return len(self._writers)

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._serve, self._host, 0, ssl=self._tls, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if exception[0] is None:
            assert not self.problems

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._writers.add(writer)
        if self._tls is not None:
            self.certificates.append(writer.get_extra_info("peercert"))
        conversation = Conversation(self, reader, writer, self.connections)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                conversation.request = Seen(head, conversation.number)
                self.requests.append(conversation.request)
                number = len(self.requests)
                if self._script:
                    await self._script.popleft()(conversation)
                else:
                    await conversation.body()
                    await conversation.say(right_answer(number))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()


def right_answer(number: int) -> bytes:
    body = f"answer {number}".encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
