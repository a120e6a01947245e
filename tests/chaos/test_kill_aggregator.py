"""SIGKILL of a process that counts spans and adds metrics up, while OTLP comes in: what was acknowledged is in the log once, to the unit.

A request without an answer may have been kept or not, but never in part and never twice. A kill counts only in traffic: a request must have
died with the process. The seed is printed; the same seed gives the same rounds.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

from google.protobuf.message import Message

from tests.chaos.derivers import POINTS, OnceSender, deriving, die_at, left_for_the_destination
from tests.chaos.fleet import ANYWHERE, EXTRA_ROUNDS, PATIENCE_S, Member, seeded
from tests.support.metrics import labels_of, point, points_in, request, sum_of, value_of
from tests.support.otlp_post import spans

SPANS = 3
PROCESSORS = {
    "red_metrics": {"interval_s": 0.05, "max_span_names": 1_000_000},
    "aggregate": {"interval_s": 0.15, "max_streams": 1_000_000},
}


class Sender(OnceSender[tuple[str, int]]):
    """Sends numbered requests of metrics and of spans; each number is a stream of its own, and all are added to one total as well."""

    def __init__(self, port: int, chance: random.Random) -> None:
        super().__init__(port, chance, ["metrics", "traces"] * 3)
        self._next = 0
        self.values: dict[int, int] = {}

    def request(self, signal: str) -> tuple[list[tuple[str, int]], Message]:
        number, self._next = self._next, self._next + 1
        value = self.values[number] = self._chance.randint(1, 1000)
        if signal == "traces":
            return [(signal, number)], spans([f"op {number}"] * SPANS, self._chance, now_unix_nano=time.time_ns())
        halves = [point(value // 2, number=number), point(value - value // 2, number=number)]
        return [(signal, number)], request(sum_of("numbered", *halves), sum_of("total", point(value)))


async def kill_in_traffic(member: Member, at: str, sender: Sender, chance: random.Random) -> None:
    before = sender.died
    if at == ANYWHERE:
        await sender.wait_acked(chance.randint(10, 60))
        await asyncio.sleep(chance.random() * 0.1)
        member.kill()
        await member.wait_killed()
    else:
        before = await die_at(member, at, chance.randint(3, 20), sender)
    async with asyncio.timeout(PATIENCE_S):
        while sender.died == before:  # noqa: ASYNC110 (the sender sees its connection break a moment later)
            await asyncio.sleep(0.01)
    await member.start()
    await member.wait_ready()


async def test_sigkill_neither_loses_nor_doubles_a_count(tmp_path: Path) -> None:
    chance = seeded()
    member, port = deriving(tmp_path, PROCESSORS)
    sender = Sender(port, chance)
    rounds = [*POINTS, ANYWHERE, *(chance.choice((*POINTS, ANYWHERE)) for _ in range(EXTRA_ROUNDS))]
    chance.shuffle(rounds)
    try:
        await member.start()
        await member.wait_ready()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.run())
            await sender.wait_acked(50)
            for at in rounds:
                print(f"kill at {at}: {len(sender.acked)} acked, {sender.died} died")
                await kill_in_traffic(member, at, sender, chance)
                await sender.wait_acked(30)
            sender.stop()
        await member.stop()
    finally:
        await member.end()
    blocks = [delivery.block for delivery in await left_for_the_destination(member) if delivery.topic == "metrics"]
    numbered: Counter[int] = Counter()
    for one in points_in(blocks, "numbered"):
        numbered[labels_of(one)["number"]] += int(value_of(one) or 0)
    wrong = {number: found for number, found in numbered.items() if found != sender.values[number]}
    assert not wrong, f"counted in part or twice: {wrong}"
    lost = {number for signal, number in sender.acked if signal == "metrics"} - numbered.keys()
    assert not lost, f"{len(lost)} acknowledged requests never came out, such as {sorted(lost)[:5]}"
    total = sum(int(value_of(one) or 0) for one in points_in(blocks, "total"))
    assert total == sum(numbered.values()), "the total is not the sum of its parts"
    calls: Counter[str] = Counter()
    for one in points_in(blocks, "traces.span.metrics.calls"):
        calls[labels_of(one)["span.name"]] += int(value_of(one) or 0)
    assert set(calls.values()) == {SPANS}, "a span was counted twice, or not at all"
    lost_spans = {f"op {number}" for signal, number in sender.acked if signal == "traces"} - calls.keys()
    assert not lost_spans, f"{len(lost_spans)} acknowledged requests of spans were not counted"
    print(f"{len(sender.acked)} acked, {sender.died} without an answer, {len(numbered)} of metrics and {len(calls)} of spans came out")
