"""RED metrics over every log: calls are right to the unit, and each block goes on once, whatever ends the process."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from emp_pipe.component import Wiring
from emp_pipe.delivery.derive import DeriveLoop
from emp_pipe.log.protocol import Append, Topic
from emp_pipe.processors.red_metrics import RedMetrics, RedMetricsConfig
from tests.contract.conftest import DEADLINE_S, OpenLog, group
from tests.contract.deriving import Killed, Meddling
from tests.support.context import make_context
from tests.support.metrics import labels_of, points_in, value_of
from tests.support.spans import span, spans_block

GROUPS = group("red_metrics", Topic.TRACES_IN), group("out", Topic.METRICS, Topic.TRACES)


def loop(opened: OpenLog) -> tuple[DeriveLoop, Meddling]:
    context = replace(make_context(), wiring=Wiring(red_runs=True, codec="gzip"))
    log = Meddling(opened.log)
    deriver = RedMetrics("red_metrics", RedMetricsConfig(interval_s=0.001), context)
    return DeriveLoop(deriver, log, context, random=random.Random(1)), log  # type: ignore[arg-type]  # stands for one


@pytest.mark.parametrize("seed", range(4))
async def test_calls_are_right_to_the_unit_after_a_kill_at_any_step(opened: OpenLog, seed: int) -> None:
    chance = random.Random(seed)
    await opened.open(*GROUPS)
    sent: Counter[str] = Counter()
    blocks: list[str] = []
    counted: Counter[str] = Counter()
    durations = 0
    passed: list[str] = []

    async def collect() -> None:
        nonlocal durations
        deliveries = await opened.log.read("out", 1 << 30)
        await opened.log.commit("out", acks=deliveries)
        metrics = [delivery.block for delivery in deliveries if delivery.topic == "metrics"]
        passed.extend(delivery.block.block_id for delivery in deliveries if delivery.topic == "traces")
        assert all(delivery.block.red_done for delivery in deliveries if delivery.topic == "traces")
        for one in points_in(metrics, "traces.span.metrics.calls"):
            counted[labels_of(one)["span.name"]] += int(value_of(one) or 0)
        durations += sum(one.count for one in points_in(metrics, "traces.span.metrics.duration"))

    for _ in range(40):
        for _ in range(chance.randint(0, 3)):
            names = [f"op {chance.randint(0, 5)}" for _ in range(chance.randint(1, 6))]
            sent.update(names)
            block = spans_block(*(span(name) for name in names), codec=chance.choice(["none", "gzip"]))
            blocks.append(block.block_id)
            await opened.log.append(Append([block]))
        running, log = loop(opened)
        left = chance.randint(1, 10)

        def step(call: str) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed

        log.before = log.after = step
        with pytest.raises(Killed):
            await asyncio.wait_for(running.run(), DEADLINE_S)
        if opened.durable and chance.random() < 0.3:
            await opened.reopen(*GROUPS)
        await collect()
    last, _ = loop(opened)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(last.run())
        await asyncio.sleep(0)
        assert await last.drain(asyncio.get_running_loop().time() + DEADLINE_S)
    await collect()
    assert counted == sent
    assert durations == sum(sent.values())
    assert passed == blocks, "a block was passed on twice, or not at all, or out of order"
