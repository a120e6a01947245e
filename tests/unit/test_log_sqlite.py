"""What only the log on disk promises: a kill, a second process, versions, permissions, and a directory that shrinks again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import apsw
import pytest

from emp_pipe.buffers import sqlite_operations
from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.buffers.sqlite_schema import VERSION
from emp_pipe.component import Context
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, ChunkKey, GroupSpec, Topic
from emp_pipe.self_metrics import Metrics
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock

LOGS = [GroupSpec("a", frozenset([Topic.LOGS]))]
GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]


def make(directory: Path, clock: ManualClock | None = None, **settings: object) -> SqliteLog:
    config = SqliteConfig.model_validate({"min_free_bytes": 0, **settings})
    return SqliteLog("sqlite", config, Context(clock or ManualClock(), Metrics(), directory, "m1", "run"))


async def close(log: SqliteLog) -> None:
    await log.close(log._clock.monotonic_s() + 30)


def run_until_killed(directory: Path, seed: int, lines_before_kill: int) -> dict[str, set[int]]:
    """Let the writer process work, kill it with SIGKILL after so many lines, and return what it had said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.log_writer_process", str(directory), str(seed)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    said: dict[str, set[int]] = {"sent": set(), "held": set(), "ending": set(), "ended": set()}
    for count, line in enumerate(process.stdout):
        what, number = line.split()
        said[what].add(int(number))
        if count == lines_before_kill:
            process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    return said


@pytest.mark.parametrize("seed", [11, 12, 13])
async def test_a_kill_loses_nothing_acknowledged_and_returns_nothing_ended(tmp_path: Path, seed: int) -> None:
    said = await asyncio.to_thread(run_until_killed, tmp_path / "log", seed, Random(seed).randrange(200, 900))
    assert said["sent"] - said["held"], f"seed {seed}: the kill hit no append in flight, it proves nothing"
    log = make(tmp_path)
    await log.open(LOGS)
    held = delivered(await log.read("a", 1 << 30))
    assert len(held) == len(set(held)) == log.usage().groups[0].held_blocks, f"seed {seed}: the log does not give what it says it holds"
    assert said["held"] - said["ending"] <= set(held), f"seed {seed}: acknowledged records are gone"
    assert not said["ended"] & set(held), f"seed {seed}: ended records came back"
    assert set(held) <= said["sent"]
    for books in [*await log.receiver_books(), *await log.group_books()]:
        assert books.balanced, f"seed {seed}: {books}"
    (receiver,) = await log.receiver_books()
    (group,) = [books for books in await log.group_books() if books.group == "a"]
    assert receiver.appended == group.appended, f"seed {seed}: a block and its books came apart"
    await close(log)


async def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    log = make(tmp_path)
    await log.open(LOGS)
    with pytest.raises(LogError) as error:
        await make(tmp_path).open(LOGS)
    assert error.value.kind is ErrorKind.LOG_IN_USE
    assert str(os.getpid()) in str(error.value)
    await close(log)
    again = make(tmp_path)
    await again.open(LOGS)
    await close(again)


async def test_only_the_owner_may_read_the_buffer(tmp_path: Path) -> None:
    old_umask = os.umask(0)
    try:
        log = make(tmp_path)
        await log.open(LOGS)
        await log.append(Append([block([1])]))
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE(log.directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in log.directory.iterdir()}
    assert set(modes) == {"log.db", "log.db-wal", "log.db-shm", "log.last", "log.reserve", "emp-pipe.pid"}
    assert set(modes.values()) == {0o600}
    await close(log)


async def test_a_buffer_of_a_newer_emp_pipe_is_refused_with_advice(tmp_path: Path) -> None:
    log = make(tmp_path)
    await log.open(LOGS)
    await close(log)
    connection = apsw.Connection(str(log.directory / "log.db"))
    connection.pragma("user_version", VERSION + 1)
    connection.close()
    before = (log.directory / "log.db").read_bytes()
    with pytest.raises(LogError) as error:
        await make(tmp_path).open(LOGS)
    assert error.value.kind is ErrorKind.LOG_NEWER
    assert f"format {VERSION + 1}" in str(error.value)
    assert "drain" in str(error.value)
    assert (log.directory / "log.db").read_bytes() == before, "a refused file is left alone"


