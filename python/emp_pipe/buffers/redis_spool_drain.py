"""How what was spooled gets to Redis: whole appends, in their order, each exactly once as long as Redis remembers it.

    entries of the spool ──▶ marked as tried ──▶ appended to Redis, with their ids ──▶ taken out of the spool, next ones marked

An append is known in Redis by its id for an hour, from whichever side it came: from the first try, whose answer was lost, or from a
drain that a SIGKILL cut short. What may be there already is asked for before it is appended. Where more than an hour has passed nobody
knows any more: it is appended, and counted as `unproven`. Not here: what is spooled and when (`redis_spool.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from emp_pipe import failpoints
from emp_pipe.buffers.redis_spool_store import BOOKS, DRAIN, Spool, Spooled, Window
from emp_pipe.clock import Clock
from emp_pipe.delivery.backoff import Backoff
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, Appended, ChunkKey, Delivery, Log, ReceiverBooks, Topic
from emp_pipe.logs import RateLimitedLogger, get_logger

_MOST_ENTRIES = 256
_MOST_BYTES = 8 << 20
_REMEMBERED_NS = 3600 * 1_000_000_000
"""How long Redis knows an id."""
_MARKED_AGAIN_NS = 60 * 1_000_000_000
_FIRST_RETRY_S = 0.05
_COUNTED_AGAIN_S = 0.005
_QUIET_S = 1.0

_limited = RateLimitedLogger(get_logger("spool"))


@dataclass(slots=True)
class Drained:
    """What a drain has done in this process, in records."""

    drained: int = 0
    known: int = 0
    """Redis had them already: from a first try, or from a drain that was cut short."""
    repeats: int = 0
    """Their chunk had come another way meanwhile: they are duplicates, and were left out."""
    unproven: int = 0
    """Tried before, more than an hour ago: Redis may have them twice."""


class Drain:
    """The task that empties a spool into a log. `emptied` is called when nothing waits any more."""

    def __init__(self, spool: Spool, log: Log, clock: Clock, retry_max_s: float, emptied: Callable[[], None]) -> None:
        self._spool = spool
        self._log = log
        self._clock = clock
        self._emptied = emptied
        self._backoff = Backoff(Random(), initial_s=_FIRST_RETRY_S, most_s=retry_max_s)
        self._wanted = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._after = 0
        self._held: dict[int, Delivery] = {}
        """Deliveries of entries that are not out yet, by offset."""
        self._in_both: dict[int, Sequence[ReceiverBooks]] = {}
        """Books of entries that Redis has and the spool has still."""
        self.tried: dict[ChunkKey, asyncio.Task[Appended]] = {}
        """First tries that have not been decided yet, by id."""
        self.counts = Drained()
        self.trouble = ""
        """Why it does not get on; empty while it does."""
        self.flowing = False

    def wake(self, *, unproven: bool = False) -> None:
        """Something waits; `unproven`: Redis may have some of it already."""
        self._wanted.set()
        self._is_empty.clear()
        if unproven:
            self._quiet.clear()

    async def wait_empty(self) -> None:
        await self._is_empty.wait()

    async def wait_quiet(self) -> None:
        """Return when it is known what Redis has: between two windows. After a while in any case."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_S):
                await self._quiet.wait()

    @property
    def books_in_both(self) -> Sequence[ReceiverBooks]:
        """The books that both stores count."""
        return [books for several in self._in_both.values() for books in several]

    async def run(self) -> None:
        """Drain whatever comes, until cancelled."""
        failures = 0
        while True:
            await self._wanted.wait()
            await self._log.wait_admitting()
            try:
                moved = await self._window()
            except Exception as error:  # also what nobody expects: what waits is not forgotten
                if isinstance(error, LogError) and error.kind is ErrorKind.LOG_CLOSED:
                    return
                failures += 1
                self.flowing = False
                self.trouble = getattr(error, "detail", "") or f"{type(error).__name__}: {error}"
                say = _limited.warning if isinstance(error, LogError) else _limited.exception
                say(type(error).__name__, "the spool waits: %s", error)
                await self._clock.sleep(self._backoff.wait_s(failures))
                continue
            failures = 0
            self.trouble = ""
            self.flowing = moved
            if not moved and await self._is_over():
                self._emptied()

    async def _is_over(self) -> bool:
        """Whether nothing waits: asked of the file, which may have been opened anew."""
        await self._hand_over_dead_letters()
        self._wanted.clear()
        self._after = 0
        await self._spool.count_anew()
        if self._spool.holds_something:
            self._wanted.set()
            await asyncio.sleep(_COUNTED_AGAIN_S)
            return False
        self._quiet.set()
        self._is_empty.set()
        return True

    async def _window(self) -> bool:
        """Move the oldest appends; return whether there were any."""
        entries = await self._spool.waiting(self._after, _MOST_ENTRIES, _MOST_BYTES)
        if not entries:
            return False
        window = await self._deliverable(entries)
        self._quiet.clear()
        for tried in [self.tried[entry.append_id] for entry in window if entry.append_id in self.tried]:
            await asyncio.wait([tried])
        known = await self._known(window)
        results = await asyncio.gather(*(self._move(entry, known) for entry in window), return_exceptions=True)
        done = [entry for entry, result in zip(window, results, strict=True) if result is None]
        if done:
            failpoints.hit("spool.drained")
            await self._take_out(done)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self._quiet.set()
        return True

    async def _deliverable(self, entries: Sequence[Spooled]) -> list[Spooled]:
        """Return as many of the entries as their blocks were read for; at least one."""
        window: list[Spooled] = []
        size = 0
        for entry in entries:
            missing = set(entry.offsets) - self._held.keys()
            while missing and size < _MOST_BYTES:
                deliveries = await self._spool.read(DRAIN.name, _MOST_BYTES)
                if not deliveries:
                    missing -= await self._spool.given_up(missing)
                    break
                self._held |= {delivery.offset: delivery for delivery in deliveries}
                missing -= self._held.keys()
            if missing:
                break
            size += sum(self._held[offset].block.payload_bytes for offset in entry.offsets if offset in self._held)
            window.append(entry)
            if size >= _MOST_BYTES:
                break
        if not window:
            raise LogError(ErrorKind.LOG_IO, place="spool", detail="the blocks of an append that waits cannot be read now")
        return window

    async def _known(self, window: Sequence[Spooled]) -> set[ChunkKey]:
        """Return the ids that Redis has already, and mark the window as tried."""
        before, now = self._spool.window, self._clock.unix_nano()
        tried_before = before.up_to if before is not None else 0
        asked = [entry for entry in window if entry.unproven or entry.number <= tried_before]
        known: set[ChunkKey] = set()
        if asked:
            known = await self._log.seen([entry.append_id for entry in asked])
        last = window[-1].number
        if before is None or last > before.up_to or (last == before.up_to and now - before.since_unix_nano > _MARKED_AGAIN_NS):
            await self._spool.mark(Window(last, now))
        for entry in asked:
            since = before.since_unix_nano if before is not None and entry.number <= before.up_to else entry.spooled_unix_nano
            if entry.append_id not in known and now - since > _REMEMBERED_NS:
                self.counts.unproven += entry.records
        return known

    async def _move(self, entry: Spooled, known: set[ChunkKey]) -> None:
        """Let Redis have an append. Raises LogError where it has it not."""
        if entry.append_id in known:
            self.counts.known += entry.records
        else:
            blocks = [self._held[offset].block for offset in entry.offsets if offset in self._held]
            append = entry.append(blocks)
            while True:
                try:
                    await self._log.append(append)
                    self.counts.drained += entry.records
                    break
                except LogError as error:
                    if not error.fields.get("seen"):
                        raise
                    seen = await self._log.seen(append.chunks)
                    if entry.append_id in seen:
                        self.counts.known += entry.records
                        break
                    fewer = without_repeats(append, seen)
                    if len(fewer.chunks) == len(append.chunks):
                        raise
                    left_out = sum(books.duplicate for books in fewer.books) - sum(books.duplicate for books in append.books)
                    self.counts.repeats += left_out
                    if len(append.chunks) - len(fewer.chunks) > len(append.blocks) - len(fewer.blocks):
                        self.counts.unproven += entry.records - left_out  # rows of a repeated chunk are among others in a block
                    append = fewer
        self._in_both[entry.number] = entry.rest.books

    async def _take_out(self, done: Sequence[Spooled]) -> None:
        deliveries = [self._held[offset] for entry in done for offset in entry.offsets if offset in self._held]
        try:
            await self._spool.end(done, deliveries)
        except LogError:
            self._after = 0
            self._held.clear()  # read again, and asked for again
            raise
        for entry in done:
            self._in_both.pop(entry.number, None)
            for offset in entry.offsets:
                self._held.pop(offset, None)
        self._after = 0

    async def _hand_over_dead_letters(self) -> None:
        """Blocks that could not be read back have become dead letters of the spool: the log shall have them."""
        while letters := await self._spool.dead_letters(_MOST_ENTRIES):
            append_ids = [ChunkKey(self._spool.id, b"%d %d" % (letter.time_unix_nano, id)) for id, letter in letters]
            known = await self._log.seen(append_ids)
            left = [(append_id, letter) for append_id, (_, letter) in zip(append_ids, letters, strict=True) if append_id not in known]
            if left:
                await self._log.append(Append((), dead=[letter for _, letter in left], chunks=[append_id for append_id, _ in left]))
            await self._spool.delete_dead_letters([id for id, _ in letters])


