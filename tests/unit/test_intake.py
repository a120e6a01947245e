"""The intake: order is kept, failing processors lose nothing, nothing is acknowledged before the log has it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest

from emp_pipe.clock import SystemClock
from emp_pipe.component import Arrival
from emp_pipe.done import Done
from emp_pipe.errors import EmpPipeError, LogError
from emp_pipe.intake import GuardedProcessor, PipelineIntake
from emp_pipe.self_metrics import Metrics
from emp_pipe.taps import Taps


@dataclass(frozen=True)
class Rows:
    """Stands for a batch: the intake asks for length, size and signal only."""

    rows: tuple[int, ...]
    signal: str = "logs"
    size_bytes: int = 100

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def record_count(self) -> int:
        return len(self.rows)


class Writer:
    """A log's writer that is durable when told so."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.futures: list[asyncio.Future[None]] = []
        self.admitting = True

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        self.arrivals.append(arrival)
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    async def wait_admitting(self) -> None:
        return


class Keep:
    """A processor that keeps the rows for which a function says so."""

    id = "keep"

    def __init__(self, keep: Any) -> None:
        self._keep = keep

    def process(self, batch: Any) -> Any:
        kept = tuple(row for row in batch.rows if self._keep(row))
        return Rows(kept, size_bytes=batch.size_bytes) if kept else None


class KeepByChance(Keep):
    samples = True


class Raise:
    id = "raise"

    def process(self, batch: Any) -> Any:
        raise ValueError("a plugin's mistake")


class Return:
    id = "return"

    def __init__(self, result: Any) -> None:
        self._result = result

    def process(self, batch: Any) -> Any:
        return self._result


def arrival(*rows: int, size_bytes: int = 100) -> Arrival:
    batch: Any = Rows(rows, size_bytes=size_bytes)
    return Arrival("forward", batch=batch, received=len(rows))


class Bench:
    def __init__(self, *processors: Any, on_error: Any = "pass") -> None:
        self.metrics = Metrics()
        self.fatal: list[EmpPipeError] = []
        self.writer = Writer()
        self.intake = PipelineIntake(self.writer, Taps(SystemClock()), self.fatal.append)
        self.intake.set_processors([GuardedProcessor(each.id, each, on_error, self.metrics) for each in processors])

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"emp_pipe_{name}", labels) or 0.0


async def test_without_processors_the_arrival_itself_goes_to_the_writer() -> None:
    bench = Bench()
    given = arrival(1)
    future = bench.intake.submit(given)
    assert bench.writer.arrivals[0] is given
    assert future is bench.writer.futures[0]


async def test_rows_left_out_by_a_processor_are_counted_as_dropped() -> None:
    bench = Bench(Keep(lambda row: row > 1))
    bench.intake.submit(arrival(1, 2, 3))
    assert bench.writer.arrivals[0].batch.rows == (2, 3)  # type: ignore[union-attr]
    assert bench.writer.arrivals[0].dropped == 1
    assert bench.metric("processor_dropped_records_total", component="keep") == 1


async def test_a_batch_left_out_whole_is_still_submitted_for_its_acknowledgement() -> None:
    bench = Bench(Keep(lambda row: False))
    bench.intake.submit(arrival(1, 2))
    assert bench.writer.arrivals[0].batch is None
    assert bench.writer.arrivals[0].dropped == 2
    assert bench.writer.arrivals[0].received == 2


async def test_rows_that_are_decided_pass_by_what_samples_and_by_nothing_else() -> None:
    bench = Bench(KeepByChance(lambda row: False), Keep(lambda row: row > 1))
    for done in (Done(decided=True), Done(red_done=True, aggregated=True), Done(decided=True, red_done=True)):
        bench.intake.submit(replace(arrival(1, 2), done=done))
    assert [each.batch and each.batch.rows for each in bench.writer.arrivals] == [(2,), None, (2,)]  # type: ignore[attr-defined]
    assert [each.done.decided for each in bench.writer.arrivals] == [True, False, True], "what was done is forgotten on the way"


