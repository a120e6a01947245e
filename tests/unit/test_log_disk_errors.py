"""A disk that fails: nothing of the transaction is acknowledged, receivers are stopped, and the log works again when the disk does."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.buffers.sqlite_schema import open_file
from emp_pipe.component import Context
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, GroupSpec, Topic
from emp_pipe.self_metrics import Metrics
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.recording_vfs import Disk, Event, RecordingVFS

GROUPS = [GroupSpec("sampler", frozenset([Topic.TRACES_IN])), GroupSpec("exporter", frozenset([Topic.TRACES]))]


class Failing:
    """Fails the `kinds` of events on the write-ahead log with a SQLite code, `times` times."""

    def __init__(self, code: int, *kinds: str, times: int = 1) -> None:
        self.code = code
        self.kinds = kinds
        self.times = times

    def __call__(self, event: Event) -> None:
        if self.times and event.kind in self.kinds and event.name == "log.db-wal":
            self.times -= 1
            raise apsw.exception_for(self.code)


@pytest.fixture
async def disk_and_log(tmp_path: Path) -> AsyncIterator[tuple[Disk, SqliteLog]]:
    disk = Disk()
    vfs = RecordingVFS("failing", disk)
    clock = ManualClock()
    context = Context(clock, Metrics(), tmp_path, "m1", "run")
    log = SqliteLog("sqlite", SqliteConfig(min_free_bytes=0), context, vfs="failing")
    await log.open(GROUPS)
    yield disk, log
    disk.fail = None
    for books in await log.group_books():
        assert books.balanced, books
    await log.close(clock.monotonic_s() + 30)
    vfs.unregister()


async def append(log: SqliteLog, number: int) -> None:
    await log.append(Append([block([number], topic="traces.in")]))


async def read(log: SqliteLog, group: str) -> list[int]:
    async with asyncio.timeout(30):
        await log.wait_readable(group)
        return delivered(await log.read(group, 1 << 20))


ERRORS = [
    pytest.param(apsw.SQLITE_IOERR_FSYNC, "sync", id="fsync"),
    pytest.param(apsw.SQLITE_IOERR_WRITE, "write", id="write"),
    pytest.param(apsw.SQLITE_FULL, "write", id="full"),
]


@pytest.mark.parametrize(("code", "kind"), ERRORS)
async def test_an_append_that_the_disk_refused_is_not_acknowledged(disk_and_log: tuple[Disk, SqliteLog], code: int, kind: str) -> None:
    disk, log = disk_and_log
    await append(log, 1)
    disk.fail = Failing(code, kind)
    with pytest.raises(LogError, match="nothing of it was acknowledged") as error:
        await append(log, 2)
    assert error.value.kind is ErrorKind.LOG_IO
    await append(log, 4)
    arrived: list[int] = []
    while 4 not in arrived:
        arrived += await read(log, "sampler")
    assert arrived[0] == 1
    assert len(arrived) == len(set(arrived))


@pytest.mark.parametrize(("code", "kind"), ERRORS)
async def test_a_commit_that_the_disk_refused_derives_nothing_twice(disk_and_log: tuple[Disk, SqliteLog], code: int, kind: str) -> None:
    disk, log = disk_and_log
    await append(log, 1)
    async with asyncio.timeout(30):
        await log.wait_readable("sampler")
    inputs = await log.read("sampler", 1 << 20)
    disk.fail = Failing(code, kind)
    try:
        await log.commit("sampler", acks=inputs, outputs=[block([100], topic="traces")], state_puts={"verdict": b"keep"})
    except LogError:
        assert await log.state_get("sampler", "verdict") is None, "a commit that failed left its state behind"
        await log.commit("sampler", acks=inputs, outputs=[block([100], topic="traces")], state_puts={"verdict": b"keep"})
    assert await read(log, "exporter") == [100]
    assert await log.read("exporter", 1 << 20) == []
    assert await log.state_get("sampler", "verdict") == b"keep"


async def test_a_full_disk_stops_receivers_until_it_takes_a_write_again(disk_and_log: tuple[Disk, SqliteLog]) -> None:
    disk, log = disk_and_log
    disk.fail = Failing(apsw.SQLITE_FULL, "write", times=1_000_000)
    with pytest.raises(LogError) as error:
        await append(log, 1)
    assert error.value.kind is ErrorKind.LOG_IO
    assert not log.admitting
    assert "full" in log.usage().reason
    with pytest.raises(LogError) as error:
        await append(log, 2)
    assert error.value.kind is ErrorKind.LOG_IO, "while the disk fails an append is refused at once, as what it is"
    disk.fail = None
    async with asyncio.timeout(30):
        await log.wait_admitting()
    await append(log, 3)
    assert await read(log, "sampler") == [3]


async def test_what_was_in_flight_when_the_disk_failed_can_still_be_acked(disk_and_log: tuple[Disk, SqliteLog]) -> None:
    disk, log = disk_and_log
    await append(log, 1)
    await log.wait_readable("sampler")
    deliveries = await log.read("sampler", 1 << 20)
    disk.fail = Failing(apsw.SQLITE_IOERR_FSYNC, "sync")
    with pytest.raises(LogError):
        await append(log, 2)
    await log.commit("sampler", acks=deliveries)
    held = next(usage for usage in log.usage().groups if usage.spec.name == "sampler").held_records
    assert held <= 1  # the failed append may stand in the file: it is delivered then, and the sender sends it again


async def test_a_failed_commit_whose_pages_reached_the_disk_all_the_same_counts_once(disk_and_log: tuple[Disk, SqliteLog]) -> None:
    """The worst case: the sync fails, closing cannot tidy up, and the pages are found in the file after all."""
    disk, log = disk_and_log
    await append(log, 1)
    await log.wait_readable("sampler")
    inputs = await log.read("sampler", 1 << 20)
    failing = Failing(apsw.SQLITE_IOERR_FSYNC, "sync", times=2)  # the commit's, and the one of the checkpoint at closing
    disk.fail = failing
    try:
        await log.commit("sampler", acks=inputs, outputs=[block([100], topic="traces")])
    except LogError:
        await log.commit("sampler", acks=inputs, outputs=[block([100], topic="traces")])
    assert failing.times == 0
    assert await read(log, "exporter") == [100]
    assert await log.read("exporter", 1 << 20) == []
    assert await log.read("sampler", 1 << 20) == []


async def test_a_corrupt_file_is_set_aside_and_a_new_one_begun(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()

    def make() -> SqliteLog:
        return SqliteLog("sqlite", SqliteConfig(min_free_bytes=0), Context(clock, Metrics(), tmp_path, "m1", "run"))

    log = make()
    await log.open(GROUPS)
    for number in range(50):
        await append(log, number)
    await log.close(clock.monotonic_s() + 30)
    path = tmp_path / "log" / "log.db"
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    log = make()
    await log.open(GROUPS)
    await append(log, 1)
    assert await read(log, "sampler") == [1]
    assert (tmp_path / "log" / "log.db.corrupt-1").read_bytes() == bytes(content), "the bytes can still be looked at"
    assert "corrupt" in caplog.text
    await log.close(clock.monotonic_s() + 30)


async def test_a_file_that_turns_corrupt_under_way_is_set_aside(tmp_path: Path) -> None:
    clock = ManualClock()
    log = SqliteLog("sqlite", SqliteConfig(min_free_bytes=0), Context(clock, Metrics(), tmp_path, "m1", "run"))
    await log.open(GROUPS)
    await append(log, 1)
    deliveries = await log.read("sampler", 1 << 20)
    path = tmp_path / "log" / "log.db"
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    path.write_bytes(b"this is no database" * 1000)
    results = await asyncio.gather(*(append(log, number) for number in range(2, 30)), return_exceptions=True)
    assert any(isinstance(result, LogError) for result in results)
    async with asyncio.timeout(30):
        await log.wait_admitting()
    await append(log, 100)
    assert (await read(log, "sampler"))[-1] == 100
    await log.commit("sampler", acks=deliveries)
    assert list((tmp_path / "log").glob("log.db.corrupt-*"))
    await log.close(clock.monotonic_s() + 30)


async def test_a_file_that_was_emptied_is_told_and_the_log_beside_it_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    (directory / "log.db").touch()
    (directory / "log.db-wal").write_bytes(b"what was acknowledged")
    open_file(directory / "log.db", vfs=None, synchronous="FULL").close()
    assert (directory / "log.db.corrupt-1-wal").read_bytes() == b"what was acknowledged"
    assert "write-ahead log is not" in caplog.text
