"""The aggregator over every log: what was read is in exactly one window, whatever ends the process."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from emp_pipe._core import Block
from emp_pipe.component import Wiring
from emp_pipe.delivery.derive import DeriveLoop
from emp_pipe.log.protocol import Append, Topic
from emp_pipe.processors.aggregate import Aggregate, AggregateConfig
from tests.contract.conftest import DEADLINE_S, OpenLog, group
from tests.contract.deriving import Killed, Meddling
from tests.support.context import make_context
from tests.support.metrics import CUMULATIVE, block_of, labels_of, point, points_in, request, sum_of, value_of

GROUPS = group("aggregate", Topic.METRICS_IN), group("out", Topic.METRICS)


class Running:
    """The aggregator's loop over a log."""

    def __init__(self, opened: OpenLog, **settings: Any) -> None:
        self.opened = opened
        self.context = replace(make_context(), wiring=Wiring(codec="zstd"))
        self.deriver = Aggregate("aggregate", AggregateConfig(**settings), self.context)
        self.log = Meddling(opened.log)
        self.loop = DeriveLoop(self.deriver, self.log, self.context, random=random.Random(1))  # type: ignore[arg-type]  # stands for one

    async def run_until_drained(self) -> None:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(self.loop.run())
            await asyncio.sleep(0)
            assert await self.loop.drain(self.context.clock.monotonic_s() + DEADLINE_S)

    def metric(self, name: str, **labels: str) -> float:
        value = self.context.metrics.registry.get_sample_value(f"emp_pipe_{name}", {"component": "aggregate", **labels})
        return value or 0.0


async def outputs(opened: OpenLog) -> list[Block]:
    """Read all that was filed under metrics."""
    deliveries = await opened.log.read("out", 1 << 30)
    await opened.log.commit("out", acks=deliveries)
    return [delivery.block for delivery in deliveries]


@pytest.mark.parametrize("seed", range(6))
async def test_sums_are_right_to_the_unit_after_a_kill_at_any_step(opened: OpenLog, seed: int) -> None:
    chance = random.Random(seed)
    await opened.open(*GROUPS)
    sent: Counter[tuple[str, str]] = Counter()
    counters: Counter[str] = Counter()
    found: list[Block] = []
    for at in range(60):
        for _ in range(chance.randint(0, 3)):
            deltas = []
            for _ in range(chance.randint(1, 5)):
                stream, value = f"stream-{chance.randint(0, 4)}", chance.randint(0, 1000)
                sent["delta", stream] += value
                deltas.append(point(value, at=at, start=at - 1, stream=stream))
            totals = []
            for stream in ("a", "b"):
                counters[stream] += chance.randint(0, 50)
                totals.append(point(counters[stream], at=at, start=0, stream=stream))
            metrics = request(sum_of("requests", *deltas), sum_of("total", *totals, temporality=CUMULATIVE))
            await opened.log.append(Append([block_of(metrics, codec=chance.choice(["none", "gzip", "zstd"]))]))
        subject = Running(opened, interval_s=0.001)
        left = chance.randint(1, 10)

        def step(call: str) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed

        subject.log.before = subject.log.after = step
        with pytest.raises(Killed):
            await asyncio.wait_for(subject.loop.run(), DEADLINE_S)
        if opened.durable and chance.random() < 0.3:
            await opened.reopen(*GROUPS)
        found += await outputs(opened)
    await Running(opened).run_until_drained()
    found += await outputs(opened)
    seen: Counter[tuple[str, str]] = Counter()
    for one in points_in(found, "requests"):
        seen["delta", labels_of(one)["stream"]] += int(value_of(one) or 0)
    assert seen == sent
    last = {labels_of(one)["stream"]: value_of(one) for one in points_in(found, "total")}
    assert last == dict(counters)
    await opened.check_books()


