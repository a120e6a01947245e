"""The file of the SQLite log: its schema, version, and what happens to a file that cannot be used.

Not here: its directory (`sqlite_place.py`), what is written into the tables (`sqlite_store.py`). The schema's version is `user_version`;
an older one is brought up to date, a newer one is refused with advice. `tests/golden/` keeps a file of every version.
"""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from emp_pipe.directory import mend_mode, open_private
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.logs import get_logger

VERSION = 1
FILE_NAME = "log.db"
PAGE_BYTES = 8192
CACHE_BYTES = 8 << 20
WAL_LIMIT_BYTES = 16 << 20
VERIFY_BELOW_BYTES = 64 << 20
"""A file below it is checked whole when it is opened; a larger one would keep a start waiting, and is checked when an error was seen."""

_log = get_logger("sqlite")

_SCHEMA = """
CREATE TABLE blocks (
    offset INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    block_id TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    records INTEGER NOT NULL,
    appended_unix_nano INTEGER NOT NULL,
    header BLOB NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE pending (offset INTEGER NOT NULL, group_id INTEGER NOT NULL, PRIMARY KEY (offset, group_id)) WITHOUT ROWID;
CREATE TABLE groups (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL);
CREATE TABLE books (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    topic TEXT NOT NULL,
    counts TEXT NOT NULL,
    PRIMARY KEY (kind, name, topic)
) WITHOUT ROWID;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    stored_unix_nano INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    records INTEGER NOT NULL,
    component TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    peer TEXT NOT NULL,
    source_offset INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    time_unix_nano INTEGER NOT NULL,
    header BLOB NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE chunks (slot INTEGER NOT NULL, peer TEXT NOT NULL, chunk BLOB NOT NULL, PRIMARY KEY (slot, peer, chunk)) WITHOUT ROWID;
CREATE TABLE state (
    group_name TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    expires_unix_nano INTEGER,
    PRIMARY KEY (group_name, key)
) WITHOUT ROWID;
CREATE INDEX state_expires ON state (expires_unix_nano) WHERE expires_unix_nano IS NOT NULL;
CREATE TABLE checkpoints (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


def open_file(path: Path, *, vfs: str | None, synchronous: str, verify: bool = False) -> apsw.Connection:
    """Return a connection to a usable log, created, migrated or begun anew as needed.

    Raises LOG_NEWER for a file of a later version, and what the disk says when it refuses. What is no log is renamed, never deleted."""
    if path.exists() and not path.is_file():
        set_aside(path, ValueError("it is no file"))
    elif path.exists() and not path.stat().st_size:
        _tell_of_an_empty_file(path)
    try:
        return _open_and_verify(path, vfs=vfs, synchronous=synchronous, verify=verify)
    except (apsw.CorruptError, apsw.NotADBError) as error:
        set_aside(path, error)
        return _open_and_verify(path, vfs=vfs, synchronous=synchronous, verify=False)


def _tell_of_an_empty_file(path: Path) -> None:
    """SQLite takes an empty file for a new one, and deletes the write-ahead log beside it without a word."""
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists() and wal.stat().st_size:
        set_aside(path, ValueError("the file is empty, its write-ahead log is not"))
    else:
        _log.warning("%s is empty: a first start was cut short, or something emptied it; an empty buffer is begun", path)


def set_aside(path: Path, error: Exception) -> Path:
    """Rename a file that cannot be used, with its companions, so that its bytes can still be looked at."""
    number = 1
    while (target := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(path.with_name(target.name + suffix))
    _log.error(
        "%s is corrupt (%s): it was set aside as %s and an empty buffer begun; what it held is not delivered. "
        "`sqlite3 %s .recover` may save a part of it.",
        path,
        error,
        target.name,
        target.name,
    )
    return target


def _open_and_verify(path: Path, *, vfs: str | None, synchronous: str, verify: bool) -> apsw.Connection:
    os.close(open_private(path))  # it says why it cannot be opened; SQLite does not
    mend_mode(path, 0o600)
    connection = connect(path, vfs=vfs, synchronous=synchronous, cache_bytes=CACHE_BYTES)
    try:
        if verify or path.stat().st_size < VERIFY_BELOW_BYTES:
            _verify(connection)
        _migrate(connection, path)
    except BaseException:
        connection.close(True)
        raise
    return connection


def connect(path: Path, *, vfs: str | None, synchronous: str, cache_bytes: int) -> apsw.Connection:
    """Return a connection with the settings that every one of the log needs."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=vfs)
    connection.set_busy_timeout(10_000)
    execute = connection.execute
    if connection.pragma("page_count") and connection.pragma("journal_mode") != "wal":
        try:
            _check_is_ours(connection)  # before anything is changed in it
        except apsw.Error:
            connection.close(True)
            raise
    if connection.pragma("user_version") == 0 and connection.pragma("page_count") == 0:
        execute(f"PRAGMA page_size={PAGE_BYTES}")
        execute("PRAGMA auto_vacuum=INCREMENTAL")  # has an effect only before the first table
    connection.pragma("journal_mode", "WAL")
    connection.pragma("synchronous", synchronous)
    connection.pragma("journal_size_limit", WAL_LIMIT_BYTES)
    connection.pragma("cache_size", -(cache_bytes >> 10))
    connection.wal_autocheckpoint(0)  # checkpoints run off the commit thread
    return connection


def _verify(connection: apsw.Connection) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != [("ok",)]:
        raise apsw.CorruptError(str(verdict[0][0]) if verdict else "quick_check gave no answer")


def _check_is_ours(connection: apsw.Connection) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")}
    if tables and not tables >= {"blocks", "pending", "books"}:
        raise apsw.NotADBError(f"a database of another application, with the tables {', '.join(sorted(tables))[:200]}")


def _migrate(connection: apsw.Connection, path: Path) -> None:
    version = connection.pragma("user_version")
    _check_is_ours(connection)
    if version > VERSION:
        raise LogError(
            ErrorKind.LOG_NEWER,
            place=str(path),
            detail=f"the buffer has format {version}, this emp-pipe knows up to {VERSION}",
            advice="start the emp-pipe that wrote it (or a later one) and let it drain, or set another `data_dir`",
            found=version,
            known=VERSION,
        )
    if version == 0:
        with connection:
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version={VERSION}")
