"""Room in a shard: when receivers must wait, what best-effort groups lose instead, and what has outlived its time.

Two limits hold: the buffer's own (`max_bytes`, counted in the ledger) and the server's (`maxmemory`, measured once a second). What is above
them is the reserve for commits that end something.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from emp_pipe.buffers.redis_queue import Operation, Taking
from emp_pipe.errors import LogError
from emp_pipe.log.group_ledger import GroupLedger
from emp_pipe.logs import RateLimitedLogger, get_logger

if TYPE_CHECKING:
    from emp_pipe.buffers.redis_lease import Standing
    from emp_pipe.buffers.redis_life import ShardLife

_limited = RateLimitedLogger(get_logger("redis"))
TICK_S = 1.0
_EXPIRE_EVERY_TICKS = 30
_MOST_PER_CALL = 1000


class Space:
    """One shard's room."""

    def __init__(self, shard: ShardLife) -> None:
        self._shard = shard
        self._trimming: set[str] = set()
        self._relieving = False
        self.used_bytes = 0
        """What Redis uses: as measured, and what was appended since."""
        self._limit_bytes = 0
        self._most_bytes = 0

    def measured(self, standing: Standing) -> None:
        self.used_bytes = standing.used_bytes
        self._most_bytes = standing.max_bytes
        self._limit_bytes = int(standing.max_bytes * self._shard.config.maxmemory_share)
        self._shard.settle()

    @property
    def pressure(self) -> bool:
        """Whether Redis itself has no room left but the reserve."""
        return self._most_bytes > 0 and self.used_bytes >= self._limit_bytes

    def settle(self, stop_reason: str) -> None:
        shard, ledger = self._shard, self._shard.ledger
        now = shard.clock.unix_nano()
        shard.whole.tell(shard.number)
        if not stop_reason and shard.owned.is_set():
            for group in ledger.groups.values():
                if not group.spec.required and group.past_quota(now) and self._has_more_than_its_share(group, now):
                    self._trim(group, now)
            if not shard.has_space:
                self._relieve(now)
        if not stop_reason and self.pressure:
            stop_reason = (
                f"Redis uses {self.used_bytes:,} of the {self._most_bytes:,} bytes of its maxmemory; the rest is kept for draining"
            )
        ledger.stop_reason = stop_reason
        ledger.recompute(now)
        shard.whole.tell_waiting(shard.number, now)

    def _has_more_than_its_share(self, group: GroupLedger, now: int) -> bool:
        """Whether a group that is past its quota loses something here, and not in another shard alone."""
        if group.held_bytes > self._shard.whole.quota_bytes(self._shard.number, group.spec.name):
            return True
        age_s, oldest = group.spec.quota_age_s, group.oldest_unix_nano()
        return age_s is not None and oldest is not None and now - oldest > age_s * 1e9

    def _trim(self, group: GroupLedger, now: int) -> None:
        shard, name = self._shard, group.spec.name
        in_flight = list(group.in_flight)
        if name in self._trimming or group.held_blocks == len(in_flight):
            return
        self._trimming.add(name)

        def take(reply: list[Any], taking: Taking) -> bool:
            return shard.effects.trimmed(reply, taking, name) or bool(reply[2])

        future = shard.queue.put(
            Operation(lambda: shard.calls.trim(name, now, in_flight, shard.whole.quota_bytes(shard.number, name), _MOST_PER_CALL), take)
        )
        future.add_done_callback(lambda done: self._trimmed(name, done))

    def _trimmed(self, name: str, done: asyncio.Future[bool]) -> None:
        self._trimming.discard(name)
        if not done.cancelled() and done.exception() is None and done.result():
            self._shard.settle()

    def _relieve(self, now: int, after: str = "0") -> None:
        """Rather than stop receivers, give up the oldest blocks that only best-effort groups still hold."""
        shard, ledger = self._shard, self._shard.ledger
        groups = ledger.groups.values()
        if self._relieving or not any(group.held_blocks > len(group.in_flight) for group in groups if not group.spec.required):
            return
        self._relieving = True
        in_flight = frozenset[int]().union(*(group.in_flight for group in groups))
        too_many = ledger.held_bytes + ledger.dead_bytes + ledger.elsewhere_bytes - ledger.admit_below_bytes + 1
        wanted = max(
            -(-too_many // shard.whole.count),  # the others make room too
            self.used_bytes - self._limit_bytes if self.pressure else 1,
        )
        operation = Operation(lambda: shard.calls.relieve(now, in_flight, wanted, after, _MOST_PER_CALL), shard.effects.relieved)
        shard.queue.put(operation).add_done_callback(lambda done: self._relieved(now, done))

    def _relieved(self, now: int, done: asyncio.Future[tuple[int, str]]) -> None:
        # When nothing could be freed the next look is the upkeep's, a second later: the search is not free.
        if done.cancelled() or done.exception() is not None:
            return
        freed_bytes, after = done.result()
        self.used_bytes -= freed_bytes
        if freed_bytes or after:
            self._relieving = False
        if after and not freed_bytes and not self._shard.has_space and not self._shard.closing:
            self._relieve(now, after)

    async def run(self) -> None:
        """Upkeep, until cancelled."""
        ticks = 0
        while True:
            await self._shard.clock.sleep(TICK_S)
            ticks += 1
            self._relieving = False
            try:
                self._shard.settle()
                if not ticks % _EXPIRE_EVERY_TICKS:
                    await self._expire()
            except LogError:
                continue  # the queue says it, once
            except Exception as error:
                _limited.exception(f"unexpected {type(error).__name__}", "%s: upkeep failed; it is tried again", self._shard.place)

    async def _expire(self) -> None:
        shard = self._shard
        now = shard.clock.unix_nano()
        if shard.wanted is not None:  # named once more, so that no other replica retires them
            await shard.set_groups(shard.wanted)
        if shard.owned.is_set():

            def take(reply: list[Any], taking: Taking) -> None:
                from emp_pipe.log.protocol import LossReason

                shard.effects.dead_gone(reply[2], LossReason.DEAD_LIMIT, taking)

            await shard.queue.put(Operation(lambda: shard.calls.expire(now), take))
