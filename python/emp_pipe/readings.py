"""What is read at an interval: from gauges and counters to a Batch of metrics, and the base of the receivers that do it.

    every interval_s ─▶ readers, each in its own thread, with a time limit ─▶ Readings ─▶ OTLP JSON ─▶ the core's decoder ─▶ Batch ─▶ intake

A receiver lists its readers (`readers`), or overrides `read` where it does not read in threads (checks). A reader fills the Readings that
it is given: what it read before it failed is kept, what it brings after its time is not. While the buffer takes nothing no reading is
made; one that could not be kept is offered again before the next. Not here: what is read (`receivers/host_metrics.py`,
`receivers/gpu_metrics.py`, `receivers/checks.py`), calls that hang (`hanging.py`).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, PositiveFloat

from emp_pipe import __version__
from emp_pipe.component import Arrival, ComponentConfig, Context, Intake
from emp_pipe.errors import LogError
from emp_pipe.hanging import HangingCalls, StillHangs
from emp_pipe.logs import RateLimitedLogger, get_logger

if TYPE_CHECKING:
    from emp_pipe._core import Batch, Normalizer

Scalar = str | bool | int | float
Attributes = Mapping[str, Scalar]
_Frozen = tuple[tuple[str, Scalar], ...]
_NOTHING: Attributes = {}
NO_CHECKPOINTS: Mapping[str, bytes] = {}
_CUMULATIVE = 2
_MOST_TEXT = 1024
"""What a name out of /proc or a driver may be long, in characters; the rest is cut off."""
_REMEMBERED_READINGS = 20
"""A stream that was absent from so many readings is forgotten, and begins anew when it is back."""
_OFFER_AGAIN_S = 1.0
_WAVERS_NS = 5_000_000_000
"""A start that is made of an age in whole seconds is another one each time, by this much at most."""


class ReadingConfig(ComponentConfig):
    """Settings of everything that is read at an interval."""

    interval_s: PositiveFloat = Field(30.0, description="The time between two readings.")
    timeout_s: PositiveFloat = Field(10.0, description="The time that one read may take; one that hangs is left behind and said once.")


@dataclass(slots=True)
class Point:
    """One value of one stream at the time of its Readings. `since_unix_nano` is a counter's: when it began to count."""

    kind: Literal["gauge", "counter", "up_down_counter"]
    name: str
    unit: str
    value: int | float
    attributes: _Frozen
    resource: _Frozen
    since_unix_nano: int = 0


class Readings:
    """Values that were read at one time. Instruments have OpenTelemetry's words; a value that is no finite number is left out."""

    def __init__(self, now_unix_nano: int) -> None:
        self.now_unix_nano = now_unix_nano
        self.points: list[Point] = []

    def __len__(self) -> int:
        return len(self.points)

    def gauge(
        self, name: str, value: int | float, unit: str, attributes: Attributes = _NOTHING, *, resource: Attributes = _NOTHING
    ) -> None:
        """Take a value that cannot be added up: a temperature, a share."""
        self._put(Point("gauge", name, unit, value, _frozen(attributes), _frozen(resource)))

    def up_down_counter(
        self, name: str, value: int | float, unit: str, attributes: Attributes = _NOTHING, *, resource: Attributes = _NOTHING
    ) -> None:
        """Take a value that can be added up over attributes, and goes up and down: bytes in use."""
        self._put(Point("up_down_counter", name, unit, value, _frozen(attributes), _frozen(resource), self.now_unix_nano))

    def counter(
        self,
        name: str,
        value: int | float,
        unit: str,
        attributes: Attributes = _NOTHING,
        *,
        since_unix_nano: int,
        resource: Attributes = _NOTHING,
    ) -> None:
        """Take a total that only grows, counted since a time (of the boot, of the process' start, of the first reading)."""
        self._put(Point("counter", name, unit, value, _frozen(attributes), _frozen(resource), since_unix_nano))

    def _put(self, point: Point) -> None:
        if isinstance(point.value, int) or math.isfinite(point.value):
            self.points.append(point)

    def take(self, other: Readings) -> None:
        """Take all of another's points."""
        self.points += other.points

    def request(self, scope: str, resource: Attributes = _NOTHING) -> dict[str, Any]:
        """Return the ExportMetricsServiceRequest, in OTLP's JSON form. `resource`: what every point's resource has that lacks it."""
        below: dict[_Frozen, dict[tuple[str, str, str], list[Point]]] = {}
        for point in self.points:
            metrics = below.setdefault(point.resource, {})
            metrics.setdefault((point.kind, point.name, point.unit), []).append(point)
        written = {"name": scope, "version": __version__}
        return {
            "resourceMetrics": [
                {
                    "resource": {"attributes": _key_values({**resource, **dict(own)}.items())},
                    "scopeMetrics": [{"scope": written, "metrics": [self._metric(*head, found) for head, found in metrics.items()]}],
                }
                for own, metrics in below.items()
            ]
        }

    def _metric(self, kind: str, name: str, unit: str, points: Sequence[Point]) -> dict[str, Any]:
        now = str(self.now_unix_nano)
        written = []
        for point in points:
            one: dict[str, Any] = {"timeUnixNano": now, "attributes": _key_values(point.attributes)}
            if isinstance(point.value, float):
                one["asDouble"] = point.value
            else:
                one["asInt"] = str(min(max(int(point.value), -(1 << 63)), (1 << 63) - 1))
            if point.since_unix_nano:
                one["startTimeUnixNano"] = str(min(point.since_unix_nano, self.now_unix_nano))
            written.append(one)
        if kind == "gauge":
            return {"name": name, "unit": unit, "gauge": {"dataPoints": written}}
        total = {"dataPoints": written, "aggregationTemporality": _CUMULATIVE, "isMonotonic": kind == "counter"}
        return {"name": name, "unit": unit, "sum": total}

    def to_batch(self, normalizer: Normalizer, scope: str, resource: Attributes = _NOTHING) -> Batch | None:
        """Return the points as rows; None where there is none. They go the way of every OTLP request, by the same decoder."""
        from emp_pipe._core import OtlpDecoder  # on use: a configuration is checked without the native core

        if not self.points:
            return None
        body = json.dumps(self.request(scope, resource), separators=(",", ":")).encode()
        decoder = OtlpDecoder(normalizer, signal="metrics", max_inflated_bytes=max(len(body), 1))
        read = decoder.decode(body, encoding="json", now_unix_nano=self.now_unix_nano)
        if read.rejected_items:
            raise ValueError(f"{read.rejected_items} readings are no valid metrics: {read.rejected[0].detail}")
        return read.batch


