"""What a log knows of itself in memory: who holds what, what is in flight, the books, and whether receivers may append.

Every implementation keeps one `Ledger` on the event loop and tells it what became durable, in the order in which it did; so questions
(`usage`, `admitting`, `group_books`) cost no disk access, and both equations of the books hold between any two events.
Not here: where blocks lie (`emp_pipe/buffers/`). The rules are in `docs/decisions/001-log.md`; read `protocol.py` first.
"""

from __future__ import annotations

import asyncio
import heapq
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.group_ledger import Ending, Entry, GroupLedger, InFlight, Snapshot
from emp_pipe.log.protocol import (
    DeadCount,
    DeadLetter,
    DeadReason,
    Delivery,
    GroupBooks,
    GroupSpec,
    GroupUsage,
    LossReason,
    ReceiverBooks,
    Rejection,
    Usage,
)

if TYPE_CHECKING:
    from emp_pipe._core import Block

DEAD_TOPIC = "dead"
DEAD_READER = "dlq"
_MARK_EVERY_NS = 1_000_000_000


class Ledger:
    """All groups, the books of receivers and groups, and admission. Lives on the event loop."""

    def __init__(self, *, max_bytes: int, reserve_share: float, dead_max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.dead_max_bytes = dead_max_bytes
        self.dead: dict[tuple[str, DeadReason], DeadCount] = {}
        self.admit_below_bytes = int(max_bytes * (1 - reserve_share))
        self.groups: dict[str, GroupLedger] = {}
        self.dropped_groups: set[str] = set()
        self.readers: dict[str, list[GroupLedger]] = {}
        self.receivers: dict[str, ReceiverBooks] = {}
        self.books: dict[tuple[str, str], GroupBooks] = {}
        self.held_bytes = 0
        self.dead_bytes = 0
        self.queued_bytes = 0
        self.elsewhere_bytes = 0
        """What other parts of the log hold, where it has several: limits hold for all of them together."""
        self.admitting = True
        self.reason = ""
        self.stop_reason = ""
        """What the implementation says against admission: a failed disk, too little free space, closing."""
        self._admission_waiters: list[asyncio.Future[None]] = []

    # groups

    def add_group(self, spec: GroupSpec) -> GroupLedger:
        group = self.groups[spec.name] = GroupLedger(spec)
        self.dropped_groups.discard(spec.name)
        for topic in spec.topics:
            self.readers.setdefault(topic.value, []).append(group)
            self.book(topic.value, spec.name)
        return group

    def remove_group(self, name: str) -> None:
        group = self.groups.pop(name)
        self.dropped_groups.add(name)
        self._unlist(group)

    def set_spec(self, group: GroupLedger, spec: GroupSpec) -> None:
        """Adopt changed settings of a group. One that reads other topics than before looks through the log from its start again."""
        if spec.topics != group.spec.topics:
            group.cursor = 0
        self._unlist(group)
        group.spec = spec
        for topic in spec.topics:
            self.readers.setdefault(topic.value, []).append(group)
            self.book(topic.value, spec.name)

    def _unlist(self, group: GroupLedger) -> None:
        for topic in group.spec.topics:
            self.readers[topic.value].remove(group)
            if not self.readers[topic.value]:
                del self.readers[topic.value]

    def book(self, topic: str, group: str) -> GroupBooks:
        """Return the books of a topic in a group, begun at zero when there were none."""
        books = self.books.get((topic, group))
        if books is None:
            books = self.books[topic, group] = GroupBooks(topic, group)
        return books

    def load(self, snapshot: Snapshot) -> None:
        """Begin from what the store says: at open, and after anything that changed more than single blocks."""
        self.receivers = {books.receiver: books for books in snapshot.receivers}
        self.books = {(books.topic, books.group): books for books in snapshot.books}
        self.held_bytes = snapshot.held_bytes
        self.dead = {(count.component, count.reason): count for count in snapshot.dead}
        self.dead_bytes = sum(count.size_bytes for count in snapshot.dead)
        self.book(DEAD_TOPIC, DEAD_READER).held = sum(count.records for count in snapshot.dead)
        for name in self.groups.keys() - {spec.name for spec in snapshot.specs}:
            self.remove_group(name)
        for spec in snapshot.specs:
            group = self.groups.get(spec.name) or self.add_group(spec)
            if group.spec != spec:
                self.set_spec(group, spec)
            held = [snapshot.held[spec.name, topic.value] for topic in spec.topics if (spec.name, topic.value) in snapshot.held]
            for topic in spec.topics:
                book = self.book(topic.value, spec.name)
                book.held = snapshot.held[spec.name, topic.value].records if (spec.name, topic.value) in snapshot.held else 0
            group.held_blocks = sum(one.blocks for one in held)
            group.held_bytes = sum(one.size_bytes for one in held)
            group.held_records = sum(one.records for one in held)
            group.last = max((one.newest_offset for one in held), default=group.cursor)
            oldest = min(held, key=lambda one: one.oldest_offset, default=None)
            group.marks = deque([(oldest.oldest_offset, oldest.oldest_unix_nano)] if oldest else ())
            if group.readable:
                group.wake()

    # what became durable

    def received(self, books: Iterable[ReceiverBooks]) -> None:
        for more in books:
            total = self.receivers.get(more.receiver)
            if total is None:
                total = self.receivers[more.receiver] = ReceiverBooks(more.receiver)
            total.received += more.received
            total.appended += more.appended
            total.invalid += more.invalid
            total.refused += more.refused
            total.dropped += more.dropped
            total.duplicate += more.duplicate

    def file(self, entry: Entry, groups: Iterable[GroupLedger] | None = None) -> None:
        """Count a stored block as held by `groups` (default: every group that reads its topic)."""
        if groups is None:
            groups = self.readers.get(entry.topic, ())
            self.held_bytes += entry.size_bytes
        for group in groups:
            group.held_blocks += 1
            group.held_bytes += entry.size_bytes
            group.held_records += entry.records
            if entry.offset > group.last:
                group.last = entry.offset
            marks = group.marks
            if not marks or group.cursor >= marks[-1][0] or entry.appended_unix_nano - marks[-1][1] >= _MARK_EVERY_NS:
                marks.append((entry.offset, entry.appended_unix_nano))
            books = self.books[entry.topic, group.spec.name]
            books.appended += entry.records
            books.held += entry.records
            if group.waiters:
                group.wake()

    def _release(self, group: GroupLedger, entry: Entry) -> GroupBooks:
        group.held_blocks -= 1
        group.held_bytes -= entry.size_bytes
        group.held_records -= entry.records
        group.in_flight.pop(entry.offset, None)
        group.attempts.pop(entry.offset, None)
        books = self.books[entry.topic, group.spec.name]
        books.held -= entry.records
        return books

    def end(self, group: GroupLedger, ending: Ending) -> None:
        """Count a block as done by a group."""
        entry, skipped, dead, _ = ending
        books = self._release(group, entry)
        books.skipped += skipped
        books.dead += dead
        books.acked += entry.records - skipped - dead

    def lose(self, group: GroupLedger, entry: Entry, reason: LossReason) -> None:
        """Count a block as given up by a group."""
        books = self._release(group, entry)
        books.dropped[reason.value] = books.dropped.get(reason.value, 0) + entry.records
        if group.deferred and any(offset == entry.offset for offset, _ in group.deferred):
            group.deferred = [pair for pair in group.deferred if pair[0] != entry.offset]
            heapq.heapify(group.deferred)

    def dead_added(self, one: DeadCount) -> None:
        """Count a dead letter that was kept."""
        books = self.book(DEAD_TOPIC, DEAD_READER)
        books.appended += one.records
        books.held += one.records
        self._count_dead(one, 1)

    def dead_removed(self, one: DeadCount, reason: LossReason | None) -> None:
        """Count a dead letter as gone: `reason` None when the operator deleted it or sent it back."""
        books = self.book(DEAD_TOPIC, DEAD_READER)
        books.held -= one.records
        self._count_dead(one, -1)
        if reason is None:
            books.acked += one.records
        else:
            books.dropped[reason.value] = books.dropped.get(reason.value, 0) + one.records

    def _count_dead(self, one: DeadCount, sign: int) -> None:
        key = (one.component, one.reason)
        letters, records, size_bytes = sign * one.letters, sign * one.records, sign * one.size_bytes
        self.dead_bytes += size_bytes
        if (known := self.dead.pop(key, None)) is not None:
            letters, records, size_bytes = known.letters + letters, known.records + records, known.size_bytes + size_bytes
        if letters:
            self.dead[key] = DeadCount(one.component, one.reason, letters, records, size_bytes)

    # deliveries

    def hand_out(self, group: GroupLedger, entry: Entry, block: Block) -> Delivery:
        """Return a delivery of a block, in flight from now on."""
        name = group.spec.name
        delivery = Delivery(name, entry.topic, entry.offset, block, group.attempts.get(entry.offset, 0))
        offset = entry.offset
        loop = asyncio.get_running_loop()

        def forgotten(reference: weakref.ref[Delivery]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._give_back, group, offset, reference)

        group.in_flight[offset] = InFlight(weakref.ref(delivery, forgotten), entry)
        if offset > group.cursor:
            group.cursor = offset
        return delivery

    def _give_back(self, group: GroupLedger, offset: int, reference: weakref.ref[Delivery]) -> None:
        flight = group.in_flight.get(offset)
        if flight is None or flight.delivery is not reference:
            return
        del group.in_flight[offset]
        group.attempts[offset] = group.attempts.get(offset, 0) + 1
        heapq.heappush(group.deferred, (offset, flight.entry))
        group.wake()

    def defer(self, deliveries: Iterable[Delivery]) -> None:
        """Take deliveries back; the next read returns them again. One that has ended is left alone."""
        for delivery in deliveries:
            group = self.groups.get(delivery.group)
            flight = group.in_flight.get(delivery.offset) if group else None
            if group and flight and flight.delivery() is delivery:
                self._give_back(group, delivery.offset, flight.delivery)

    def endings(
        self,
        name: str,
        acks: Sequence[Delivery],
        rejections: Sequence[Rejection],
        skipped: Mapping[int, int],
        *,
        derives: bool,
    ) -> list[Ending]:
        """Return what a commit ends. A delivery that was taken back meanwhile (reset, drop, defer) ends nothing; where something was
        derived from it the commit raises LOG_STALE, for it will be read again and must not count twice."""
        group = self.groups.get(name)
        if group is None and name not in self.dropped_groups:
            raise ValueError(f"the log has no group {name!r}; it has {', '.join(self.groups)}")
        flights = group.in_flight if group is not None else {}
        endings: list[Ending] = []
        offsets: set[int] = set()
        ended: Iterable[tuple[Delivery, Sequence[DeadLetter]]] = chain(
            ((ack, ()) for ack in acks), ((one.delivery, one.letters) for one in rejections)
        )
        for delivery, letters in ended:
            offset = delivery.offset
            if delivery.group != name or offset in offsets:
                raise ValueError(
                    f"block {offset} of {delivery.group!r} cannot end here: it is another group's, or ends twice in one commit"
                )
            offsets.add(offset)
            flight = flights.get(offset)
            if flight is not None and flight.delivery() is delivery:
                records = flight.entry.records
                dead = min(sum(letter.records for letter in letters), records)
                endings.append(Ending(flight.entry, min(skipped.get(offset, 0), records - dead), dead, letters))
            elif derives:
                raise LogError(ErrorKind.LOG_STALE, place=name, detail=f"block {offset} was taken back before its commit")
        return endings

    def rewind(self, group: GroupLedger, cursor: int, oldest_unix_nano: int) -> None:
        """Begin again behind `cursor`; deliveries under way no longer count."""
        group.generation += 1
        group.in_flight.clear()
        group.deferred.clear()
        group.attempts.clear()
        group.cursor = cursor
        group.marks = deque([(cursor + 1, oldest_unix_nano)])
        group.wake()

    async def wait_readable(self, name: str) -> None:
        """Return when the group has something to read; never for a group that was dropped."""
        group = self.groups.get(name)
        if group is None:
            await asyncio.get_running_loop().create_future()
            return
        while not group.readable:
            waiter = asyncio.get_running_loop().create_future()
            group.waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in group.waiters:  # who waits for several logs at once gives up the others
                    group.waiters.remove(waiter)
                raise

    # admission

    @property
    def has_space(self) -> bool:
        return self.held_bytes + self.dead_bytes + self.queued_bytes + self.elsewhere_bytes < self.admit_below_bytes

    def recompute(self, now_unix_nano: int) -> None:
        """Say anew whether receivers may append, and wake those who wait for a yes."""
        reason = self.stop_reason
        if not reason and not self.has_space:
            held_bytes = self.held_bytes + self.dead_bytes + self.elsewhere_bytes
            reason = f"the buffer holds {held_bytes:,} of {self.max_bytes:,} bytes; the rest is kept for draining"
        if not reason:
            for group in self.groups.values():
                spec = group.spec
                if not spec.required:
                    continue
                if group.past_quota(now_unix_nano):
                    age = f" and {spec.quota_age_s:g} s" if spec.quota_age_s is not None else ""
                    held_bytes = group.held_bytes + group.elsewhere_bytes
                    reason = f"{spec.name} holds {held_bytes:,} bytes, its quota is {spec.quota_bytes:,} bytes{age}"
                    break
        self.reason = reason
        self.admitting = not reason
        if self.admitting and self._admission_waiters:
            waiters, self._admission_waiters = self._admission_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait_admitting(self) -> None:
        while not self.admitting:
            waiter = asyncio.get_running_loop().create_future()
            self._admission_waiters.append(waiter)
            await waiter

    def usage(self, clock_set_by_ns: int = 0) -> Usage:
        """Return how full the log is; `clock_set_by_ns`: what the wall clock is ahead of the one that appends were dated by."""
        times = [(group, group.oldest_unix_nano()) for group in self.groups.values()]
        oldest = [(group, None if time is None else time + clock_set_by_ns) for group, time in times]
        return Usage(
            held_bytes=self.held_bytes,
            limit_bytes=self.max_bytes,
            dead_bytes=self.dead_bytes,
            admitting=self.admitting,
            reason=self.reason,
            oldest_append_unix_nano=min((time for _, time in oldest if time is not None), default=None),
            groups=[
                GroupUsage(group.spec, group.held_blocks, group.held_bytes, group.held_records, time, len(group.in_flight))
                for group, time in oldest
            ],
            dead=sorted(self.dead.values(), key=lambda count: (count.component, count.reason)),
            dead_limit_bytes=self.dead_max_bytes,
        )
