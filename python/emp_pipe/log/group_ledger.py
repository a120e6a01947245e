"""What one group holds, has been handed and gave back: the part of the ledger that is about a single reader.

Read next: `ledger.py`, which owns these and keeps the books.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from emp_pipe.log.protocol import DeadCount, DeadLetter, Delivery, GroupBooks, GroupSpec, ReceiverBooks


class Entry(NamedTuple):
    """A stored block as the ledger sees it: its place, its weight, its time."""

    offset: int
    topic: str
    size_bytes: int
    records: int
    appended_unix_nano: int


class Ending(NamedTuple):
    """What a commit says of one block of its group: its rows are acked but for those skipped or dead."""

    entry: Entry
    skipped: int
    dead: int
    letters: Sequence[DeadLetter]


class Held(NamedTuple):
    """What a group holds of a topic, as counted in the store."""

    blocks: int
    size_bytes: int
    records: int
    oldest_offset: int
    oldest_unix_nano: int
    newest_offset: int


@dataclass(slots=True)
class Snapshot:
    """All that a store knows of itself at one moment; `books` lack `held`, which is counted."""

    specs: list[GroupSpec] = field(default_factory=list)
    held: dict[tuple[str, str], Held] = field(default_factory=dict)
    """By (group, topic)."""
    held_bytes: int = 0
    dead: list[DeadCount] = field(default_factory=list)
    receivers: list[ReceiverBooks] = field(default_factory=list)
    books: list[GroupBooks] = field(default_factory=list)


class InFlight(NamedTuple):
    delivery: weakref.ref[Delivery]
    entry: Entry


class GroupLedger:
    """One reader's position: what it holds, what it has been handed, what it gave back.

    Every block of the group is in exactly one place: unread (offset above `cursor`), deferred, in flight, or ended."""

    __slots__ = (
        "attempts",
        "cursor",
        "deferred",
        "elsewhere_bytes",
        "generation",
        "held_blocks",
        "held_bytes",
        "held_records",
        "in_flight",
        "last",
        "marks",
        "spec",
        "waiters",
    )

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.held_blocks = 0
        self.held_bytes = 0
        self.elsewhere_bytes = 0
        """What it holds in other parts of the log, where that has several."""
        self.held_records = 0
        self.generation = 0
        """Counts rewinds: what was being fetched over one is forgotten."""
        self.cursor = 0
        """Blocks above it have not been handed out in this process."""
        self.last = 0
        """The newest offset of the group."""
        self.deferred: list[tuple[int, Entry]] = []
        self.attempts: dict[int, int] = {}
        self.in_flight: dict[int, InFlight] = {}
        self.marks: deque[tuple[int, int]] = deque()
        """(offset, time) of about one unread block a second, so that the oldest age needs no look at the store."""
        self.waiters: list[asyncio.Future[None]] = []

    @property
    def readable(self) -> bool:
        return bool(self.deferred) or self.last > self.cursor

    def oldest_unix_nano(self) -> int | None:
        """Return when the oldest held block was appended (within a second), None when nothing is held."""
        if not self.held_blocks:
            return None
        times = [flight.entry.appended_unix_nano for flight in self.in_flight.values()]
        times += [entry.appended_unix_nano for _, entry in self.deferred]
        if self.last > self.cursor:
            marks = self.marks
            while len(marks) > 1 and marks[1][0] <= self.cursor + 1:
                marks.popleft()
            if marks:
                times.append(marks[0][1])
        return min(times, default=None)

    def past_quota(self, now_unix_nano: int) -> bool:
        """Whether the group holds more, or older blocks, than it may."""
        spec = self.spec
        if self.held_bytes + self.elsewhere_bytes > spec.quota_bytes:
            return True
        oldest = self.oldest_unix_nano() if spec.quota_age_s is not None else None
        return oldest is not None and now_unix_nano - oldest > (spec.quota_age_s or 0) * 1e9

    def read_up_to(self, offset: int) -> None:
        """All up to `offset` has been handed out or has ended."""
        self.cursor = max(self.cursor, offset)

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
