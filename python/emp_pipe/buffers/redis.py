"""The durable log on Redis: what several replicas share, or what keeps it where a process has no disk of its own.

This file is its face: the log over its shards. The rest is split by what it is about: `redis_shard.py` (one shard, all of
the protocol), `redis_queue.py` (how operations get there, exactly once), `redis_lease.py` (who owns a shard), `redis_calls.py` and
`redis_script_*.lua` (what is written), `redis_effects.py` and `redis_snapshot.py` (what the ledger is told), `redis_client.py` (the
connection). The data model and its reasons: docs/decisions/010-redis-log.md.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from emp_pipe.buffers.redis_client import connect
from emp_pipe.buffers.redis_effects import tell_of_groups
from emp_pipe.buffers.redis_link import end_tasks
from emp_pipe.buffers.redis_placement import ShardPart, by_shard, plan, shard_of_name, shard_of_offset
from emp_pipe.buffers.redis_process import name_of_this
from emp_pipe.buffers.redis_settings import DEFAULT_SHARDS, RedisConfig
from emp_pipe.buffers.redis_shard import RedisShard
from emp_pipe.buffers.redis_share import Share, hand_over
from emp_pipe.buffers.redis_spool import SpooledLog
from emp_pipe.buffers.redis_watch import ServerWatch
from emp_pipe.buffers.redis_whole import Whole, group_books_of, receiver_books_of, usage_of, wait_counted
from emp_pipe.component import Context
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import (
    Append,
    Appended,
    ChunkKey,
    DeadFilter,
    DeadLetter,
    Delivery,
    GroupBooks,
    Groups,
    GroupSpec,
    Log,
    ReceiverBooks,
    Rejection,
    Revival,
    Usage,
)

if TYPE_CHECKING:
    from emp_pipe._core import Block


class RedisLog:
    """A `Log` in Redis: the face over its shards. Who derives goes to the shards themselves (`parts`)."""

    def __init__(self, id: str, config: RedisConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.owner = name_of_this(context.machine_id, secrets.token_hex(6))
        """Unique for each process and each log that it opens: leases and operations are its alone."""
        self._clock = context.clock
        self._client = connect(config, id, context.clock)
        self._watch = ServerWatch(
            self._client, config, config.stated, context.clock, wait_replicas=config.wait_replicas, wait_aof=config.wait_aof
        )
        self._watching: asyncio.Task[None] | None = None
        self._turns: dict[str, int] = {}
        """By group: the shard that a read begins with."""
        self.shards: list[RedisShard] = []
        self._make_shards(config.shards or DEFAULT_SHARDS)
        self.share = Share(self.owner, context.machine_id, config.lease_s, lambda: self.shards)
        self._sharing: asyncio.Task[None] | None = None
        owned = context.metrics.gauge("buffer_owned", unit="shards", help="Parts of the buffer that this replica reads.")
        owned.set_function(lambda: float(sum(shard.ours for shard in self.shards)))
        replicas = context.metrics.gauge("buffer_sharing", unit="replicas", help="Replicas that share the buffer, this one included.")
        replicas.set_function(lambda: float(len(self.share.replicas)))

    def _make_shards(self, count: int) -> None:
        whole = Whole(count)
        self.shards = [RedisShard(self.id, n, self.config, self._clock, self._client, self.owner, whole) for n in range(count)]

    @property
    def shard(self) -> RedisShard:
        """The first one."""
        return self.shards[0]

    @property
    def parts(self) -> Sequence[Log]:
        return tuple(self.shards)

    @property
    def ours(self) -> bool:
        return any(shard.ours for shard in self.shards)

    @property
    def shared_name(self) -> str:
        """The same in all processes that have this log; empty before it was opened."""
        return f"log-{self.shard.view.id.decode(errors='replace')}" if self.shard.view.id else ""

    @property
    def durability(self) -> str:
        return self._watch.durability

    @property
    def warnings(self) -> Sequence[str]:
        """What start-up warns of."""
        stored, wanted = len(self.shards), self.config.shards
        if wanted is None or wanted == stored:
            return self._watch.warnings
        return [
            *self._watch.warnings,
            f"buffer.shards is {wanted}, and the buffer under {self.config.prefix!r} was made with {stored}: it keeps them. For another "
            "number let it drain and set another `buffer.prefix`",
        ]

    @property
    def details(self) -> Mapping[str, Any]:
        """For `/readyz`, under `buffer`."""
        shards = [{"shard": shard.number, "owned": shard.ours, "away": shard.away} for shard in self.shards]
        replicas = [{"machine": one.machine, "version": one.version} for one in self.share.replicas]
        return {**self._watch.details, "shards": shards, "replicas": replicas}

    async def wait_counted(self) -> None:
        """Return when what was appended from here is in the books: a look may be due for that."""
        await wait_counted(self.shards)

    @property
    def away(self) -> str:
        """Why nothing can be written; empty while something can."""
        return next((shard.away for shard in self.shards if shard.away), "")

    # opening and closing

    async def open(self, groups: Groups | None) -> None:
        try:
            await self._watch.begin()
            await self._open_shards(groups)
        except BaseException:
            for shard in self.shards:
                await shard.close(self._clock.monotonic_s())
            await self._client.aclose()
            raise
        loop = asyncio.get_running_loop()
        self._watching = loop.create_task(self._watch.run(), name=f"{self.id}: server")
        self._sharing = loop.create_task(self.share.run(), name=f"{self.id}: sharing")

    async def _open_shards(self, groups: Groups | None) -> None:
        await self.shard.find()
        if self.shard.stored_shards != len(self.shards):
            self._make_shards(self.shard.stored_shards)
            await self.shard.find()
        own = await asyncio.to_thread(groups, []) if callable(groups) else groups or ()
        await self.share.begin(own)
        for shard in self.shards:
            await shard.open(None)
        if callable(groups):
            stored = {spec.name: spec for shard in reversed(self.shards) for spec in shard.view.specs.values()}
            live = self.share.named_elsewhere - self.share.groups  # what they hold is theirs to end
            groups = await asyncio.to_thread(groups, [spec for spec in stored.values() if spec.name not in live])
        if groups is not None:
            await self.set_groups(groups)

    async def set_groups(self, groups: Sequence[GroupSpec]) -> None:
        await self.share.name(groups)
        tell_of_groups([report for shard in self.shards for report in await shard.name_groups(groups)], groups)

    async def leave(self, deadline_monotonic_s: float) -> None:
        """Where other replicas live: let them have all shards, as soon as what is being sent has ended."""
        if len(self.share.replicas) < 2 or self.away:
            return
        if self._sharing is not None:
            await end_tasks([self._sharing])
        await self.share.leave()
        left_s = max(deadline_monotonic_s - self._clock.monotonic_s(), 0.0)
        handing = [asyncio.ensure_future(hand_over(shard)) for shard in self.shards if shard.view.epoch]
        if handing:
            await asyncio.wait(handing, timeout=left_s)
        await end_tasks(handing)

    async def close(self, deadline_monotonic_s: float) -> None:
        await end_tasks([task for task in (self._sharing, self._watching) if task is not None])
        was_open = not self.shard.closing
        await asyncio.gather(*(shard.close(deadline_monotonic_s) for shard in self.shards))
        if was_open and not self.shard.away:
            await self.share.leave()
        await self._client.aclose()

    # appending

    async def append(self, append: Append) -> Appended:
        if len(self.shards) == 1:
            return await self.shard.append(append)
        for shard in self.shards:
            shard.check_open()
            shard.check_admitting()
        planned = await plan(append, len(self.shards))
        offsets = [-1] * len(append.blocks)
        for parts in planned.stages(append.chunks):
            await self._append_parts(append, parts, offsets)
        return Appended(offsets)

    async def _append_parts(self, append: Append, parts: Mapping[int, ShardPart], offsets: list[int]) -> None:
        """Append to several shards at once; return when all have answered. Raises the first LogError."""
        answers = await asyncio.gather(
            *(self.shards[number].append_admitted(part.append(append), part.once) for number, part in parts.items()), return_exceptions=True
        )
        for part, answer in zip(parts.values(), answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            for place, offset in zip(part.places, answer.offsets, strict=True):
                if offsets[place] < 0:
                    offsets[place] = offset

    async def seen(self, chunks: Sequence[ChunkKey]) -> set[ChunkKey]:
        found: set[ChunkKey] = set()
        for number, shard in enumerate(self.shards):
            of_shard = [chunk for chunk in chunks if shard_of_name(chunk.chunk, len(self.shards)) == number]
            if of_shard:
                found |= await shard.seen(of_shard)
        return found

    async def checkpoint_get(self, name: str) -> bytes | None:
        return await self.shards[shard_of_name(name.encode(), len(self.shards))].checkpoint_get(name)

    # reading

    async def read(self, group: str, max_bytes: int, owner: str = "") -> list[Delivery]:
        """Return blocks of the shards that are ours: each in its order, each in its turn."""
        if len(self.shards) == 1:
            return await self.shard.read(group, max_bytes, owner)
        self.shard.check_open()
        deliveries: list[Delivery] = []
        left = max_bytes
        turn = self._turns[group] = (self._turns.get(group, -1) + 1) % len(self.shards)
        try:
            for shard in (*self.shards[turn:], *self.shards[:turn]):
                known = shard.ledger.groups.get(group)
                if known is None or not known.readable or (deliveries and left < max_bytes // 2):
                    continue
                more = await shard.read(group, left, owner)
                left -= sum(delivery.block.payload_bytes for delivery in more)
                deliveries += more
        except BaseException:
            self.defer(deliveries)
            raise
        return deliveries

    async def wait_readable(self, group: str) -> None:
        if len(self.shards) == 1:
            await self.shard.wait_readable(group)
            return
        waits = [asyncio.ensure_future(shard.wait_readable(group)) for shard in self.shards]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(waits)

    def defer(self, deliveries: Sequence[Delivery]) -> None:
        for number, those in self._by_shard(deliveries).items():
            self.shards[number].defer(those)

    async def held_by(self, group: str, offsets: Sequence[int]) -> set[int]:
        held: set[int] = set()
        for number, those in by_shard(offsets).items():
            held |= await self.shards[number].held_by(group, those)
        return held

    @staticmethod
    def _by_shard(deliveries: Iterable[Delivery]) -> dict[int, list[Delivery]]:
        found: dict[int, list[Delivery]] = {}
        for delivery in deliveries:
            found.setdefault(shard_of_offset(delivery.offset), []).append(delivery)
        return found

    # ending

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
        """One atomic commit where all of it is of one shard, else one for each. What is derived must be of one shard."""
        acked = self._by_shard(acks)
        rejected: dict[int, list[Rejection]] = {}
        for rejection in rejections:
            rejected.setdefault(shard_of_offset(rejection.delivery.offset), []).append(rejection)
        numbers = sorted({*acked, *rejected}) or [0]
        if len(numbers) > 1 and (outputs or state_puts or state_deletes):
            raise ValueError("what is derived of several shards cannot be one commit: derive from `parts`")
        if outputs and not acks and not rejections and not all([shard.has_space for shard in self.shards]):
            raise LogError(ErrorKind.LOG_FULL, place=self.id, detail="the reserve is kept for commits that also ack")
        commits = (
            self.shards[number].commit(
                group,
                acks=acked.get(number, ()),
                skipped_records=skipped_records,
                rejections=rejected.get(number, ()),
                outputs=outputs,
                state_puts=state_puts,
                state_ttl_s=state_ttl_s,
                state_deletes=state_deletes,
            )
            for number in numbers
        )
        for answer in await asyncio.gather(*commits, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer

    async def state_get(self, group: str, key: str) -> bytes | None:
        for shard in self.shards:
            if (value := await shard.state_get(group, key)) is not None:
                return value
        return None

    async def state_items(self, group: str, prefix: str = "") -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for shard in reversed(self.shards):
            found |= await shard.state_items(group, prefix)
        return found

    async def reset_group(self, group: str, start: Literal["oldest", "newest"]) -> None:
        await self.share.refuse_unless_all_are_ours(group)
        for shard in self.shards:
            await shard.reset_group(group, start)

    async def drop_group(self, group: str) -> None:
        await self.share.refuse_unless_all_are_ours(group)
        for shard in self.shards:
            await shard.drop_group(group)

    # dead letters: ids that leave here name the shard too

    async def dead_letters(self, limit: int = 100, after_id: int = 0, which: DeadFilter | None = None) -> list[tuple[int, DeadLetter]]:
        which = which or DeadFilter()
        count = len(self.shards)
        found: list[tuple[int, DeadLetter]] = []
        for number, shard in enumerate(self.shards):
            ids = None if which.ids is None else frozenset(id // count for id in which.ids if id % count == number)
            of_shard = await shard.dead_letters(limit, max((after_id - number) // count, 0), replace(which, ids=ids))
            found += [(id * count + number, letter) for id, letter in of_shard]
        return sorted(found, key=lambda pair: pair[0])[:limit]

    async def delete_dead_letters(self, ids: Sequence[int]) -> int:
        count, deleted = len(self.shards), 0
        for number in dict.fromkeys(id % count for id in ids):
            deleted += await self.shards[number].delete_dead_letters([id // count for id in ids if id % count == number])
        return deleted

    async def revive_dead_letters(self, revivals: Sequence[Revival]) -> list[int]:
        count = len(self.shards)
        revived: list[int] = []
        for number in dict.fromkeys(one.id % count for one in revivals):
            those = [replace(one, id=one.id // count) for one in revivals if one.id % count == number]
            revived += [id * count + number for id in await self.shards[number].revive_dead_letters(those)]
        return revived

    # questions

    async def receiver_books(self) -> list[ReceiverBooks]:
        return receiver_books_of([await shard.receiver_books() for shard in self.shards])

    async def group_books(self) -> list[GroupBooks]:
        return group_books_of([await shard.group_books() for shard in self.shards])

    async def answers(self) -> None:
        """Nothing lies on this machine; what is asked of the server has time limits of its own."""

    def usage(self) -> Usage:
        return usage_of([shard.usage() for shard in self.shards], self.config.dead_max_bytes)

    @property
    def admitting(self) -> bool:
        return all([shard.ledger.admitting for shard in self.shards])

    async def wait_admitting(self) -> None:
        while not self.admitting:
            for shard in self.shards:
                await shard.wait_admitting()


def build(id: str, config: RedisConfig, context: Context) -> SpooledLog:
    """Return the log in Redis with what takes its place while that is away."""
    place = config.address.place
    return SpooledLog(id, RedisLog(id, config, context), config.spool, context, name=f"{place} {config.prefix}", place=place)


CONFIG = RedisConfig
COMPONENT = build
