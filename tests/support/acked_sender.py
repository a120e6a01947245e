"""A Fluent Forward client that remembers what was acknowledged: the one witness of every chaos test.

It sends PackedForward chunks of numbered records over a few connections, keeps a window of them unacknowledged, and sends a chunk again
(same bytes, same chunk id) until its ack has come, over however many connections that takes. A real client is just as stubborn.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field

import msgpack


@dataclass
class AckedSender:
    """Sends `records_per_chunk` numbered records a chunk to `port` until `stop_sending`; `acked` holds the acknowledged numbers."""

    port: int
    connections: int = 2
    records_per_chunk: int = 20
    window_chunks: int = 8
    pace_s: float = 0.002
    acked: set[int] = field(default_factory=set)
    sent: int = 0
    reconnects: int = 0
    _next: int = 0
    _unacked: dict[str, list[int]] = field(default_factory=dict)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def acked_records(self) -> int:
        return len(self.acked)

    @property
    def unacked_records(self) -> int:
        return sum(len(numbers) for numbers in self._unacked.values())

    async def run(self) -> None:
        """Send until `stop_sending`, then return once everything sent is acknowledged."""
        async with asyncio.TaskGroup() as tasks:
            for index in range(self.connections):
                tasks.create_task(self._connection(index), name=f"sender-{index}")

    def stop_sending(self) -> None:
        self._stopping.set()

    async def wait_acked(self, records: int) -> None:
        """Return when at least `records` in all have been acknowledged."""
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.acked) >= records)

    def _new_chunk(self, connection: int) -> str:
        numbers = list(range(self._next, self._next + self.records_per_chunk))
        self._next += self.records_per_chunk
        chunk = f"chunk-{connection}-{numbers[0]}"
        self._unacked[chunk] = numbers
        return chunk

    def _frame(self, chunk: str) -> bytes:
        # Every number has its own time so that a sink can tell records apart by nothing else.
        entries = b"".join(
            msgpack.packb(
                [
                    msgpack.ExtType(0, struct.pack(">II", 1_760_000_000 + number // 1000, number)),
                    {
                        "level": "info",
                        "message": f"record {number}",
                        "sequence": number,
                        "machine_id": "gpu-chaos",
                        "worker_id": "worker-001",
                    },
                ]
            )
            for number in self._unacked[chunk]
        )
        return bytes(msgpack.packb(["chaos.test", entries, {"chunk": chunk, "size": self.records_per_chunk}]))

    async def _connection(self, index: int) -> None:
        mine: list[str] = []
        while not self._stopping.is_set() or mine:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._send(index, writer, mine))
                    tasks.create_task(self._receive(reader, mine))
            except* (OSError, EOFError):
                self.reconnects += 1
                await asyncio.sleep(0.01)
            finally:
                writer.close()

    async def _send(self, index: int, writer: asyncio.StreamWriter, mine: list[str]) -> None:
        for chunk in list(mine):
            writer.write(self._frame(chunk))
        await writer.drain()
        while not (self._stopping.is_set() and not mine):
            if not self._stopping.is_set() and len(mine) < self.window_chunks:
                chunk = self._new_chunk(index)
                mine.append(chunk)
                writer.write(self._frame(chunk))
                self.sent += self.records_per_chunk
                await writer.drain()
            await asyncio.sleep(self.pace_s)
        raise EOFError  # everything of this connection is acknowledged: end the reader too

    async def _receive(self, reader: asyncio.StreamReader, mine: list[str]) -> None:
        unpacker = msgpack.Unpacker(raw=False)
        while data := await reader.read(65536):
            unpacker.feed(data)
            for message in unpacker:
                chunk = message["ack"]
                if chunk in mine:
                    mine.remove(chunk)
                    self.acked.update(self._unacked.pop(chunk))
            async with self._progress:
                self._progress.notify_all()
        raise EOFError
