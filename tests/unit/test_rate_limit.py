"""What a rate limit says of records that it left out: all of them, though no batch comes any more."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from emp_pipe.clock import SystemClock
from emp_pipe.component import Arrival
from emp_pipe.config import build
from emp_pipe.config_yaml import parse_yaml
from emp_pipe.observe import Observer
from emp_pipe.pipeline import Pipeline
from emp_pipe.self_metrics import Metrics
from tests.support.telemetry import log_batch, log_record

PATIENCE_S = 20.0
CONFIG = """
buffer: {type: memory}
processors: {rate_limit: {rules: [{name: it, by: all, records_per_s: 0.001, burst: 3}]}}
exporters: {noop: {}}
"""


class HurriedClock(SystemClock):
    """The machine's clock, set forward by hand; no pause is long."""

    def __init__(self) -> None:
        self.forward_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.forward_s

    async def sleep(self, duration_s: float) -> None:
        await super().sleep(min(duration_s, 0.01))


@contextlib.asynccontextmanager
async def running(directory: Path, clock: HurriedClock) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(build(parse_yaml(f"{CONFIG}data_dir: {directory}\n", "emp.yaml", {})), clock, Metrics())
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(pipeline.run())
        observing = tasks.create_task(Observer(pipeline).run())
        await pipeline.started.wait()
        try:
            yield pipeline
        finally:
            pipeline.stop()
            await run
            observing.cancel()


async def send(pipeline: Pipeline, records: int) -> None:
    batch = log_batch([log_record(f"m{number}") for number in range(records)])
    await asyncio.wait_for(pipeline.intake.submit(Arrival("forward", batch=batch, received=records)), PATIENCE_S)


def said(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [int(found[1]) for line in caplog.messages if (found := re.search(r"above a limit were left out.*: (\d+) by it;", line))]


async def test_the_last_count_of_a_burst_is_said_though_no_batch_comes_any_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = HurriedClock()
    async with running(tmp_path, clock) as pipeline:
        await send(pipeline, 10)
        for _ in range(2):
            await send(pipeline, 10)
        assert said(caplog) == [7]
        clock.forward_s += 61
        async with asyncio.timeout(PATIENCE_S):
            while len(said(caplog)) < 2:  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.01)
        assert said(caplog) == [7, 20]


async def test_what_is_not_said_yet_is_said_when_emp_pipe_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, HurriedClock()) as pipeline:
        await send(pipeline, 10)
        await send(pipeline, 5)
        assert said(caplog) == [7]
    assert said(caplog) == [7, 5]


async def test_what_is_not_said_yet_is_said_when_other_processors_take_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, HurriedClock()) as pipeline:
        await send(pipeline, 10)
        await send(pipeline, 5)
        pipeline.intake.set_processors([])
        assert said(caplog) == [7, 5]
