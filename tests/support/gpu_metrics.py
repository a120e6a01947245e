"""A receiver of GPU metrics before a stand-in NVML, for tests: what it brought, counted and said."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from emp_pipe.component import Context
from emp_pipe.receivers.gpu_metrics import GpuMetricsConfig, GpuMetricsReceiver
from tests.support.context import make_context
from tests.support.reading import Kept, Point, receiving
from tests.support.stand_in_nvml import StandInNvml

PATIENCE_S = 30.0


class Bench:
    """A receiver that reads the stand-in often, and what it brings."""

    def __init__(self, nvml: StandInNvml, **settings: Any) -> None:
        settings = {"interval_s": 0.05, "timeout_s": 20.0, "library": str(nvml.library)} | settings
        self.kept = Kept()
        self.context: Context = make_context()
        self.receiver = GpuMetricsReceiver("gpu_metrics", GpuMetricsConfig(**settings), self.context)

    def running(self) -> Any:
        return receiving(self.receiver, self.kept)

    def now(self, name: str, **attributes: Any) -> Point | None:
        """Return the point of a name in the newest reading."""
        readings = [arrival for arrival in self.kept.arrivals if arrival.batch is not None and arrival.batch.signal == "metrics"]
        points = Kept(arrivals=readings[-1:]).points()
        return next((point for point in points if point.name == name and attributes.items() <= point.attributes.items()), None)

    def state(self, gpu: str = "GPU-0") -> str:
        states = ("ok", "degraded", "failed")
        told = {state: self.now("hw.status", **{"hw.id": gpu, "hw.state": state}) for state in states}
        return ", ".join(state for state, point in told.items() if point is not None and point.value == 1)

    def events(self, event_type: str) -> list[dict[str, Any]]:
        """Return the events of a type: their attributes, severity and body."""
        found = []
        for arrival in self.kept.arrivals:
            if arrival.batch is None or arrival.batch.signal != "logs":
                continue
            rows = [json.loads(line) for line in arrival.batch.to_json_lines().splitlines()]
            found += [row for row in rows if row["event_type"] == event_type]
        return found

    def counted(self, name: str, **labels: str) -> float:
        for line in self.context.metrics.text().decode().splitlines():
            if line.startswith(f"emp_pipe_{name}") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        return 0.0


async def until(condition: Callable[[], Any], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 (what is waited for happens in another process)
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE_S:g} s: {what}")


def said(caplog: pytest.LogCaptureFixture, part: str, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage() and record.levelno == level]
