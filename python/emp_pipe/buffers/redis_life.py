"""How a shard comes, goes and is kept: connection, lease, looks at what others did, quotas, upkeep.

    begin: script, shard made or found, lease asked for, look ──▶ operations one after another ──▶ trouble ──▶ begin again, go on

A shard that came back empty (FLUSHALL, a server that lost its data) is begun anew, loudly. Not here: the protocol (`redis_shard.py`).
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from emp_pipe.buffers.redis_calls import Calls, DeadLimits
from emp_pipe.buffers.redis_client import RedisLogError, Trouble, log_error
from emp_pipe.buffers.redis_effects import Effects, refusal
from emp_pipe.buffers.redis_file import write_anew
from emp_pipe.buffers.redis_keys import FORMAT, Keys, View
from emp_pipe.buffers.redis_lease import Lease, Standing
from emp_pipe.buffers.redis_link import Call, Link, end_tasks
from emp_pipe.buffers.redis_placement import first_offset
from emp_pipe.buffers.redis_queue import Operation, Queue, Taking
from emp_pipe.buffers.redis_reader import Reader
from emp_pipe.buffers.redis_snapshot import Look, pairs, parse_look
from emp_pipe.buffers.redis_space import Space
from emp_pipe.buffers.redis_whole import Whole
from emp_pipe.clock import Clock, SteadyClock
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.group_ledger import GroupLedger
from emp_pipe.log.ledger import Ledger
from emp_pipe.log.protocol import Groups, GroupSpec
from emp_pipe.log.reading import Fetched, Reading, Row
from emp_pipe.logs import get_logger

if TYPE_CHECKING:
    from emp_pipe.buffers.redis_client import Client
    from emp_pipe.buffers.redis_settings import RedisConfig

_log = get_logger("redis")
_MOST_UNSEEN = 2000
_LOOK_EVERY_S = 0.02
_OBSERVE_EVERY_S = 0.25
_BELL_MS = 1000
LOST = b"lost"
"""No lease's epoch."""