async def test_a_tick_ends_exactly_what_it_emits(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    for value in (1, 2):
        await opened.log.append(Append([block_of(request(sum_of("s", point(value))))]))
    await Running(opened).run_until_drained()
    blocks = await outputs(opened)
    assert [value_of(one) for one in points_in(blocks)] == [3]
    assert [block.aggregated for block in blocks] == [True]
    books = {(books.topic, books.group): books for books in await opened.log.group_books()}
    assert (books["metrics.in", "aggregate"].acked, books["metrics.in", "aggregate"].held) == (2, 0)


async def test_points_that_cannot_be_read_become_dead_letters_and_their_neighbours_are_kept(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    good = block_of(request(sum_of("s", point(1, a="x"), point(20, a="yy"), point(4, a="x"))))
    payload = good.payload("none").replace(b"\x12\x04\x0a\x02yy", b"\x12\x04\x0a\x7fyy")
    assert payload != good.payload("none")
    await opened.log.append(Append([Block(good.header, payload)]))
    await Running(opened).run_until_drained()
    assert [value_of(one) for one in points_in(await outputs(opened))] == [5]
    ((_, letter),) = await opened.log.dead_letters()
    assert (letter.component, letter.reason, letter.records) == ("aggregate", "body_invalid", 1)
    assert b"yy" in letter.payload
    books = {(books.topic, books.group): books for books in await opened.log.group_books()}
    assert (books["metrics.in", "aggregate"].acked, books["metrics.in", "aggregate"].dead) == (2, 1)


async def test_a_block_that_cannot_be_read_becomes_a_dead_letter_and_the_window_goes_on(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    good = block_of(request(sum_of("s", point(1))))
    await opened.log.append(Append([Block(good.header, b"\xff" * good.payload_bytes), block_of(request(sum_of("s", point(2))))]))
    await Running(opened).run_until_drained()
    assert [value_of(one) for one in points_in(await outputs(opened))] == [2]
    ((_, letter),) = await opened.log.dead_letters()
    assert letter.reason == "block_invalid"


async def test_cumulative_points_past_the_limit_are_counted_as_skipped_and_deltas_are_not_lost(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    deltas = [point(1, n=number) for number in range(10)]
    totals = [point(1, n=number) for number in range(10)]
    await opened.log.append(Append([block_of(request(sum_of("d", *deltas), sum_of("c", *totals, temporality=CUMULATIVE)))]))
    subject = Running(opened, max_streams=4)
    await subject.run_until_drained()
    blocks = await outputs(opened)
    assert sum(value_of(one) or 0 for one in points_in(blocks, "d")) == 10
    books = {(books.topic, books.group): books for books in await opened.log.group_books()}
    assert (books["metrics.in", "aggregate"].acked, books["metrics.in", "aggregate"].skipped) == (13, 7)
    assert subject.metric("aggregate_overflow_points_total", metric="d") == 7
    assert subject.metric("aggregate_overflow_points_total", metric="c") == 7


@pytest.mark.parametrize(
    ("codec", "streams"),
    [("none", 100), ("zstd", 2000)],
    ids=["by the size of the blocks", "by what they have become in memory"],
)
async def test_a_window_ends_early_where_much_is_held(opened: OpenLog, codec: str, streams: int) -> None:
    await opened.open(*GROUPS)
    points = [point(1, n=number, text="x" * 50) for number in range(streams)]
    blocks = [block_of(request(sum_of("s", *points)), codec=codec) for _ in range(8 if codec == "none" else 1)]
    assert (sum(block.payload_bytes for block in blocks) > 30_000) == (codec == "none")
    for block in blocks:
        await opened.log.append(Append([block]))
    subject = Running(opened, interval_s=600, max_held_bytes=30_000)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(subject.loop.run())
        await opened.log.wait_readable("out")
        await subject.loop.stop(subject.context.clock.monotonic_s() + DEADLINE_S)
    assert await outputs(opened)


async def test_a_delivery_that_comes_again_after_a_commit_was_stale_counts_once(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    deriver = Running(opened).deriver
    await opened.log.append(Append([block_of(request(sum_of("s", point(5))))]))
    (delivery,) = await opened.read("aggregate")
    deriver.take(delivery, 1)
    deriver.restore({})
    assert deriver.tick(2, final=False) is None
    deriver.take(delivery, 3)
    derived = deriver.tick(4, final=False)
    assert derived is not None
    assert [value_of(one) for one in points_in(derived.outputs)] == [5]
    assert list(derived.acks) == [delivery]
