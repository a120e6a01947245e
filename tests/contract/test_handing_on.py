"""Derivers that were taken out of the configuration: what they held is handed on, each row once, over every log."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from emp_pipe import deriving
from emp_pipe.log.protocol import Delivery, GroupSpec, LossReason, Topic
from tests.contract.conftest import DEADLINE_S, OpenLog, group
from tests.contract.deriving import Killed, Meddling
from tests.support.blocks import delivered, numbers_in

OUT = group("out", Topic.TRACES, Topic.METRICS)
SAMPLER = group("tail_sample", Topic.TRACES_IN)
OTHER_SAMPLER = group("tail_sample/other", Topic.TRACES_IN)
RED = group("red_metrics", Topic.TRACES_IN)
MERGER = group("aggregate", Topic.METRICS_IN)
PLUGIN = group("own", Topic.TRACES_IN)
PASSES, COUNTS = frozenset({Topic.TRACES, Topic.METRICS}), frozenset({Topic.METRICS})


@pytest.fixture(autouse=True)
def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deriving, "_HAND_ON_BYTES", 3_000)
    monkeypatch.setattr(deriving, "_UNREADABLE_S", 0.2)


class StartLog(Meddling):
    """Kills before or after whatever the start asks of the log."""

    async def open(self, groups: Any) -> None:
        self.before("open")
        await self._log.open(groups)
        self.after("open")

    async def set_groups(self, groups: Sequence[GroupSpec]) -> None:
        self.before("set_groups")
        await self._log.set_groups(groups)
        self.after("set_groups")


async def start(
    opened: OpenLog,
    *after: GroupSpec,
    written: dict[str, frozenset[Topic]] | None = None,
    step: Callable[[str], None] = lambda call: None,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Start with other groups: the durable log anew from its file, the other one as it is."""
    if opened.durable:
        await opened.close()
        opened.log = opened._make()
    log: Any = StartLog(opened.log)
    log.before = log.after = step
    async with asyncio.timeout(DEADLINE_S):
        return await deriving.open_log(log, after, written or {spec.name: PASSES for spec in after if spec is not OUT}, stopping)


async def out_of(opened: OpenLog, name: str = "out") -> list[Delivery]:
    """Return all that a group holds."""
    found: list[Delivery] = []
    while deliveries := await opened.log.read(name, 1 << 30):
        found += deliveries
    return found


async def end(opened: OpenLog, name: str, *numbers: int) -> None:
    """Let a group end the blocks of these numbers."""
    deliveries = await opened.read(name)
    acks = [one for one in deliveries if numbers_in(one.block)[0] in numbers]
    await opened.log.commit(name, acks=acks)
    opened.log.defer([one for one in deliveries if one not in acks])


async def books(opened: OpenLog, name: str, topic: Topic = Topic.TRACES_IN) -> tuple[int, dict[str, int], int]:
    (found,) = [one for one in await opened.log.group_books() if (one.group, one.topic) == (name, topic)]
    return found.acked, found.dropped, found.held


