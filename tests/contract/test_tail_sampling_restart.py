"""Tail sampling over every log, killed between any two steps: every trace is decided once and sent whole, once, or never; none is lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from emp_pipe.delivery.derive import DeriveLoop
from tests.contract.conftest import DEADLINE_S, OpenLog
from tests.contract.deriving import Killed, Meddling
from tests.contract.sampling import (
    ERROR,
    GROUPS,
    KEPT_BY_10_PERCENT,
    TailSampling,
    numbers,
    random_ids,
    span,
    trace_id,
)

SEEDS = range(6)


class Walk:
    """Spans of random traces, numbered, and what must hold of them at the end."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._ids = [chance.randbytes(16) for _ in range(25)]
        self._traces: dict[int, bytes] = {}
        self._errors: set[bytes] = set()

    def spans(self) -> list[Span]:
        made = []
        for _ in range(self._chance.randint(1, 6)):
            number, trace = len(self._traces) + 1, self._chance.choice(self._ids)
            is_error = self._chance.random() < 0.04
            self._traces[number] = trace
            if is_error:
                self._errors.add(trace)
            made.append(span(trace, number, status=ERROR if is_error else None))
        return made

    def check(self, sent: list[int], acked_and_skipped: tuple[int, int, int]) -> None:
        assert not {number: count for number, count in Counter(sent).items() if count > 1}, "spans were sent twice"
        kept = defaultdict(set)
        for number, trace in self._traces.items():
            kept[trace].add(number in set(sent))
        assert {trace.hex() for trace, verdicts in kept.items() if len(verdicts) > 1} == set(), "traces were sent in part"
        for trace, verdicts in kept.items():
            is_normal = int.from_bytes(trace[9:], "big") >= 0xE666_0000_0000_00
            assert True in verdicts or not is_normal, "a trace that every sampler keeps was lost"
            assert False in verdicts or is_normal or trace in self._errors
        assert acked_and_skipped == (len(self._traces), len(sent), len(self._traces) - len(sent))


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_kill_between_any_two_steps_loses_no_trace_and_sends_none_twice(opened: OpenLog, seed: int) -> None:
    chance = random.Random(seed)
    walk = Walk(chance)
    sampling = await TailSampling(opened, late_spans_s=86_400).open()
    for _ in range(150):
        match chance.choice(["append", "append", "take", "take", "tick", "tick", "wait", "kill", "kill in commit", "last tick", "stale"]):
            case "append":
                await sampling.append(*walk.spans())
            case "take":
                await sampling.take()
            case "tick":
                await sampling.tick()
            case "last tick":
                await sampling.tick(final=True)
            case "wait":
                sampling.now_s += chance.randint(0, 12)
            case "kill":
                await sampling.restart(reopen=chance.random() < 0.5)
            case "kill in commit":
                derived = sampling.deriver.tick(sampling.now_unix_nano, final=False)
                if derived is not None and chance.random() < 0.5:
                    await sampling.commit(derived)
                await sampling.restart(reopen=chance.random() < 0.5)
            case "stale":
                await sampling.restart()
        await sampling.out()
    for _ in range(70):
        await sampling.take()
        await sampling.after(1)
    assert sampling.held == []
    walk.check(numbers(sampling.sent), await sampling.books())


@pytest.mark.parametrize("seed", range(3))
async def test_its_loop_killed_at_any_call_of_the_log_loses_no_trace_and_sends_none_twice(opened: OpenLog, seed: int) -> None:
    chance = random.Random(seed)
    walk = Walk(chance)
    sampling = TailSampling(opened, late_spans_s=86_400, decision_wait_s=0.05)
    await opened.open(*GROUPS)
    for _ in range(15):
        for _ in range(chance.randint(0, 4)):
            await sampling.append(*walk.spans())
        log, left = Meddling(opened.log), chance.randint(1, 12)

        def step(call: str) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed

        log.before = log.after = step
        with pytest.raises(Killed):
            await asyncio.wait_for(DeriveLoop(sampling.make(), log, sampling.context).run(), DEADLINE_S)
        await sampling.out()
        if chance.random() < 0.3 and opened.durable:
            await opened.reopen(*GROUPS)
    loop = DeriveLoop(sampling.make(), opened.log, sampling.context)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(loop.run())
        await opened.until(lambda: opened.log.usage().groups[0].held_records == 0)
        await loop.stop(sampling.context.clock.monotonic_s() + DEADLINE_S)
    await sampling.out()
    walk.check(numbers(sampling.sent), await sampling.books())


async def test_a_partly_sent_block_is_not_sent_again_after_a_restart(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1), span(trace_id(1), 2, status=ERROR))
    assert numbers(await sampling.after(1)) == [2]
    for _ in range(3):
        await sampling.restart(reopen=True)
        await sampling.take()
        assert await sampling.after(1) == []
    assert numbers(await sampling.after(30)) == [1]
    assert await sampling.books() == (2, 2, 0)


async def test_a_decision_outlives_a_restart_however_long_the_process_was_down(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1), span(trace_id(1), 2, status=ERROR))
    assert numbers(await sampling.after(1)) == [2]
    sampling.now_s += 86_400
    opened.clock.advance(86_400)
    await sampling.restart(reopen=True)
    await sampling.take()
    assert numbers(await sampling.after(30)) == [1]


async def test_the_state_does_not_grow_for_ever(opened: OpenLog) -> None:
    sampling = await TailSampling(opened, late_spans_s=10, decision_wait_s=1).open()
    most = 0
    for second, trace in enumerate(random_ids(1, 60)):
        await sampling.send(span(trace, second))
        await sampling.after(1)
        if second % 20 == 19:
            await sampling.restart(reopen=True)
        most = max(most, len(await opened.log.state_items("tail_sample")))
    assert 5 < most < 15, "one value a commit, for as long as late spans may come"
