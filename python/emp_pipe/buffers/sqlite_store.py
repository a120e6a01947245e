"""What the SQLite log writes: each function is one change inside the transaction that the commit thread holds open.

A change returns its `Effects`, which the event loop tells the ledger once the transaction is on stable storage. Totals are kept here and
written with every transaction, so the books survive a SIGKILL. After any rollback `load` reads everything anew: nothing half-true stays.
Not here: threads (`sqlite_thread.py`), the file and its schema (`sqlite_schema.py`), reading blocks back (`sqlite_reader.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import apsw

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.ledger import DEAD_READER, DEAD_TOPIC, Ending, Entry, Held, Snapshot
from emp_pipe.log.protocol import Append, DeadLetter, GroupBooks, GroupSpec, LossReason, ReceiverBooks, Topic
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

_log = get_logger("sqlite")


@dataclass(slots=True)
class Effects:
    """What a change did, for the ledger. `snapshot` stands for everything where single steps would be too many."""

    offsets: list[int] = field(default_factory=list)
    received: Sequence[ReceiverBooks] = ()
    filed: list[tuple[Entry, Block]] = field(default_factory=list)
    ended: list[tuple[str, Ending]] = field(default_factory=list)
    lost: list[tuple[str, Entry, LossReason]] = field(default_factory=list)
    freed_bytes: int = 0
    dead_added: list[tuple[int, int]] = field(default_factory=list)
    dead_removed: list[tuple[int, int, LossReason | None]] = field(default_factory=list)
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
        self._execute = self._cursor.execute
        self._dead_limits = dead_limits
        self.next_offset = 1
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
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Write the totals and make the transaction durable."""
        self.next_offset += 1  # so that each transaction can be recognised after a failure
        self._books[_META] = {"next_offset": self.next_offset}
        self._execute(_PUT_BOOKS, (*_META, f'{{"next_offset":{self.next_offset}}}'))
        for key in self._dirty:
            self._execute(_PUT_BOOKS, (*key, json.dumps(self._books[key])))
        self.committing = self.next_offset
        self._execute("COMMIT")
        self._dirty.clear()

    def rollback(self) -> None:
        if not self.connection.get_autocommit():
            self._execute("ROLLBACK")
        self.load()

    def load(self) -> None:
        """Read the totals from the file."""
        self._dirty.clear()
        self._books = {(kind, name, topic): json.loads(counts) for kind, name, topic, counts in self._execute("SELECT * FROM books")}
        self.next_offset = self._books.get(_META, {}).get("next_offset", 1)
        self._dead_bytes = self._one("SELECT coalesce(sum(bytes), 0) FROM dead")[0]
        self._index_groups()

    def _index_groups(self) -> None:
        self.group_ids = dict(self._execute("SELECT name, id FROM groups"))
        self._readers = {}
        for name, spec in self.specs.items():
            for topic in spec.topics:
                self._readers.setdefault(topic.value, []).append((self.group_ids[name], name))
        names = {id: name for name, id in self.group_ids.items()}
        self._held_bytes = dict.fromkeys(self.group_ids, 0)
        for id, size in self._execute("SELECT p.group_id, sum(b.bytes) FROM pending p JOIN blocks b USING (offset) GROUP BY 1"):
            self._held_bytes[names[id]] = size

    def _count(self, kind: str, name: str, topic: str, what: str, number: int) -> None:
        key = (kind, name, topic)
        counts = self._books.get(key)
        if counts is None:
            counts = self._books[key] = {}
        counts[what] = counts.get(what, 0) + number
        self._dirty.add(key)

    def _one(self, sql: str, bindings: tuple[int | str, ...] = ()) -> Any:
        """Return the first row of a query that always has one."""
        return next(self._execute(sql, bindings))

    # groups

    def begin_groups(self, specs: Sequence[GroupSpec] | None) -> Effects:
        """Make the groups those of the configuration: begin new ones, then retire, loudly, those that are absent.

        None: the groups are those that the file knows."""
        known = {name: _parse_spec(name, spec) for name, spec in self._execute("SELECT name, spec FROM groups")}
        wanted = {spec.name: spec for spec in specs} if specs is not None else known
        for name, spec in wanted.items():
            if name in known:
                self._execute("UPDATE groups SET spec=? WHERE name=?", (_render_spec(spec), name))
            else:
                self._execute("INSERT INTO groups (name, spec) VALUES (?,?)", (name, _render_spec(spec)))
        self.specs = {}
        self._index_groups()
        for name, spec in wanted.items():  # before anything is freed: a renamed destination finds what its old name held
            if spec.start == "oldest":
                for topic in spec.topics - (known[name].topics if name in known else set()):
                    self._refill(name, topic.value)
        for name, spec in known.items():
            kept = wanted[name].topics if name in wanted else frozenset()
            for topic in sorted(spec.topics - kept):
                blocks, records = self._lose_topic(name, topic.value, LossReason.GROUP_DROPPED)
                if blocks:
                    why = "no longer reads it" if name in wanted else "is not in the configuration"
                    _log.warning("%s: group %s %s: %d held blocks (%d records) are given up", topic.value, name, why, blocks, records)
            if name not in wanted:
                _log.warning("group %s was retired: the configuration does not name it; should it return, it begins anew", name)
                self._forget_group(name)
        self._free_unread()
        self.specs = wanted
        self._index_groups()
        return Effects(snapshot=self.snapshot())

    def _forget_group(self, name: str) -> None:
        self._execute("DELETE FROM state WHERE group_name=?", (name,))
        self._execute("DELETE FROM groups WHERE name=?", (name,))

    def _refill(self, name: str, topic: str) -> None:
        """Let a group read what is held of a topic and it does not hold yet."""
        id = self.group_ids[name]
        missing = "FROM blocks b WHERE topic=?1 AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.offset=b.offset AND p.group_id=?2)"
        records = self._one(f"SELECT coalesce(sum(records), 0) {missing}", (topic, id))[0]
        self._execute(f"INSERT INTO pending SELECT offset, ?2 {missing}", (topic, id))
        self._count("group", name, topic, "appended", records)

    def _lose_topic(self, name: str, topic: str, reason: LossReason) -> tuple[int, int]:
        id = self.group_ids[name]
        blocks, records = self._one(
            "SELECT count(*), coalesce(sum(records), 0) FROM blocks b JOIN pending p USING (offset) WHERE p.group_id=? AND b.topic=?",
            (id, topic),
        )
        self._execute("DELETE FROM pending WHERE group_id=? AND offset IN (SELECT offset FROM blocks WHERE topic=?)", (id, topic))
        self._count("group", name, topic, reason.value, records)
        return blocks, records

    def _free_unread(self) -> None:
        self._execute("DELETE FROM blocks WHERE NOT EXISTS (SELECT 1 FROM pending WHERE pending.offset = blocks.offset)")

    def reset_group(self, name: str, start: Literal["oldest", "newest"]) -> Effects:
        for topic in self.specs[name].topics:
            if start == "oldest":
                self._refill(name, topic.value)
            else:
                self._lose_topic(name, topic.value, LossReason.GROUP_RESET)
        self._free_unread()
        self._index_groups()
        return Effects(snapshot=self.snapshot())

    def drop_group(self, name: str) -> Effects:
        spec = self.specs.pop(name)
        for topic in spec.topics:
            self._lose_topic(name, topic.value, LossReason.GROUP_DROPPED)
        self._forget_group(name)
        self._free_unread()
        self._index_groups()
        return Effects(snapshot=self.snapshot())

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
                    self._count("receiver", books.receiver, "", what, number)
        if append.dead:
            self._bury(append.dead, now, effects)
        return effects

    def _file(self, block: Block, now: int, effects: Effects) -> None:
        topic = block.topic
        readers = self._readers.get(topic)
        if not readers:
            effects.offsets.append(-1)
            return
        offset = self.next_offset
        self.next_offset += 1
        header = block.header
        entry = Entry(offset, topic, len(header) + block.payload_bytes, block.records, now)
        self._execute(_INSERT_BLOCK, (offset, topic, block.block_id, entry.size_bytes, entry.records, now, header, memoryview(block)))
        for id, name in readers:
            self._execute(_INSERT_PENDING, (offset, id))
            self._count("group", name, topic, "appended", entry.records)
            self._held_bytes[name] += entry.size_bytes
        effects.offsets.append(offset)
        effects.filed.append((entry, block))

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
            if not self._release(id, name, entry, effects):
                continue
            effects.ended.append((name, ending))
            for what, number in (("acked", entry.records - skipped - dead), ("skipped", skipped), ("dead", dead)):
                if number:
                    self._count("group", name, entry.topic, what, number)
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
            if self._execute("SELECT 1 FROM pending WHERE offset=? AND group_id=?", (offset, id)).fetchone() is None:
                raise LogError(ErrorKind.LOG_STALE, place=name, detail=f"block {offset} was ended before this commit")
        if id == -1:
            raise LogError(ErrorKind.LOG_STALE, place=name, detail="the group was dropped")

    def _release(self, id: int, name: str, entry: Entry, effects: Effects) -> bool:
        """Take a block from a group, and free it when no other group holds it; False when the group did not hold it."""
        self._execute(_END_PENDING, (entry.offset, id))
        if not self.connection.changes():
            return False
        self._held_bytes[name] -= entry.size_bytes
        self._execute(_FREE_BLOCK, (entry.offset,))
        if self.connection.changes():
            effects.freed_bytes += entry.size_bytes
        return True

    def trim(self, name: str, in_flight: frozenset[int], now: int) -> Effects:
        """Give up a best-effort group's oldest blocks until it is within its quota; what is being sent is left alone."""
        effects = Effects()
        spec = self.specs.get(name)
        if spec is None:
            return effects
        id = self.group_ids[name]
        too_old = now - int(spec.quota_age_s * 1e9) if spec.quota_age_s is not None else 0
        oldest: list[Any] = self._execute(
            "SELECT b.offset, b.topic, b.bytes, b.records, b.appended_unix_nano FROM pending p CROSS JOIN blocks b ON b.offset=p.offset"
            " WHERE p.group_id=? ORDER BY p.offset LIMIT ?",
            (id, len(in_flight) + 1024),
        ).fetchall()
        for row in oldest:
            entry = Entry(*row)
            if entry.offset in in_flight:
                continue
            if self._held_bytes[name] <= spec.quota_bytes and entry.appended_unix_nano >= too_old:
                return effects
            self._lose(id, name, entry, effects)
        effects.more = len(oldest) == len(in_flight) + 1024
        return effects

    def relieve(self, in_flight: frozenset[int], bytes_wanted: int) -> Effects:
        """Free space without stopping receivers: the oldest blocks that only best-effort groups still hold."""
        effects = Effects()
        required = [self.group_ids[name] for name, spec in self.specs.items() if spec.required]
        marks = ",".join("?" * len(required))
        offsets: list[Any] = self._execute(
            f"SELECT offset FROM pending GROUP BY offset HAVING sum(group_id IN ({marks})) = 0 ORDER BY offset LIMIT ?",
            (*required, len(in_flight) + 4096),
        ).fetchall()
        for (offset,) in offsets:
            if effects.freed_bytes >= bytes_wanted:
                break
            if offset in in_flight:
                continue
            row = self._one("SELECT offset, topic, bytes, records, appended_unix_nano FROM blocks WHERE offset=?", (offset,))
            for name, id in list(self.group_ids.items()):
                self._lose(id, name, Entry(*row), effects)
        return effects

    def _lose(self, id: int, name: str, entry: Entry, effects: Effects) -> None:
        if self._release(id, name, entry, effects):
            self._count("group", name, entry.topic, LossReason.QUOTA.value, entry.records)
            effects.lost.append((name, entry, LossReason.QUOTA))

    # dead letters

    def _bury(self, letters: Iterable[DeadLetter], now: int, effects: Effects) -> None:
        for letter in letters:
            size = len(letter.payload) + len(letter.header)
            self._execute(
                "INSERT INTO dead VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    now,
                    size,
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
            self._dead_bytes += size
            self._count("group", DEAD_READER, DEAD_TOPIC, "appended", letter.records)
            effects.dead_added.append((letter.records, size))
        self.expire_dead(now, effects)

    def expire_dead(self, now: int, effects: Effects) -> None:
        """Delete the oldest dead letters beyond their limits, counted."""
        oldest_kept = now - int(self._dead_limits.max_age_s * 1e9)
        while True:
            first = self._execute("SELECT id, stored_unix_nano, bytes, records FROM dead ORDER BY id LIMIT 1").fetchone()
            if first is None or (self._dead_bytes <= self._dead_limits.max_bytes and first[1] >= oldest_kept):
                return
            self._delete_dead(first[0], first[2], first[3], LossReason.DEAD_LIMIT, effects)

    def _delete_dead(self, id: int, size: int, records: int, reason: LossReason | None, effects: Effects) -> None:
        self._execute("DELETE FROM dead WHERE id=?", (id,))
        self._dead_bytes -= size
        self._count("group", DEAD_READER, DEAD_TOPIC, "acked" if reason is None else reason.value, records)
        effects.dead_removed.append((records, size, reason))

    def delete_dead_letters(self, ids: Sequence[int]) -> Effects:
        effects = Effects()
        for id in ids:
            row = self._execute("SELECT bytes, records FROM dead WHERE id=?", (id,)).fetchone()
            if row is not None:
                self._delete_dead(id, row[0], row[1], None, effects)
        return effects

    # upkeep

    def expire(self, now: int) -> Effects:
        """Forget what has outlived its time: keyed state, chunks, dead letters."""
        effects = Effects()
        self._execute("DELETE FROM state WHERE expires_unix_nano <= ?", (now,))
        self._execute("DELETE FROM chunks WHERE slot <= ?", (now // CHUNK_SLOT_NS - CHUNK_SLOTS_KEPT,))
        self.expire_dead(now, effects)
        return effects

    def vacuum(self, pages: int) -> Effects:
        """Give free pages back to the file system; one row a page, so the cursor must be run to its end."""
        for _ in self._execute(f"PRAGMA incremental_vacuum({pages})"):
            pass
        return Effects()

    def snapshot(self) -> Snapshot:
        """Return everything that the ledger must know."""
        names = {id: name for name, id in self.group_ids.items()}
        snapshot = Snapshot(specs=list(self.specs.values()))
        rows = self._execute(
            "SELECT p.group_id, b.topic, count(*), sum(b.bytes), sum(b.records), min(b.offset), min(b.appended_unix_nano), max(b.offset)"
            " FROM pending p CROSS JOIN blocks b ON b.offset=p.offset GROUP BY 1, 2"
        )
        snapshot.held = {(names[id], topic): Held(*counts) for id, topic, *counts in rows}
        snapshot.held_bytes = self._one("SELECT coalesce(sum(bytes), 0) FROM blocks")[0]
        snapshot.dead_bytes, snapshot.dead_records = self._one("SELECT coalesce(sum(bytes), 0), coalesce(sum(records), 0) FROM dead")
        reasons = {reason.value for reason in LossReason}
        for (kind, name, topic), counts in self._books.items():
            if kind == "receiver":
                snapshot.receivers.append(ReceiverBooks(name, **counts))
            elif kind == "group":
                dropped = {what: number for what, number in counts.items() if what in reasons and number}
                kept = {what: number for what, number in counts.items() if what not in reasons}
                snapshot.books.append(GroupBooks(topic, name, dropped=dropped, **kept))
        return snapshot


def _render_spec(spec: GroupSpec) -> str:
    return json.dumps({**asdict(spec), "topics": sorted(spec.topics)})


def _parse_spec(name: str, text: str) -> GroupSpec:
    fields = json.loads(text)
    return GroupSpec(**{**fields, "name": name, "topics": frozenset(Topic(topic) for topic in fields["topics"])})
