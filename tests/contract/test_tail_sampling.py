"""Tail sampling over every log: whole traces, decided when it is time, and late spans behind them. Read next: `…_policies`, `…_limits`."""

from __future__ import annotations

import pytest

from emp_pipe.component import Context, Wiring
from emp_pipe.log.protocol import Append, Topic
from emp_pipe.processors.tail_sample import TailSampleConfig, TailSampleDeriver
from tests.contract.conftest import OpenLog
from tests.contract.sampling import (
    DROPPED_BY_10_PERCENT,
    ERROR,
    KEPT_BY_10_PERCENT,
    TailSampling,
    numbers,
    random_ids,
    span,
    span_block,
    states,
    trace_id,
)
from tests.support.context import make_context


async def test_by_default_every_error_is_kept_whole_and_a_tenth_of_the_rest(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    ids = random_ids(20, 2000)
    for at, trace in enumerate(ids):
        await sampling.append(span(trace, at * 2 + 1), span(trace, at * 2 + 2, status=ERROR if at % 10 == 0 else None))
    await sampling.take()
    kept = await sampling.after(30)
    errors = {trace for at, trace in enumerate(ids) if at % 10 == 0}
    normal = [found for found in kept if found.trace_id not in errors]
    assert len(kept) - len(normal) == 2 * len(errors)
    assert 2 * 130 < len(normal) < 2 * 230, "of 1,800 traces about a tenth"
    assert set(states(normal)) == {"ot=th:e666"}
    assert {found.trace_state for found in kept if found.trace_id in errors} == {"ot=th:0"}
    assert await sampling.books() == (4000, len(kept), 4000 - len(kept))


async def test_a_trace_is_decided_whole_however_it_is_split_across_requests(opened: OpenLog) -> None:
    sampling = await TailSampling(opened, decide_on_error=False).open()
    trace = DROPPED_BY_10_PERCENT
    await sampling.send(span(trace, 1), span(KEPT_BY_10_PERCENT, 10))
    await sampling.send(span(trace, 2))
    assert await sampling.after(29) == []
    await sampling.send(span(trace, 3, status=ERROR))
    assert numbers(await sampling.after(1)) == [1, 2, 3, 10]
    assert await sampling.books() == (4, 4, 0)


async def test_a_trace_waits_from_its_first_span_for_the_decision_wait(opened: OpenLog) -> None:
    sampling = await TailSampling(opened, decision_wait_s=5).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1))
    for _ in range(4):
        assert await sampling.after(1) == []
        await sampling.send(span(KEPT_BY_10_PERCENT, 2))
    assert numbers(await sampling.after(1)) == [1, 2, 2, 2, 2]
    assert sampling.metric("tail_sample_decisions_traces_total", cause="decision_wait") == 1


async def test_an_error_decides_its_trace_at_once(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(DROPPED_BY_10_PERCENT, 1))
    await sampling.send(span(DROPPED_BY_10_PERCENT, 2, status=ERROR))
    assert numbers(await sampling.after(0)) == [1, 2]
    assert sampling.metric("tail_sample_decisions_traces_total", cause="error") == 1


async def test_an_error_waits_like_the_rest_where_it_is_told_to(opened: OpenLog) -> None:
    sampling = await TailSampling(opened, decide_on_error=False).open()
    await sampling.send(span(DROPPED_BY_10_PERCENT, 1, status=ERROR))
    assert await sampling.after(29) == []
    assert numbers(await sampling.after(1)) == [1]


async def test_a_trace_that_was_decided_by_an_error_does_not_wait_for_others_in_its_block(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1), span(DROPPED_BY_10_PERCENT, 2, status=ERROR))
    assert numbers(await sampling.after(1)) == [2]
    assert (len(sampling.held), await sampling.books()) == (1, (2, 0, 0))
    assert numbers(await sampling.after(29)) == [1]
    assert (len(sampling.held), await sampling.books()) == (0, (2, 2, 0))


@pytest.mark.parametrize("after_s", [0, 5])
async def test_the_end_of_the_root_decides_a_trace_where_it_is_told_to(opened: OpenLog, after_s: int) -> None:
    sampling = await TailSampling(opened, decide_after_root_s=after_s).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1))
    assert await sampling.after(10) == []
    await sampling.send(span(KEPT_BY_10_PERCENT, 2, root=True))
    if after_s:
        assert await sampling.after(after_s - 1) == []
        await sampling.send(span(KEPT_BY_10_PERCENT, 3))
        assert numbers(await sampling.after(1)) == [1, 2, 3]
    else:
        assert numbers(await sampling.after(0)) == [1, 2]
    assert sampling.metric("tail_sample_decisions_traces_total", cause="root") == 1


