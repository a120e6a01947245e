"""Acks of one connection: in the order of the reads, none before its read and every read before it is durable, one write each.

Some peers (Fluent Bit) read once and discard what follows the first value, so two acks must not share a write: the second one waits for
the next turn of the event loop, by which time the first one has been sent. Not here: what fails, and backpressure
(`forward_connection.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from emp_pipe.component import Arrival
from emp_pipe.errors import ErrorKind, LogError

if TYPE_CHECKING:
    from emp_pipe._core import ForwardRead


class Owner(Protocol):
    """What a pending read needs of its connection."""

    def settle(self, entry: PendingRead) -> None: ...

    def log_failed(self, entry: PendingRead, arrival: Arrival, error: BaseException) -> bool:
        """Return whether the arrival is submitted again later."""
        ...


class PendingRead:
    """One read whose records are on their way to the log: its acks are due when nothing is waiting, here and in every read before it."""

    __slots__ = ("acks", "is_lost", "owner", "read", "size_bytes", "waiting")

    def __init__(self, owner: Owner, read: ForwardRead, size_bytes: int, acks: list[bytes]) -> None:
        self.owner = owner
        self.read = read
        self.size_bytes = size_bytes
        self.acks = acks
        self.is_lost = False
        self.waiting = 1  # not settled before all its parts are handed over

    def done(self, arrival: Arrival, future: asyncio.Future[None]) -> None:
        """One arrival of the read is durable, or failed."""
        error = LogError(ErrorKind.LOG_CLOSED) if future.cancelled() else future.exception()
        if error is not None and self.owner.log_failed(self, arrival, error):
            return
        self.waiting -= 1
        if not self.waiting:
            self.owner.settle(self)


class AckQueue:
    """Holds acks back until they are due, and writes one a turn. True while anything is owed.

    `write(ack)` sends one and returns whether the peer is still there; `write(b"")` says that nothing is left to send."""

    def __init__(self, write: Callable[[bytes], bool]) -> None:
        self._write = write
        self._reads: deque[PendingRead] = deque()
        self._due: deque[bytes] = deque()
        self._is_scheduled = False

    def __bool__(self) -> bool:
        return bool(self._reads or self._due)

    def expect(self, entry: PendingRead) -> None:
        self._reads.append(entry)

    def settle(self) -> None:
        """Make the acks due of all reads up to the first one that is still waiting."""
        reads = self._reads
        while reads and not reads[0].waiting:
            acks = reads.popleft().acks
            if acks:
                self._due.extend(acks)
        if self._due and not self._is_scheduled:
            self._write_one()

    def drop(self) -> None:
        """Forget what is due: the peer is gone, or must not be told."""
        self._due.clear()

    def _write_one(self) -> None:
        if not self._due or not self._write(self._due.popleft()):
            self._is_scheduled = False
            self._due.clear()
            self._write(b"")
            return
        self._is_scheduled = True
        asyncio.get_running_loop().call_soon(self._write_one)