@pytest.mark.parametrize("version", range(1, VERSION + 1))
async def test_the_buffer_of_every_earlier_version_is_read(tmp_path: Path, version: int) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    shutil.copy(GOLDEN / f"log-v{version}.db", directory / "log.db")
    clock = ManualClock()
    log = make(tmp_path, clock)
    await log.open([GroupSpec("a", frozenset([Topic.LOGS])), GroupSpec("b", frozenset([Topic.LOGS, Topic.EVENTS]), required=False)])
    a, b = await log.read("a", 1 << 20), await log.read("b", 1 << 20)
    assert (delivered(a), delivered(b)) == ([2, 3], [1, 2, 3, 10])
    assert await log.checkpoint_get("tail:/var/log/app.log") == b"4096"
    assert await log.state_items("a") == {"job/7": b"running"}
    assert await log.seen([ChunkKey("peer", b"chunk-1")]) == {ChunkKey("peer", b"chunk-1")}
    assert [letter.detail for _, letter in await log.dead_letters()] == ["a torn entry"]
    (receiver,) = await log.receiver_books()
    assert (receiver.received, receiver.appended, receiver.invalid) == (5, 4, 1)
    for books in await log.group_books():
        assert books.balanced, books
    await log.commit("a", acks=a)
    await log.commit("b", acks=b)
    assert log.usage().held_bytes == 0
    await close(log)


async def test_after_a_long_outage_the_directory_shrinks_again(tmp_path: Path) -> None:
    clock = ManualClock()
    log = make(tmp_path, clock)
    await log.open(LOGS)
    for number in range(120):
        await log.append(Append([block([number * 8 + index], padding_bytes=60_000) for index in range(8)]))

    def directory_bytes() -> int:
        return sum(path.stat().st_size for path in log.directory.iterdir())

    assert directory_bytes() > 55 << 20
    ended = 0
    while log.usage().groups[0].held_blocks:
        deliveries = await log.read("a", 4 << 20)
        ended += len(deliveries)
        await log.commit("a", acks=deliveries)
    assert ended == 960
    for _ in range(10):
        clock.advance(1.0)
        for _ in range(20):
            await asyncio.sleep(0.005)
    async with asyncio.timeout(30):
        while directory_bytes() > 4 << 20:
            clock.advance(1.0)
            await asyncio.sleep(0.02)
    assert (log.directory / "log.db-wal").stat().st_size < 1 << 20
    await close(log)


async def test_the_write_ahead_log_stays_small_under_constant_load(tmp_path: Path) -> None:
    log = make(tmp_path)
    await log.open(LOGS)
    most = 0

    async def append(start: int) -> None:
        nonlocal most
        for number in range(start, start + 150):
            await log.append(Append([block([number], padding_bytes=60_000)]))
            most = max(most, (log.directory / "log.db-wal").stat().st_size)

    async def end() -> None:
        ended = 0
        while ended < 600:
            await log.wait_readable("a")
            deliveries = await log.read("a", 500_000)
            ended += len(deliveries)
            await log.commit("a", acks=deliveries)

    await asyncio.gather(*(append(start * 1000) for start in range(4)), end())
    assert most < 32 << 20, f"the write-ahead log grew to {most:,} bytes over at most 4 MiB of live data"
    await close(log)