def without_repeats(append: Append, seen: set[ChunkKey]) -> Append:
    """Return an append without the chunks that came another way meanwhile: without their blocks, where a chunk is a block.

    Rows of a chunk that were merged with others into a block cannot be told apart any more: they stay, as a repeat."""
    gone = {chunk.chunk for chunk in append.chunks if chunk in seen}
    repeats = [block for block in append.blocks if block.block_id.encode() in gone]
    counted = sum(block.records for block in repeats if block.topic not in (Topic.EVENTS, Topic.ERRORS))
    books = [replace(one) for one in append.books]
    for one in sorted(books, key=lambda one: -one.appended):
        moved = min(counted, one.appended)
        one.appended -= moved
        one.duplicate += moved
        counted -= moved
    return replace(
        append,
        blocks=[block for block in append.blocks if block not in repeats],
        books=books,
        chunks=[chunk for chunk in append.chunks if chunk not in seen],
    )


def added(parts: Sequence[Sequence[ReceiverBooks]], minus: Sequence[ReceiverBooks] = ()) -> list[ReceiverBooks]:
    """Return receivers' books, summed."""
    totals: dict[str, ReceiverBooks] = {}
    for books, sign in [*((one, 1) for part in parts for one in part), *((one, -1) for one in minus)]:
        total = totals.setdefault(books.receiver, ReceiverBooks(books.receiver))
        for what in BOOKS:
            setattr(total, what, getattr(total, what) + sign * getattr(books, what))
    return list(totals.values())
