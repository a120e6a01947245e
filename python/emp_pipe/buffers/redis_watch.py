"""What the Redis of the log promised when it was last asked: at start, and again every minute.

A server changes its settings while it runs, and a failover puts another in its place. What has changed is said; one that has begun to
throw away is said loudly, again and again. Not here: what is asked and what it means (`redis_server.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emp_pipe.buffers.redis_client import RedisClientConfig, RedisLogError
from emp_pipe.buffers.redis_server import Promise, RedisStated, examine
from emp_pipe.clock import Clock
from emp_pipe.errors import ConfigError
from emp_pipe.logs import get_logger

if TYPE_CHECKING:
    from emp_pipe.buffers.redis_client import Client

EVERY_S = 60.0
_log = get_logger("redis")


class ServerWatch:
    """Asks the servers of a log. `run` belongs to the log's tasks."""

    def __init__(
        self,
        client: Client,
        config: RedisClientConfig,
        stated: RedisStated,
        clock: Clock,
        *,
        wait_replicas: int = 0,
        wait_aof: bool = False,
    ) -> None:
        self._client = client
        self._config = config
        self._stated = stated
        self._clock = clock
        self._waits: dict[str, Any] = {"wait_replicas": wait_replicas, "wait_aof": wait_aof}
        self._place = config.address.place
        self._promise: Promise | None = None
        self._unfit = ""

    async def begin(self) -> None:
        """Ask for the first time. Raises ConfigError where the server cannot hold a log, RedisLogError where it does not answer."""
        self._promise = await self._ask()

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            await self._clock.sleep(EVERY_S)
            await self.ask_again()

    async def ask_again(self) -> None:
        """Ask, and say what has changed since. Raises nothing: a Redis that is away is the log's to say."""
        try:
            found = await self._ask()
        except ConfigError as error:
            self._unfit = str(error)
            _log.error("%s It has changed since the start: what was acknowledged is in danger.", error)
        except RedisLogError as error:
            _log.debug("%s", error)
        else:
            before, self._promise, self._unfit = self._promise, found, ""
            if before is None or before.durability != found.durability:
                _log.warning("what Redis promises has changed: %s", found.durability)
            for warning in found.warnings:
                if before is None or warning not in before.warnings:
                    _log.warning("%s: %s", self._place, warning)

    async def _ask(self) -> Promise:
        return await examine(self._client, self._config, self._stated, self._place, **self._waits)

    @property
    def durability(self) -> str:
        """One sentence for start-up, `/readyz` and the documentation."""
        if self._promise is None:
            return f"Redis at {self._place}: what it promises was not asked yet"
        return f"{self._promise.durability}; BUT NOW: {self._unfit}" if self._unfit else self._promise.durability

    @property
    def warnings(self) -> Sequence[str]:
        """What start-up warns of."""
        return [] if self._promise is None else [f"{self._place}: {warning}" for warning in self._promise.warnings]

    @property
    def details(self) -> Mapping[str, Any]:
        """For `/readyz`, under `buffer`."""
        if self._promise is None:
            return {}
        fields = self._promise.fields
        if self._unfit:
            fields["warnings"].insert(0, self._unfit)
        return {"server": fields}