async def test_a_group_far_behind_reads_from_disk_and_catches_up_in_order(tmp_path: Path) -> None:
    log = make(tmp_path)
    await log.open([*LOGS, GroupSpec("fast", frozenset([Topic.LOGS]))])
    for number in range(0, 200, 2):
        await log.append(Append([block([number], padding_bytes=60_000), block([number + 1], padding_bytes=60_000)]))
        await log.commit("fast", acks=await log.read("fast", 1 << 30))
    arrived: list[int] = []
    number = 200
    while len(arrived) < number:
        deliveries = await log.read("a", 300_000)
        arrived += delivered(deliveries)
        await log.commit("a", acks=deliveries)
        if number < 260:
            await log.append(Append([block([number], padding_bytes=60_000)]))
            number += 1
    assert arrived == list(range(number))
    await close(log)


async def test_a_block_that_cannot_be_read_becomes_a_dead_letter(tmp_path: Path) -> None:
    log = make(tmp_path)
    await log.open(LOGS)
    await log.append(Append([block([1]), block([2, 3]), block([4])]))
    await close(log)
    connection = apsw.Connection(str(log.directory / "log.db"))
    connection.execute("UPDATE blocks SET header=x'00ff' WHERE records=2")
    connection.close()
    log = make(tmp_path)
    await log.open(LOGS)
    assert delivered(await log.read("a", 1 << 20)) == [1, 4]
    await log.commit("a")  # behind the one that the read has begun
    letters = await log.dead_letters()
    assert (letters[0][1].reason, letters[0][1].records, letters[0][1].header) == ("block_invalid", 2, b"\x00\xff")
    (books,) = [books for books in await log.group_books() if books.group == "a"]
    assert books.balanced
    assert books.dead == 2
    await close(log)


async def test_too_little_free_space_stops_receivers_before_the_disk_does(tmp_path: Path) -> None:
    log = make(tmp_path, min_free_bytes=1 << 60)
    await log.open(LOGS)
    assert not log.admitting
    assert "bytes free" in log.usage().reason
    await close(log)


def transactions_and_blocks(log: SqliteLog) -> int:
    """Return the number of the last transaction that was acknowledged: each block and each transaction has taken one."""
    witness = log._thread.place.last_acknowledged()
    assert witness is not None
    return witness.number


def wait_until_taken(log: SqliteLog) -> None:
    """Return when the commit thread has taken all that was put to it."""
    deadline = time.monotonic() + 30
    while not log._thread._waiting._queue.empty() and time.monotonic() < deadline:
        time.sleep(0.001)


async def test_an_ack_goes_with_the_transaction_of_the_append_that_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_operations, "PATIENCE_S", 60.0)
    monkeypatch.setattr(sqlite_operations, "LATELY_S", 60.0)
    log = make(tmp_path)
    await log.open(LOGS)
    await log.append(Append([block([1])]))
    before = transactions_and_blocks(log)
    acking = asyncio.create_task(log.commit("a", acks=await log.read("a", 1 << 30)))
    await asyncio.sleep(0)
    await asyncio.to_thread(wait_until_taken, log)
    await log.append(Append([block([2])]))
    await acking
    assert transactions_and_blocks(log) == before + 2, "one block and one transaction"
    assert log.usage().groups[0].held_blocks == 1
    await close(log)


async def test_an_ack_that_nothing_follows_waits_a_moment_and_where_nothing_came_lately_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make(tmp_path)
    await log.open(LOGS)
    await log.append(Append([block([1]), block([2])]))
    first, second = await log.read("a", 1 << 30)
    await log.commit("a", acks=[first])
    monkeypatch.setattr(sqlite_operations, "PATIENCE_S", 600.0)
    log._thread._waiting._expected_until_s = 0.0  # long ago
    await log.commit("a", acks=[second])
    assert log.usage().groups[0].held_blocks == 0
    await close(log)


async def test_a_stop_does_not_wait_with_an_ack_for_what_will_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_operations, "PATIENCE_S", 600.0)
    monkeypatch.setattr(sqlite_operations, "LATELY_S", 600.0)
    log = make(tmp_path)
    await log.open(LOGS)
    await log.append(Append([block([1])]))
    acking = asyncio.create_task(log.commit("a", acks=await log.read("a", 1 << 30)))
    await asyncio.sleep(0)
    await close(log)
    await acking
