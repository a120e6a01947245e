"""ENOSPC and EIO at every kind of write that the log makes: nothing acknowledged is lost or doubled, and it goes on by itself.

Each kind is met while the log appends, ends, derives, buries, checkpoints and gives space back; once, and for as long as the disk wants.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import apsw
import pytest

from emp_pipe.buffers import sqlite_thread
from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.component import Context
from emp_pipe.directory import DirectoryLock
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, DeadLetter, DeadReason, GroupSpec, Rejection, Topic
from emp_pipe.self_metrics import Metrics
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.recording_vfs import Disk, Event, RecordingVFS

GROUPS = [GroupSpec("sampler", frozenset([Topic.TRACES_IN])), GroupSpec("exporter", frozenset([Topic.TRACES]))]
DERIVED = 1_000_000

KINDS = {
    "commit": ("log.db-wal", "write"),
    "commit-sync": ("log.db-wal", "sync"),
    "checkpoint": ("log.db", "write"),
    "checkpoint-sync": ("log.db", "sync"),
    "vacuum": ("log.db", "truncate"),
    "wal-reset": ("log.db-wal", "truncate"),
    "wal-delete": ("log.db-wal", "delete"),
}
CODES = {
    "ENOSPC": apsw.SQLITE_FULL,
    "EIO": apsw.SQLITE_IOERR,
    "EROFS": apsw.SQLITE_READONLY,
}


@dataclass
class Failing:
    """Fails one kind of event with a code, so many times; counts."""

    name: str
    kind: str
    code: int
    times: int
    failed: int = 0

    def __call__(self, event: Event) -> None:
        if (event.name, event.kind) == (self.name, self.kind) and self.failed < self.times:
            self.failed += 1
            raise apsw.exception_for(self.code)


@dataclass
class Workload:
    """Everything that a log does, over and over; remembers what was promised."""

    log: SqliteLog
    random: Random
    acked: set[int] = field(default_factory=set)
    sent: int = 0
    derived: set[int] = field(default_factory=set)
    buried: int = 0
    out: list[int] = field(default_factory=list)
    refusals: set[ErrorKind] = field(default_factory=set)

    async def round(self) -> None:
        number, self.sent = self.sent, self.sent + 1
        try:
            await self.log.append(Append([block([number], topic="traces.in", padding_bytes=self.random.choice((10, 30_000)))]))
        except LogError as error:
            self.refusals.add(error.kind)
        else:
            self.acked.add(number)
        await self._derive()
        self.log._thread.checkpoint(self.random.choice((apsw.SQLITE_CHECKPOINT_PASSIVE, apsw.SQLITE_CHECKPOINT_TRUNCATE)))
        try:
            await self.log._upkeep.tick(expire=True)
        except (LogError, apsw.Error):
            return

    async def _derive(self) -> None:
        try:
            inputs = await self.log.read("sampler", 1 << 20)
        except LogError:
            return
        for delivery in inputs:
            (number,) = delivered([delivery])
            while True:
                try:
                    if number % 7 == 3:
                        letter = DeadLetter("test", DeadReason.REFUSED, "no", b"bytes", time_unix_nano=1)
                        await self.log.commit("sampler", rejections=[Rejection(delivery, [letter])])
                        self.buried += 1
                    else:
                        out = block([DERIVED + number], topic="traces", padding_bytes=20_000)
                        await self.log.commit("sampler", acks=[delivery], outputs=[out], state_puts={"last": str(number).encode()})
                        self.derived.add(DERIVED + number)
                    break
                except LogError as error:
                    if error.kind is ErrorKind.LOG_STALE:  # it had taken effect and nobody could be told
                        self.derived.add(DERIVED + number)
                        break
                    await asyncio.sleep(0.05)
        try:
            await self._deliver()
        except LogError:
            return

    async def _deliver(self) -> None:
        deliveries = await self.log.read("exporter", 60_000)
        self.out += delivered(deliveries)
        while deliveries:
            try:
                await self.log.commit("exporter", acks=deliveries)
                return
            except LogError:
                await asyncio.sleep(0.05)

    async def drain(self) -> None:
        async with asyncio.timeout(60):
            while any(usage.held_records for usage in self.log.usage().groups):
                await self._derive()


@asynccontextmanager
async def opened(directory: Path, disk: Disk) -> AsyncIterator[SqliteLog]:
    vfs, clock = RecordingVFS("kinds", disk), ManualClock()
    log = SqliteLog("sqlite", SqliteConfig(min_free_bytes=0), Context(clock, Metrics(), directory, "m1", "run"), vfs="kinds")
    await log.open(GROUPS)
    try:
        yield log
    finally:
        await log.close(clock.monotonic_s() + 30)
        vfs.unregister()


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_at_any_kind_of_write_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: str, times: int
) -> None:
    monkeypatch.setattr(sqlite_thread, "RETRY_S", 0.02)
    disk = Disk()
    async with opened(tmp_path, disk) as log:
        work = Workload(log, Random(7))
        for _ in range(4):
            await work.round()
        failing = disk.fail = Failing(*KINDS[kind], CODES[code], times)
        for _ in range(150):
            await work.round()
            if failing.failed == times:
                break
            if not log.admitting:
                await asyncio.sleep(0.02)
        if kind == "wal-delete":
            await log.close(log._clock.monotonic_s() + 30)  # only then is it deleted
            assert failing.failed >= 1
            assert not list((tmp_path / "log").glob("*.corrupt*"))
            return
        assert failing.failed == times, f"{kind} was not met: {failing}"
        disk.fail = None
        async with asyncio.timeout(30):
            await log.wait_admitting()
        await work.round()
        await work.drain()
        assert work.refusals <= {ErrorKind.LOG_IO, ErrorKind.LOG_FULL}
        assert work.acked <= {number % DERIVED for number in work.derived} | {number for number in range(work.sent) if number % 7 == 3}
        assert len(work.out) == len(set(work.out)), "something came out twice"
        assert set(work.out) >= {DERIVED + number for number in work.acked if number % 7 != 3}, "something acknowledged never came out"
        for books in await log.group_books():
            assert books.balanced, books
        assert not list((tmp_path / "log").glob("*.corrupt*")), "a good file was set aside"
    connection = apsw.Connection(str(tmp_path / "log" / "log.db"))
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
async def test_a_lock_file_that_the_disk_does_not_take_the_pid_into_locks_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", refuse)
    lock = DirectoryLock(tmp_path, "lock")
    with pytest.raises(LogError, match="another emp-pipe uses this data directory"):
        DirectoryLock(tmp_path, "lock")
    lock.release()
    DirectoryLock(tmp_path, "lock").release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_cannot_lock_is_named_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LogError, match="cannot lock") as error:
        DirectoryLock(tmp_path, "lock")
    assert os.strerror(number) in str(error.value)
    assert "local disk" in str(error.value)


def test_the_holder_of_a_lock_on_another_host_is_named_with_it(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path, "lock")
    (tmp_path / "lock").write_text("4711\nanother-container\n")
    with pytest.raises(LogError, match=r"process 4711 on another-container"):
        DirectoryLock(tmp_path, "lock")
    lock.release()


def test_the_holder_of_a_lock_whose_pid_is_not_seen_here_is_told_as_another_containers(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path, "lock")
    (tmp_path / "lock").write_text(f"99999999\n{socket.gethostname()}\n")
    with pytest.raises(LogError, match=r"process 99999999 of another container"):
        DirectoryLock(tmp_path, "lock")
    lock.release()
