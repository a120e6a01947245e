"""The durable log on SQLite: the default buffer of an edge, and of a central on one machine.

This file is its face on the event loop: futures, deliveries, admission, upkeep. The rest is split by who runs it:
`sqlite_thread.py` (the commit thread), `sqlite_store.py` (what a transaction writes), `sqlite_reader.py` (reading back),
`sqlite_schema.py` (the file). A caught-up group is handed the very blocks that were appended and reads nothing from disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import apsw
from pydantic import Field, PositiveFloat, PositiveInt

from emp_pipe.buffers import sqlite_groups
from emp_pipe.buffers.sqlite_operations import Operation, Outcome, describe, fail_with
from emp_pipe.buffers.sqlite_store import DeadLimits, Effects, Store
from emp_pipe.buffers.sqlite_thread import CommitThread
from emp_pipe.buffers.sqlite_upkeep import Upkeep
from emp_pipe.clock import SteadyClock
from emp_pipe.component import ComponentConfig, Context
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.group_ledger import Ending, GroupLedger
from emp_pipe.log.ledger import Ledger
from emp_pipe.log.protocol import (
    Append,
    Appended,
    ChunkKey,
    DeadFilter,
    DeadLetter,
    DeadReason,
    Delivery,
    GroupBooks,
    Groups,
    GroupSpec,
    OfOnePiece,
    ReceiverBooks,
    Rejection,
    Revival,
    Usage,
)
from emp_pipe.log.reading import Fetched, Reading, Row

if TYPE_CHECKING:
    from emp_pipe._core import Block

_T = TypeVar("_T")


class SqliteConfig(ComponentConfig):
    """Settings of the buffer on disk."""

    directory: Path | None = Field(None, description="Where the buffer lies; by default `log` below the data directory.")
    max_bytes: PositiveInt = Field(8 << 30, description="What the buffer may hold; 15 % of it is kept for draining.")
    min_free_bytes: Annotated[int, Field(ge=0)] = Field(256 << 20, description="Receivers wait while the disk has less than this free.")
    dead_max_bytes: PositiveInt = Field(256 << 20, description="What dead letters may take; the oldest go first.")
    dead_max_age_s: PositiveFloat = Field(7 * 86400.0, description="How long dead letters are kept.")


class SqliteLog(OfOnePiece):
    """A `Log` on one directory, which is this process's alone."""

    def __init__(self, id: str, config: SqliteConfig, context: Context, *, vfs: str | None = None, synchronous: str = "FULL") -> None:
        self.id = id
        self.config = config
        self.directory = config.directory or context.data_dir / "log"
        self._clock = SteadyClock(context.clock)  # ages and times to live hold when the wall clock is set
        self._ledger = Ledger(max_bytes=config.max_bytes, reserve_share=0.15, dead_max_bytes=config.dead_max_bytes)
        self._reading = Reading(self._ledger, self._fetch, self._give_up)
        self._trimming: set[str] = set()
        self._relieving = False
        self._disk_error = ""
        self._closing = True
        self._has_chunks = True
        self._futures: dict[Operation, asyncio.Future[Effects]] = {}
        limits = DeadLimits(config.dead_max_bytes, config.dead_max_age_s)
        self._thread = CommitThread(self.directory, self._from_thread, dead_limits=limits, vfs=vfs, synchronous=synchronous)
        self._reads = ThreadPoolExecutor(1, "emp-log-read")
        self._upkeep = Upkeep(self.directory, config.min_free_bytes, self._thread, self._clock, self._submit, self._look_again)
        self._upkeep_task: asyncio.Task[None] | None = None

    @property
    def durability(self) -> str:
        return f"SQLite in {self.directory}, synced with every commit: a power cut loses nothing that was acknowledged"

    @property
    def admitting(self) -> bool:
        return self._ledger.admitting

    # opening and closing

    async def open(self, groups: Groups | None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            opened = await self._loop.run_in_executor(self._reads, self._thread.open, groups)
        except (apsw.Error, OSError) as error:
            self._release()
            raise LogError(ErrorKind.LOG_IO, place=str(self.directory), detail=describe(error)) from error
        except BaseException:
            self._release()
            raise
        self._closing = False
        assert opened.snapshot is not None
        self._ledger.load(opened.snapshot)
        self._disk_error = opened.disk_error or ""
        self._reading.meet_groups()
        self._upkeep.measure_free_space()
        self._settle()
        self._upkeep_task = self._loop.create_task(self._upkeep.run(), name=f"{self.id}: upkeep")

    async def set_groups(self, groups: Sequence[GroupSpec]) -> None:
        await self._submit(Operation(lambda store: sqlite_groups.begin_groups(store, groups), proves=True))

    def _release(self) -> None:
        self._reads.shutdown(wait=False)
        self._thread.place.release()

    async def close(self, deadline_monotonic_s: float) -> None:
        if self._closing:
            return
        self._closing = True
        self._settle()
        if self._upkeep_task is not None:
            self._upkeep_task.cancel()
            await asyncio.gather(self._upkeep_task, return_exceptions=True)
        remaining_s = deadline_monotonic_s - self._clock.monotonic_s()
        await self._loop.run_in_executor(None, self._thread.stop, remaining_s)
        await asyncio.sleep(0)  # let the thread's last words arrive
        for operation in list(self._futures):
            self._decide(operation, LogError(ErrorKind.LOG_CLOSED, place=self.id))
        self._reads.shutdown(wait=False)  # the thread itself lets go of the directory, whenever it ends

    # operations

    def _submit(self, operation: Operation) -> asyncio.Future[Effects]:
        if self._closing:
            raise LogError(ErrorKind.LOG_CLOSED, place=self.id)
        future: asyncio.Future[Effects] = self._loop.create_future()
        self._futures[operation] = future
        self._ledger.queued_bytes += operation.size_bytes
        self._upkeep.busy = True
        self._thread.put(operation)
        return future

    async def append(self, append: Append) -> Appended:
        if self._closing:
            raise LogError(ErrorKind.LOG_CLOSED, place=self.id)
        ledger = self._ledger
        if not ledger.admitting:
            kind = ErrorKind.LOG_IO if self._disk_error else ErrorKind.LOG_FULL
            raise LogError(kind, place=self.id, detail=ledger.reason)
        now = self._clock.unix_nano()
        if append.chunks:
            self._has_chunks = True
        size = sum([block.payload_bytes for block in append.blocks])
        effects = await self._submit(Operation(lambda store: store.append(append, now), size_bytes=size))
        return Appended(effects.offsets)

    async def commit(
        self,
        group: str,
        *,
        acks: Sequence[Delivery] = (),
        skipped_records: Mapping[int, int] | None = None,
        rejections: Sequence[Rejection] = (),
        outputs: Sequence[Block] = (),
        state_puts: Mapping[str, bytes] | None = None,
        state_ttl_s: float | None = None,
        state_deletes: Sequence[str] = (),
    ) -> None:
        endings = self._ledger.endings(group, acks, rejections, skipped_records or {}, derives=bool(outputs or state_puts or state_deletes))
        if outputs and not endings and not self._ledger.has_space:
            raise LogError(ErrorKind.LOG_FULL, place=self.id, detail="the reserve is kept for commits that also ack")
        now = self._clock.unix_nano()
        expires = None if state_ttl_s is None else now + int(state_ttl_s * 1e9)
        puts = dict(state_puts or {})

        def run(store: Store) -> Effects:
            return store.commit_group(group, now, endings, outputs, puts, expires, state_deletes)

        size = sum([block.payload_bytes for block in outputs])
        await self._submit(Operation(run, size_bytes=size, proves=True, patient=not (outputs or puts or state_deletes or rejections)))

    async def reset_group(self, group: str, start: Literal["oldest", "newest"]) -> None:
        ledger = self._ledger.groups[group]
        future = self._submit(Operation(lambda store: sqlite_groups.reset_group(store, group, start), proves=True))
        self._ledger.rewind(ledger, ledger.last, self._clock.unix_nano())  # nothing more is read until it is decided
        try:
            await future
        finally:
            self._ledger.rewind(ledger, 0, ledger.oldest_unix_nano() or self._clock.unix_nano())
            self._reading.behind(group)

    async def drop_group(self, group: str) -> None:
        if group not in self._ledger.groups:
            raise ValueError(f"the log has no group {group!r}")
        await self._submit(Operation(lambda store: sqlite_groups.drop_group(store, group), proves=True))

    async def delete_dead_letters(self, ids: Sequence[int]) -> int:
        return len((await self._submit(Operation(lambda store: store.delete_dead_letters(ids)))).dead_removed)

    async def revive_dead_letters(self, revivals: Sequence[Revival]) -> list[int]:
        now = self._clock.unix_nano()
        size = sum([one.block.payload_bytes for one in revivals])
        effects = await self._submit(Operation(lambda store: store.revive(revivals, now), size_bytes=size))
        return [id for id, _, _ in effects.revived]

    # what the commit thread says

    def _from_thread(self, outcome: Outcome) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told, outcome)

    def _told(self, outcome: Outcome) -> None:
        """Take in what became durable, in order, then tell those who wait."""
        if outcome.snapshot is not None:
            self._reload(outcome)
        for operation in outcome.operations:
            self._ledger.queued_bytes -= operation.size_bytes
            if operation.effects is not None:
                self._take_in(operation.effects)
        if outcome.disk_error is not None:
            self._disk_error = outcome.disk_error
            if not self._disk_error:
                self._upkeep.measure_free_space()  # it may work again only because the reserve was given up
        self._settle()
        for operation in outcome.operations:
            self._decide(operation, operation.error)

    def _decide(self, operation: Operation, error: Exception | None) -> None:
        future = self._futures.pop(operation, None)
        if future is None or future.done():
            return
        if error is None and operation.effects is not None:
            future.set_result(operation.effects)
        else:
            future.set_exception(error or LogError(ErrorKind.LOG_CLOSED, place=self.id))

    def _reload(self, outcome: Outcome) -> None:
        assert outcome.snapshot is not None
        self._ledger.load(outcome.snapshot)
        self._reading.meet_groups()

    def _take_in(self, effects: Effects) -> None:
        ledger = self._ledger
        if effects.snapshot is not None:
            self._reload(Outcome((), effects.snapshot))
        ledger.received(effects.received)
        for entry, block in effects.filed:
            self._reading.filed(entry, block)
            ledger.file(entry)
        for name, ending in effects.ended:
            if group_ledger := ledger.groups.get(name):
                ledger.end(group_ledger, ending)
        for name, offset in effects.stale:
            if group_ledger := ledger.groups.get(name):
                group_ledger.in_flight.pop(offset, None)
        for name, entry, reason in effects.lost:
            if group_ledger := ledger.groups.get(name):
                self._reading.behind(name)
                ledger.lose(group_ledger, entry, reason)
        ledger.held_bytes -= effects.freed_bytes
        for _, name, entry in effects.revived:
            ledger.held_bytes += entry.size_bytes
            if group_ledger := ledger.groups.get(name):
                self._reading.behind(name)
                ledger.file(entry, (group_ledger,))
        for count in effects.dead_added:
            ledger.dead_added(count)
        for count, why in effects.dead_removed:
            ledger.dead_removed(count, why)

    def _settle(self) -> None:
        """After any change: what is past its quota goes, then admission is said anew."""
        ledger = self._ledger
        now = self._clock.unix_nano()
        ledger.stop_reason = "emp-pipe is stopping" if self._closing else self._disk_error or self._upkeep.low_space
        if not ledger.stop_reason:
            for group in ledger.groups.values():
                if not group.spec.required and group.past_quota(now):
                    self._trim(group, now)
            if not ledger.has_space:
                self._relieve()
        ledger.recompute(now)

    def _trim(self, group: GroupLedger, now: int) -> None:
        name = group.spec.name
        in_flight = frozenset(group.in_flight)
        if name in self._trimming or group.held_blocks == len(in_flight):
            return
        self._trimming.add(name)
        future = self._submit(Operation(lambda store: sqlite_groups.trim(store, name, in_flight, now)))
        future.add_done_callback(lambda done: self._trimmed(name, done))

    def _trimmed(self, name: str, done: asyncio.Future[Effects]) -> None:
        self._trimming.discard(name)
        if not done.cancelled() and done.exception() is None and (done.result().lost or done.result().more):
            self._settle()

    def _relieve(self) -> None:
        """Rather than stop receivers, give up the oldest blocks that only best-effort groups still hold."""
        groups = self._ledger.groups.values()
        if self._relieving or not any(group.held_blocks > len(group.in_flight) for group in groups if not group.spec.required):
            return
        self._relieving = True
        in_flight = frozenset[int]().union(*(group.in_flight for group in groups))
        wanted = self._ledger.held_bytes + self._ledger.dead_bytes - self._ledger.admit_below_bytes + 1
        future = self._submit(Operation(lambda store: sqlite_groups.relieve(store, in_flight, max(wanted, 1))))
        future.add_done_callback(self._relieved)

    def _look_again(self) -> bool:
        self._relieving = False
        self._settle()
        return self._ledger.held_bytes > 0

    def _relieved(self, done: asyncio.Future[Effects]) -> None:
        # When nothing could be freed the next look is the upkeep's, a second later: the search is not free.
        self._relieving = done.cancelled() or done.exception() is not None or not done.result().freed_bytes

    # reading

    async def _in_reader(self, function: Callable[..., _T], *arguments: object) -> _T:
        if self._closing:
            raise LogError(ErrorKind.LOG_CLOSED, place=self.id)
        try:
            return await self._loop.run_in_executor(self._reads, partial(function, *arguments))
        except apsw.Error as error:
            self._thread.put(Operation(fail_with(error)))
            raise LogError(ErrorKind.LOG_IO, place=str(self.directory), detail=describe(error)) from error

    async def read(self, group: str, max_bytes: int, owner: str = "") -> list[Delivery]:
        if self._closing:
            raise LogError(ErrorKind.LOG_CLOSED, place=self.id)
        return await self._reading.read(group, max_bytes)

    async def _fetch(self, group: str, offsets: Sequence[int], after: int, up_to: int, max_bytes: int) -> Fetched:
        return await self._in_reader(self._thread.reader.blocks, self._thread.group_id(group), offsets, after, up_to, max_bytes)

    def _give_up(self, group: str, row: Row, error: Exception) -> None:
        """A block that cannot be read becomes a dead letter."""
        entry, now = row.entry, self._clock.unix_nano()
        letter = DeadLetter(self.id, DeadReason.BLOCK_INVALID, str(error), row.payload, row.header, entry.records, time_unix_nano=now)
        ending = Ending(entry, 0, entry.records, (letter,))
        future = self._submit(Operation(lambda store: store.commit_group(group, now, (ending,), (), {}, None, ())))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # on failure the next read finds it again

    async def wait_readable(self, group: str) -> None:
        await self._ledger.wait_readable(group)

    def defer(self, deliveries: Sequence[Delivery]) -> None:
        self._ledger.defer(deliveries)
        if not self._closing:
            self._settle()

    # questions

    async def seen(self, chunks: Sequence[ChunkKey]) -> set[ChunkKey]:
        if not self._has_chunks or not chunks:
            return set()
        return await self._in_reader(self._thread.reader.seen, chunks, self._clock.unix_nano())

    async def held_by(self, group: str, offsets: Sequence[int]) -> set[int]:
        return await self._in_reader(self._thread.reader.held, self._thread.group_id(group), offsets)

    async def state_get(self, group: str, key: str) -> bytes | None:
        return (await self._in_reader(self._thread.reader.state, group, key, None, self._clock.unix_nano())).get(key)

    async def state_items(self, group: str, prefix: str = "") -> dict[str, bytes]:
        return await self._in_reader(self._thread.reader.state, group, prefix, prefix + "\U0010ffff", self._clock.unix_nano())

    async def checkpoint_get(self, name: str) -> bytes | None:
        return await self._in_reader(self._thread.reader.checkpoint, name)

    async def dead_letters(self, limit: int = 100, after_id: int = 0, which: DeadFilter | None = None) -> list[tuple[int, DeadLetter]]:
        return await self._in_reader(self._thread.reader.dead_letters, limit, after_id, which)

    async def receiver_books(self) -> list[ReceiverBooks]:
        return list(self._ledger.receivers.values())

    async def group_books(self) -> list[GroupBooks]:
        return list(self._ledger.books.values())

    async def answers(self) -> None:
        await self._submit(Operation(lambda store: Effects()))

    def usage(self) -> Usage:
        return self._ledger.usage(self._clock.set_by_ns())

    async def wait_admitting(self) -> None:
        await self._ledger.wait_admitting()


CONFIG = SqliteConfig
COMPONENT = SqliteLog
