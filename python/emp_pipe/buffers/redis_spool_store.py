"""The spool on disk: a SQLite log with one group, `drain`, that keeps whole appends until Redis has them.

An append lies in it as it was to go to Redis: its blocks in the log, all else of it (checkpoints, books, dead letters, chunks, its
id) in an entry of the group's state, in one transaction. `end` takes an append out: its blocks, its entry and its share of the books,
again in one. So the books in here are those of appends that Redis has not got yet, and the books of both stores added count each record
once. Not here: when something is spooled (`redis_spool.py`), how it gets to Redis (`redis_spool_drain.py`), files and threads
(`sqlite.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import msgpack  # type: ignore[import-untyped]

from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.buffers.sqlite_operations import Operation, Outcome
from emp_pipe.buffers.sqlite_schema import FILE_NAME
from emp_pipe.buffers.sqlite_store import Effects, Store
from emp_pipe.component import Context
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, ChunkKey, DeadLetter, DeadReason, Delivery, GroupSpec, ReceiverBooks, Topic
from emp_pipe.logs import get_logger

if TYPE_CHECKING:
    from emp_pipe._core import Block

_log = get_logger("spool")
DRAIN = GroupSpec("drain", frozenset(Topic), quota_bytes=1 << 62)
_VERSION = 1
_FIRST_KEY, _LAST_KEY = "entry", "entrz"
_WINDOW_KEY = "window"
_SIZE = "SELECT coalesce(sum(length(value)), 0) FROM state WHERE group_name=?"
_ENTRIES = "FROM state WHERE group_name=? AND key>=? AND key<?"
BOOKS = ("received", "appended", "invalid", "refused", "dropped", "duplicate")


@dataclass(frozen=True, slots=True)
class Spooled:
    """An append that waits in the spool; its blocks are read as deliveries at `offsets`."""

    number: int
    append_id: ChunkKey
    """What the append is known by in Redis, beside its own chunks."""
    epoch: int
    log: str
    """Which log it was meant for."""
    spooled_unix_nano: int
    unproven: bool
    """It was tried on Redis before, and the answer did not come: Redis may have it."""
    offsets: Sequence[int]
    rest: Append
    """All but the blocks."""

    @property
    def records(self) -> int:
        return sum(books.received for books in self.rest.books)

    def append(self, blocks: Sequence[Block]) -> Append:
        """Return the append as it was."""
        chunks = [*self.rest.chunks, self.append_id]
        return Append(blocks, self.rest.checkpoints, self.rest.books, self.rest.dead, chunks, epoch=self.epoch)


@dataclass(frozen=True, slots=True)
class Window:
    """What is being drained: of entries up to this number Redis may have some already, tried at that time or later."""

    up_to: int
    since_unix_nano: int


class Spool(SqliteLog):
    """See the module's head."""

    def __init__(self, id: str, directory: Path, max_bytes: int, min_free_bytes: int, context: Context) -> None:
        config = SqliteConfig.model_validate({"directory": directory, "max_bytes": max_bytes, "min_free_bytes": min_free_bytes})
        super().__init__(f"{id}/spool", config, context)
        self.entries = 0
        """How many appends wait."""
        self.entry_bytes = 0
        self.window: Window | None = None
        self._changing = 0
        self._changes = 0
        self._uncertain = False
        """The file was opened anew: what waits is counted anew before anybody believes that nothing does."""

    async def begin(self, *, look_only: bool = False) -> None:
        """Open. `look_only`: nothing is written, for an administrator."""
        await self.open(None if look_only else [DRAIN])
        await self.count_anew()

    async def count_anew(self) -> None:
        """Ask the file what waits; while something changes that stays uncertain."""
        self._uncertain, before = False, self._changes
        try:
            entries, entry_bytes = await self._in_reader(self._thread.reader.state_size, DRAIN.name, _FIRST_KEY, _LAST_KEY)
            stored = await self.state_get(DRAIN.name, _WINDOW_KEY)
        except LogError:
            self._uncertain = True
            return
        if self._changing or before != self._changes:
            self._uncertain = True
            return
        self.entries, self.entry_bytes = entries, entry_bytes
        self.window = Window(*msgpack.unpackb(stored)) if stored else None

    def _reload(self, outcome: Outcome) -> None:
        super()._reload(outcome)
        self._uncertain = True

    @property
    def holds_something(self) -> bool:
        return self.entries > 0 or self._uncertain

    @property
    def held_bytes(self) -> int:
        return self._ledger.held_bytes + self.entry_bytes

    @property
    def broken(self) -> str:
        """Why its disk cannot be used; empty when it can."""
        return self._disk_error

    @property
    def admitting(self) -> bool:
        return super().admitting and self.held_bytes < self._ledger.admit_below_bytes

    # in

    async def put(self, append: Append, append_id: ChunkKey, *, epoch: int, log: str, unproven: bool) -> int:
        """Keep an append; return its number when it is on stable storage. Raises LOG_FULL, LOG_IO: then it is not kept."""
        if not self.admitting:
            kind = ErrorKind.LOG_IO if self._disk_error else ErrorKind.LOG_FULL
            raise LogError(kind, place=self.id, detail=self._ledger.reason or "the spool is full", advice=self._full_advice)
        now = self._clock.unix_nano()
        self._has_chunks = True
        numbers: list[int] = []
        sizes: list[int] = []

        def run(store: Store) -> Effects:
            number = store.next_offset
            store.next_offset += 1
            effects = store.append(Append(append.blocks, append.checkpoints, append.books, (), append.chunks), now)
            entry = _pack(append, append_id, epoch, log, now, effects.offsets, unproven=unproven)
            store.execute("INSERT INTO state VALUES (?,?,?,NULL)", (DRAIN.name, _key(number), entry))
            numbers.append(number)
            sizes.append(len(entry))
            return effects

        size = sum([block.payload_bytes for block in append.blocks]) + sum([len(letter.payload) for letter in append.dead])
        await self._change(Operation(run, size_bytes=size))
        self.entries += 1
        self.entry_bytes += sizes[-1]
        return numbers[-1]

    async def _change(self, operation: Operation) -> None:
        self._changing += 1
        try:
            await self._submit(operation)
        finally:
            self._changing -= 1
            self._changes += 1

    @property
    def _full_advice(self) -> str:
        return "Redis is away or behind: see `/readyz`; senders wait and lose nothing"

    # out

    async def waiting(self, after: int, most: int, max_bytes: int) -> list[Spooled]:
        """Return the oldest appends behind a number. Raises LOG_NEWER for what a later emp-pipe has spooled."""
        rows = await self._in_reader(self._thread.reader.state_after, DRAIN.name, _key(after), _LAST_KEY, most, max_bytes)
        return [_unpack(key, value) for key, value in rows]

    async def mark(self, window: Window) -> None:
        """Remember what is about to be tried on Redis."""
        await self.commit(DRAIN.name, state_puts={_WINDOW_KEY: msgpack.packb([window.up_to, window.since_unix_nano])})
        self.window = window

    async def end(self, entries: Sequence[Spooled], deliveries: Sequence[Delivery]) -> None:
        """Forget appends that Redis has. Raises LogError; then they are here still, or again."""
        now = self._clock.unix_nano()
        endings = self._ledger.endings(DRAIN.name, deliveries, (), {}, derives=True)
        gone = [_negative(books) for entry in entries for books in entry.rest.books]
        sizes: list[int] = []

        def run(store: Store) -> Effects:
            keys = [_key(entry.number) for entry in entries]
            marks = ",".join("?" * len(keys))
            sizes.append(store.one(f"{_SIZE} AND key IN ({marks})", (DRAIN.name, *keys))[0])
            effects = store.commit_group(DRAIN.name, now, endings, (), {}, None, keys)
            for books in gone:
                for what in BOOKS:
                    if number := getattr(books, what):
                        store.count("receiver", books.receiver, "", what, number)
            effects.received = gone
            if not store.one(f"SELECT EXISTS (SELECT 1 {_ENTRIES})", (DRAIN.name, _FIRST_KEY, _LAST_KEY))[0]:
                store.execute("DELETE FROM checkpoints")  # Redis has them all
            return effects

        await self._change(Operation(run, proves=True))
        self.entries -= len(entries)
        self.entry_bytes -= sizes[-1] if sizes else 0

    async def given_up(self, offsets: Iterable[int]) -> set[int]:
        """Return those of the blocks that are not held any more: they could not be read, and lie in the spool's dead letters."""
        wanted = list(offsets)
        return set(wanted) - await self.held_by(DRAIN.name, wanted)


