"""The data directory belongs to one process at a time: a lock file that holds who has it.

Not here: what is kept in it (`buffers/`, `exporters/file.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from emp_pipe.errors import ConfigError, ErrorKind, LogError

NAME = "emp-pipe.lock"


@contextlib.contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """Make the directory and hold its lock. Raises LogError (LOG_IN_USE) naming the other process; ConfigError when it cannot be made."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:  # the latter for a path with a zero byte in it
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            ErrorKind.CONFIG_INVALID,
            place="data_dir",
            detail=f"{data_dir} cannot be used ({why})",
            advice="make it writable for this user, or set another with --data-dir or EMP_DATA_DIR",
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            raise LogError(
                ErrorKind.LOG_IN_USE,
                place=str(data_dir),
                detail=f"another emp-pipe uses this data directory{f' (process {holder})' if holder else ''}",
                advice="stop it, or set another with --data-dir or EMP_DATA_DIR",
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)