class ShardLife(ABC):
    """One shard, as far as it lives; `RedisShard` is the log that it is, and what is abstract here."""

    def __init__(self, id: str, number: int, config: RedisConfig, clock: Clock, client: Client, owner: str, whole: Whole) -> None:
        self.id = id
        self.number = number
        self.config = config
        self.clock = SteadyClock(clock)  # ages and times to live hold when the wall clock is set
        self.place = config.address.place
        self.whole = whole
        self.view = View()
        self.keys = Keys(config.prefix, number, owner)
        self.link = Link(client, self.keys, self.view, owner, self.place, config.waits)
        self.calls = Calls(self.keys, self.view, lambda: DeadLimits(whole.dead_bytes(number, config.dead_max_bytes), config.dead_max_age_s))
        self.reader = Reader(self.link, self.calls)
        self.lease = Lease(self.link, config.lease_s)
        self.ledger = Ledger(max_bytes=config.max_bytes, reserve_share=0.15, dead_max_bytes=config.dead_max_bytes)
        whole.met(number, self.ledger)
        self.reading = Reading(self.ledger, self.fetch, self.give_up)
        self.effects = Effects(self.ledger, self.reading, first_offset(number))
        self.queue = Queue(self.link, self._told, self.settle, self._begin, config.patience_s)
        self.space = Space(self)
        self.owned = asyncio.Event()
        """Set while the shard is ours and its state has been looked at."""
        self.closing = True
        self.wanted: list[GroupSpec] | None = None
        """The groups of the configuration."""
        self.state_read_under: dict[str, bytes] = {}
        """By group: the lease under which its state was read last."""
        self.checkpoint_epoch = 0
        """Checkpoints that were written under a higher one stay."""
        self.stored_shards = 0  # how many there are, as the shard itself says
        self.holder = ""  # whose the shard was when it was last asked for; empty: nobody's
        self.yielding = False  # it is about to be another's: nothing more is read from it
        self.read_on = asyncio.Event()
        self.read_on.set()
        self._named = False
        """Whether this instance of the shard knows our groups."""
        self._behind = False
        self._looking = False
        self._here = asyncio.Event()
        self._away_since = ""
        self._tasks: list[asyncio.Task[None]] = []

    @abstractmethod
    async def fetch(self, group: str, offsets: Sequence[int], after: int, up_to: int, max_bytes: int) -> Fetched: ...

    @abstractmethod
    def give_up(self, group: str, row: Row, error: Exception) -> None: ...

    # opening and closing

    async def open(self, groups: Groups | None) -> None:
        """Begin. Raises LogError; it can be tried again then."""
        loop = asyncio.get_running_loop()
        await self._begin()
        self.closing = False
        for run, what in ((self.queue.run(), "operations"), (self.lease.keep(self._stands, self.queue.suspect), "lease")):
            self._tasks.append(loop.create_task(run, name=f"{self.id}: {what}"))
        if groups is not None:
            stored = list(self.view.specs.values())
            await self.set_groups(await asyncio.to_thread(groups, stored) if callable(groups) else groups)
        self.settle()
        self._tasks.append(loop.create_task(self._listen(), name=f"{self.id}: bell"))
        self._tasks.append(loop.create_task(self.space.run(), name=f"{self.id}: upkeep"))

    @abstractmethod
    async def set_groups(self, groups: Sequence[GroupSpec]) -> None: ...

    async def close(self, deadline_monotonic_s: float) -> None:
        if self.closing:
            return
        self.closing = True
        self.settle()
        try:
            async with asyncio.timeout(max(deadline_monotonic_s - self.clock.monotonic_s(), 0.0)):
                await self.queue.wait_idle()
                await self._stop_tasks()
                await self.lease.release()
        except (TimeoutError, RedisLogError):
            pass
        await self._stop_tasks()
        self.queue.fail_all(LogError(ErrorKind.LOG_CLOSED, place=self.id))
        self.owned.set()  # whoever waits for it is told that the log is closed

    async def _stop_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        await end_tasks(tasks)

    # beginning: with nothing else under way

    async def _begin(self) -> None:
        """Find or make the shard, ask for the lease, load the ledger. Raises LogError."""
        await self.find()
        standing = await self.lease.ask()
        self.holder = standing.owner
        lost_lease = standing.epoch != self.view.epoch
        self.view.epoch = standing.epoch
        look = await self._look_until_known()
        went_back = look.operations < self.view.operations
        if went_back:
            await self._meet_older_data(look.operations)
        if self._named is False and self.wanted is not None:
            call = self.calls.groups(self.wanted, self.clock.unix_nano(), self.config.retire_after_s)
            await self.link.ask(call, self.queue.next_number())
            look = await self._look_until_known()
        self._named = self._named or self.wanted is not None
        self._load(look)
        if lost_lease or went_back:
            self._rewind()
        self.owned.set() if standing.epoch else self.owned.clear()
        self.space.measured(standing)

    async def _meet_older_data(self, operations: int) -> None:
        """The server has data of an earlier moment: a snapshot that was put back, what it had not synced, a replica that was behind."""
        _log.error(
            "%s: Redis came back without the last %d operations that it had acknowledged: what they wrote is lost. See its persistence "
            "settings.",
            self.place,
            self.view.operations - operations,
        )
        self._forget_all()
        self.view.operations = operations
        await self.link.ask(Call("at_least", {"offset": self.effects.known_offset + 1}))

    def _forget_all(self) -> None:
        """What this process remembers of the shard is of something that is gone: operations under way, and what derivers have read."""
        self.queue.forget_numbers()
        self.state_read_under = dict.fromkeys(self.state_read_under, LOST)

    async def find(self) -> None:
        """Find or make the shard. Raises LogError."""
        await write_anew(self.link)
        await self.link.load()  # from here on what others ask for is done too
        new = {"new_id": secrets.token_hex(8), "format": str(FORMAT), "shards": str(self.whole.count)}
        call = Call("create", {**new, "at_least": str(self.effects.known_offset + 1)})
        state, found, version, shards = await self.link.ask(call)
        if int(version) > FORMAT:
            raise LogError(
                ErrorKind.LOG_NEWER,
                place=self.place,
                detail=f"the buffer under {self.config.prefix!r} has format {int(version)}, this emp-pipe knows up to {FORMAT}",
                advice="start the emp-pipe that wrote it (or a later one), or set another `buffer.prefix`",
            )
        if self.view.id and found != self.view.id:
            _log.error(
                "%s: Redis lost the whole buffer (FLUSHALL, or a restart without its data): what it held is not delivered (%d records). "
                "An empty one is begun.",
                self.place,
                sum(group.held_records for group in self.ledger.groups.values()),
            )
            self.view.epoch = b""
            self.view.set_groups(b"0", {})
            self._forget_all()
            self.view.operations = 0
        self.view.id = found
        self.stored_shards = int(shards)
        if state == b"made":
            self._named = False

    async def _look_until_known(self) -> Look:
        """Look at the shard; where its groups have changed, once more."""
        while True:
            reply = await self.link.ask(self.calls.look(None, 0))
            if reply[0] == b"gone":
                raise LogError(ErrorKind.LOG_IO, place=self.place, detail="the buffer vanished while it was looked at")
            if reply[0] == b"ok":
                return parse_look(reply, self.view.specs)
            self.view.set_groups(reply[2], dict(pairs(reply[1])))

    def _load(self, look: Look) -> None:
        self.ledger.load(look.snapshot)
        self.reading.meet_groups()
        self.view.operations = look.operations
        self.effects.known_offset = look.next_offset - 1
        self._behind = False

    def _rewind(self) -> None:
        """Begin reading anew: deliveries under way are void."""
        for group in self.ledger.groups.values():
            self.ledger.rewind(group, 0, group.oldest_unix_nano() or self._oldest_of(group))
        self.reading.meet_groups()

    def _oldest_of(self, group: GroupLedger) -> int:
        return group.marks[0][1] if group.marks else self.clock.unix_nano()

    # what replies say

    def _told(self, operation: Operation, reply: list[Any]) -> bool:
        """Take a reply in; False: the operation is to be sent again."""
        status = reply[0]
        if status == b"ok":
            operation.result = operation.take(reply, self._taking(reply[1]))
            return True
        if status == b"groups":
            if len(reply) > 1:
                self.view.set_groups(reply[2], dict(pairs(reply[1])))
            else:
                self.queue.put(self._look_operation(whole=True), first=True)
            return False
        if status == b"gone":
            self.queue.suspect(RedisLogError(Trouble.OTHER, place=self.place, detail="Redis does not have this buffer any more"))
            return False
        if status == b"older":
            self.queue.suspect(RedisLogError(Trouble.OTHER, place=self.place, detail="Redis has data of an earlier moment"))
            return False
        if status == b"stale":
            self.lost_lease(reply[1].decode())
        operation.error = refusal(status, reply, self.id)
        return True

    def _taking(self, number: int) -> Taking:
        if number == 0:
            return Taking()
        if number <= self.view.operations:
            return Taking(counted=True)
        consecutive = number == self.view.operations + 1 and self.owned.is_set() and not self._behind
        self.view.operations = number
        if consecutive:
            return Taking()
        self._behind = True
        self._request_look()
        return Taking(known_offset=self.effects.known_offset)

    # looks at what others did

    def _request_look(self) -> None:
        if not self._looking and not self.closing:
            self._looking = True
            task = asyncio.get_running_loop().create_task(self._look_soon(), name=f"{self.id}: look")
            self._tasks.append(task)
            task.add_done_callback(self._looked)

    async def _look_soon(self) -> None:
        await self.look(whole=not self.owned.is_set())
        await asyncio.sleep(_LOOK_EVERY_S if self.owned.is_set() else _OBSERVE_EVERY_S)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = False
        if task in self._tasks:
            self._tasks.remove(task)
        if not task.cancelled() and task.exception() is None and self._behind:
            self._request_look()

    async def look(self, *, whole: bool) -> None:
        """Bring the ledger up to what Redis says, in the order of operations."""
        await self.queue.put(self._look_operation(whole=whole))

    def _look_operation(self, *, whole: bool, acquire: bytes = b"") -> Operation:
        def take(reply: list[Any], taking: Taking) -> None:
            look = parse_look(reply, self.view.specs)
            if whole or len(look.unseen) >= _MOST_UNSEEN or look.operations < self.view.operations:
                self._load(look)
            else:
                self.effects.met(look)
                self.view.operations = look.operations
                self._behind = False
            if acquire and acquire == self.view.epoch:
                self._rewind()
                self.owned.set()

        return Operation(lambda: self.calls.look(None if whole else self.effects.known_offset, _MOST_UNSEEN), take)

    async def _listen(self) -> None:
        """Look when another process has appended: it rings. Never a long wait on the socket."""
        last = b"0-0"
        while True:
            await self.owned.wait()
            try:
                (heard,) = await self.link.send([["XREAD", "BLOCK", _BELL_MS, "STREAMS", self.keys.bell, last]])
                if isinstance(heard, Exception):
                    raise log_error(heard, self.place)
            except RedisLogError as error:
                self.queue.suspect(error)
                await asyncio.sleep(_BELL_MS / 1000)
                continue
            if heard:
                last = heard[0][1][-1][0]
                self._request_look()

    # the lease

    def _stands(self, standing: Standing) -> None:
        """Hear who owns the shard and how it is."""
        if standing.gone:
            self.queue.suspect(RedisLogError(Trouble.OTHER, place=self.place, detail="Redis does not have this buffer any more"))
            return
        self.holder = standing.owner
        self.space.measured(standing)
        if standing.epoch and standing.epoch != self.view.epoch:
            self.view.epoch = standing.epoch
            self.queue.put(self._look_operation(whole=True, acquire=standing.epoch))
        elif not standing.epoch and self.view.epoch:
            self.lost_lease(standing.owner)
        elif standing.operations > self.view.operations or standing.groups_version != self.view.groups_version:
            self._request_look()

    def lost_lease(self, owner: str) -> None:
        if not self.view.epoch:
            return
        self.view.epoch = b""
        self.owned.clear()
        if not self.closing and self.lease.wants:
            _log.warning("%s: shard %d went to %s: what was being sent is sent by it again", self.place, self.number, owner or "nobody")
        self._rewind()

    async def is_certain(self) -> bool:
        """Whether the shard is still ours, asked where the lease may have ended meanwhile."""
        if not self.lease.certain:
            self._stands(await self.lease.ask())
        return self.owned.is_set()

    # admission

    def settle(self) -> None:
        """After any change: what is past its quota goes, then admission is said anew."""
        trouble = self.queue.trouble
        self.ledger.queued_bytes = self.queue.queued_bytes
        self._here.clear() if trouble is not None else self._here.set()
        reason = ""
        if self.closing:
            reason = "emp-pipe is stopping"
        elif trouble is not None:
            if not self._away_since:
                since_s = (self.clock.unix_nano() + self.clock.set_by_ns()) / 1e9
                self._away_since = datetime.fromtimestamp(since_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            reason = f"Redis at {self.place} cannot be used since {self._away_since}: {trouble.detail}"
        else:
            self._away_since = ""
        self.space.settle(reason)

    @property
    def away(self) -> str:
        """Why nothing reaches Redis at the moment; empty when it does."""
        return self.queue.trouble.detail if self.queue.trouble is not None else ""

    @property
    def behind(self) -> bool:
        """Whether something has been done that the next look will count."""
        return self._behind

    async def wait_here(self) -> None:
        await self._here.wait()

    @property
    def has_space(self) -> bool:
        return self.ledger.has_space and not self.space.pressure

    def memory_added(self, size_bytes: int) -> None:
        self.space.used_bytes += size_bytes
