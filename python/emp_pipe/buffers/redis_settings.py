"""The settings of the buffer in Redis, beside those of the connection (`redis_client.py`) and of the spool (`redis_spool.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from emp_pipe.buffers.redis_client import RedisClientConfig
from emp_pipe.buffers.redis_link import Wait
from emp_pipe.buffers.redis_placement import MOST_SHARDS
from emp_pipe.buffers.redis_server import RedisStated
from emp_pipe.buffers.redis_spool import SpoolConfig

DEFAULT_SHARDS = 1


class RedisConfig(RedisClientConfig):
    """Settings of the buffer in Redis."""

    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = Field("emp-pipe", description="What all keys begin with.")
    shards: Annotated[int, Field(ge=1, le=MOST_SHARDS)] | None = Field(
        None,
        description="Into how many parts the buffer is cut, each read by one replica at a time: what replicas share. Fixed once the buffer "
        f"is made. Default: {DEFAULT_SHARDS}.",
    )
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