def _frozen(attributes: Attributes) -> _Frozen:
    return tuple(sorted(attributes.items())) if attributes else ()


def _key_values(attributes: Iterable[tuple[str, Scalar]]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes if value != ""]


def _value(value: Scalar) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else 0.0}
    return {"stringValue": clean(value)}


def clean(text: str) -> str:
    """Return a text from outside as UTF-8 can say it, and no longer than anybody reads: names in /proc and file names are any bytes."""
    text = text[:_MOST_TEXT]
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class Counters:
    """Knows when each counter began to count: one that has fallen (a device that was plugged in again) counts from the last reading on."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, _Frozen, _Frozen], tuple[int | float, int, int, int]] = {}
        """By stream: the last value, its start as we say it, the start as we were told, the number of the reading."""
        self._last_unix_nano = 0
        self._readings = 0

    def settle(self, readings: Readings) -> None:
        """Set the starts of a reading's counters."""
        self._readings += 1
        for point in readings.points:
            if point.kind == "gauge":
                continue
            key = (point.name, point.attributes, point.resource)
            told = point.since_unix_nano
            known = self._streams.get(key)
            if point.kind == "up_down_counter":
                since = known[1] if known is not None else told
            elif known is None or told > known[2] + _WAVERS_NS:
                since = told
            elif point.value < known[0]:
                since = self._last_unix_nano
            else:
                since = known[1]
            point.since_unix_nano = since
            self._streams[key] = (point.value, since, told, self._readings)
        self._last_unix_nano = readings.now_unix_nano
        if self._readings % _REMEMBERED_READINGS == 0:
            kept = self._readings - _REMEMBERED_READINGS
            self._streams = {key: stream for key, stream in self._streams.items() if stream[3] > kept}


class Reader(NamedTuple):
    """One thing that is read: its name in log lines, and what fills Readings with it, called in a thread."""

    name: str
    read: Callable[[Readings], None]


