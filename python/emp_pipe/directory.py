"""A directory that belongs to one process at a time: made for its owner only, and locked by a file that says who has it.

The kernel lets go of the lock when its process ends, however it ends: what a killed process wrote into the file means nothing.
Not here: what lies in it (`buffers/`, `exporters/file.py`), the process's own data directory (`data_dir.py`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.logs import get_logger

WILL_PASS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
)
"""What a file system says that works again some day without anybody changing a setting: it is waited for."""
_CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

_log = get_logger("directory")


def make_private(directory: Path) -> None:
    """Make a directory for its owner only, whatever the umask; those above it that are missing are made alike."""
    for made in make_synced(directory, 0o700):
        made.chmod(0o700)  # a umask can take from the owner too


def make_synced(directory: Path, mode: int = 0o777) -> list[Path]:
    """Make a directory and what is missing above it, and tell the disk: or a power cut may take it with all that is in it."""
    missing = [directory] if not directory.exists() else []
    while missing and not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for one in reversed(missing):
        one.mkdir(mode=mode, exist_ok=True)
        one.chmod(one.stat().st_mode | 0o700)
        sync_directory(one.parent)
    return missing


def mend_mode(path: Path, mode: int) -> None:
    """Take from others what they may not have, and say so."""
    found = path.stat().st_mode & 0o7777
    if found != mode:
        path.chmod(mode)
        if found & 0o077:
            _log.warning("%s could be read or changed by others (mode %04o): it is %04o now", path, found, mode)


def open_private(path: Path, more_flags: int = 0) -> int:
    """Return a file descriptor for reading and writing; a file that is made is its owner's alone, whatever the umask."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | more_flags, 0o600)
    if os.fstat(descriptor).st_mode & 0o777 != 0o600:
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o600)
    return descriptor


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DirectoryLock:
    """Holds a directory's lock file from the beginning to `release`. Raises LogError (LOG_IN_USE) that names the other process."""

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / name
        self._file = self._open()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            detail, advice = self._refusal(error)
            os.close(self._file)
            raise LogError(ErrorKind.LOG_IN_USE, place=str(directory), detail=detail, advice=advice) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, only its holder's name is not told
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)

    def _open(self) -> int:
        try:
            return open_private(self._path)
        except OSError as error:
            if error.errno not in _CANNOT_WRITE or not self._path.exists():
                raise
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # a lock needs no writing

    def _refusal(self, error: OSError) -> tuple[str, str]:
        """Say who holds the lock, or that this file system has none to give."""
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return (
                f"the file system cannot lock {self._path.name} ({error.strerror})",
                "put the data directory on a local disk: a network file system without locks cannot keep two processes apart",
            )
        with contextlib.suppress(OSError):
            pid, host, *_ = [*os.pread(self._file, 512, 0).decode("utf-8", "replace").split("\n"), "", ""]
            if pid.isdigit():
                where = "" if host == socket.gethostname() or not host else f" on {host}"
                if not where and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
                    where = " of another container: it is not seen from here"
                return f"another emp-pipe uses this data directory (process {pid}{where})", "stop it, or set another `data_dir`"
        return "another emp-pipe uses this data directory", "stop it, or set another `data_dir`"

    @property
    def lost(self) -> bool:
        """Whether the file that is locked is not the one that another process would find."""
        try:
            found, held = os.stat(self._path), os.fstat(self._file)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino)

    def release(self) -> None:
        os.close(self._file)
