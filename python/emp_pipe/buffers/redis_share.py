"""How replicas share the shards of a log: each says that it lives, counts who else does, and holds as many as fall to it.

    beat (once a second, in shard 0) ──▶ who lives, oldest first ──▶ too many held: hand some over     too few: ask for free ones

Only a lease says whose a shard is; what stands here decides who asks for one. A replica that is silent for a lease's time is forgotten, as
its leases end; one that is seen to be dead, at once. Not here: the lease (`redis_lease.py`), what is lost and found with it
(`redis_life.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emp_pipe import __version__
from emp_pipe.buffers.redis_client import RedisLogError
from emp_pipe.buffers.redis_link import Call, end_tasks
from emp_pipe.buffers.redis_process import is_dead
from emp_pipe.buffers.redis_shard import RedisShard
from emp_pipe.buffers.redis_snapshot import pairs
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import GroupSpec
from emp_pipe.logs import RateLimitedLogger, get_logger

_EVERY_S = 1.0
_SENDING_LOOK_S = 0.02
_log = get_logger("redis")
_limited = RateLimitedLogger(_log)


@dataclass(frozen=True, slots=True)
class Replica:
    """A process that lives and has this log open."""

    owner: str
    since_ms: int
    machine: str
    version: str
    groups: frozenset[str]


def fair_share(shards: int, replicas: int, rank: int) -> int:
    """Return how many of the shards fall to the replica of a rank; the oldest take what is left over."""
    return shards // replicas + (rank < shards % replicas)


class Share:
    """One replica's part in the sharing. `shards` are asked for each time: how many there are is known once the log is found."""

    def __init__(self, owner: str, machine: str, lease_s: float, shards: Callable[[], Sequence[RedisShard]]) -> None:
        self.owner = owner
        self._machine = machine
        self._lease_s = lease_s
        self._shards = shards
        self._handing_over: set[asyncio.Task[None]] = set()
        self.groups: frozenset[str] = frozenset()
        """What this replica's configuration names."""
        self.replicas: list[Replica] = []
        """All that live, this one included: the oldest first."""

    @property
    def named_elsewhere(self) -> frozenset[str]:
        """Groups that the configuration of another live replica names."""
        return frozenset().union(*(one.groups for one in self.replicas if one.owner != self.owner))

    async def begin(self, groups: Sequence[GroupSpec]) -> None:
        """Count who lives, before the shards are opened: this process asks for its share and no more. From the first beat on the others
        know which groups it names, and end none of them. Raises LogError."""
        await self.name(groups)
        self.settle()

    async def name(self, groups: Sequence[GroupSpec]) -> None:
        """Tell the others which groups our configuration names. Raises LogError."""
        self.groups = frozenset(spec.name for spec in groups)
        await self._beat()

    async def run(self) -> None:
        """Go on, until cancelled."""
        try:
            while True:
                await asyncio.sleep(min(_EVERY_S, self._lease_s / 3))
                try:
                    await self._beat()
                    self.settle()
                except LogError:
                    continue  # the queue says it, once
                except Exception as error:  # whoever does not beat is forgotten, and its shards with it
                    what = "the replicas that share the log could not be counted; it is tried again"
                    _limited.exception(f"unexpected {type(error).__name__}", what)
        finally:
            await end_tasks(self._handing_over)

    async def leave(self) -> None:
        """Tell the others not to count this process any more."""
        try:
            await self._beat(leaves=True)
        except RedisLogError:
            return  # they will notice

    async def _beat(self, *, leaves: bool = False) -> None:
        first = self._shards()[0]
        about = {"machine": self._machine, "version": __version__, "groups": sorted(self.groups)}
        arguments = {"silent_ms": int(self._lease_s * 1000), "leaves": leaves, "about": json.dumps(about)}
        reply = await first.link.ask(Call("replicas", arguments, [f"{first.keys.base}replicas", f"{first.keys.base}about"]))
        if reply[0] != b"ok":
            return  # the shard is begun anew by its own task
        found = [one for owner, text in pairs(reply[2]) if (one := _parse(owner, text)).owner == self.owner or not is_dead(one.owner)]
        self.replicas = sorted(found, key=lambda one: (one.since_ms, one.owner))

    async def refuse_unless_all_are_ours(self, group: str) -> None:
        """What changes a group in all shards is for who reads them all. Raises LogError before anything is changed, with who else does.

        A shard that nobody living reads is waited for until its lease has ended."""
        live = {one.owner: one.machine for one in self.replicas if one.owner != self.owner}
        shards = self._shards()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._lease_s + 2 * _EVERY_S):
                for shard in shards:
                    if shard.holder not in live:
                        await shard.owned.wait()
        others = [shard for shard in shards if not shard.owned.is_set()]
        if not others:
            return
        machines = sorted({live.get(shard.holder) or "?" for shard in others})
        where = f"emp-pipe on {machines[0]}" if len(machines) == 1 else f"the emp-pipes on {', '.join(machines)}"
        advice = "run this command where that one runs, or stop it first"
        if len(shards) > 1:
            advice = "stop all emp-pipes of this buffer but one, and run this command where that one runs"
        detail = f"{len(others)} of {len(shards)} shards of the buffer are read by {where}: the group was not changed"
        raise LogError(ErrorKind.LOG_STALE, place=group, detail=detail, advice=advice)

    def settle(self) -> None:
        """Let go of what is too much, ask for what is missing."""
        live = [one.owner for one in self.replicas]
        if self.owner not in live:
            return
        shards, rank = self._shards(), live.index(self.owner)
        share = fair_share(len(shards), len(live), rank)
        held = [shard for shard in shards if shard.view.epoch and not shard.yielding]
        for shard in held[share:]:
            _log.info("shard %d is handed over: %d replicas share %d shards", shard.number, len(live), len(shards))
            task = asyncio.get_running_loop().create_task(hand_over(shard), name=f"{shard.id}: hand over {shard.number}")
            self._handing_over.add(task)
            task.add_done_callback(self._handed_over)
        kept = held[:share]
        turned = [*shards[rank % len(shards) :], *shards[: rank % len(shards)]]
        free = [shard for shard in turned if not shard.view.epoch and not shard.yielding and shard.holder not in live]
        wanted = {shard.number for shard in [*kept, *free[: share - len(kept)]]}
        for shard in shards:
            shard.lease.wants = shard.number in wanted

    def _handed_over(self, task: asyncio.Task[None]) -> None:
        self._handing_over.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a shard could not be handed over: %s", error)  # its lease goes on, and the next look tries again


async def hand_over(shard: RedisShard) -> None:
    """Let another process have a shard once what is being sent has ended, or after a lease's time. Raises RedisLogError.

    Derivers need not end: the next owner goes on from their last commit."""
    shard.yielding = True
    shard.read_on.clear()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(shard.config.lease_s):
                while _is_sending(shard):  # noqa: ASYNC110 (answers of destinations, and their acks)
                    await asyncio.sleep(_SENDING_LOOK_S)
        shard.lease.wants = False
        await shard.lease.release()
        shard.holder = ""
        shard.lost_lease("")
    finally:
        shard.yielding = False
        shard.read_on.set()


def _is_sending(shard: RedisShard) -> bool:
    groups = shard.ledger.groups.items()
    return bool(shard.view.epoch) and any(group.in_flight for name, group in groups if name not in shard.state_read_under)


def _parse(owner: bytes, text: bytes) -> Replica:
    """Return a replica as it stands there; what a later version adds is left out."""
    since, _, about = text.decode().partition("\x1f")
    said = json.loads(about)
    return Replica(
        owner.decode(), int(since), str(said.get("machine", "")), str(said.get("version", "")), frozenset(said.get("groups", ()))
    )
