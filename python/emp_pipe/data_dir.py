"""The data directory belongs to one process at a time: a lock file that holds who has it.

Not here: the lock (`directory.py`), what is kept in the directory (`buffers/`, `exporters/file.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from emp_pipe.directory import WILL_PASS, DirectoryLock, make_private
from emp_pipe.errors import ConfigError, ErrorKind, LogError
from emp_pipe.logs import get_logger

NAME = "emp-pipe.lock"

_log = get_logger("data_dir")


@contextlib.contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """Make the directory and hold its lock. Raises LogError (LOG_IN_USE) naming the other process; ConfigError when it cannot be made.

    On a disk that is full or read-only there may be nothing to lock: then the buffer, which has a lock of its own, waits for the disk."""
    lock: DirectoryLock | None = None
    try:
        make_private(data_dir)
        lock = DirectoryLock(data_dir, NAME)
    except LogError as error:
        error.advice = error.advice.replace("set another `data_dir`", "set another with --data-dir or EMP_DATA_DIR")
        raise
    except (OSError, ValueError) as error:  # the latter for a path with a zero byte in it
        why = error.strerror if isinstance(error, OSError) else str(error)
        if not isinstance(error, OSError) or error.errno not in WILL_PASS:
            raise ConfigError(
                ErrorKind.CONFIG_INVALID,
                place="data_dir",
                detail=f"{data_dir} cannot be used ({why})",
                advice="make it writable for this user, or set another with --data-dir or EMP_DATA_DIR",
            ) from error
        _log.error("%s takes no lock file (%s): nothing keeps a second process away from what is not the buffer", data_dir, why)
    try:
        if data_dir.is_dir() and data_dir.stat().st_mode & 0o022 and not data_dir.stat().st_mode & 0o1000:
            _log.warning("%s may be changed by other users: chmod go-w it, or they can replace the buffer", data_dir)
        yield
    finally:
        if lock is not None:
            lock.release()