@pytest.mark.parametrize(
    "wrong",
    [Raise(), Return("text"), Return(Rows((1,), signal="traces")), Return(Rows((1, 2, 3)))],
    ids=["raises", "returns text", "other signal", "more records"],
)
async def test_a_failing_processor_passes_the_batch_unchanged_counted_and_named(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(wrong, Keep(lambda row: row > 1))
    bench.intake.submit(arrival(1, 2))
    assert bench.writer.arrivals[0].batch.rows == (2,)  # type: ignore[union-attr]
    assert bench.metric("processor_failed_records_total", component=wrong.id) == 2
    assert f"{wrong.id}: the processor failed on 2 records" in caplog.text
    assert not bench.fatal


async def test_a_failing_processor_that_shall_stop_stops_and_acknowledges_nothing() -> None:
    bench = Bench(Raise(), on_error="stop")
    with pytest.raises(LogError):
        await bench.intake.submit(arrival(1))
    assert not bench.writer.arrivals
    assert bench.fatal[0].place == "raise"


async def test_small_arrivals_do_not_overtake_a_large_one_that_is_being_processed() -> None:
    bench = Bench(Keep(lambda row: True))
    running = asyncio.ensure_future(bench.intake.run())
    bench.intake.submit(arrival(1, size_bytes=1 << 20))
    bench.intake.submit(arrival(2))
    bench.intake.submit(arrival(3, size_bytes=1 << 20))
    bench.intake.submit(arrival(4))
    assert not bench.writer.arrivals
    await asyncio.wait_for(bench.intake.drained(), 10)
    assert [each.batch.rows for each in bench.writer.arrivals] == [(1,), (2,), (3,), (4,)]  # type: ignore[union-attr]
    running.cancel()


async def test_large_arrivals_that_wait_reach_the_writer_together_up_to_a_block_so_that_they_become_one() -> None:
    bench = Bench(Keep(lambda row: True))
    sizes = [300_000, 300_000, 300_000, 300_000, 5 << 20, 300_000]
    for row, size_bytes in enumerate(sizes):
        bench.intake.submit(arrival(row, size_bytes=size_bytes))
    running = asyncio.ensure_future(bench.intake.run())
    seen: list[int] = []
    async with asyncio.timeout(10):
        while len(bench.writer.arrivals) < len(sizes):
            await asyncio.sleep(0)  # the writer begins behind what one turn of the loop brings
            if (now := len(bench.writer.arrivals)) != (seen[-1] if seen else 0):
                seen.append(now)
    assert seen == [3, 4, 5, 6]
    assert [each.batch.rows for each in bench.writer.arrivals] == [(row,) for row in range(len(sizes))]  # type: ignore[union-attr]
    running.cancel()


async def test_of_large_arrivals_together_one_that_stops_is_refused_and_the_others_are_not() -> None:
    def refuse(row: int) -> bool:
        if row == 2:
            raise ValueError("a plugin's mistake")
        return True

    bench = Bench(Keep(refuse), on_error="stop")
    futures = [bench.intake.submit(arrival(row, size_bytes=100_000)) for row in (1, 2, 3)]
    running = asyncio.ensure_future(bench.intake.run())
    await asyncio.wait_for(bench.intake.drained(), 10)
    assert [each.batch.rows for each in bench.writer.arrivals] == [(1,), (3,)]  # type: ignore[union-attr]
    with pytest.raises(LogError):
        await asyncio.wait_for(futures[1], 10)
    assert not futures[0].done()
    assert not futures[2].done()
    assert [error.place for error in bench.fatal] == ["keep"]
    running.cancel()


async def test_a_large_arrival_is_done_when_the_log_has_it_and_not_before() -> None:
    bench = Bench(Keep(lambda row: True))
    running = asyncio.ensure_future(bench.intake.run())
    future = bench.intake.submit(arrival(1, size_bytes=1 << 20))
    await asyncio.wait_for(bench.intake.drained(), 10)
    await asyncio.sleep(0)
    assert not future.done()
    bench.writer.futures[0].set_exception(LogError(kind_of_a_full_log()))
    with pytest.raises(LogError):
        await asyncio.wait_for(future, 10)
    running.cancel()


def kind_of_a_full_log() -> Any:
    from emp_pipe.errors import ErrorKind

    return ErrorKind.LOG_FULL


async def test_receivers_wait_while_processors_are_behind_by_a_bounded_number_of_bytes() -> None:
    bench = Bench(Keep(lambda row: True))
    for row in range(64):
        assert bench.intake.admitting
        bench.intake.submit(arrival(row, size_bytes=1 << 20))
    assert not bench.intake.admitting
    running = asyncio.ensure_future(bench.intake.run())
    await asyncio.wait_for(bench.intake.wait_admitting(), 10)
    assert bench.intake.admitting
    running.cancel()
