"""A proxy of TCP connections on loopback that can be slow, and can lead elsewhere: what lies between a process and what it talks to."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType


class TcpProxy:
    """Passes bytes on to `to_port`, each piece `delay_s` after it came, both ways, in order. Both can be changed while it runs."""

    def __init__(self, to_port: int) -> None:
        self.to_port = to_port
        self.delay_s = 0.0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> TcpProxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def lead_to(self, port: int) -> None:
        """New connections go to another port; those that are open end."""
        self.to_port = port
        self.cut()

    def cut(self) -> None:
        """End every connection that is open."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError):
                their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self.to_port)
                self._writers.add(their_writer)
                try:
                    await asyncio.gather(self._pass(reader, their_writer), self._pass(their_reader, writer))
                finally:
                    self._writers.discard(their_writer)
                    their_writer.close()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()
