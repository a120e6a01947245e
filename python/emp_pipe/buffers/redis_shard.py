"""One shard of the log in Redis: all of the protocol, for the process that owns it; appends and questions for every other.

    away ──▶ here, another's ──▶ here, ours: only then `read` gives something and `commit` takes something

The ledger is loaded from a look at the shard and then told of every operation, in the order in which Redis did them. Each reply carries the
number of the operation; a gap in the numbers says that another process changed the shard, and a look follows. How the shard comes, goes
and is kept: `redis_life.py`. Not here: how operations get there (`redis_queue.py`), what is written (`redis_script_*.lua`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from emp_pipe.buffers.redis_effects import tell_of_groups
from emp_pipe.buffers.redis_life import LOST, ShardLife
from emp_pipe.buffers.redis_link import Call
from emp_pipe.buffers.redis_queue import Operation, Taking
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.group_ledger import Ending
from emp_pipe.log.protocol import (
    Append,
    Appended,
    ChunkKey,
    DeadFilter,
    DeadLetter,
    DeadReason,
    Delivery,
    GroupBooks,
    GroupSpec,
    ReceiverBooks,
    Rejection,
    Revival,
    Usage,
)
from emp_pipe.log.reading import Fetched, Row

if TYPE_CHECKING:
    from emp_pipe._core import Block


class RedisShard(ShardLife):
    """A `Log` over one shard."""

    @property
    def durability(self) -> str:
        return f"as the log of which it is a part, in Redis at {self.place}"

    @property
    def parts(self) -> Sequence[RedisShard]:
        return (self,)

    @property
    def ours(self) -> bool:
        return self.owned.is_set()

    # operations

    def _submit(self, operation: Operation) -> asyncio.Future[Any]:
        if self.closing:
            raise LogError(ErrorKind.LOG_CLOSED, place=self.id)
        future = self.queue.put(operation)
        self.ledger.queued_bytes = self.queue.queued_bytes
        return future

    def check_open(self) -> None:
        if self.closing:
            raise LogError(ErrorKind.LOG_CLOSED, place=self.id)

    def check_admitting(self) -> None:
        if not self.ledger.admitting:
            kind = ErrorKind.LOG_IO if self.queue.trouble is not None else ErrorKind.LOG_FULL
            raise LogError(kind, place=self.id, detail=self.ledger.reason)

    async def append(self, append: Append) -> Appended:
        self.check_open()
        self.check_admitting()
        return await self.append_admitted(append)

    async def append_admitted(self, append: Append, once: Mapping[str, ChunkKey] | None = None) -> Appended:
        """Append what the log has admitted: where it goes to several shards, that is decided once and for all of it."""
        self.check_open()
        now = self.clock.unix_nano()
        written: list[Block] = []

        def build() -> Call:
            written[:] = self.calls.read_blocks(append.blocks)
            return self.calls.append(append, now, max(append.epoch, self.checkpoint_epoch), once)

        def take(reply: list[Any], taking: Taking) -> list[int]:
            filed = iter(self.effects.appended(reply, taking, append, written, now))
            self.memory_added(size)
            known = {id(block) for block in written}
            return [next(filed) if id(block) in known else -1 for block in append.blocks]

        size = sum([block.payload_bytes for block in append.blocks])
        return Appended(await self._submit(Operation(build, take, size_bytes=size, patient=False)))

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
        self.check_open()
        derives = bool(outputs or state_puts or state_deletes)
        endings = self.ledger.endings(group, acks, rejections, skipped_records or {}, derives=derives)
        if not endings and not derives:
            return
        if derives:
            self._check_derives(group)
        if outputs and not endings and not self.has_space:
            raise LogError(ErrorKind.LOG_FULL, place=self.id, detail="the reserve is kept for commits that also ack")
        now = self.clock.unix_nano()
        expires = None if state_ttl_s is None else now + int(state_ttl_s * 1e9)
        puts = dict(state_puts or {})
        written: list[Block] = []

        def build() -> Call:
            if derives and self.state_read_under.get(group) == LOST:  # it waited while the server lost what it was derived from
                raise _not_this_memory(group)
            written[:] = self.calls.read_blocks(outputs)
            return self.calls.commit(group, now, endings, outputs, puts, expires, state_deletes)

        def take(reply: list[Any], taking: Taking) -> None:
            self.effects.committed(reply, taking, group, endings, written, now)

        size = sum([block.payload_bytes for block in outputs])
        await self._submit(Operation(build, take, size_bytes=size))

    def _check_derives(self, group: str) -> None:
        """Refuse to derive from a memory that is not this lease's: another owner may have changed the state meanwhile."""
        if group not in self.ledger.groups:
            raise LogError(ErrorKind.LOG_STALE, place=group, detail="the group was dropped")
        if not self.owned.is_set():
            raise LogError(ErrorKind.LOG_STALE, place=self.id, detail="another emp-pipe owns this shard")
        if self.state_read_under.get(group, self.view.epoch) != self.view.epoch:
            raise _not_this_memory(group)

    async def set_groups(self, groups: Sequence[GroupSpec]) -> None:
        tell_of_groups(await self.name_groups(groups), groups)

    async def name_groups(self, groups: Sequence[GroupSpec]) -> list[Any]:
        """Do what `set_groups` does and return what is to be said of it: a log of several shards says it once."""
        self.check_open()
        wanted = self.wanted = list(groups)
        self._named = True  # by an operation that waits for its turn: named beside it, the numbers before that one would be old
        now = self.clock.unix_nano()

        reports: list[Any] = []

        def take(reply: list[Any], taking: Taking) -> bool:
            reports.append(reply)
            return bool(reply[4])

        while await self._submit(Operation(lambda: self.calls.groups(wanted, now, self.config.retire_after_s), take)):
            pass  # a slice at a time
        await self.look(whole=True)
        return reports

    async def reset_group(self, group: str, start: Literal["oldest", "newest"]) -> None:
        self.check_open()
        ledger = self.ledger.groups[group]
        now = self.clock.unix_nano()
        up_to = ""

        def take(reply: list[Any], taking: Taking) -> bool:
            nonlocal up_to
            up_to = reply[3].decode()
            return bool(reply[2])

        def next_slice() -> asyncio.Future[bool]:
            return self._submit(Operation(lambda: self.calls.reset(group, now, oldest=start == "oldest", up_to=up_to), take))

        future = next_slice()
        self.ledger.rewind(ledger, ledger.last, now)  # nothing more is read until it is decided
        try:
            while await future:
                future = next_slice()
            await self.look(whole=True)
        finally:
            self.ledger.rewind(ledger, 0, ledger.oldest_unix_nano() or now)
            self.reading.behind(group)

    async def drop_group(self, group: str) -> None:
        self.check_open()
        if group not in self.ledger.groups:
            raise ValueError(f"the log has no group {group!r}")
        now = self.clock.unix_nano()
        while await self._submit(Operation(lambda: self.calls.drop(group, now), lambda reply, taking: bool(reply[2]))):
            pass  # a slice at a time
        await self.look(whole=True)

    # dead letters

    async def delete_dead_letters(self, ids: Sequence[int]) -> int:
        now = self.clock.unix_nano()
        unique = list(dict.fromkeys(ids))

        def take(reply: list[Any], taking: Taking) -> int:
            return self.effects.dead_gone(reply[2], None, taking)

        return int(await self._submit(Operation(lambda: self.calls.delete_dead(unique, now), take)))

    async def revive_dead_letters(self, revivals: Sequence[Revival]) -> list[int]:
        now = self.clock.unix_nano()
        size = sum([one.block.payload_bytes for one in revivals])
        revived: list[int] = await self._submit(Operation(lambda: self.calls.revive(revivals, now), self.effects.revived, size_bytes=size))
        return revived

    async def dead_letters(self, limit: int = 100, after_id: int = 0, which: DeadFilter | None = None) -> list[tuple[int, DeadLetter]]:
        self.check_open()
        return await self.reader.dead_letters(limit, after_id, which or DeadFilter())

    # reading

    async def read(self, group: str, max_bytes: int, owner: str = "") -> list[Delivery]:
        self.check_open()
        if not self.owned.is_set() or self.yielding or not await self.is_certain():
            return []
        return await self.reading.read(group, max_bytes)

    async def fetch(self, group: str, offsets: Sequence[int], after: int, up_to: int, max_bytes: int) -> Fetched:
        return await self.reader.blocks(group, offsets, after, up_to, max_bytes)

    def give_up(self, group: str, row: Row, error: Exception) -> None:
        """A block that cannot be read becomes a dead letter."""
        entry, now = row.entry, self.clock.unix_nano()
        letter = DeadLetter(self.id, DeadReason.BLOCK_INVALID, str(error), row.payload, row.header, entry.records, time_unix_nano=now)
        ending = Ending(entry, 0, entry.records, (letter,))

        def take(reply: list[Any], taking: Taking) -> None:
            self.effects.committed(reply, taking, group, (ending,), (), now)

        future = self._submit(Operation(lambda: self.calls.commit(group, now, (ending,), (), {}, None, ()), take))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # on failure the next read finds it again

    async def wait_readable(self, group: str) -> None:
        while True:
            await self.owned.wait()
            await self.read_on.wait()
            await self.ledger.wait_readable(group)
            if self.owned.is_set() and not self.yielding and self.queue.trouble is None:
                return
            await self.wait_here()

    def defer(self, deliveries: Sequence[Delivery]) -> None:
        self.ledger.defer(deliveries)
        if not self.closing:
            self.settle()

    # questions

    async def seen(self, chunks: Sequence[ChunkKey]) -> set[ChunkKey]:
        return await self.reader.seen(chunks, self.clock.unix_nano())

    async def held_by(self, group: str, offsets: Sequence[int]) -> set[int]:
        self.check_open()
        return await self.reader.held(group, offsets)

    async def state_get(self, group: str, key: str) -> bytes | None:
        await self._begin_state(group)
        return await self.reader.state(group, key, self.clock.unix_nano())

    async def state_items(self, group: str, prefix: str = "") -> dict[str, bytes]:
        await self._begin_state(group)
        return await self.reader.states(group, prefix, self.clock.unix_nano())

    async def _begin_state(self, group: str) -> None:
        """State is the owner's: before the shard is ours another process may be changing it."""
        self.check_open()
        await self.owned.wait()
        self.check_open()
        self.state_read_under[group] = self.view.epoch

    async def checkpoint_get(self, name: str) -> bytes | None:
        found = await self.reader.checkpoint(name)
        return found[1] if found is not None else None

    async def receiver_books(self) -> list[ReceiverBooks]:
        return list(self.ledger.receivers.values())

    async def group_books(self) -> list[GroupBooks]:
        return list(self.ledger.books.values())

    async def answers(self) -> None:
        """Nothing lies on this machine; what is asked of the server has time limits of its own."""

    def usage(self) -> Usage:
        return self.ledger.usage(self.clock.set_by_ns())

    @property
    def admitting(self) -> bool:
        return self.ledger.admitting

    async def wait_admitting(self) -> None:
        await self.ledger.wait_admitting()


def _not_this_memory(group: str) -> LogError:
    return LogError(ErrorKind.LOG_STALE, place=group, detail="its state was read before another owned this shard, or is lost")
