"""A log in Redis that may be away: what is received meanwhile goes to a spool on disk, is acknowledged from there, and drains into Redis.

    here      append ──▶ Redis                                          (nothing waits in the spool)
    away      append ──▶ spool                                          (Redis did not take it in time)
    draining  append ──▶ spool ──▶ Redis, in order, until it is empty   (for its last part appends wait: then `here` again)

Every append has an id, which Redis remembers with it for an hour: so the same append may be tried on Redis, be spooled because no answer
came, and drain, and is there once. Without a spool (no disk that outlives the process) receivers wait, and whoever sends holds on.
Processors and exporters wait in both cases. Reasons: docs/decisions/015-spool.md. Not here: the spool's content (`redis_spool_store.py`),
draining (`redis_spool_drain.py`), Redis itself (`redis.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from emp_pipe.buffers.redis_client import RedisLogError, Trouble
from emp_pipe.buffers.redis_late import LateLog, Opener, Remote
from emp_pipe.buffers.redis_link import end_tasks
from emp_pipe.buffers.redis_spool_drain import Drain, added
from emp_pipe.buffers.redis_spool_says import Says
from emp_pipe.buffers.redis_spool_store import DRAIN, Spool, lies_in
from emp_pipe.component import ComponentConfig, Context
from emp_pipe.errors import ConfigError, EmpPipeError, ErrorKind, LogError
from emp_pipe.log.protocol import (
    Append,
    Appended,
    ChunkKey,
    GroupBooks,
    Groups,
    Log,
    ReceiverBooks,
    Usage,
)

_PEER = "emp-pipe append"
"""What ids are filed under, among the chunks of peers."""
_EPOCH = "emp-pipe epoch"
"""The checkpoint that holds the highest epoch in use."""
_LOOK_S = 0.25
_MOMENT_S = 0.01
_LAST_PART_BYTES = 32 << 20
_CLOSE_SHARE = 0.5


class SpoolConfig(ComponentConfig):
    """Where what is received goes while Redis is away."""

    enabled: bool | Literal["auto"] = Field(
        "auto",
        description="Keep what is received while Redis is away on this disk. `auto`: where the data directory is on a volume of the "
        "platform or was named; else it is off, and senders wait.",
    )
    directory: Path | None = Field(None, description="Where it lies; by default `spool` below the data directory.")
    max_bytes: PositiveInt = Field(8 << 30, description="What it may hold; then senders wait.")
    min_free_bytes: NonNegativeInt = Field(256 << 20, description="Senders wait while the disk has less than this free.")
    after_s: PositiveFloat = Field(2.0, description="How long an append waits for Redis before it goes to the spool.")
    retry_max_s: PositiveFloat = Field(5.0, description="The largest upper bound of the full-jitter wait between two tries to drain.")


class SpooledLog(LateLog):
    """A `Log`: a remote one, with a spool before it. `open_by` in place of `open` where more than the log itself is to be done then."""

    def __init__(self, id: str, remote: Remote, config: SpoolConfig, context: Context, *, name: str, place: str) -> None:
        super().__init__(id, remote, context.clock, place)
        self._config = config
        self._name = name
        self.spools = config.enabled is True
        """Whether anything goes to the spool; one that was left over is only drained."""
        self.spool: Spool | None = None
        self.drain: Drain | None = None
        directory = config.directory or context.data_dir / "spool"
        if self.spools or lies_in(directory):
            self.spool = Spool(id, directory, config.max_bytes, config.min_free_bytes, context)
            self.drain = Drain(self.spool, remote, context.clock, config.retry_max_s, self._emptied)
        self._epoch = 0
        self._spooling = False
        self._left_over = False
        self._draining: asyncio.Task[None] | None = None
        self.says = Says(self, context)

    # standing

    @property
    def standing(self) -> str:
        """For `/readyz`: where what is received goes, when that is not Redis."""
        return self.says.standing

    @property
    def durability(self) -> str:
        return self.says.durability

    @property
    def warnings(self) -> Sequence[str]:
        return self.says.warnings

    @property
    def details(self) -> Mapping[str, Any]:
        return self.says.details

    @property
    def group_states(self) -> Mapping[str, str]:
        """For `groups list`: what our own group does."""
        return {} if self.spool is None else {DRAIN.name: self.says.state}

    # opening and closing

    async def open(self, groups: Groups | None) -> None:
        if groups is None:  # an administrator's look
            if self.spool is not None and lies_in(self.spool.directory):
                await self.spool.begin(look_only=True)
            await self.remote.open(None)
            self._closing = False
            self.opened.set()
            return

        async def opener(log: Log) -> bool:
            await log.open(groups)
            return True

        await self.open_by(opener)

    async def open_by(self, opener: Opener) -> bool:
        """Open: the spool at once, Redis now or when it comes. Raises what waiting does not mend, as far as it is known in time."""
        if self.spool is not None and self.drain is not None:
            await self.spool.begin()
            self.drain.wake(unproven=self.spool.holds_something)  # what is no append may wait too: dead letters
            self._left_over = self.spool.holds_something
            if self._left_over:
                oldest = await self.spool.waiting(0, 1, 1)
                self.says.left_over(self.spool.entries, oldest[0].log if oldest else "", self._name)
        self._closing = False
        self._epoch = self._clock.unix_nano() // 1_000_000
        try:
            return await self._open_remotely(opener, self._config.after_s)
        except BaseException:
            await self.close(self._clock.monotonic_s())
            raise

    async def _came(self, *, late: bool) -> None:
        await self._agree_on_epoch()
        if self.drain is not None:
            self._draining = asyncio.get_running_loop().create_task(self.drain.run(), name=f"{self.id}: drain")
        if late:
            self.says.came()

    def _is_not_here(self, error: EmpPipeError, *, first: bool) -> None:
        self.says.not_here(error, first=first)

    async def _agree_on_epoch(self) -> None:
        """Ours is above all that were before: also above those of a clock that was set back since."""
        try:
            stored = await self.remote.checkpoint_get(_EPOCH)
        except LogError:
            return
        if stored is not None and stored.isdigit():
            self._epoch = max(self._epoch, int(stored) + 1)

    async def close(self, deadline_monotonic_s: float) -> None:
        self._closing = True
        tasks = [task for task in (self._opening, self._draining) if task is not None and task is not asyncio.current_task()]
        await end_tasks(tasks)
        now_s = self._clock.monotonic_s()
        left_s = max(deadline_monotonic_s - now_s, 0.0)
        await self.remote.close(now_s + left_s * (_CLOSE_SHARE if self.spool is not None else 1.0))
        self.opened.set()  # whoever waits for it is told that the log is closed
        if self.spool is not None:
            await self.spool.close(deadline_monotonic_s)

    # appending

    async def append(self, append: Append) -> Appended:
        """Offsets are those in Redis; -1 for what went to the spool."""
        self._check_open()
        if self.spool is None or self.drain is None or not self.spools:
            self._check_takes()
            return await self.remote.append(append)
        if self.full:
            raise LogError(ErrorKind.LOG_FULL, place=self.id, detail=self.remote.usage().reason)
        append_id = ChunkKey(_PEER, secrets.token_bytes(12))
        if self._goes_to_spool and self.drain.flowing and self.spool.held_bytes < _LAST_PART_BYTES:
            await self._wait_for_the_last_part()
        unproven, why = False, self.away
        if not self._goes_to_spool:
            first = asyncio.get_running_loop().create_task(self.remote.append(self._known_by(append, append_id)))
            try:
                async with asyncio.timeout(self._config.after_s):
                    return await asyncio.shield(first)
            except TimeoutError:
                unproven, why = True, self.away or f"no answer within {self._config.after_s:g} s"
                self.drain.tried[append_id] = first
                first.add_done_callback(lambda done: self._first_try_ended(append_id, done))
            except LogError as error:
                if error.fields.get("seen") and append_id in await self.remote.seen([append_id]):
                    return Appended([-1] * len(append.blocks))
                if not is_away(error):
                    raise
                unproven, why = bool(error.fields.get("unknown")), error.detail
        if not self._spooling:
            self._spooling = True
            self._epoch += 1
            self.says.spooling(why)
        await self.spool.put(append, append_id, epoch=self._epoch, log=self._name, unproven=unproven)
        self.says.spooled_records += sum(books.received for books in append.books)
        self.drain.wake(unproven=unproven)
        return Appended([-1] * len(append.blocks))

    def _check_takes(self) -> None:
        """Without a spool nothing is tried on a Redis that is away: receivers hold what they have and stop reading."""
        if self.away:
            raise LogError(
                ErrorKind.LOG_FULL, place=self.place, detail=self.away, advice="senders wait until Redis is back, and lose nothing"
            )

    @property
    def full(self) -> bool:
        """Whether Redis is here and has no room: that is back-pressure, also while something waits in the spool."""
        return self.opened.is_set() and not self.remote.away and not self.remote.admitting

    @property
    def _goes_to_spool(self) -> bool:
        return self._spooling or (self.spool is not None and self.spool.holds_something) or bool(self.away)

    def _known_by(self, append: Append, append_id: ChunkKey) -> Append:
        checkpoints = append.checkpoints
        if checkpoints:
            checkpoints = {**checkpoints, _EPOCH: str(self._epoch).encode()}
        return replace(append, checkpoints=checkpoints, chunks=[*append.chunks, append_id], epoch=self._epoch)

    def _first_try_ended(self, append_id: ChunkKey, done: asyncio.Task[Appended]) -> None:
        if self.drain is not None:
            self.drain.tried.pop(append_id, None)
        if not done.cancelled():
            done.exception()

    async def _wait_for_the_last_part(self) -> None:
        assert self.drain is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.after_s):
                await self.drain.wait_empty()

    def _emptied(self) -> None:
        if self._spooling or self._left_over:
            self._epoch += 1
            self.says.emptied()
        self._spooling = self._left_over = False

    async def seen(self, chunks: Sequence[ChunkKey]) -> set[ChunkKey]:
        """While Redis is away the spool alone answers: what only Redis knows is found when it drains."""
        self._check_open()
        spooled: set[ChunkKey] = set() if self.spool is None or not self.spools else await self._seen_in_spool(chunks)
        left = [chunk for chunk in chunks if chunk not in spooled]
        if not left:
            return spooled
        if self.spool is None or not self.spools:
            self._check_takes()
            return await self.remote.seen(left)
        if not self.away:
            try:
                async with asyncio.timeout(self._config.after_s):
                    return spooled | await self.remote.seen(left)
            except TimeoutError:
                pass
            except LogError as error:
                if not is_away(error):
                    raise
        self.says.unchecked_chunks += len(left)
        return spooled

    async def _seen_in_spool(self, chunks: Sequence[ChunkKey]) -> set[ChunkKey]:
        assert self.spool is not None
        try:
            return await self.spool.seen(chunks)
        except LogError:
            if self.away:
                raise
            return set()  # its disk refuses, and is not needed now

    # admission

    @property
    def admitting(self) -> bool:
        if self._closing or self.full:
            return False
        if self.spool is not None and self.spools and self._goes_to_spool:
            return self.spool.admitting
        return self.opened.is_set() and self.remote.admitting

    async def wait_admitting(self) -> None:
        while not self.admitting:
            spools = self.spool is not None and self.spools and self._goes_to_spool and not self.full
            way: Log = self.spool if self.spool is not None and spools else self.remote
            with contextlib.suppress(TimeoutError):  # which of the two it is may change meanwhile
                async with asyncio.timeout(_LOOK_S):
                    await way.wait_admitting()
            await asyncio.sleep(_MOMENT_S)

    def usage(self) -> Usage:
        return self.says.usage()

    async def answers(self) -> None:
        if self.spool is not None:
            await self.spool.answers()

    # books

    async def receiver_books(self) -> list[ReceiverBooks]:
        if self.spool is None or self.drain is None:
            return await self.remote.receiver_books()
        if not self.away:
            await self.drain.wait_quiet()
            await self.remote.wait_counted()
        spooled, stored = await self.spool.receiver_books(), await self.remote.receiver_books()
        return added([stored, spooled], self.drain.books_in_both)

    async def group_books(self) -> list[GroupBooks]:
        books = await self.remote.group_books()
        return books if self.spool is None else [*books, *await self.spool.group_books()]

    async def checkpoint_get(self, name: str) -> bytes | None:
        if self.spool is not None and self.spool.holds_something:
            spooled = await self.spool.checkpoint_get(name)
            if spooled is not None:
                return spooled
        return await (await self._here()).checkpoint_get(name)

    # groups

    async def reset_group(self, group: str, start: Literal["oldest", "newest"]) -> None:
        self._check_not_ours(group)
        await super().reset_group(group, start)

    async def drop_group(self, group: str) -> None:
        self._check_not_ours(group)
        await super().drop_group(group)

    def _check_not_ours(self, group: str) -> None:
        if group == DRAIN.name and self.spool is not None:
            raise ConfigError(
                ErrorKind.CONFIG_INVALID,
                place=group,
                detail="it holds what was acknowledged while Redis was away, for all destinations",
                advice="let Redis come back: it drains by itself",
            )


def is_away(error: LogError) -> bool:
    """Whether Redis did not do it because it cannot be used now: not because it is full, nor because of what it was asked."""
    if error.kind is not ErrorKind.LOG_IO or error.fields.get("seen"):
        return False
    return not (isinstance(error, RedisLogError) and error.trouble is Trouble.OTHER)
