"""Copies the write-ahead log of the SQLite log into its file, on a thread and a connection of its own: a commit does not wait for it.

Not here: when (`sqlite_thread.py`, `sqlite_upkeep.py`), the last pages, which only the commit thread can copy between two transactions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import apsw

from emp_pipe.logs import get_logger

_log = get_logger("sqlite")


class Checkpoints:
    """One checkpoint at a time. `done` is told (mode, pages in the log, pages copied), `failed` what the disk said."""

    def __init__(
        self, connect: Callable[[], apsw.Connection], done: Callable[[int, int, int], None], failed: Callable[[Exception], None]
    ) -> None:
        self._connect = connect
        self._done = done
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, "emp-log-checkpoint")
        self._running = False
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None
        self._may_open = False

    def resume(self) -> None:
        """The file is open: checkpoints may be made."""
        with self._lock:
            self._may_open = True

    def close(self) -> None:
        """Let go of the file, which may be renamed now; errors are no news here."""
        with self._lock:
            self._may_open = False
            connection, self._connection = self._connection, None
            if connection is not None:
                try:
                    connection.close(True)
                except apsw.Error as error:
                    _log.debug("closing the checkpointer: %s", error)

    def end(self) -> None:
        self._thread.shutdown()

    def start(self, mode: int) -> None:
        if not self._running:
            self._running = True
            try:
                self._thread.submit(self._run, mode)
            except RuntimeError:  # closing: the last connection does it
                self._running = False

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Do something else that must not keep a commit waiting."""
        return self._thread.submit(work)

    def free_pages(self) -> Future[int]:
        """Return how many pages of the file hold nothing."""
        return self._thread.submit(self._count_free_pages)

    def _run(self, mode: int) -> None:
        try:
            with self._lock:
                pages, copied = self._open().wal_checkpoint(mode=mode)
            self._done(mode, pages, copied)
        except (apsw.BusyError, apsw.LockedError, apsw.CantOpenError):
            pass  # the next one does it; a file that is gone, the commit thread sees by itself
        except (apsw.Error, OSError) as error:
            self._failed(error)
        finally:
            self._running = False

    def _count_free_pages(self) -> int:
        with self._lock:
            return int(self._open().pragma("freelist_count"))

    def _open(self) -> apsw.Connection:
        if not self._may_open:
            raise apsw.BusyError("the buffer is being opened anew")
        if self._connection is None:
            self._connection = self._connect()
            self._connection.set_busy_timeout(200)
        return self._connection
