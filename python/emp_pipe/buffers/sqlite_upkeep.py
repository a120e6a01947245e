"""What the SQLite log does once a second: look at the disk, forget what has outlived its time, give space back to the file system.

Not here: what follows from it for receivers (`sqlite.py`), the work itself (`sqlite_thread.py`, `sqlite_store.py`).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw

from emp_pipe.buffers.sqlite_operations import Operation
from emp_pipe.buffers.sqlite_schema import PAGE_BYTES
from emp_pipe.buffers.sqlite_store import Effects
from emp_pipe.buffers.sqlite_thread import CommitThread
from emp_pipe.clock import Clock
from emp_pipe.errors import LogError

TICK_S = 1.0
EXPIRE_EVERY_TICKS = 30
VACUUM_PAGES = (16 << 20) // PAGE_BYTES
VACUUM_ABOVE_PAGES = (32 << 20) // PAGE_BYTES
"""Free pages are kept for the next blocks; more than these go back to the file system, all but a few when idle."""
VACUUM_IDLE_ABOVE_PAGES = (2 << 20) // PAGE_BYTES
MOST_SLICES = 16
"""At most 256 MiB a second: commits come in between."""


class Upkeep:
    """The log's periodic work. `busy` is set by whoever uses the log; `low_space` says why receivers must wait, or nothing.

    `looked` lets the log decide anew, and returns whether it holds something."""

    def __init__(
        self,
        directory: Path,
        min_free_bytes: int,
        thread: CommitThread,
        clock: Clock,
        submit: Callable[[Operation], asyncio.Future[Effects]],
        looked: Callable[[], bool],
    ) -> None:
        self._directory = directory
        self._min_free_bytes = min_free_bytes
        self._thread = thread
        self._clock = clock
        self._submit = submit
        self._looked = looked
        self._holds = True
        self.busy = False
        self.low_space = ""

    def measure_free_space(self) -> None:
        if not self._directory.exists():
            self.low_space = f"{self._directory} is not there"
            return
        free, wanted = shutil.disk_usage(self._directory).free, self._min_free_bytes
        if free < wanted:
            self.low_space = f"the disk has {free:,} bytes free; receivers wait below {wanted:,}"
        elif self._thread.place.lacks_reserve:
            self.low_space = f"the disk was full and has {free:,} bytes free: what is left is for draining"
        else:
            self.low_space = ""

    async def run(self) -> None:
        ticks = 0
        while True:
            await self._clock.sleep(TICK_S)
            ticks += 1
            try:
                await self.tick(expire=ticks % EXPIRE_EVERY_TICKS == 0)
            except (LogError, apsw.Error, OSError):
                continue  # the commit thread says it, once

    async def tick(self, *, expire: bool) -> None:
        idle, self.busy = not self.busy, False
        here = self._thread.place.is_here()
        if here:
            await asyncio.wrap_future(self._thread.keep_reserve(holds_something=self._holds))
        self.measure_free_space()
        self._holds = self._looked()
        if not here:
            await self._submit(Operation(lambda store: Effects()))  # the commit thread sees it, and says it
            return
        if expire:
            now = self._clock.unix_nano()
            await self._submit(Operation(lambda store: store.expire(now)))
        if idle and self._thread.wal_bytes:
            self._thread.checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        free_pages = await asyncio.wrap_future(self._thread.free_pages())
        surplus = free_pages - (VACUUM_IDLE_ABOVE_PAGES if idle else VACUUM_ABOVE_PAGES)
        for _ in range(min(-(-surplus // VACUUM_PAGES), MOST_SLICES)):
            await self._submit(Operation(lambda store: store.vacuum(VACUUM_PAGES)))
        if surplus > 0 and idle:
            self.busy = False  # its own work does not count: the next tick truncates the write-ahead log