async def test_a_root_changes_nothing_where_nobody_asked(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1, root=True))
    assert await sampling.after(29) == []


async def test_late_spans_follow_the_decision(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1), span(DROPPED_BY_10_PERCENT, 2))
    assert numbers(await sampling.after(30)) == [1]
    await sampling.send(span(KEPT_BY_10_PERCENT, 3), span(DROPPED_BY_10_PERCENT, 4, status=ERROR))
    late = await sampling.after(0)
    assert (numbers(late), states(late)) == ([3], ["ot=th:e666"])
    assert await sampling.books() == (4, 2, 2)
    assert sampling.metric("tail_sample_late_spans_total", verdict="kept") == 1
    assert sampling.metric("tail_sample_late_spans_total", verdict="dropped") == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_late_spans_follow_for_as_long_as_told_and_then_begin_a_new_trace(opened: OpenLog, restart: bool) -> None:
    sampling = await TailSampling(opened, late_spans_s=60).open()
    await sampling.send(span(DROPPED_BY_10_PERCENT, 1))
    await sampling.after(30)
    if restart:
        await sampling.restart(reopen=True)
    await sampling.send(span(DROPPED_BY_10_PERCENT, 2, status=ERROR))
    assert await sampling.after(60) == []
    await sampling.after(61)
    await sampling.send(span(DROPPED_BY_10_PERCENT, 3, status=ERROR))
    assert numbers(await sampling.after(0)) == [3]


async def test_outputs_say_that_they_are_decided_and_what_else_was_done_to_them(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    for at, red_done in enumerate([True, False, True]):
        block = span_block([span(trace_id(at), at, status=ERROR)], codec="gzip").with_flags(red_done=red_done)
        await opened.log.append(Append([block]))
    await sampling.take()
    await sampling.after(0)
    assert sorted((block.red_done, block.records) for block in sampling.blocks_sent) == [(False, 1), (True, 2)]
    for block in sampling.blocks_sent:
        assert (block.decided, block.topic, block.codec, block.signal) == (True, "traces", "gzip", "traces")
    assert len({block.block_id for block in sampling.blocks_sent}) == 2


async def test_outputs_say_red_done_where_red_metrics_are_made_beside_the_sampler(opened: OpenLog) -> None:
    sampling = TailSampling(opened)
    context = sampling.context
    wiring = Wiring(red_runs=True, tail_samples=True, codec="none")
    sampling.deriver = TailSampleDeriver(
        "tail_sample",
        TailSampleConfig(),
        Context(context.clock, context.metrics, context.data_dir, "m", "run", wiring=wiring),
    )
    await sampling.open()
    await sampling.send(span(trace_id(1), 1, status=ERROR))
    await sampling.after(0)
    (block,) = sampling.blocks_sent
    assert (block.red_done, block.codec) == (True, "none")


@pytest.mark.parametrize(("final", "sent"), [(True, [1, 2]), (False, [1])])
async def test_the_last_tick_waits_for_no_block_to_be_complete(opened: OpenLog, final: bool, sent: list[int]) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1))
    await sampling.after(20)
    await sampling.send(span(KEPT_BY_10_PERCENT, 2), span(DROPPED_BY_10_PERCENT, 3))
    sampling.now_s += 10
    await sampling.tick(final=final)
    assert numbers(await sampling.out()) == sent


async def test_the_last_tick_sends_what_is_decided_and_leaves_the_rest_in_the_log(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(KEPT_BY_10_PERCENT, 1), span(trace_id(1), 2, status=ERROR))
    await sampling.tick(final=True)
    assert numbers(await sampling.out()) == [2]
    assert await sampling.books() == (2, 0, 0)
    await sampling.restart(reopen=True)
    await sampling.take()
    assert numbers(await sampling.after(30)) == [1]
    assert await sampling.books() == (2, 2, 0)


def test_it_reads_the_traces_that_come_in_and_writes_those_that_go_on() -> None:
    deriver = TailSampleDeriver("tail_sample", TailSampleConfig(), make_context())
    assert (deriver.reads, deriver.writes) == ({Topic.TRACES_IN}, {Topic.TRACES})
    assert deriver.tick_s == 1.0
    assert TailSampleDeriver("x", TailSampleConfig(decision_wait_s=0.1), make_context()).tick_s == pytest.approx(0.025)