@pytest.mark.parametrize(("gone", "topic"), [(SAMPLER, Topic.TRACES_IN), (MERGER, Topic.METRICS_IN), (RED, Topic.TRACES_IN)])
async def test_what_a_deriver_held_that_is_gone_at_the_start_is_handed_on(
    opened: OpenLog, gone: GroupSpec, topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    await opened.open(gone, OUT)
    await opened.append(*range(12), topic=topic, padding_bytes=900)
    await end(opened, gone.name, 1, 3)
    with caplog.at_level(logging.WARNING):
        assert await start(opened, OUT)
    deliveries = await out_of(opened)
    assert delivered(deliveries) == [0, 2, *range(4, 12)]
    assert {one.topic for one in deliveries} == {one.block.topic for one in deliveries} == {topic.derived}
    assert not any(one.block.red_done for one in deliveries)
    assert f"{gone.name}: handed on 10 blocks that it had not come to" in caplog.text
    assert "given up" not in caplog.text
    assert await books(opened, gone.name, topic) == (12, {}, 0)
    assert [usage.spec.name for usage in opened.log.usage().groups] == ["out"]


@pytest.mark.parametrize("seed", range(8))
async def test_a_kill_at_any_step_of_handing_on_neither_loses_nor_doubles_a_row(opened: OpenLog, seed: int) -> None:
    chance = random.Random(seed)
    await opened.open(SAMPLER, RED, OUT)
    await opened.append(*range(20), topic=Topic.TRACES_IN, padding_bytes=900)
    await end(opened, "tail_sample", 2, 11)  # decided and sent, not counted
    await end(opened, "red_metrics", 0, 1, 5, 6, 7)
    after = chance.choice([(OUT,), (OUT, RED), (OUT, MERGER)])
    for _ in range(4):
        left = chance.randint(1, 7)

        def step(call: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed

        try:
            await start(opened, *after, step=step)
        except Killed:
            continue
        break
    else:
        await start(opened, *after)
    handed_on = await out_of(opened)
    left_to_red = set(delivered(await out_of(opened, "red_metrics"))) if RED in after else set()
    assert sorted(delivered(handed_on)) == sorted(set(range(20)) - {2, 11} - left_to_red)
    assert sorted(numbers_in(one.block)[0] for one in handed_on if one.block.red_done) == [0, 1, 5, 6, 7]
    assert left_to_red in (set(), set(range(20)) - {0, 1, 5, 6, 7})


async def test_where_nobody_reads_what_it_would_be_handed_on_to_it_is_dropped_counted_and_said(
    opened: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    logs = group("logs", Topic.LOGS)
    await opened.open(SAMPLER, OUT)
    await opened.append(*range(4), topic=Topic.TRACES_IN)
    with caplog.at_level(logging.WARNING):
        assert await start(opened, logs)
    assert await books(opened, "tail_sample") == (0, {LossReason.GROUP_DROPPED: 4}, 0)
    assert opened.log.usage().held_bytes == 0
    assert "group tail_sample was retired" in caplog.text
    assert "handed on" not in caplog.text
    if opened.durable:
        assert "traces.in: group tail_sample is not in the configuration: 4 held blocks (4 records) are given up" in caplog.text


async def test_red_metrics_that_stay_pass_on_what_they_hold_and_only_the_rest_is_handed_on(
    opened: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    await opened.open(SAMPLER, RED, OUT)
    await opened.append(*range(6), topic=Topic.TRACES_IN)
    await end(opened, "red_metrics", 0, 1, 2)
    with caplog.at_level(logging.WARNING):
        assert await start(opened, RED, OUT)
    deliveries = await out_of(opened)
    assert delivered(deliveries) == [0, 1, 2]
    assert all(one.block.red_done for one in deliveries), "they would be counted twice"
    assert delivered(await out_of(opened, "red_metrics")) == [3, 4, 5]
    assert await books(opened, "tail_sample") == (6, {}, 0)
    assert "given up" not in caplog.text


async def test_of_red_metrics_and_a_sampler_that_leave_only_what_the_sampler_held_is_handed_on(
    opened: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    await opened.open(RED, SAMPLER, OUT)
    await opened.append(*range(6), topic=Topic.TRACES_IN)
    await end(opened, "red_metrics", 0, 1)
    await end(opened, "tail_sample", 0, 4)
    with caplog.at_level(logging.WARNING):
        assert await start(opened, OUT)
    deliveries = await out_of(opened)
    assert delivered(deliveries) == [1, 2, 3, 5]
    assert [one.block.red_done for one in deliveries] == [True, False, False, False]
    assert await books(opened, "red_metrics") == (2, {LossReason.GROUP_DROPPED: 4}, 0)


async def test_of_red_metrics_that_leave_a_sampler_nothing_is_handed_on(opened: OpenLog) -> None:
    await opened.open(RED, SAMPLER, OUT)
    await opened.append(*range(4), topic=Topic.TRACES_IN)
    await end(opened, "tail_sample", 0)
    assert await start(opened, SAMPLER, OUT)
    assert await out_of(opened) == []
    assert delivered(await out_of(opened, "tail_sample")) == [1, 2, 3]


async def test_a_sampler_of_another_name_takes_over_and_nothing_is_said_to_be_given_up(
    opened: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    await opened.open(SAMPLER, OUT)
    await opened.append(*range(6), topic=Topic.TRACES_IN)
    with caplog.at_level(logging.WARNING):
        assert await start(opened, OTHER_SAMPLER, OUT)
    assert await out_of(opened) == []
    assert delivered(await out_of(opened, "tail_sample/other")) == list(range(6))
    assert "given up" not in caplog.text
    assert "handed on" not in caplog.text


async def test_a_deriver_of_the_same_topic_that_writes_something_else_takes_nothing_over(opened: OpenLog) -> None:
    await opened.open(SAMPLER, PLUGIN, OUT)
    await opened.append(*range(6), topic=Topic.TRACES_IN)
    await end(opened, "own", 0, 1)
    assert await start(opened, PLUGIN, OUT, written={"own": COUNTS})
    assert delivered(await out_of(opened)) == list(range(6))
    assert delivered(await out_of(opened, "own")) == [2, 3, 4, 5]


async def test_what_another_that_stays_has_passed_on_is_not_handed_on_again(opened: OpenLog) -> None:
    other = group("own/other", Topic.TRACES_IN)
    await opened.open(PLUGIN, other, OUT)
    await opened.append(*range(6), topic=Topic.TRACES_IN)
    await end(opened, "own/other", 0, 1)
    assert await start(opened, other, OUT)
    assert await out_of(opened) == []
    assert delivered(await out_of(opened, "own/other")) == [2, 3, 4, 5]


async def test_a_stop_while_handing_on_leaves_the_rest_to_the_next_start(opened: OpenLog) -> None:
    await opened.open(SAMPLER, OUT)
    await opened.append(*range(12), topic=Topic.TRACES_IN, padding_bytes=900)
    commits = 0

    def step(call: str) -> None:
        nonlocal commits
        commits += call == "commit"

    assert not await start(opened, OUT, step=step, stopping=lambda: commits > 2)
    assert 0 < (await books(opened, "tail_sample"))[2] < 12
    assert await start(opened, OUT)
    assert delivered(await out_of(opened)) == list(range(12))


async def test_a_deriver_that_comes_back_after_a_stop_goes_on_with_what_was_not_handed_on(opened: OpenLog) -> None:
    await opened.open(SAMPLER, OUT)
    await opened.append(*range(12), topic=Topic.TRACES_IN, padding_bytes=900)
    assert not await start(opened, OUT, stopping=lambda: True)
    assert await start(opened, SAMPLER, OUT)
    assert await out_of(opened) == []
    assert delivered(await out_of(opened, "tail_sample")) == list(range(12))


async def test_blocks_that_cannot_be_read_become_dead_letters_and_the_others_are_handed_on(opened: OpenLog) -> None:
    if not opened.durable:
        pytest.skip("what is in memory can be read")
    await opened.open(SAMPLER, OUT)
    offsets = await opened.append(*range(12), topic=Topic.TRACES_IN, padding_bytes=900)
    await opened.close()
    await opened.damage(Topic.TRACES_IN, offsets[:6])
    opened.log = opened._make()
    assert await start(opened, OUT)
    assert delivered(await out_of(opened)) == list(range(6, 12))
    assert len(await opened.log.dead_letters()) == 6
