"""The durable log on Redis: what several replicas share, or what keeps it where a process has no disk of its own.

This file is its face: settings, and the log over its shards. The rest is split by what it is about: `redis_shard.py` (one shard, all of
the protocol), `redis_queue.py` (how operations get there, exactly once), `redis_lease.py` (who owns a shard), `redis_calls.py` and
`redis_script_*.lua` (what is written), `redis_effects.py` and `redis_snapshot.py` (what the ledger is told), `redis_client.py` (the
connection). The data model and its reasons: docs/decisions/010-redis-log.md.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from emp_pipe.buffers.redis_client import RedisClientConfig, connect
from emp_pipe.buffers.redis_link import Wait, end_tasks
from emp_pipe.buffers.redis_server import RedisStated
from emp_pipe.buffers.redis_shard import RedisShard
from emp_pipe.buffers.redis_spool import SpoolConfig, SpooledLog
from emp_pipe.buffers.redis_watch import ServerWatch
from emp_pipe.component import Context
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
    ReceiverBooks,
    Rejection,
    Revival,
    Usage,
)

if TYPE_CHECKING:
    from emp_pipe._core import Block


class RedisConfig(RedisClientConfig):
    """Settings of the buffer in Redis."""

    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = Field("emp-pipe", description="What all keys begin with.")
    max_bytes: PositiveInt = Field(8 << 30, description="What the buffer may hold; 15 % of it is kept for draining.")
    maxmemory_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.7, description="Receivers wait while Redis uses more than this share of its `maxmemory`; the rest is kept for draining."
    )
    dead_max_bytes: PositiveInt = Field(256 << 20, description="What dead letters may take; the oldest go first.")
    dead_max_age_s: PositiveFloat = Field(7 * 86400.0, description="How long dead letters are kept.")
    lease_s: PositiveFloat = Field(10.0, description="How long a shard waits for an owner that is silent before another takes it over.")
    retire_after_s: NonNegativeFloat = Field(
        86400.0, description="A group that no replica's configuration has named for so long is given up, with what it holds."
    )
    patience_s: PositiveFloat = Field(5.0, description="How long an append waits for a Redis that is away before its sender is told.")
    wait_replicas: Annotated[int, Field(ge=0)] = Field(
        0, description="So many replicas must have what is acknowledged (WAIT), so that a failover loses nothing."
    )
    wait_aof: bool = Field(
        False,
        description="Redis must have synced what is acknowledged to its append-only file (WAITAOF, Redis 7.2 and later).",
    )
    wait_timeout_s: PositiveFloat = Field(
        2.0, description="How long `wait_replicas` and `wait_aof` wait before nothing more is taken from senders."
    )
    spool: SpoolConfig = Field(SpoolConfig.model_validate({}), description="Where what is received goes while Redis is away.")
    stated: RedisStated = Field(
        RedisStated.model_validate({}), description="What is known of a Redis that does not let itself be asked (CONFIG GET)."
    )

    @property
    def waits(self) -> Sequence[Wait]:
        """What follows each pipeline of operations."""
        timeout_ms = int(self.wait_timeout_s * 1000)
        if self.wait_aof:
            return [
                Wait(["WAITAOF", 1, self.wait_replicas, timeout_ms], [1, self.wait_replicas], "append-only files, here and at replicas,")
            ]
        return [Wait(["WAIT", self.wait_replicas, timeout_ms], [self.wait_replicas], "replicas")] if self.wait_replicas else []


class RedisLog:
    """A `Log` in Redis."""

    def __init__(self, id: str, config: RedisConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.owner = f"{context.machine_id}-{os.getpid()}-{secrets.token_hex(6)}"
        """Unique for each process and each log that it opens: leases and operations are its alone."""
        self._client = connect(config, id, context.clock)
        self._watch = ServerWatch(
            self._client, config, config.stated, context.clock, wait_replicas=config.wait_replicas, wait_aof=config.wait_aof
        )
        self._watching: asyncio.Task[None] | None = None
        self.shard = RedisShard(id, 0, config, context.clock, self._client, self.owner)

    @property
    def durability(self) -> str:
        return self._watch.durability

    @property
    def warnings(self) -> Sequence[str]:
        """What start-up warns of."""
        return self._watch.warnings

    @property
    def details(self) -> Mapping[str, Any]:
        """For `/readyz`, under `buffer`."""
        shard = self.shard
        return {**self._watch.details, "shards": [{"shard": shard.number, "owned": shard.owned.is_set(), "away": shard.away}]}

    @property
    def away(self) -> str:
        """Why nothing can be written; empty while something can."""
        return self.shard.away

    @property
    def admitting(self) -> bool:
        return self.shard.admitting

    async def open(self, groups: Groups | None) -> None:
        try:
            await self._watch.begin()
            await self.shard.open(groups)
        except BaseException:
            await self._client.aclose()
            raise
        self._watching = asyncio.get_running_loop().create_task(self._watch.run(), name=f"{self.id}: server")

    async def set_groups(self, groups: Sequence[GroupSpec]) -> None:
        await self.shard.set_groups(groups)

    async def close(self, deadline_monotonic_s: float) -> None:
        await self.shard.close(deadline_monotonic_s)
        if self._watching is not None:
            await end_tasks([self._watching])
        await self._client.aclose()

    async def append(self, append: Append) -> Appended:
        return await self.shard.append(append)

    async def seen(self, chunks: Sequence[ChunkKey]) -> set[ChunkKey]:
        return await self.shard.seen(chunks)

    async def read(self, group: str, max_bytes: int, owner: str = "") -> list[Delivery]:
        return await self.shard.read(group, max_bytes, owner)

    async def wait_readable(self, group: str) -> None:
        await self.shard.wait_readable(group)

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
        await self.shard.commit(
            group,
            acks=acks,
            skipped_records=skipped_records,
            rejections=rejections,
            outputs=outputs,
            state_puts=state_puts,
            state_ttl_s=state_ttl_s,
            state_deletes=state_deletes,
        )

    def defer(self, deliveries: Sequence[Delivery]) -> None:
        self.shard.defer(deliveries)

    async def held_by(self, group: str, offsets: Sequence[int]) -> set[int]:
        return await self.shard.held_by(group, offsets)

    async def state_get(self, group: str, key: str) -> bytes | None:
        return await self.shard.state_get(group, key)

    async def state_items(self, group: str, prefix: str = "") -> dict[str, bytes]:
        return await self.shard.state_items(group, prefix)

    async def checkpoint_get(self, name: str) -> bytes | None:
        return await self.shard.checkpoint_get(name)

    async def receiver_books(self) -> list[ReceiverBooks]:
        return await self.shard.receiver_books()

    async def group_books(self) -> list[GroupBooks]:
        return await self.shard.group_books()

    def usage(self) -> Usage:
        return self.shard.usage()

    async def wait_admitting(self) -> None:
        await self.shard.wait_admitting()

    async def reset_group(self, group: str, start: Literal["oldest", "newest"]) -> None:
        await self.shard.reset_group(group, start)

    async def drop_group(self, group: str) -> None:
        await self.shard.drop_group(group)

    async def dead_letters(self, limit: int = 100, after_id: int = 0, which: DeadFilter | None = None) -> list[tuple[int, DeadLetter]]:
        return await self.shard.dead_letters(limit, after_id, which)

    async def delete_dead_letters(self, ids: Sequence[int]) -> int:
        return await self.shard.delete_dead_letters(ids)

    async def revive_dead_letters(self, revivals: Sequence[Revival]) -> list[int]:
        return await self.shard.revive_dead_letters(revivals)


def build(id: str, config: RedisConfig, context: Context) -> SpooledLog:
    """Return the log in Redis with what takes its place while that is away."""
    place = config.address.place
    return SpooledLog(id, RedisLog(id, config, context), config.spool, context, name=f"{place} {config.prefix}", place=place)


CONFIG = RedisConfig
COMPONENT = build
