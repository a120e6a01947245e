"""A wall clock that is set while the log runs, by an hour or a year, forward or back: ages, quotas and times to live go on unmoved."""

from __future__ import annotations

from pathlib import Path

import pytest

from emp_pipe.buffers.memory import MemoryConfig, MemoryLog
from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.component import Context
from emp_pipe.log.protocol import Append, ChunkKey, DeadLetter, DeadReason, GroupSpec, Topic
from emp_pipe.self_metrics import Metrics
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock

GROUPS = [
    GroupSpec("a", frozenset([Topic.LOGS]), quota_age_s=600.0),
    GroupSpec("b", frozenset([Topic.LOGS]), required=False, quota_age_s=600.0),
]
HOUR_S, YEAR_S = 3600.0, 365 * 86_400.0


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S, YEAR_S, -YEAR_S])
async def test_a_wall_clock_that_is_set_changes_no_age_and_no_time_to_live(tmp_path: Path, by_s: float) -> None:
    clock = ManualClock()
    log = SqliteLog("sqlite", SqliteConfig(min_free_bytes=0), Context(clock, Metrics(), tmp_path, "m1", "run"))
    await log.open(GROUPS)
    chunk = ChunkKey("peer", b"one")
    letter = DeadLetter("test", DeadReason.REFUSED, "no", b"bytes", time_unix_nano=1)
    await log.append(Append([block([1])], dead=[letter], chunks=[chunk]))
    held = await log.read("a", 1 << 20)
    await log.commit("a", acks=held, state_puts={"job": b"running"}, state_ttl_s=1800.0)
    clock.advance(60.0)
    clock.set_wall(by_s)
    await log._upkeep.tick(expire=True)

    def age_s() -> float:
        oldest = log.usage().oldest_append_unix_nano
        assert oldest is not None
        return (clock.unix_nano() - oldest) / 1e9

    assert age_s() == pytest.approx(60.0, abs=1.0)
    assert log.admitting
    assert await log.seen([chunk]) == {chunk}
    assert await log.state_get("a", "job") == b"running"
    assert len(await log.dead_letters()) == 1
    await log.append(Append([block([2])]))
    assert delivered(await log.read("b", 1 << 20)) == [1, 2], "a best-effort group lost blocks for their age"
    clock.advance(2 * HOUR_S)
    await log._upkeep.tick(expire=True)
    assert not log.admitting, "the required group is past its age by now"
    assert await log.state_get("a", "job") is None
    assert await log.seen([chunk]) == set()
    await log.close(clock.monotonic_s() + 30)


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S, YEAR_S, -YEAR_S])
async def test_the_log_in_memory_keeps_its_ages_too(tmp_path: Path, by_s: float) -> None:
    clock = ManualClock()
    log = MemoryLog("memory", MemoryConfig(), Context(clock, Metrics(), tmp_path, "m1", "run"))
    await log.open(GROUPS)
    chunk = ChunkKey("peer", b"one")
    await log.append(Append([block([1])], dead=[DeadLetter("test", DeadReason.REFUSED, "no", b"bytes", time_unix_nano=1)], chunks=[chunk]))
    await log.commit("a", acks=await log.read("a", 1 << 20), state_puts={"job": b"running"}, state_ttl_s=1800.0)
    clock.advance(60.0)
    clock.set_wall(by_s)
    oldest = log.usage().oldest_append_unix_nano
    assert oldest is not None
    assert (clock.unix_nano() - oldest) / 1e9 == pytest.approx(60.0, abs=1.0)
    await log.append(Append([block([2])], dead=[DeadLetter("test", DeadReason.REFUSED, "no", b"bytes", time_unix_nano=2)]))
    assert await log.seen([chunk]) == {chunk}
    assert await log.state_get("a", "job") == b"running"
    assert len(await log.dead_letters()) == 2
    assert delivered(await log.read("b", 1 << 20)) == [1, 2], "a best-effort group lost blocks for their age"
    clock.advance(2 * HOUR_S)
    assert await log.state_get("a", "job") is None
    assert await log.seen([chunk]) == set()
