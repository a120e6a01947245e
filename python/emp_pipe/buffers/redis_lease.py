"""Who owns a shard: a lease with an epoch, renewed once a second, and how the shard is by the way.

Only the owner reads and ends. Its epoch is in every call that does, so what an owner that was thought dead still sends has no effect. The
server's clock alone decides when a lease has ended, but for an owner that is seen to be dead (`redis_process.py`). Here the event loop's
measures the same seconds: a test that moves our own clock does not move Redis'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from emp_pipe.buffers.redis_client import RedisLogError, Trouble
from emp_pipe.buffers.redis_link import Call, Link
from emp_pipe.buffers.redis_process import is_dead
from emp_pipe.logs import RateLimitedLogger, get_logger

_EVERY_S = 1.0
_limited = RateLimitedLogger(get_logger("redis"))


class Standing(NamedTuple):
    """What a call for the lease says."""

    epoch: bytes
    """Ours; empty when it is another's, or nobody's that we want."""
    owner: str
    operations: int
    groups_version: bytes
    used_bytes: int
    max_bytes: int
    """Redis' maxmemory; 0: none."""
    gone: bool = False


class Lease:
    """Asks for one shard's lease, again and again. `wants` False: look only, and let it end."""

    def __init__(self, link: Link, lease_s: float) -> None:
        self._link = link
        self._lease_s = lease_s
        self.wants = True
        self.renewed_s = 0.0
        """When the server last said that the shard is ours, by the loop's clock: before it was asked."""

    @property
    def certain(self) -> bool:
        """Whether nobody else can have taken the lease yet."""
        return asyncio.get_running_loop().time() < self.renewed_s + self._lease_s

    async def ask(self, known: int = 0) -> Standing:
        """Take or renew the lease. `known`: a shard that fewer operations have changed is as good as gone. Raises RedisLogError."""
        asked_s = asyncio.get_running_loop().time()
        arguments = {"lease_ms": int(self._lease_s * 1000), "wants": self.wants, "known": known}
        reply = await self._link.ask(Call("claim", arguments))
        if reply[0] == b"held" and self.wants and is_dead(owner := reply[1].decode()):
            reply = await self._link.ask(Call("claim", arguments | {"dead": owner}))
        if reply[0] == b"gone":
            return Standing(b"", "", 0, b"", 0, 0, gone=True)
        _, who, operations, version, used, most, *_ = reply
        counts = int(operations), version, int(used), int(most)
        if reply[0] != b"ok":
            return Standing(b"", who.decode(), *counts)
        self.renewed_s = asked_s
        return Standing(who, self._link.owner, *counts)

    async def release(self) -> None:
        """Let another process have the shard at once."""
        self.renewed_s = 0.0
        await self._link.ask(Call("release", {}))

    async def keep(self, told: Callable[[Standing], None], failed: Callable[[RedisLogError], None]) -> None:
        """Ask once a second, until cancelled."""
        while True:
            await asyncio.sleep(min(_EVERY_S, self._lease_s / 3))
            try:
                told(await self.ask(self._link.view.operations))
            except RedisLogError as error:
                failed(error)
            except Exception as error:  # a lease that nobody renews any more is lost without a word
                _limited.exception(f"unexpected {type(error).__name__}", "%s: a lease could not be renewed", self._link.place)
                failed(RedisLogError(Trouble.OTHER, place=self._link.place, detail=f"{type(error).__name__}: {error}".rstrip(".")))
