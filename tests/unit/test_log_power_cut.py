"""A power cut at any moment: what the log acknowledged is on the disk, and with `synchronous=OFF` this very test would notice.

The disk after the cut holds all that was synced and a random part of the rest (`tests/support/recording_vfs.py`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import apsw

from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.component import Context
from emp_pipe.log.protocol import Append, GroupSpec, Topic
from emp_pipe.self_metrics import Metrics
from tests.support.blocks import block
from tests.support.manual_clock import ManualClock
from tests.support.recording_vfs import Disk, RecordingVFS, write_files

SEED = 20_260
APPENDS = 60


def context(directory: Path) -> Context:
    return Context(ManualClock(), Metrics(), directory, "m1", "run")


async def run_log(directory: Path, disk: Disk, synchronous: str, random: Random) -> None:
    """Append, read, ack and checkpoint at random; mark on the disk what was promised."""
    log = SqliteLog(
        "sqlite",
        SqliteConfig(directory=directory, min_free_bytes=0),
        context(directory),
        vfs=f"recording-{synchronous}",
        synchronous=synchronous,
    )
    await log.open([GroupSpec("a", frozenset([Topic.LOGS]))])
    disk.mark(("opened", ""))

    async def append(number: int) -> None:
        one = block([number], padding_bytes=random.choice((10, 3000, 20_000)))
        await log.append(Append([one]))
        disk.mark(("held", one.block_id))

    number = 0
    while number < APPENDS:
        together = random.randint(1, 4)
        await asyncio.gather(*(append(number + index) for index in range(together)))
        number += together
        if random.random() < 0.4:
            deliveries = await log.read("a", 30_000)
            for delivery in deliveries:
                disk.mark(("ending", delivery.block.block_id))
            await log.commit("a", acks=deliveries)
            for delivery in deliveries:
                disk.mark(("ended", delivery.block.block_id))
        if random.random() < 0.3:
            log._thread.checkpoint(random.choice((apsw.SQLITE_CHECKPOINT_PASSIVE, apsw.SQLITE_CHECKPOINT_TRUNCATE)))
        if random.random() < 0.2:
            await log._upkeep.tick(expire=True)
    await log.close(log._clock.monotonic_s() + 30)


def broken_promises(disk: Disk, directory: Path, random: Random) -> list[str]:
    """Cut the power right after each promise, and a few events later; say which promises did not hold."""
    broken: list[str] = []
    marks = [index for index, event in enumerate(disk.events) if event.kind == "mark" and event.what[0] in ("held", "ended")]
    for index in marks:
        count = min(index + 1 + random.choice((0, 0, 1, 2, 5)), len(disk.events))
        promised = [event.what for event in disk.events[: index + 1] if event.kind == "mark"]
        ended = {name for what, name in promised if what == "ended"}
        leaving = {event.what[1] for event in disk.events[:count] if event.kind == "mark" and event.what[0] == "ending"}
        must_hold = {name for what, name in promised if what == "held"} - leaving
        image = directory / f"cut-{index}"
        image.mkdir()
        write_files(disk.after_power_cut(count, random), image)
        try:
            connection = apsw.Connection(str(image / "log.db"), flags=apsw.SQLITE_OPEN_READWRITE)
            verdict = connection.execute("PRAGMA integrity_check").fetchall()
            found = {
                name
                for (name,) in connection.execute(
                    "SELECT block_id FROM blocks b WHERE EXISTS (SELECT 1 FROM pending p WHERE p.offset=b.offset)"
                )
            }
            connection.close()
        except apsw.Error as error:
            broken.append(f"cut {index}: {type(error).__name__}: {error}")
            continue
        if verdict != [("ok",)]:
            broken.append(f"cut {index}: {verdict}")
        if must_hold - found:
            broken.append(f"cut {index}: lost {sorted(must_hold - found)}")
        if ended & found:
            broken.append(f"cut {index}: {sorted(ended & found)} returned after their end")
    return broken


async def test_every_acknowledged_record_survives_a_power_cut_at_any_moment(tmp_path: Path) -> None:
    disk = Disk()
    vfs = RecordingVFS("recording-FULL", disk)
    await run_log(tmp_path / "log", disk, "FULL", Random(SEED))
    assert sum(event.kind == "sync" for event in disk.events) > APPENDS / 4
    assert broken_promises(disk, tmp_path, Random(SEED)) == [], f"seed {SEED}"
    vfs.unregister()


async def test_without_syncs_the_power_cut_test_fails(tmp_path: Path) -> None:
    disk = Disk()
    vfs = RecordingVFS("recording-OFF", disk)
    await run_log(tmp_path / "log", disk, "OFF", Random(SEED))
    broken = broken_promises(disk, tmp_path, Random(SEED))
    assert any("lost" in promise or "Error" in promise for promise in broken), "the test cannot tell a synced log from one that is not"
    vfs.unregister()
