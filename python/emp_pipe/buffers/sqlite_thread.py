"""The commit thread of the SQLite log: everything that waits goes into one transaction with one fsync.

    event loop ── Operation ──▶ queue ──▶ commit thread ── one transaction ──▶ `on_done` (one call_soon_threadsafe)

After an error from the disk the connection is closed, the file opened and verified anew, and nothing of that transaction is acknowledged:
the kernel may have thrown the unwritten pages away, and a second fsync would lie. Until that succeeds every operation fails with LOG_IO.
Checkpoints run on a thread of their own. Not here: what an operation writes (`sqlite_store.py`), futures and admission (`sqlite.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from time import monotonic

import apsw

from emp_pipe import failpoints
from emp_pipe.buffers.sqlite_checkpoints import Checkpoints
from emp_pipe.buffers.sqlite_groups import begin_groups
from emp_pipe.buffers.sqlite_operations import DISK_ERRORS, Operation, Outcome, Waiting, describe, fail_with
from emp_pipe.buffers.sqlite_place import Place
from emp_pipe.buffers.sqlite_reader import Reader
from emp_pipe.buffers.sqlite_schema import CACHE_BYTES, PAGE_BYTES, connect, open_file, set_aside
from emp_pipe.buffers.sqlite_store import DeadLimits, Effects, Store
from emp_pipe.directory import WILL_PASS
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.group_ledger import Snapshot
from emp_pipe.log.protocol import Groups
from emp_pipe.logs import RateLimitedLogger, get_logger

CHECKPOINT_PAGES = (8 << 20) // PAGE_BYTES
"""When the write-ahead log has this many pages it is copied into the file, off this thread. What came in the meantime is copied by this
thread: only between two transactions can the log be brought to its end, so that the next one begins it anew."""
_READER_CACHE_BYTES = 1 << 20
"""A block is read once: only what leads to it is worth keeping."""
RETRY_S = 1.0

_log = get_logger("sqlite")
_limited = RateLimitedLogger(_log, interval_s=60.0)  # a full disk can be opened anew every second, until the next write


class CommitThread:
    """Owns the database: the writing connection, the checkpoints, and what happens after an error."""

    def __init__(
        self, directory: Path, on_done: Callable[[Outcome], None], *, dead_limits: DeadLimits, vfs: str | None, synchronous: str
    ) -> None:
        self.place = Place(directory)
        self._path = self.place.path
        self._on_done = on_done
        self._dead_limits = dead_limits
        self._vfs = vfs
        self._synchronous = synchronous
        self._waiting = Waiting()
        self._store: Store | None = None
        self._specs: Groups | None = None
        self._disk_error = ""
        self._wal_pages = 0
        self._finish_checkpoint = False
        self._checkpoints = Checkpoints(self._connect, self._checkpointed, lambda error: self.put(Operation(fail_with(error))))
        self._noisy = RateLimitedLogger(_log)
        self.reader = Reader(lambda: self._connect(_READER_CACHE_BYTES))
        self._thread = threading.Thread(target=self._run, name="emp-log-commit", daemon=True)

    def _connect(self, cache_bytes: int = CACHE_BYTES) -> apsw.Connection:
        return connect(self._path, vfs=self._vfs, synchronous=self._synchronous, cache_bytes=cache_bytes)

    # called from the event loop

    def open(self, specs: Groups | None) -> Outcome:
        """Open the file (blocking; run it in a thread), make the groups, start working.

        A disk that cannot be used now, and may be later, is no reason to end: the outcome says what it said, and it is tried again.
        `specs` None (an administrator's look): it is, and it raises."""
        self._specs = specs
        try:
            self.place.take()
            opened = Outcome([], self._open_store())
        except DISK_ERRORS as error:
            if specs is None or (isinstance(error, OSError) and error.errno not in WILL_PASS):
                raise
            if not self._recover_disk():
                detail = describe(error)
                _log.error("%s cannot be opened: %s; receivers wait until it can", self._path, detail)
                opened = Outcome([], Snapshot(specs=list(specs([]) if callable(specs) else specs)), self._disk_error)
            else:
                opened = Outcome([], self._snapshot())
        self._thread.start()
        return opened

    def put(self, operation: Operation) -> None:
        self._waiting.put(operation)

    def stop(self, timeout_s: float) -> bool:
        """Finish what waits, truncate the write-ahead log, close (blocking). False when the time was too short."""
        self._waiting.put(None)
        self._thread.join(max(timeout_s, 0.0))
        return not self._thread.is_alive()

    @property
    def wal_bytes(self) -> int:
        return self._wal_pages * PAGE_BYTES

    def group_id(self, name: str) -> int:
        store = self._store
        return -1 if store is None else store.group_ids.get(name, -1)

    # the thread

    def _run(self) -> None:
        while not self._waiting.stopping:
            operations = self._waiting.take(RETRY_S if self._disk_error else None)
            if self._disk_error and monotonic() >= self._retry_at_s and self._recover_disk():
                self._report(Outcome([], self._snapshot(), ""))
            if operations:
                self._transact(operations)
        self._close_store()
        self._checkpoints.end()
        self.place.release()

    def _transact(self, operations: Sequence[Operation]) -> None:
        store = self._store
        if store is None:
            self._report(self._failed(operations, self._disk_error))
            return
        try:
            if self._finish_checkpoint:
                self._finish_checkpoint = False
                store.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            store.begin()
            for operation in operations:
                try:
                    operation.effects = operation.run(store)
                except LogError as error:  # raised before anything was written
                    operation.error = error
            if any(operation.size_bytes for operation in operations):
                failpoints.hit("log.append")
            store.commit()
        except DISK_ERRORS as error:
            self._report(self._after_disk_error(operations, error))
            return
        except Exception as error:
            self._after_refusal(operations, error)
            return
        failpoints.hit("log.commit")
        if not self.place.is_here():
            self._report(self._nowhere(operations))
            return
        self.place.acknowledged(store.database_id, store.next_offset)
        self._report(Outcome(operations))
        if self._wal_pages >= CHECKPOINT_PAGES and not self._finish_checkpoint:
            self.checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _after_refusal(self, operations: Sequence[Operation], error: Exception) -> None:
        """One operation cannot be done (a value that SQLite refuses, a mistake of ours): the others go on without it."""
        assert self._store is not None
        try:
            self._store.rollback()
        except DISK_ERRORS as disk_error:
            self._report(self._after_disk_error(operations, disk_error))
            return
        if len(operations) == 1:
            operations[0].effects, operations[0].error = None, error
            self._report(Outcome(operations))
            return
        for operation in operations:
            operation.effects = operation.error = None
            self._transact([operation])

    def _report(self, outcome: Outcome) -> None:
        self._on_done(outcome)

    # the file

    def _open_store(self, at_least: int = 1, verify: bool = False) -> Snapshot:
        self._is_new = not self._path.exists()
        connection = open_file(self._path, vfs=self._vfs, synchronous=self._synchronous, verify=verify)
        try:
            store = Store(connection, self._dead_limits)
            store.load()
            store.next_offset = max(store.next_offset, at_least, self._look_for_losses(store))
            store.begin()
            snapshot = begin_groups(store, self._specs).snapshot
            assert snapshot is not None
            store.commit()  # also the probe: the disk takes a write again
            if self._is_new:  # its identity lies in the file itself, where no damaged write-ahead log takes it away
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self.reader.open()
        except BaseException:
            connection.close(True)
            raise
        connection.set_wal_hook(self._on_wal)
        self._store = store
        self.place.opened()
        self.place.acknowledged(store.database_id, store.next_offset)
        self._checkpoints.resume()
        self.place.reserve(holds_something=snapshot.held_bytes > 0)
        return snapshot

    def _look_for_losses(self, store: Store) -> int:
        """Compare what is found with the last transaction that was acknowledged, and say loudly what is missing; return its number."""
        last = self.place.last_acknowledged()
        if self._is_new and last is not None:
            _log.error(
                "%s is gone: it had seen %d transactions, and what it held is not delivered; an empty one is begun", self._path, last.number
            )
        if last is None or last.database_id != store.database_id or last.number <= store.next_offset:
            return 1
        _log.error(
            "%s: transactions up to %d were acknowledged, only those up to %d are found: the write-ahead log was damaged or the file "
            "replaced; what is missing is not delivered; %s",
            self._path,
            last.number,
            store.next_offset,
            self.place.keep_damaged(),
        )
        return last.number

    def _on_wal(self, connection: apsw.Connection, database: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _snapshot(self) -> Snapshot | None:
        return self._store.snapshot() if self._store is not None else None

    def _close_store(self) -> None:
        """Let go of every connection; errors are no news here."""
        store, self._store = self._store, None
        try:
            self.reader.close()
        except apsw.Error as error:
            _log.debug("closing the reader: %s", error)
        self._checkpoints.close()
        if store is not None:
            self._specs = list(store.specs.values())
            try:
                store.connection.close(True)  # the last one to close copies the write-ahead log into the file
            except apsw.Error as error:
                _log.debug("closing the log: %s", error)

    # after an error

    def _failed(self, operations: Sequence[Operation], detail: str) -> Outcome:
        """Nothing of them took effect."""
        for operation in operations:
            operation.effects = None
            operation.error = LogError(ErrorKind.LOG_IO, place=str(self._path), detail=detail)
        return Outcome(operations, None, detail)

    def _after_disk_error(self, operations: Sequence[Operation], error: Exception) -> Outcome:
        """Close, open anew, verify. Appends of the transaction have failed; commits are asked of the file."""
        detail = describe(error)
        self._noisy.log(40, type(error).__name__, "%s: a transaction failed, nothing of it is acknowledged: %s", self._path, detail)
        assert self._store is not None
        meant, self._at_least = self._store.committing, self._store.next_offset
        outcome = self._failed(operations, detail)
        self._close_store()
        self._suspect = isinstance(error, (apsw.CorruptError, apsw.NotADBError))
        self._unsynced = self._unsynced or not isinstance(error, apsw.FullError)
        self._disk_error = detail
        if self._recover_disk():
            took_effect = meant != 0 and self._found == meant
            for operation in operations:
                if took_effect and operation.proves:
                    operation.error, operation.effects = None, Effects()
            outcome.snapshot = self._snapshot()
            outcome.disk_error = ""
        return outcome

    _is_new = False
    _at_least = 1
    _found = 0
    _suspect = False
    _unsynced = False
    _retry_at_s = 0.0

    def _recover_disk(self) -> bool:
        """Try to open the file anew and write to it; True when the log works again."""
        self._retry_at_s = monotonic() + RETRY_S
        if self._store is not None:
            return self._come_home()
        while True:
            try:
                self.place.take()
                self._found = self._settle_wal()
                self._open_store(self._at_least, self._suspect)
            except LogError as error:
                self._disk_error = str(error)
            except (apsw.Error, OSError) as error:  # of any kind: this thread is the only one that tries again
                self._disk_error = describe(error)
                if self.place.give_up_reserve():
                    continue
            else:
                self._disk_error = ""
                self._suspect = self._unsynced = False
                _limited.warning(str(self._path), "%s: opened anew and verified", self._path)
                return True
            return False

    # a file that was taken away

    def _nowhere(self, operations: Sequence[Operation]) -> Outcome:
        """The file that is open is at no place any more: what it holds can be read and ended, nothing new is acknowledged."""
        self._disk_error = f"{self._path} was removed, replaced or unmounted while it was in use"
        self._noisy.log(40, "nowhere", "%s: nothing is acknowledged until the buffer is back", self._disk_error)
        for operation in operations:
            if not operation.proves and operation.error is None:  # its effects hold in the open file: they are counted
                operation.error = LogError(ErrorKind.LOG_IO, place=str(self._path), detail=self._disk_error)
        return Outcome(operations, None, self._disk_error)

    def _come_home(self) -> bool:
        """Where the open file lies at no place: go on when it is there again, or write all that it holds to its place anew."""
        assert self._store is not None
        if self.place.is_here():
            self._disk_error = ""
            return True
        try:
            self.place.take()
            self.place.rescue(self._store.connection, self._vfs)
        except (LogError, apsw.Error, OSError) as error:
            self._noisy.log(40, "rescue", "%s: what it holds cannot be written there yet: %s", self._path, error)
            return False
        self._at_least = self._store.next_offset
        self._close_store()
        self._disk_error = "the buffer is being opened anew"
        return self._recover_disk()

    def _settle_wal(self) -> int:
        """Write all that the file shows once more, to the disk this time; return the number of its last transaction.

        Pages of a failed fsync may stand in the kernel's memory and nowhere else. A whole checkpoint writes and syncs them again."""
        if not self._path.is_file():
            return 0
        connection = None
        try:
            connection = self._connect()
            try:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.FullError:
                if self._unsynced:
                    raise
            if not connection.table_exists("main", "books"):  # a first start was cut short
                return 0
            row = connection.execute("SELECT counts ->> 'next_offset' FROM books WHERE kind='log' AND name=''").fetchone()
            return int(row[0]) if row else 0
        except (apsw.CorruptError, apsw.NotADBError) as error:
            if connection is not None:
                connection.close(True)
                connection = None
            set_aside(self._path, error)
            return 0
        finally:
            if connection is not None:
                connection.close(True)

    # checkpoints

    def checkpoint(self, mode: int) -> None:
        """Copy the write-ahead log into the file, off this thread; one at a time."""
        self._checkpoints.start(mode)

    def _checkpointed(self, mode: int, pages: int, copied: int) -> None:
        if mode == apsw.SQLITE_CHECKPOINT_TRUNCATE:
            self._wal_pages = 0
        elif pages == copied:
            self._finish_checkpoint = True

    def free_pages(self) -> Future[int]:
        """Return how many pages of the file hold nothing."""
        return self._checkpoints.free_pages()

    def keep_reserve(self, *, holds_something: bool) -> Future[None]:
        """Keep space on the disk for draining (`sqlite_place.py`)."""
        return self._checkpoints.submit(lambda: self.place.reserve(holds_something=holds_something))