class ReadingReceiver:
    """The base of a receiver that reads something every `interval_s`. Give it `scope` and `readers`, or override `read`."""

    scope: str
    """The name of the instrumentation scope of what it reads."""

    def __init__(self, id: str, config: ReadingConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.log = get_logger(id)
        self.said = RateLimitedLogger(self.log, interval_s=600.0)
        self.calls = HangingCalls(id, context.clock, context.metrics)
        self.counters = Counters()
        self.intake: Intake | None = None
        """Where it hands over, from `begin` on: checkpoints are asked for there."""
        self._context = context
        self._normalizer = context.normalizer
        self._stopping = asyncio.Event()
        self._finished = asyncio.Event()
        self._is_running = False
        reads = context.metrics.counter(
            "reads", unit="reads", help="Things read at an interval, by what became of it.", labels=["component", "outcome"]
        )
        self._read_well, self._failed, self._hung = (reads.labels(id, outcome) for outcome in ("ok", "failed", "hung"))

    # --- what a receiver says of itself ----------------------------------------------------------------

    async def begin(self) -> None:
        """Get ready, before the first reading. Raises ConfigError where it can never read; what may hang goes by `self.calls`."""

    async def readers(self) -> Sequence[Reader]:
        """Return what is to be read now."""
        return ()

    async def end(self) -> None:
        """Let go of what `begin` took. What may hang goes by `self.calls`."""

    async def read(self) -> Sequence[Batch | Arrival]:
        """Return what one reading brought. The default: everything that `readers` lists, at the same time."""
        readings = self.readings()
        readers = await self.readers()
        for found in await asyncio.gather(*(self._read_one(reader, readings.now_unix_nano) for reader in readers)):
            if found is not None:
                readings.take(found)
        return [batch] if (batch := self.to_batch(readings)) is not None else []

    # --- what it can use --------------------------------------------------------------------------------

    def readings(self) -> Readings:
        """Return Readings of now, with nothing in them."""
        return Readings(self._context.clock.unix_nano())

    @property
    def resource(self) -> Attributes:
        """What every resource has that it reads: this machine."""
        return {"machine_id": self._context.machine_id} if self._context.machine_id else {}

    def to_batch(self, readings: Readings) -> Batch | None:
        """Return the readings as rows, the starts of their counters set; None where there are none."""
        from emp_pipe._core import Normalizer

        if self._normalizer is None:
            self._normalizer = Normalizer()
        self.counters.settle(readings)
        return readings.to_batch(self._normalizer, self.scope, self.resource)

    def arrival(self, batch: Batch, checkpoints: Mapping[str, bytes] = NO_CHECKPOINTS) -> Arrival:
        """Return a batch as it is handed over; checkpoints become durable with it, or not at all."""
        return Arrival(receiver=self.id, batch=batch, received=batch.record_count, checkpoints=checkpoints)

    async def _read_one(self, reader: Reader, now_unix_nano: int) -> Readings | None:
        """Return what a reader found until it ended or failed; None where it hangs."""
        found = Readings(now_unix_nano)
        try:
            await self.calls.call(reader.name, lambda: reader.read(found), self.config.timeout_s)
        except (TimeoutError, StillHangs):
            self._hung.inc()
            return None
        except Exception as error:  # a driver, a file system or /proc may answer anything: the others are read all the same
            self._failed.inc()
            what = type(error).__name__
            self.said.warning(f"{reader.name}:{what}", "%s cannot be read (%s: %s)", reader.name, what, error)
        else:
            self._read_well.inc()
        return found

    # --- running ----------------------------------------------------------------------------------------

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        """Read until `stop`. Raises ConfigError where it can never read."""
        self._is_running = True
        self.intake = intake
        try:
            await self.begin()
            started.set()
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read_on(intake), name=f"{self.id}: read")
                await self._stopping.wait()
                reading.cancel()
            await self.end()
        finally:
            self._finished.set()

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Make no new reading; one that was handed over is kept."""
        self._stopping.set()
        if self._is_running:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(deadline_monotonic_s - self._context.clock.monotonic_s(), 0.0)):
                    await self._finished.wait()

    async def _read_on(self, intake: Intake) -> None:
        clock = self._context.clock
        due_s = clock.monotonic_s()
        while True:
            await intake.wait_admitting()
            try:
                batches = await self.read()
            except Exception:  # the next reading may go well, and no reading is worth the process
                self._failed.inc()
                self.said.exception("reading", "the reading failed and is left out")
                batches = ()
            for each in batches:
                await self.keep(intake, each if isinstance(each, Arrival) else self.arrival(each))
            now_s = clock.monotonic_s()
            missed = max(now_s - due_s, 0.0) // self.config.interval_s  # they are not made up for
            due_s += (missed + 1) * self.config.interval_s
            await clock.sleep(max(due_s - now_s, 0.0))

    async def keep(self, intake: Intake, arrival: Arrival) -> None:
        """Return when an arrival is durable; offered again until it is, unless emp-pipe stops."""
        while True:
            try:
                await asyncio.shield(intake.submit(arrival))
                return
            except LogError as error:
                self.said.warning("kept", "a reading could not be kept and is offered again (%s)", error)
            await self._context.clock.sleep(_OFFER_AGAIN_S)
            await intake.wait_admitting()
