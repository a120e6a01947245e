"""What the SQLite log writes: each function is one change inside the transaction that the commit thread holds open.

A change returns its `Effects`, which the event loop tells the ledger once the transaction is on stable storage. Totals are kept here and
written with every transaction, so the books survive a SIGKILL. After any rollback `load` reads everything anew: nothing half-true stays.
Not here: threads (`sqlite_thread.py`), the file and its schema (`sqlite_schema.py`), reading blocks back (`sqlite_reader.py`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import apsw

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.group_ledger import Ending, Entry, Held, Snapshot
from emp_pipe.log.ledger import DEAD_READER, DEAD_TOPIC
from emp_pipe.log.protocol import (
    Append,
    DeadCount,
    DeadLetter,
    DeadReason,
    GroupBooks,
    GroupSpec,
    LossReason,
    ReceiverBooks,
    Revival,
)
from emp_pipe.logs import get_logger

if TYPE_CHECKING:
    from emp_pipe._core import Block

CHUNK_SLOT_NS = 600 * 1_000_000_000
CHUNK_SLOTS_KEPT = 7
"""A chunk is remembered for the current slot of ten minutes and the six before it: an hour at least."""

_INSERT_BLOCK = "INSERT INTO blocks VALUES (?,?,?,?,?,?,?,?)"
_INSERT_PENDING = "INSERT INTO pending VALUES (?,?)"
_END_PENDING = "DELETE FROM pending WHERE offset=? AND group_id=?"
_FREE_BLOCK = "DELETE FROM blocks WHERE offset=?1 AND NOT EXISTS (SELECT 1 FROM pending WHERE offset=?1)"
_PUT_BOOKS = "REPLACE INTO books VALUES (?,?,?,?)"
_META = ("log", "", "")
_IDENTITY = ("log", "id", "")

_log = get_logger("sqlite")


@dataclass(slots=True)
class Effects:
    """What a change did, for the ledger. `snapshot` stands for everything where single steps would be too many."""

    offsets: list[int] = field(default_factory=list)
    received: Sequence[ReceiverBooks] = ()
    filed: list[tuple[Entry, Block]] = field(default_factory=list)
    revived: list[tuple[int, str, Entry]] = field(default_factory=list)
    """Dead letters that went back: id, the one group that reads the block, the block."""
    ended: list[tuple[str, Ending]] = field(default_factory=list)
    stale: list[tuple[str, int]] = field(default_factory=list)
    """Deliveries that were to end and had been taken from the group before: they count for nothing."""
    lost: list[tuple[str, Entry, LossReason]] = field(default_factory=list)
    freed_bytes: int = 0
    dead_added: list[DeadCount] = field(default_factory=list)
    dead_removed: list[tuple[DeadCount, LossReason | None]] = field(default_factory=list)
    snapshot: Snapshot | None = None
    more: bool = False
    """Maintenance was cut short: there is more of it."""


@dataclass(frozen=True, slots=True)
class DeadLimits:
    """What dead letters may take before the oldest go."""

    max_bytes: int
    max_age_s: float


class Store:
    """One open database and its totals. Everything in here runs on the commit thread."""

    def __init__(self, connection: apsw.Connection, dead_limits: DeadLimits) -> None:
        self.connection = connection
        self._cursor = connection.cursor()
        self.execute = self._cursor.execute
        self._dead_limits = dead_limits
        self.next_offset = 1
        self.database_id = 0
        """Made once for each file, so that the witness beside it is never taken for another's."""
        self.committing = 0
        """The number of the transaction that `commit` is writing; 0 before: what fails then has not taken effect."""
        self.group_ids: dict[str, int] = {}
        self.specs: dict[str, GroupSpec] = {}
        self._readers: dict[str, list[tuple[int, str]]] = {}
        self._held_bytes: dict[str, int] = {}
        self._dead_bytes = 0
        self._books: dict[tuple[str, str, str], dict[str, int]] = {}
        self._dirty: set[tuple[str, str, str]] = set()

    # the transaction

    def begin(self) -> None:
        self.committing = 0
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Write the totals and make the transaction durable."""
        self.next_offset += 1  # so that each transaction can be recognised after a failure
        self._books[_META] = {"next_offset": self.next_offset}
        self.execute(_PUT_BOOKS, (*_META, f'{{"next_offset":{self.next_offset}}}'))
        for key in self._dirty:
            self.execute(_PUT_BOOKS, (*key, json.dumps(self._books[key])))
        self.committing = self.next_offset
        self.execute("COMMIT")
        self._dirty.clear()

    def rollback(self) -> None:
        if not self.connection.get_autocommit():
            self.execute("ROLLBACK")
        self.load()
        for id, size in self.execute("SELECT p.group_id, sum(b.bytes) FROM pending p JOIN blocks b USING (offset) GROUP BY 1"):
            self.held_bytes[self._name_of(id)] = size

    def load(self) -> None:
        """Read the totals from the file; what groups hold is counted by `snapshot`, for that means a look at every block."""
        self._dirty.clear()
        self._books = {(kind, name, topic): json.loads(counts) for kind, name, topic, counts in self.execute("SELECT * FROM books")}
        self.next_offset = self._books.get(_META, {}).get("next_offset", 1)
        self.database_id = self._books.get(_IDENTITY, {}).get("id", 0)
        if not self.database_id:
            self.database_id = secrets.randbits(62) + 1
            self._books[_IDENTITY] = {"id": self.database_id}
            self._dirty.add(_IDENTITY)
        self._dead_bytes = self.one("SELECT coalesce(sum(bytes), 0) FROM dead")[0]
        self.index_groups()

    def index_groups(self) -> None:
        self.group_ids = dict(self.execute("SELECT name, id FROM groups"))
        self._readers = {}
        for name, spec in self.specs.items():
            for topic in spec.topics:
                self._readers.setdefault(topic.value, []).append((self.group_ids[name], name))
        self.held_bytes = dict.fromkeys(self.group_ids, 0)

    def _name_of(self, group_id: int) -> str:
        return next(name for name, id in self.group_ids.items() if id == group_id)

    def count(self, kind: str, name: str, topic: str, what: str, number: int) -> None:
        key = (kind, name, topic)
        counts = self._books.get(key)
        if counts is None:
            counts = self._books[key] = {}
        counts[what] = counts.get(what, 0) + number
        self._dirty.add(key)

    def one(self, sql: str, bindings: tuple[int | str, ...] = ()) -> Any:
        """Return the first row of a query that always has one."""
        return next(self.execute(sql, bindings))

    # blocks

    def append(self, append: Append, now: int) -> Effects:
        effects = Effects(received=append.books)
        for block in append.blocks:
            self._file(block, now, effects)
        if append.checkpoints:
            self._cursor.executemany("REPLACE INTO checkpoints VALUES (?,?)", append.checkpoints.items())
        if append.chunks:
            slot = now // CHUNK_SLOT_NS
            self._cursor.executemany("REPLACE INTO chunks VALUES (?,?,?)", [(slot, peer, chunk) for peer, chunk in append.chunks])
        for books in append.books:
            for what in ("received", "appended", "invalid", "refused", "dropped", "duplicate"):
                if number := getattr(books, what):
                    self.count("receiver", books.receiver, "", what, number)
        if append.dead:
            self._bury(append.dead, now, effects)
        return effects

    def _file(self, block: Block, now: int, effects: Effects) -> None:
        topic = block.topic
        readers = self._readers.get(topic)
        if not readers:
            effects.offsets.append(-1)
            return
        entry = self._insert(block, now, readers)
        effects.offsets.append(entry.offset)
        effects.filed.append((entry, block))

    def _insert(self, block: Block, now: int, readers: Iterable[tuple[int, str]]) -> Entry:
        topic = block.topic
        offset = self.next_offset
        self.next_offset += 1
        header = block.header
        entry = Entry(offset, topic, len(header) + block.payload_bytes, block.records, now)
        self.execute(_INSERT_BLOCK, (offset, topic, block.block_id, entry.size_bytes, entry.records, now, header, memoryview(block)))
        for id, name in readers:
            self.execute(_INSERT_PENDING, (offset, id))
            self.count("group", name, topic, "appended", entry.records)
            self.held_bytes[name] += entry.size_bytes
        return entry

    def commit_group(
        self,
        name: str,
        now: int,
        endings: Sequence[Ending],
        outputs: Sequence[Block],
        state_puts: Mapping[str, bytes],
        state_expires: int | None,
        state_deletes: Sequence[str],
    ) -> Effects:
        """End blocks of a group, file what was derived from them, change its state."""
        effects = Effects()
        id = self.group_ids.get(name, -1)
        if outputs or state_puts or state_deletes:
            self._check_held(name, id, endings)
        for ending in endings:
            entry, skipped, dead, letters = ending
            if not self.release(id, name, entry, effects):
                effects.stale.append((name, entry.offset))
                continue
            effects.ended.append((name, ending))
            for what, number in (("acked", entry.records - skipped - dead), ("skipped", skipped), ("dead", dead)):
                if number:
                    self.count("group", name, entry.topic, what, number)
            if letters:
                self._bury(letters, now, effects)
        for block in outputs:
            self._file(block, now, effects)
        if state_deletes:
            self._cursor.executemany("DELETE FROM state WHERE group_name=? AND key=?", [(name, key) for key in state_deletes])
        if state_puts:
            rows = [(name, key, value, state_expires) for key, value in state_puts.items()]
            self._cursor.executemany("REPLACE INTO state VALUES (?,?,?,?)", rows)
        return effects

    def _check_held(self, name: str, id: int, endings: Sequence[Ending]) -> None:
        """Refuse, before anything is written, to derive from a block that the group has ended already."""
        for ending in endings:
            offset = ending.entry.offset
            if self.execute("SELECT 1 FROM pending WHERE offset=? AND group_id=?", (offset, id)).fetchone() is None:
                raise LogError(ErrorKind.LOG_STALE, place=name, detail=f"block {offset} was ended before this commit")
        if id == -1:
            raise LogError(ErrorKind.LOG_STALE, place=name, detail="the group was dropped")

    def release(self, id: int, name: str, entry: Entry, effects: Effects) -> bool:
        """Take a block from a group, and free it when no other group holds it; False when the group did not hold it."""
        self.execute(_END_PENDING, (entry.offset, id))
        if not self.connection.changes():
            return False
        self.held_bytes[name] -= entry.size_bytes
        self.execute(_FREE_BLOCK, (entry.offset,))
        if self.connection.changes():
            effects.freed_bytes += entry.size_bytes
        return True

    # dead letters

    def _bury(self, letters: Iterable[DeadLetter], now: int, effects: Effects) -> None:
        for letter in letters:
            count = letter.count
            self.execute(
                "INSERT INTO dead VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    now,
                    count.size_bytes,
                    letter.records,
                    letter.component,
                    letter.reason.value,
                    letter.detail,
                    letter.peer,
                    letter.offset,
                    letter.attempts,
                    letter.time_unix_nano,
                    letter.header,
                    letter.payload,
                ),
            )
            self._dead_bytes += count.size_bytes
            self.count("group", DEAD_READER, DEAD_TOPIC, "appended", letter.records)
            effects.dead_added.append(count)
        self.expire_dead(now, effects)

    def expire_dead(self, now: int, effects: Effects) -> None:
        """Delete the oldest dead letters beyond their limits, counted."""
        oldest_kept = now - int(self._dead_limits.max_age_s * 1e9)
        while True:
            first = self.execute("SELECT id, stored_unix_nano FROM dead ORDER BY id LIMIT 1").fetchone()
            if first is None or (self._dead_bytes <= self._dead_limits.max_bytes and first[1] >= oldest_kept):
                return
            self._delete_dead(first[0], LossReason.DEAD_LIMIT, effects)

    def _delete_dead(self, id: int, reason: LossReason | None, effects: Effects) -> bool:
        """Delete a letter, counted; False when there is none of this id."""
        row = self.execute("DELETE FROM dead WHERE id=? RETURNING component, reason, 1, records, bytes", (id,)).fetchone()
        if row is None:
            return False
        count = _dead_count(row)
        self._dead_bytes -= count.size_bytes
        self.count("group", DEAD_READER, DEAD_TOPIC, "acked" if reason is None else reason.value, count.records)
        effects.dead_removed.append((count, reason))
        return True

    def delete_dead_letters(self, ids: Sequence[int]) -> Effects:
        effects = Effects()
        for id in ids:
            self._delete_dead(id, None, effects)
        return effects

    def revive(self, revivals: Sequence[Revival], now: int) -> Effects:
        """Turn dead letters into blocks of the one group that each goes back to."""
        effects = Effects()
        for id, name, block in ((one.id, one.group, one.block) for one in revivals):
            reader = next((reader for reader in self._readers.get(block.topic, ()) if reader[1] == name), None)
            if reader is not None and self._delete_dead(id, None, effects):
                effects.revived.append((id, name, self._insert(block, now, (reader,))))
        return effects

    # upkeep

    def expire(self, now: int) -> Effects:
        """Forget what has outlived its time: keyed state, chunks, dead letters."""
        effects = Effects()
        self.execute("DELETE FROM state WHERE expires_unix_nano <= ?", (now,))
        self.execute("DELETE FROM chunks WHERE slot <= ?", (now // CHUNK_SLOT_NS - CHUNK_SLOTS_KEPT,))
        self.expire_dead(now, effects)
        return effects

    def vacuum(self, pages: int) -> Effects:
        """Give free pages back to the file system; one row a page, so the cursor must be run to its end."""
        for _ in self.execute(f"PRAGMA incremental_vacuum({pages})"):
            pass
        return Effects()

    def snapshot(self) -> Snapshot:
        """Return everything that the ledger must know, counted anew."""
        names = {id: name for name, id in self.group_ids.items()}
        snapshot = Snapshot(specs=list(self.specs.values()))
        rows = self.execute(
            "SELECT p.group_id, b.topic, count(*), sum(b.bytes), sum(b.records), min(b.offset), min(b.appended_unix_nano), max(b.offset)"
            " FROM pending p CROSS JOIN blocks b ON b.offset=p.offset GROUP BY 1, 2"
        )
        snapshot.held = {(names[id], topic): Held(*counts) for id, topic, *counts in rows}
        self.held_bytes = dict.fromkeys(self.group_ids, 0)
        for (name, _), held in snapshot.held.items():
            self.held_bytes[name] += held.size_bytes
        snapshot.held_bytes = self.one("SELECT coalesce(sum(bytes), 0) FROM blocks")[0]
        dead = self.execute("SELECT component, reason, count(*), sum(records), sum(bytes) FROM dead GROUP BY 1, 2")
        snapshot.dead = [_dead_count(row) for row in dead]
        reasons = {reason.value for reason in LossReason}
        for (kind, name, topic), counts in self._books.items():
            if kind == "receiver":
                snapshot.receivers.append(ReceiverBooks(name, **counts))
            elif kind == "group":
                dropped = {what: number for what, number in counts.items() if what in reasons and number}
                kept = {what: number for what, number in counts.items() if what not in reasons}
                snapshot.books.append(GroupBooks(topic, name, dropped=dropped, **kept))
        return snapshot


def _dead_count(row: Any) -> DeadCount:
    component, reason, letters, records, size_bytes = row
    return DeadCount(component, DeadReason(reason), letters, records, size_bytes)
