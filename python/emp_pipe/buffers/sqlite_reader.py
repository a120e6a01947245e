"""Reading blocks back, on a connection and a thread of its own: a slow disk read never delays a commit, and the other way round.

A read fetches what it wants and closes its transaction at once: a reader that stays open keeps the write-ahead log from being reset, and
it would grow without bound.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import apsw

from emp_pipe.buffers.sqlite_store import CHUNK_SLOT_NS, CHUNK_SLOTS_KEPT
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.group_ledger import Entry
from emp_pipe.log.protocol import ChunkKey, DeadFilter, DeadLetter, DeadReason
from emp_pipe.log.reading import Fetched, Row

_BLOCK = (
    "SELECT b.offset, b.topic, b.bytes, b.records, b.appended_unix_nano, b.header, b.payload"
    " FROM pending p CROSS JOIN blocks b ON b.offset=p.offset"
)


class Reader:
    """One connection for reads. Its functions are called from the log's reading thread; `close` from the commit thread."""

    def __init__(self, connect: Callable[[], apsw.Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None

    def close(self) -> None:
        """Let go of the file, which may be renamed now; reads fail until `open`."""
        with self._lock:
            if self._connection is not None:
                self._connection.close(True)
                self._connection = None

    def open(self) -> None:
        """Open the file. At once: later there may be no file descriptor left, or no file at this place."""
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()

    def _rows(self, sql: str, bindings: Sequence[Any]) -> Any:
        if self._connection is None:
            raise LogError(ErrorKind.LOG_IO, detail="the buffer is not open: its disk refused")
        return self._connection.execute(sql, tuple(bindings))

    def blocks(self, group_id: int, offsets: Sequence[int], after: int, up_to: int, max_bytes: int) -> Fetched:
        """Return the group's blocks at `offsets`, then those in (after, up_to], as long as `max_bytes` lasts; at least one."""
        rows: list[Row] = []
        with self._lock:
            for offset in offsets:
                for row in self._rows(f"{_BLOCK} WHERE p.offset=? AND p.group_id=?", (offset, group_id)):
                    rows.append(Row(Entry(*row[:5]), row[5], row[6]))
                    max_bytes -= len(row[6])
            if up_to <= after or (rows and max_bytes <= 0):
                return Fetched(rows, up_to <= after)
            cursor = self._rows(f"{_BLOCK} WHERE p.offset>? AND p.offset<=? AND p.group_id=? ORDER BY p.offset", (after, up_to, group_id))
            for row in cursor:
                max_bytes -= len(row[6])
                if max_bytes < 0 and rows:
                    cursor.close(True)
                    return Fetched(rows, False)
                rows.append(Row(Entry(*row[:5]), row[5], row[6]))
        return Fetched(rows, True)

    def held(self, group_id: int, offsets: Sequence[int]) -> set[int]:
        sql = "SELECT 1 FROM pending WHERE offset=? AND group_id=?"
        with self._lock:
            return {offset for offset in offsets if self._rows(sql, (offset, group_id)).fetchall()}

    def seen(self, chunks: Sequence[ChunkKey], now: int) -> set[ChunkKey]:
        newest = now // CHUNK_SLOT_NS
        slots = ",".join(str(newest - age) for age in range(-1, CHUNK_SLOTS_KEPT))
        sql = f"SELECT 1 FROM chunks WHERE slot IN ({slots}) AND peer=? AND chunk=? LIMIT 1"
        with self._lock:
            return {chunk for chunk in chunks if self._rows(sql, chunk).fetchall()}

    def state(self, group: str, low: str, high: str | None, now: int) -> dict[str, bytes]:
        """Return the group's live state with keys from `low` up to, not including, `high` (None: exactly `low`)."""
        where, bindings = ("key=?", (group, now, low)) if high is None else ("key>=? AND key<?", (group, now, low, high))
        sql = f"SELECT key, value FROM state WHERE group_name=? AND (expires_unix_nano IS NULL OR expires_unix_nano>?) AND {where}"
        with self._lock:
            return dict(self._rows(sql, bindings))

    def state_after(self, group: str, after: str, below: str, most: int, max_bytes: int) -> list[tuple[str, bytes]]:
        """Return the group's state with keys above `after` and below `below`, in order, as long as both limits last; at least one."""
        rows: list[tuple[str, bytes]] = []
        sql = "SELECT key, value FROM state WHERE group_name=? AND key>? AND key<? ORDER BY key LIMIT ?"
        with self._lock:
            cursor = self._rows(sql, (group, after, below, most))
            for key, value in cursor:
                max_bytes -= len(value)
                if max_bytes < 0 and rows:
                    cursor.close(True)
                    break
                rows.append((key, value))
        return rows

    def state_size(self, group: str, low: str, below: str) -> tuple[int, int]:
        """Return how many values the group's state has from key `low` to below `below`, and their bytes."""
        sql = "SELECT count(*), coalesce(sum(length(value)), 0) FROM state WHERE group_name=? AND key>=? AND key<?"
        with self._lock:
            ((count, size_bytes),) = self._rows(sql, (group, low, below)).fetchall()
        return count, size_bytes

    def checkpoint(self, name: str) -> bytes | None:
        with self._lock:
            row = self._rows("SELECT value FROM checkpoints WHERE name=?", (name,)).fetchall()
        return row[0][0] if row else None

    def dead_letters(self, limit: int, after_id: int, which: DeadFilter | None) -> list[tuple[int, DeadLetter]]:
        where, bindings = _where(after_id, which or DeadFilter())
        sql = (
            "SELECT id, component, reason, detail, payload, header, records, peer, source_offset, attempts, time_unix_nano"
            f" FROM dead WHERE {where} ORDER BY id LIMIT ?"
        )
        with self._lock:
            rows = self._rows(sql, (*bindings, limit)).fetchall()
        return [(id, DeadLetter(component, DeadReason(reason), *rest)) for id, component, reason, *rest in rows]


def _where(after_id: int, which: DeadFilter) -> tuple[str, list[int | str]]:
    conditions: list[str] = ["id>?"]
    bindings: list[int | str] = [after_id]
    for condition, value in (
        ("component=?", which.component),
        ("reason=?", which.reason),
        ("time_unix_nano>=?", which.since_unix_nano),
        ("time_unix_nano<?", which.until_unix_nano),
        ("id IN (SELECT value FROM json_each(?))", None if which.ids is None else json.dumps(sorted(which.ids))),
    ):
        if value is not None:
            conditions.append(condition)
            bindings.append(str(value) if isinstance(value, DeadReason) else value)
    return " AND ".join(conditions), bindings
