"""The log as a whole, over its shards: what all of them hold together, for limits that are the log's and not a shard's.

Each shard's ledger is told what the others hold (`elsewhere_bytes`), so each says the same of admission. Not here: how full a shard may be
of its own (`redis_space.py`), which shard gets what (`redis_placement.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from emp_pipe.log.protocol import DeadCount, GroupBooks, GroupUsage, ReceiverBooks, Usage

if TYPE_CHECKING:
    from emp_pipe.buffers.redis_life import ShardLife
    from emp_pipe.log.ledger import Ledger

_COUNTED_WITHIN_S = 1.0


class Whole:
    """What the shards of one log hold together. `count` is how many there are."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._ledgers: dict[int, Ledger] = {}

    def met(self, number: int, ledger: Ledger) -> None:
        """There is this shard too."""
        self._ledgers[number] = ledger

    def share(self, size_bytes: int) -> int:
        """Return a shard's part of what holds for the log."""
        return max(size_bytes // self.count, 1)

    def tell(self, number: int) -> None:
        """A shard has changed: say what the others hold to it."""
        if len(self._ledgers) < 2:
            return
        ledger = self._ledgers[number]
        others = [other for place, other in self._ledgers.items() if place != number]
        ledger.elsewhere_bytes = sum(other.held_bytes + other.dead_bytes + other.queued_bytes for other in others)
        for name, group in ledger.groups.items():
            group.elsewhere_bytes = sum(known.held_bytes for other in others if (known := other.groups.get(name)) is not None)

    def tell_waiting(self, number: int, now_unix_nano: int) -> None:
        """Let shards say anew whether receivers may append, where they say no: this one may have made room."""
        for place, ledger in self._ledgers.items():
            if place != number and not ledger.admitting:
                self.tell(place)
                ledger.recompute(now_unix_nano)

    def quota_bytes(self, number: int, name: str) -> int:
        """Return what a group may hold in a shard before it loses anything there: its share, or what the other shards leave it."""
        group = self._ledgers[number].groups[name]
        quota = group.spec.quota_bytes
        return max(self.share(quota), quota - group.elsewhere_bytes) if self.count > 1 else quota

    def dead_bytes(self, number: int, limit_bytes: int) -> int:
        """Return what dead letters may take in a shard before the oldest there go: its share, or what the other shards leave it."""
        elsewhere_bytes = sum(ledger.dead_bytes for place, ledger in self._ledgers.items() if place != number)
        return max(self.share(limit_bytes), limit_bytes - elsewhere_bytes)


# sums


def usage_of(shards: Sequence[Usage], dead_limit_bytes: int) -> Usage:
    """Return the usage of a log out of its shards'."""
    if len(shards) == 1:
        return shards[0]
    groups: dict[str, GroupUsage] = {}
    for shard in shards:
        for more in shard.groups:
            known = groups.get(more.spec.name)
            groups[more.spec.name] = more if known is None else _together(known, more)
    dead: dict[tuple[str, str], DeadCount] = {}
    for shard in shards:
        for one in shard.dead:
            key = (one.component, one.reason)
            before = dead.get(key)
            dead[key] = (
                one
                if before is None
                else DeadCount(
                    one.component,
                    one.reason,
                    before.letters + one.letters,
                    before.records + one.records,
                    before.size_bytes + one.size_bytes,
                )
            )
    return replace(
        shards[0],
        held_bytes=sum(shard.held_bytes for shard in shards),
        dead_bytes=sum(shard.dead_bytes for shard in shards),
        admitting=all(shard.admitting for shard in shards),
        reason=next((shard.reason for shard in shards if shard.reason), ""),
        oldest_append_unix_nano=_oldest(shard.oldest_append_unix_nano for shard in shards),
        groups=list(groups.values()),
        dead=[dead[key] for key in sorted(dead)],
        dead_limit_bytes=dead_limit_bytes,
    )


def _together(one: GroupUsage, more: GroupUsage) -> GroupUsage:
    return GroupUsage(
        one.spec,
        one.held_blocks + more.held_blocks,
        one.held_bytes + more.held_bytes,
        one.held_records + more.held_records,
        _oldest((one.oldest_append_unix_nano, more.oldest_append_unix_nano)),
        one.in_flight_blocks + more.in_flight_blocks,
    )


def _oldest(times: Iterable[int | None]) -> int | None:
    return min((time for time in times if time is not None), default=None)


def receiver_books_of(shards: Iterable[Sequence[ReceiverBooks]]) -> list[ReceiverBooks]:
    """Return the receivers' books of a log: sums."""
    sums: dict[str, ReceiverBooks] = {}
    for shard in shards:
        for books in shard:
            total = sums.setdefault(books.receiver, ReceiverBooks(books.receiver))
            for what in ("received", "appended", "invalid", "refused", "dropped", "duplicate"):
                setattr(total, what, getattr(total, what) + getattr(books, what))
    return list(sums.values())


def group_books_of(shards: Iterable[Sequence[GroupBooks]]) -> list[GroupBooks]:
    """Return the groups' books of a log: sums."""
    sums: dict[tuple[str, str], GroupBooks] = {}
    for shard in shards:
        for books in shard:
            total = sums.setdefault((books.topic, books.group), GroupBooks(books.topic, books.group))
            for what in ("appended", "acked", "dead", "skipped", "held"):
                setattr(total, what, getattr(total, what) + getattr(books, what))
            for reason, records in books.dropped.items():
                total.dropped[reason] = total.dropped.get(reason, 0) + records
    return list(sums.values())


async def wait_counted(shards: Sequence[ShardLife]) -> None:
    """Return when what was appended from here is in the books of all shards: a look may be due for that. After a while in any case."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_COUNTED_WITHIN_S):
            while any(shard.behind and not shard.away for shard in shards):  # noqa: ASYNC110 (it is a moment)
                await asyncio.sleep(0.01)
