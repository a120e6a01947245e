"""Writes that block (a disk, a pipe), one at a time in a thread, and never twice for one parcel.

A thread cannot be cancelled. When an attempt runs into its time-out its write goes on; the retry of the same parcel then waits for that
write instead of beginning another, so that a slow disk or a paused reader makes no duplicates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class OneWriteAtATime:
    """Runs blocking writes in order; see the module's head."""

    def __init__(self) -> None:
        self._key = ""
        self._writing: asyncio.Future[None] | None = None

    async def write(self, key: str, work: Callable[[], None]) -> None:
        """Return when `work`, or the write under way with the same key, is done; raise what it raises."""
        while self._writing is not None and self._key != key:
            await asyncio.wait([self._writing])
            self._forget()
        if self._writing is None:
            self._key = key
            self._writing = asyncio.get_running_loop().run_in_executor(None, work)
        writing = self._writing
        try:
            await asyncio.shield(writing)
        finally:
            if writing.done():
                self._forget(writing)

    async def wait(self, timeout_s: float) -> None:
        """Return when no write is under way, or after a while."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=max(timeout_s, 0.0))

    def _forget(self, writing: asyncio.Future[None] | None = None) -> None:
        """Forget a write that is done; its error has been raised to who asked, or is of a parcel that is gone."""
        if self._writing is not None and self._writing.done() and writing in (None, self._writing):
            if not self._writing.cancelled():
                self._writing.exception()
            self._writing = None
