"""Taps: what `emp-pipe tap COMPONENT` looks at. Rows that pass a component are copied to whoever watches, as JSON lines.

A tap never slows the pipeline: it takes a bounded number of rows a second and holds a bounded number of bytes; what is beyond is counted
and told to the watcher. Without a watcher a tap costs one look-up per batch. Not here: the socket that it is read over (`control.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from emp_pipe.clock import Clock
from emp_pipe.component import Arrival, Exporter, Parcel, Sent

if TYPE_CHECKING:
    from emp_pipe._core import Batch, Block

_MOST_HELD_BYTES = 4 << 20
_MOST_BLOCK_BYTES = 4 << 20


class Watcher:
    """One `emp-pipe tap`: lines wait here until the socket has taken them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, rows_per_s: int) -> None:
        self._loop = loop
        self._clock = clock
        self._rows_per_s = rows_per_s
        self._allowance = float(rows_per_s)
        self._asked_s = clock.monotonic_s()
        self._lines: deque[bytes] = deque()
        self._held_bytes = 0
        self._ready = asyncio.Event()
        self.left_out_rows = 0

    def take(self, batch: Batch) -> None:
        """Copy as many rows as the allowance has; may be called from the processors' thread."""
        now_s = self._clock.monotonic_s()
        self._allowance = min(self._allowance + (now_s - self._asked_s) * self._rows_per_s, float(self._rows_per_s))
        self._asked_s = now_s
        rows = min(len(batch), int(self._allowance)) if self._held_bytes < _MOST_HELD_BYTES else 0
        self.left_out_rows += len(batch) - rows
        if rows == 0:
            return
        self._allowance -= rows
        lines = (batch.slice(0, rows) if rows < len(batch) else batch).to_json_lines()
        self._loop.call_soon_threadsafe(self._add, lines)

    def _add(self, lines: bytes) -> None:
        self._held_bytes += len(lines)
        self._lines.append(lines)
        self._ready.set()

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield JSON lines as rows pass, some rows at once."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._lines:
                lines = self._lines.popleft()
                self._held_bytes -= len(lines)
                yield lines


class Taps:
    """Who watches which component."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watchers: dict[str, list[Watcher]] = {}

    def __bool__(self) -> bool:
        return bool(self._watchers)

    @contextmanager
    def watch(self, component_id: str, rows_per_s: int = 1000) -> Iterator[Watcher]:
        """Watch a component until the block is left."""
        watcher = Watcher(asyncio.get_running_loop(), self._clock, rows_per_s)
        self._watchers.setdefault(component_id, []).append(watcher)
        try:
            yield watcher
        finally:
            self._watchers[component_id].remove(watcher)
            if not self._watchers[component_id]:
                del self._watchers[component_id]

    def offer(self, component_id: str, batch: Batch) -> None:
        for watcher in self._watchers.get(component_id, ()):
            watcher.take(batch)

    def offer_block(self, component_id: str, block: Block) -> None:
        watchers = self._watchers.get(component_id)
        if not watchers:
            return
        if block.uncompressed_bytes > _MOST_BLOCK_BYTES:
            for watcher in watchers:
                watcher.left_out_rows += block.records
            return
        batch = block.decode()
        for watcher in watchers:
            watcher.take(batch)

    def offer_arrival(self, arrival: Arrival) -> None:
        if arrival.receiver not in self._watchers:
            return
        if arrival.batch is not None:
            self.offer(arrival.receiver, arrival.batch)
        for block in arrival.blocks:
            self.offer_block(arrival.receiver, block)


class TappedExporter:
    """An exporter whose parcels can be watched once they are delivered; all else is the exporter's own."""

    def __init__(self, exporter: Exporter, taps: Taps) -> None:
        self._exporter = exporter
        self._taps = taps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)

    async def send(self, parcel: Parcel) -> Sent:
        sent = await self._exporter.send(parcel)
        if self._taps:
            self._taps.offer_block(self._exporter.id, parcel.block)
        return sent