def lies_in(directory: Path) -> bool:
    """Return whether there is a spool, maybe an empty one."""
    return (directory / FILE_NAME).exists()


def left_in(directory: Path) -> int:
    """Return how many appends wait in a spool that no process uses; 0 where there is none, or where it cannot be read."""
    if not lies_in(directory):
        return 0
    try:
        connection = apsw.Connection(str(directory / FILE_NAME), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            counted: list[Any] = connection.execute(f"SELECT count(*) {_ENTRIES}", (DRAIN.name, _FIRST_KEY, _LAST_KEY)).fetchall()
            return int(counted[0][0])
        finally:
            connection.close(True)
    except apsw.Error as error:
        _log.warning("%s cannot be read (%s)", directory, error)
        return 0


def _key(number: int) -> str:
    return f"{_FIRST_KEY}{number:020d}"


def _negative(books: ReceiverBooks) -> ReceiverBooks:
    return ReceiverBooks(books.receiver, *(-getattr(books, what) for what in BOOKS))


def _pack(append: Append, append_id: ChunkKey, epoch: int, log: str, now: int, offsets: Sequence[int], *, unproven: bool) -> bytes:
    letters = [
        [
            letter.component,
            letter.reason.value,
            letter.detail,
            bytes(letter.payload),
            letter.header,
            letter.records,
            letter.peer,
            letter.offset,
            letter.attempts,
            letter.time_unix_nano,
        ]
        for letter in append.dead
    ]
    books = [[one.receiver, *(getattr(one, what) for what in BOOKS)] for one in append.books]
    chunks = [list(chunk) for chunk in append.chunks]
    entry = [_VERSION, list(append_id), epoch, log, now, unproven, list(offsets), dict(append.checkpoints), books, letters, chunks]
    return bytes(msgpack.packb(entry))


def _unpack(key: str, value: bytes) -> Spooled:
    fields: list[Any] = msgpack.unpackb(value)
    if fields[0] > _VERSION:
        raise LogError(ErrorKind.LOG_NEWER, place="spool", detail="what waits in the spool was written by a newer emp-pipe")
    _, append_id, epoch, log, spooled, unproven, offsets, checkpoints, books, letters, chunks = fields
    rest = Append(
        (),
        checkpoints,
        [ReceiverBooks(*one) for one in books],
        [DeadLetter(one[0], DeadReason(one[1]), *one[2:]) for one in letters],
        [ChunkKey(*chunk) for chunk in chunks],
    )
    return Spooled(int(key.removeprefix(_FIRST_KEY)), ChunkKey(*append_id), epoch, log, spooled, unproven, offsets, rest)
