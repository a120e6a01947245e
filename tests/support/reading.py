"""What the tests of receivers that read at an interval stand on: an intake that remembers, one receiver that runs, its points by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from emp_pipe.component import Arrival
from emp_pipe.readings import ReadingReceiver

PATIENCE_S = 30.0


@dataclass
class Point:
    """One data point, as whoever reads OTLP sees it."""

    name: str
    unit: str
    kind: str
    value: float
    attributes: dict[str, Any]
    resource: dict[str, Any]
    start_unix_nano: int
    time_unix_nano: int


def value_of(value: dict[str, Any]) -> Any:
    (kind, what), *_ = value.items()
    return int(what) if kind == "intValue" else what


def _dict(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: value_of(each["value"]) for each in attributes}


def points_of(batch: Any) -> list[Point]:
    """Return the points of a metrics batch."""
    return [point for line in batch.to_json_lines().splitlines() for point in points_of_line(json.loads(line))]


def points_of_line(line: dict[str, Any]) -> list[Point]:
    """Return the points of one line of OTLP JSON."""
    found = []
    for of_resource in line["resourceMetrics"]:
        resource = _dict(of_resource["resource"].get("attributes", []))
        for metric in (metric for scope in of_resource["scopeMetrics"] for metric in scope["metrics"]):
            kind = "gauge" if "gauge" in metric else "counter" if metric["sum"].get("isMonotonic") else "up_down_counter"
            for point in metric.get("gauge", metric.get("sum"))["dataPoints"]:
                found.append(
                    Point(
                        metric["name"],
                        metric.get("unit", ""),
                        kind,
                        float(point["asDouble"] if "asDouble" in point else point["asInt"]),
                        _dict(point.get("attributes", [])),
                        resource,
                        int(point.get("startTimeUnixNano", 0)),
                        int(point["timeUnixNano"]),
                    )
                )
    return found


def of_name(points: list[Point], name: str, **attributes: Any) -> list[Point]:
    """Return the points of a name that have these attributes, written with `__` for dots."""
    wanted = {key.replace("__", "."): value for key, value in attributes.items()}
    return [point for point in points if point.name == name and wanted.items() <= point.attributes.items()]


@dataclass
class Kept:
    """An intake that keeps every arrival; `refuse` is what the next submits fail with."""

    arrivals: list[Arrival] = field(default_factory=list)
    refuse: list[Exception] = field(default_factory=list)
    refuse_asking: list[Exception] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    offered: int = 0

    def __post_init__(self) -> None:
        self.open.set()
        self._changed = asyncio.Event()

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        self.offered += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.refuse:
            future.set_exception(self.refuse.pop(0))
            return future
        self.arrivals.append(arrival)
        self._changed.set()
        future.set_result(None)
        return future

    @property
    def admitting(self) -> bool:
        return self.open.is_set()

    async def wait_admitting(self) -> None:
        await self.open.wait()

    async def checkpoint_get(self, name: str) -> bytes | None:
        if self.refuse_asking:
            raise self.refuse_asking.pop(0)
        found = [arrival.checkpoints[name] for arrival in self.arrivals if name in arrival.checkpoints]
        return found[-1] if found else None

    async def wait_for(self, count: int, signal: str = "metrics") -> list[Any]:
        """Return the first `count` batches of a signal."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                batches = [each.batch for each in self.arrivals if each.batch is not None and each.batch.signal == signal]
                if len(batches) >= count:
                    return batches[:count]
                self._changed.clear()
                await self._changed.wait()

    def records(self) -> list[dict[str, Any]]:
        """Return all log records so far."""
        batches = [each.batch for each in self.arrivals if each.batch is not None and each.batch.signal == "logs"]
        return [json.loads(line) for batch in batches for line in batch.to_json_lines().splitlines()]

    async def wait_for_record(self, **fields: Any) -> dict[str, Any]:
        """Return the first record that has these fields."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for record in self.records():
                    if fields.items() <= record.items():
                        return record
                self._changed.clear()
                await self._changed.wait()

    async def wait_for_point(self, name: str, **attributes: Any) -> Point:
        """Return the first point of a name that has these attributes."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if found := of_name(self.points(), name, **attributes):
                    return found[0]
                self._changed.clear()
                await self._changed.wait()

    def points(self) -> list[Point]:
        """Return all points so far, in the order they came."""
        batches = [each.batch for each in self.arrivals if each.batch is not None and each.batch.signal == "metrics"]
        return [point for batch in batches for point in points_of(batch)]


async def until(found: Callable[[], Any]) -> Any:
    """Return what `found` gives as soon as it is something true."""
    async with asyncio.timeout(PATIENCE_S):
        while not (result := found()):  # noqa: ASYNC110 (what it waits for has no event)
            await asyncio.sleep(0.001)
    return result


@asynccontextmanager
async def receiving(receiver: ReadingReceiver, kept: Kept) -> AsyncIterator[None]:
    """Run a receiver, and stop it as the pipeline does."""
    started = asyncio.Event()
    task = asyncio.create_task(receiver.run(kept, started))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait((task, waiting), timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        yield
    finally:
        await receiver.stop(asyncio.get_running_loop().time() + PATIENCE_S)
        await asyncio.wait_for(task, PATIENCE_S)
