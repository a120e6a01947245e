"""What goes to the commit thread of the SQLite log and what comes back: operations, outcomes, and what a disk's errors are called.

Not here: the thread (`sqlite_thread.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import apsw

from emp_pipe.buffers.sqlite_store import Effects, Store
from emp_pipe.log.group_ledger import Snapshot

DISK_ERRORS = (
    apsw.IOError,
    apsw.FullError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.PermissionsError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.ProtocolError,
    apsw.InterruptError,
    OSError,
)


def describe(error: Exception) -> str:
    """Say what the disk said, in words; SQLite's own text may be empty."""
    what = "the disk is full" if isinstance(error, apsw.FullError) else "the disk refused"
    return f"{what} ({type(error).__name__}{f': {error}' if str(error) else ''})"


class Operation:
    """One change that waits for its transaction; `effects` or `error` is set when it has been decided.

    `proves`: its caller must know whether it took effect (a commit, which may have derived something), so that after a failure the
    file itself is asked. An append never does: it is sent again, and recognised by its chunk."""

    __slots__ = ("effects", "error", "proves", "run", "size_bytes")

    def __init__(self, run: Callable[[Store], Effects], *, size_bytes: int = 0, proves: bool = False) -> None:
        self.run = run
        self.size_bytes = size_bytes
        self.proves = proves
        self.effects: Effects | None = None
        self.error: Exception | None = None


class Outcome:
    """What the event loop is told after a transaction: its operations, and when all was read anew a snapshot or the disk's state."""

    __slots__ = ("disk_error", "operations", "snapshot")

    def __init__(self, operations: Sequence[Operation], snapshot: Snapshot | None = None, disk_error: str | None = None) -> None:
        self.operations = operations
        self.snapshot = snapshot
        self.disk_error = disk_error
        """None: nothing new; "": the disk works again; else what it said."""


def fail_with(error: Exception) -> Callable[[Store], Effects]:
    """Let an error that another thread met be handled where all are."""

    def run(store: Store) -> Effects:
        raise error

    return run
