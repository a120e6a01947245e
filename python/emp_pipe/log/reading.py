"""How a group of a durable log reads: blocks that it gave back first, then fresh ones out of memory, then those in the store.

A group that keeps up is handed the very blocks that were appended and never reads from the store. One that falls behind by more than
`FRESH_BYTES` reads from it until it has caught up. Not here: what is deliverable (`ledger.py`), the query (`emp_pipe/buffers/`).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from emp_pipe.log.group_ledger import Entry, GroupLedger
from emp_pipe.log.ledger import Ledger
from emp_pipe.log.protocol import Delivery

if TYPE_CHECKING:
    from emp_pipe._core import Block

FRESH_BYTES = 4 << 20
"""What a caught-up group may have waiting in memory, as it was appended; beyond it the group reads from disk."""


class Row(NamedTuple):
    """A stored block as it lies."""

    entry: Entry
    header: bytes
    payload: bytes


class Fetched(NamedTuple):
    """What a read found; `complete`: there is nothing more in the range."""

    rows: list[Row]
    complete: bool


Fetch = Callable[[str, Sequence[int], int, int, int], Awaitable[Fetched]]
"""(group, offsets, after, up to, most bytes)"""


class _Fresh:
    """Blocks of a caught-up group that it has not read yet, as they were appended. `queue` is None while it reads from disk."""

    __slots__ = ("lock", "queue", "size_bytes")

    def __init__(self) -> None:
        self.queue: deque[tuple[Entry, Block]] | None = None
        self.size_bytes = 0
        self.lock = asyncio.Lock()

    def behind(self) -> None:
        self.queue = None
        self.size_bytes = 0

    def caught_up(self) -> None:
        if self.queue is None:
            self.queue = deque()


class Reading:
    """Reads for all groups of one log; `give_up` is told of a block that cannot be decoded."""

    def __init__(self, ledger: Ledger, fetch: Fetch, give_up: Callable[[str, Row, Exception], None]) -> None:
        self._ledger = ledger
        self._fetch = fetch
        self._give_up = give_up
        self._fresh: dict[str, _Fresh] = {}

    def meet_groups(self) -> None:
        """Begin anew after the ledger was loaded: whoever has something unread finds it on disk."""
        for name in self._fresh.keys() - self._ledger.groups.keys():
            del self._fresh[name]
        for name, group in self._ledger.groups.items():
            fresh = self._fresh.setdefault(name, _Fresh())
            fresh.behind()
            if group.last <= group.cursor:
                fresh.caught_up()

    def behind(self, name: str) -> None:
        """What the group has not read yet is not as it was appended: let it look at the disk."""
        self._fresh[name].behind()

    def filed(self, entry: Entry, block: Block) -> None:
        """Keep a block that has become durable at hand for the groups that have caught up."""
        for group in self._ledger.readers.get(entry.topic, ()):
            fresh = self._fresh[group.spec.name]
            if fresh.queue is not None:
                fresh.queue.append((entry, block))
                fresh.size_bytes += entry.size_bytes
                if fresh.size_bytes > FRESH_BYTES:
                    fresh.behind()

    async def read(self, name: str, max_bytes: int) -> list[Delivery]:
        group = self._ledger.groups.get(name)
        if group is None:
            return []
        fresh = self._fresh[name]
        async with fresh.lock:
            if not group.deferred and fresh.queue is not None:
                return self._read_fresh(group, fresh, max_bytes, at_least=1)
            return await self._read_disk(group, fresh, max_bytes)

    def _read_fresh(self, group: GroupLedger, fresh: _Fresh, max_bytes: int, *, at_least: int) -> list[Delivery]:
        deliveries: list[Delivery] = []
        queue = fresh.queue
        while queue:
            entry, block = queue[0]
            max_bytes -= block.payload_bytes
            if max_bytes < 0 and len(deliveries) >= at_least:
                break
            queue.popleft()
            fresh.size_bytes -= entry.size_bytes
            deliveries.append(self._ledger.hand_out(group, entry, block))
        return deliveries

    async def _read_disk(self, group: GroupLedger, fresh: _Fresh, max_bytes: int) -> list[Delivery]:
        again: list[tuple[int, Entry]] = []
        budget = max_bytes
        while group.deferred and (not again or budget >= group.deferred[0][1].size_bytes):
            again.append(heapq.heappop(group.deferred))
            budget -= again[-1][1].size_bytes
        generation = group.generation
        from_disk = fresh.queue is None and budget > 0
        after, up_to = (group.cursor, group.last) if from_disk else (0, 0)
        try:
            fetched = await self._fetch(group.spec.name, [offset for offset, _ in again], after, up_to, max_bytes)
        except BaseException:  # a cancelled read must not lose what it had taken
            if generation == group.generation:
                for pair in again:
                    heapq.heappush(group.deferred, pair)
            raise
        if generation != group.generation:
            return []
        held_back = {offset for offset, _ in group.deferred} | group.in_flight.keys()  # met again after a change of topics
        rows = [row for row in fetched.rows if row.entry.offset not in held_back]
        deliveries = [delivery for row in rows if (delivery := self._hand_out(group, row)) is not None]
        if from_disk:
            group.read_up_to(up_to if fetched.complete else fetched.rows[-1].entry.offset)
        if group.cursor >= group.last:
            fresh.caught_up()
        left = max_bytes - sum(len(row.payload) for row in rows)
        if fresh.queue and not group.deferred and left > 0:
            deliveries += self._read_fresh(group, fresh, left, at_least=0 if deliveries else 1)
        return deliveries

    def _hand_out(self, group: GroupLedger, row: Row) -> Delivery | None:
        from emp_pipe._core import Block, CoreError

        try:
            block = Block(row.header, row.payload)
        except CoreError as error:
            self._give_up(group.spec.name, row, error)
            return None
        return self._ledger.hand_out(group, row.entry, block)
