"""The directory of the SQLite log: its lock, its permissions, the space kept for draining, and the witness of what was acknowledged.

- `log.reserve` is space that nobody else can take. Where a full disk keeps the log from writing even an ack, the file goes, and what the
  log holds can leave it; it is made again when there is space.
- `log.last` holds the number of the last transaction that was acknowledged, written (not synced) after each. A write-ahead log that was
  damaged ends, for SQLite, where the damage begins, without a word; this number says that there was more. A power cut may leave it behind
  the database, never before it.
Not here: the database (`sqlite_schema.py`), who calls this and when (`sqlite_thread.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import apsw

from emp_pipe.buffers.sqlite_schema import FILE_NAME, set_aside
from emp_pipe.directory import DirectoryLock, make_private, mend_mode, open_private
from emp_pipe.logs import get_logger

LOCK_NAME = "emp-pipe.pid"
RESERVE_NAME = "log.reserve"
WITNESS_NAME = "log.last"
RESERVE_BYTES = 16 << 20
"""While the log holds something: as much as a checkpoint may want at once, twice the size at which one begins."""
RESERVE_IDLE_BYTES = 1 << 20
_RESERVE_SHARE = 8
"""At most one part in so many of a small disk."""
_WITNESS = struct.Struct("<8sQQ")
_CRC = struct.Struct("<I")
_MAGIC = b"emp-last"

_log = get_logger("sqlite")


class Witness(NamedTuple):
    """The last transaction that was acknowledged, and of which database."""

    database_id: int
    number: int


class Place:
    """One log's directory. All but `is_here` blocks: the commit thread calls it, and the checkpoints' thread `reserve`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / FILE_NAME
        self._lock: DirectoryLock | None = None
        self._witness = -1
        self._opened = (0, 0)
        self.lacks_reserve = False
        """The disk was full, maybe before the last restart, and there has not been space for the reserve since."""

    def take(self) -> None:
        """Make the directory, lock it, mend its permissions. Again: only what has been lost meanwhile."""
        if self._lock is not None and not self._lock.lost:
            return
        if self._opened != (0, 0) and not self.directory.exists():  # it was unmounted: not on the disk below
            nearest = next(parent for parent in self.directory.parents if parent.exists())
            if os.stat(nearest).st_dev != self._opened[0]:
                raise OSError(errno.ESTALE, "the disk of the buffer is not mounted", str(self.directory))
        make_private(self.directory)
        lock = DirectoryLock(self.directory, LOCK_NAME)
        self._let_go()
        self._lock = lock
        mend_mode(self.directory, 0o700)
        for path in self.directory.iterdir():
            if path.name.startswith(("log.", LOCK_NAME)) and path.is_file() and not path.is_symlink():
                mend_mode(path, 0o600)

    def release(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._witness >= 0:
            os.close(self._witness)
            self._witness = -1
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # the file's own place

    def opened(self) -> None:
        """Remember which file is open."""
        found = os.stat(self.path)
        self._opened = (found.st_dev, found.st_ino)

    def is_here(self) -> bool:
        """Whether the file that is open is the one that a restart would find: else what is written to it is as good as lost."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._opened

    def rescue(self, connection: apsw.Connection, vfs: str | None) -> None:
        """Write what an open database holds to its place, which it was taken from. Raises OSError where that is on another disk now."""
        if os.stat(self.directory).st_dev != self._opened[0]:
            raise OSError(errno.ESTALE, "another disk is mounted there")
        if self.path.exists():
            set_aside(self.path, ValueError("it was put in the place of the buffer in use"))
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        unfinished = self.path.with_name("log.rescued")
        unfinished.unlink(missing_ok=True)
        os.close(open_private(unfinished, os.O_EXCL))
        copy = apsw.Connection(str(unfinished), flags=apsw.SQLITE_OPEN_READWRITE, vfs=vfs)
        try:
            with copy.backup("main", connection, "main") as backup:
                backup.step(-1)
        finally:
            copy.close(True)
        unfinished.rename(self.path)
        _log.warning("%s was written anew from what was open: nothing that it held is lost", self.path)

    # space

    def reserve(self, *, holds_something: bool) -> None:
        """Bring the reserve to its size, unless the disk has not the space for it."""
        path = self.directory / RESERVE_NAME
        usage = shutil.disk_usage(self.directory)
        wanted = min(RESERVE_BYTES if holds_something else RESERVE_IDLE_BYTES, usage.total // _RESERVE_SHARE)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = 0
        if size > wanted or (size < wanted and usage.free >= 2 * wanted):
            with contextlib.suppress(OSError):
                descriptor = open_private(path)
                try:
                    os.ftruncate(descriptor, min(size, wanted))
                    os.posix_fallocate(descriptor, 0, wanted)
                    size = wanted
                finally:
                    os.close(descriptor)
        self.lacks_reserve = size < min(wanted, RESERVE_IDLE_BYTES)

    def give_up_reserve(self) -> bool:
        """Free the reserve where the disk is full; False where it is not, or there is none."""
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self.directory).free < RESERVE_IDLE_BYTES:
                self.lacks_reserve = True
                (self.directory / RESERVE_NAME).unlink()
                _log.warning("%s: the disk is full; the space kept for it goes to draining what the buffer holds", self.directory)
                return True
        return False

    # the witness

    def last_acknowledged(self) -> Witness | None:
        """Return what the witness says; None where there is none that can be believed."""
        try:
            content = (self.directory / WITNESS_NAME).read_bytes()
        except OSError:
            return None
        if len(content) != _WITNESS.size + _CRC.size or _CRC.unpack(content[_WITNESS.size :])[0] != zlib.crc32(content[: _WITNESS.size]):
            return None
        magic, database_id, number = _WITNESS.unpack(content[: _WITNESS.size])
        return Witness(database_id, number) if magic == _MAGIC else None

    def acknowledged(self, database_id: int, number: int) -> None:
        """Let the witness say a transaction that is on stable storage. A disk without space for it has no witness."""
        content = _WITNESS.pack(_MAGIC, database_id, number)
        try:
            if self._witness < 0:
                self._witness = open_private(self.directory / WITNESS_NAME)
            os.pwrite(self._witness, content + _CRC.pack(zlib.crc32(content)), 0)
        except OSError as error:
            _log.debug("the witness cannot be written: %s", error)

    def keep_damaged(self) -> str:
        """Copy a write-ahead log that lacks what the witness saw, before it is written over; return the copy's name."""
        source = self.directory / f"{FILE_NAME}-wal"
        number = 1
        while (target := self.directory / f"{FILE_NAME}.damaged-{number}-wal").exists():
            number += 1
        try:
            descriptor = open_private(target, os.O_EXCL)
            with source.open("rb") as damaged, os.fdopen(descriptor, "wb") as copy:
                shutil.copyfileobj(damaged, copy, 1 << 20)
        except OSError as error:
            return f"nothing of it could be kept: {error.strerror}"
        return f"its bytes were kept as {target.name}"
