"""Tail sampling over every log: whole traces are decided, by each policy, and what they were kept for is honest."""

from __future__ import annotations

from tests.contract.conftest import OpenLog
from tests.contract.sampling import (
    DROPPED_BY_10_PERCENT,
    ERROR,
    KEPT_BY_10_PERCENT,
    TailSampling,
    numbers,
    random_ids,
    span,
    states,
)


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


async def test_an_error_decides_its_trace_at_once(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    await sampling.send(span(DROPPED_BY_10_PERCENT, 1))
    await sampling.send(span(DROPPED_BY_10_PERCENT, 2, status=ERROR))
    assert numbers(await sampling.after(0)) == [1, 2]
    assert sampling.metric("tail_sample_decisions_traces_total", cause="error") == 1


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
