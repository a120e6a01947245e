"""What goes to the commit thread of the SQLite log and what comes back: operations and how they wait, outcomes, the disk's errors.

Not here: the thread (`sqlite_thread.py`).
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from time import monotonic

import apsw

from emp_pipe.buffers.sqlite_store import Effects, Store
from emp_pipe.log.group_ledger import Snapshot

MOST_OPERATIONS = 512
"""In one transaction."""
PATIENCE_S = 0.01
"""Acks alone wait so long for something that is waited for, to share its transaction, where such things have come lately."""
LATELY_S = 0.1

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
    file itself is asked. An append never does: it is sent again, and recognised by its chunk.
    `patient`: nobody waits for it (an ack), so that it may go with the transaction of another, a moment later."""

    __slots__ = ("effects", "error", "patient", "proves", "run", "size_bytes")

    def __init__(self, run: Callable[[Store], Effects], *, size_bytes: int = 0, proves: bool = False, patient: bool = False) -> None:
        self.run = run
        self.size_bytes = size_bytes
        self.proves = proves
        self.patient = patient
        self.effects: Effects | None = None
        self.error: Exception | None = None


class Waiting:
    """The operations that wait for the commit thread, in order; None is the word to stop."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._expected_until_s = 0.0
        self.stopping = False

    def put(self, operation: Operation | None) -> None:
        self._queue.put(operation)

    def take(self, timeout_s: float | None) -> list[Operation]:
        """Return what goes into one transaction: all that waits, and where that is acks alone, what comes a moment later.

        Nothing when nothing came in time. `stopping`: the word to stop was among it."""
        operations: list[Operation] = []
        patient = True
        until_s = 0.0
        try:
            one = self._queue.get(timeout=timeout_s)
            while one is not None:
                operations.append(one)
                patient = patient and one.patient
                if len(operations) == MOST_OPERATIONS:
                    break
                if patient and self._queue.empty():
                    now_s = monotonic()
                    until_s = until_s or min(now_s + PATIENCE_S, self._expected_until_s)
                    one = self._queue.get(timeout=max(until_s - now_s, 0.0))
                else:
                    one = self._queue.get_nowait()
            self.stopping = one is None
        except queue.Empty:
            pass
        if not patient:
            self._expected_until_s = monotonic() + LATELY_S
        return operations


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
