"""What is read at an interval: valid metrics of it, counters that know when they began, and a read that hangs holds nothing up."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Iterator, Sequence

import pytest

from emp_pipe._core import Normalizer
from emp_pipe.component import Context
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.hanging import HangingCalls, StillHangs
from emp_pipe.readings import Counters, Reader, ReadingConfig, ReadingReceiver, Readings
from tests.support.context import make_context
from tests.support.manual_clock import ManualClock
from tests.support.reading import PATIENCE_S, Kept, of_name, points_of, receiving, until

BOOT = 1_700_000_000_000_000_000
NOW = 1_760_000_000_000_000_000


def metric(context: Context, name: str, *labels: str) -> float:
    return float(context.metrics._declared[name].labels(*labels)._value.get())  # type: ignore[union-attr]


class Scripted(ReadingReceiver):
    """Reads what it is given."""

    scope = "emp_pipe.scripted"

    def __init__(self, *readers: Reader, context: Context | None = None, interval_s: float = 0.01, timeout_s: float = PATIENCE_S) -> None:
        self.context = context or make_context()
        super().__init__("scripted", ReadingConfig(interval_s=interval_s, timeout_s=timeout_s), self.context)
        self.listed = list(readers)

    async def readers(self) -> Sequence[Reader]:
        return self.listed


def temperature(readings: Readings) -> None:
    readings.gauge("hw.temperature", 41.5, "Cel", {"hw.id": "gpu-0"})


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """A thread that waits for it goes on when the test is over."""
    event = threading.Event()
    yield event
    event.set()


# --- the rows -----------------------------------------------------------------------------------------


def test_each_instrument_is_what_opentelemetry_means_by_it() -> None:
    readings = Readings(NOW)
    readings.gauge("system.uptime", 3.5, "s")
    readings.up_down_counter("system.memory.usage", 1 << 40, "By", {"system.memory.state": "used"})
    readings.counter("system.network.io", 7, "By", {"network.interface.name": "eth0"}, since_unix_nano=BOOT, resource={"host.id": "h"})
    batch = readings.to_batch(Normalizer(), "emp_pipe.test", {"machine_id": "gpu-1"})
    assert batch is not None
    assert (batch.signal, batch.record_count, batch.resource_count) == ("metrics", 3, 2)
    gauge, in_use, total = (of_name(points_of(batch), name)[0] for name in ("system.uptime", "system.memory.usage", "system.network.io"))
    assert (gauge.kind, gauge.unit, gauge.value, gauge.time_unix_nano) == ("gauge", "s", 3.5, NOW)
    assert (in_use.kind, in_use.value, in_use.attributes) == ("up_down_counter", 1 << 40, {"system.memory.state": "used"})
    assert (total.kind, total.value, total.start_unix_nano) == ("counter", 7, BOOT)
    assert total.resource.items() >= {"machine_id": "gpu-1", "host.name": "gpu-1", "host.id": "h"}.items()


def test_nothing_that_was_read_is_no_batch() -> None:
    assert Readings(NOW).to_batch(Normalizer(), "emp_pipe.test") is None


def test_numbers_that_are_none_are_left_out_and_their_neighbours_stay() -> None:
    readings = Readings(NOW)
    for value in (math.nan, math.inf, -math.inf, 1.0, 1 << 70, -(1 << 70)):
        readings.gauge("x", value, "1", {"of": str(value)})
    batch = readings.to_batch(Normalizer(), "emp_pipe.test")
    assert batch is not None
    assert [point.value for point in points_of(batch)] == [1.0, float((1 << 63) - 1), float(-(1 << 63))]


def test_names_that_are_no_text_and_names_without_end_become_text_that_is_bounded() -> None:
    readings = Readings(NOW)
    readings.gauge("x", 1, "1", {"name": b"comfy\xff\xfeui".decode("utf-8", "surrogateescape"), "long": "é" * 100_000, "empty": ""})
    batch = readings.to_batch(Normalizer(), "emp_pipe.test")
    assert batch is not None
    attributes = points_of(batch)[0].attributes
    assert attributes["name"] == "comfy��ui"
    assert len(attributes["long"]) == 1024
    assert "empty" not in attributes


# --- counters -----------------------------------------------------------------------------------------


def counted(counters: Counters, now: int, value: int, since: int = BOOT) -> int:
    readings = Readings(now)
    readings.counter("n", value, "1", since_unix_nano=since)
    counters.settle(readings)
    return readings.points[0].since_unix_nano


def test_a_counter_that_grows_keeps_its_start_and_one_that_fell_began_at_the_last_reading() -> None:
    counters = Counters()
    assert counted(counters, NOW, 5) == BOOT
    assert counted(counters, NOW + 10, 5) == BOOT
    assert counted(counters, NOW + 20, 3) == NOW + 10
    assert counted(counters, NOW + 30, 9) == NOW + 10


def test_a_start_that_is_told_anew_and_later_is_taken_and_one_that_wavers_back_is_not() -> None:
    counters = Counters()
    counted(counters, NOW, 5, since=BOOT)
    assert counted(counters, NOW + 10, 6, since=BOOT - 1_000_000_000) == BOOT
    assert counted(counters, NOW + 20, 1, since=NOW + 15) == NOW + 15


def test_an_up_down_counter_keeps_the_start_of_its_first_reading() -> None:
    counters = Counters()
    starts = []
    for at, value in ((NOW, 5), (NOW + 10, 2)):
        readings = Readings(at)
        readings.up_down_counter("n", value, "1")
        counters.settle(readings)
        starts.append(readings.points[0].since_unix_nano)
    assert starts == [NOW, NOW]


def test_streams_that_are_gone_are_forgotten() -> None:
    counters = Counters()
    for number in range(200):
        readings = Readings(NOW + number)
        readings.counter("n", 1, "1", {"pid": number}, since_unix_nano=BOOT)
        counters.settle(readings)
    assert len(counters._streams) <= 40


# --- calls that hang ----------------------------------------------------------------------------------


async def test_a_call_that_hangs_is_left_behind_said_once_counted_and_not_begun_again(
    hang: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    context = make_context()
    calls = HangingCalls("scripted", context.clock, context.metrics)
    begun: list[None] = []

    def statvfs() -> None:
        begun.append(None)
        hang.wait()

    with caplog.at_level(logging.INFO):
        with pytest.raises(TimeoutError):
            await calls.call("/mnt/nfs", statvfs, 0.02)
        for _ in range(3):
            with pytest.raises(StillHangs):
                await calls.call("/mnt/nfs", statvfs, 0.02)
        assert len(begun) == 1
        assert calls.hanging == 1
        assert await calls.call("/", lambda: "free", PATIENCE_S) == "free"
        hang.set()
        await until(lambda: not calls.hanging)
        assert await calls.call("/mnt/nfs", lambda: "free", PATIENCE_S) == "free"
    said = [record.getMessage() for record in caplog.records if "/mnt/nfs" in record.getMessage()]
    assert len(said) == 2
    assert "no answer within 0.02 s" in said[0]
    assert "answers again" in said[1]
    assert metric(context, "calls_hung", "scripted") == 1


async def test_what_a_call_raises_comes_to_who_asked_whatever_it_is() -> None:
    context = make_context()
    calls = HangingCalls("scripted", context.clock, context.metrics)

    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(PermissionError):
        await calls.call("x", lambda: fail(PermissionError("no")), PATIENCE_S)
    for unusual in (StopIteration(1), SystemExit(3), KeyboardInterrupt()):
        with pytest.raises(RuntimeError, match=type(unusual).__name__):
            await calls.call("x", lambda unusual=unusual: fail(unusual), PATIENCE_S)  # type: ignore[misc]


# --- the receiver -------------------------------------------------------------------------------------


async def test_a_reading_is_made_at_the_start_and_then_again_and_again() -> None:
    kept = Kept()
    async with receiving(Scripted(Reader("temperature", temperature)), kept):
        batches = await kept.wait_for(3)
    assert [points_of(batch)[0].value for batch in batches] == [41.5, 41.5, 41.5]
    assert points_of(batches[0])[0].resource["machine_id"] == "gpu-test"
    assert all(arrival.received == 1 for arrival in kept.arrivals)


async def test_the_next_reading_comes_an_interval_later_and_what_was_overslept_is_not_made_up_for() -> None:
    clock = ManualClock()
    kept = Kept()
    receiver = Scripted(Reader("temperature", temperature), context=make_context(clock), interval_s=30.0)
    async with receiving(receiver, kept):
        await kept.wait_for(1)
        for seconds in (29.0, 1.0, 300.0):
            await until(lambda: clock._sleepers)
            clock.advance(seconds)
        await kept.wait_for(3)
        for seconds, count in ((29.0, 3), (1.0, 4), (1.0, 4)):
            await until(lambda: clock._sleepers)
            clock.advance(seconds)
            await kept.wait_for(count)
            await until(lambda: clock._sleepers)
            assert len(kept.arrivals) == count


async def test_a_reader_that_hangs_is_left_out_and_the_others_are_read_and_it_stops_at_once(hang: threading.Event) -> None:
    kept = Kept()
    receiver = Scripted(Reader("hung", lambda _: hang.wait() and None), Reader("temperature", temperature), timeout_s=0.02)
    async with receiving(receiver, kept):
        batches = await kept.wait_for(3)
    assert [point.name for batch in batches for point in points_of(batch)] == ["hw.temperature"] * 3
    assert metric(receiver.context, "reads", "scripted", "hung") >= 2
    assert metric(receiver.context, "calls_hung", "scripted") == 1


async def test_what_a_hung_reader_brings_after_its_time_is_thrown_away(hang: threading.Event) -> None:
    kept = Kept()

    def late(readings: Readings) -> None:
        hang.wait()
        readings.gauge("late", 1, "1")

    receiver = Scripted(Reader("late", late), Reader("temperature", temperature), timeout_s=0.02)
    async with receiving(receiver, kept):
        await kept.wait_for(1)
        receiver.listed = receiver.listed[1:]
        hang.set()
        await kept.wait_for(3)
    assert {point.name for point in kept.points()} == {"hw.temperature"}


async def test_what_a_reader_found_before_it_failed_is_kept_and_its_failure_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    def torn(readings: Readings) -> None:
        readings.gauge("good", 1, "1")
        raise PermissionError(13, "Permission denied", "/proc/1/io")

    kept = Kept()
    receiver = Scripted(Reader("torn", torn))
    async with receiving(receiver, kept):
        await kept.wait_for(3)
    assert {point.name for point in kept.points()} == {"good"}
    assert metric(receiver.context, "reads", "scripted", "failed") >= 3
    assert len([record for record in caplog.records if "/proc/1/io" in record.getMessage()]) == 1


async def test_no_reading_is_made_while_the_buffer_takes_nothing() -> None:
    kept, read = Kept(), []
    kept.open.clear()
    receiver = Scripted(Reader("x", lambda readings: read.append(readings) or temperature(readings)))  # type: ignore[func-returns-value]
    async with receiving(receiver, kept):
        await asyncio.sleep(0.05)
        assert read == []
        kept.open.set()
        await kept.wait_for(1)


async def test_a_reading_that_could_not_be_kept_is_offered_again_and_is_kept_once() -> None:
    clock = ManualClock()
    kept = Kept(refuse=[LogError(ErrorKind.LOG_FULL), LogError(ErrorKind.LOG_IO)])
    async with receiving(Scripted(Reader("temperature", temperature), context=make_context(clock)), kept):
        for offered in (1, 2):
            await until(lambda offered=offered: kept.offered >= offered and clock._sleepers)
            clock.advance(1.0)
        await kept.wait_for(1)
        assert (kept.offered, len(kept.arrivals)) == (3, 1)


async def test_a_receiver_that_is_stopped_before_it_runs_ends() -> None:
    receiver = Scripted()
    await receiver.stop(0.0)
    async with asyncio.timeout(PATIENCE_S):
        await receiver.run(Kept(), asyncio.Event())
