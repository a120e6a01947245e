"""Concurrency that follows capacity, and a breaker that costs a dead destination almost nothing; on virtual time, over several seeds."""

from __future__ import annotations

import asyncio
from random import Random
from statistics import mean

import pytest

from emp_pipe.component import Parcel, Sent
from emp_pipe.delivery.adaptive import AdaptiveLimit
from emp_pipe.delivery.backoff import Backoff
from emp_pipe.delivery.breaker import Breaker, BreakerState
from emp_pipe.delivery.gate import Gate
from emp_pipe.errors import DeliveryError, ErrorKind
from tests.support.delivering import ScriptedExporter, delivering
from tests.support.fake_clock import VirtualClock, run_virtual
from tests.support.telemetry import log_block

SEEDS = range(8)


def test_the_limit_grows_by_one_per_window_that_used_it_up() -> None:
    limit = AdaptiveLimit(16, start=4)
    for request in range(8):
        limit.succeeded(now_s=request + 0.1, started_s=request, size_bytes=1000, used_up=request == 2)
    assert limit.limit == 5


def test_the_limit_does_not_grow_while_nobody_needs_it() -> None:
    limit = AdaptiveLimit(16, start=4)
    for request in range(100):
        limit.succeeded(now_s=request + 0.1, started_s=request, size_bytes=1000, used_up=False)
    assert limit.limit == 4


def test_sixteen_refusals_of_one_moment_halve_the_limit_once() -> None:
    limit = AdaptiveLimit(16, start=16)
    for _ in range(16):
        limit.failed(now_s=1.0, started_s=0.9)
    assert limit.limit == 8
    limit.failed(now_s=1.2, started_s=1.1)
    assert limit.limit == 4


def test_latency_that_doubles_halves_the_limit_without_any_refusal() -> None:
    limit = AdaptiveLimit(8, start=8)
    for request in range(80):
        limit.succeeded(now_s=request + 0.1, started_s=request, size_bytes=1000, used_up=True)
    assert limit.limit == 8
    for request in range(80, 88):
        limit.succeeded(now_s=request + 0.25, started_s=request, size_bytes=1000, used_up=True)
    assert limit.limit == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_jitter_is_not_taken_for_congestion(seed: int) -> None:
    print(f"seed {seed}")
    random, limit = Random(seed), AdaptiveLimit(16, start=16)
    lowest = 16
    for request in range(5000):
        limit.succeeded(now_s=request + 0.08 * random.lognormvariate(0, 0.5), started_s=request, size_bytes=1000, used_up=True)
        lowest = min(lowest, limit.limit)
    assert lowest >= 8
    assert limit.limit >= 12


def test_a_destination_that_became_slower_for_good_is_not_left_at_one_request() -> None:
    limit = AdaptiveLimit(8, start=8)
    for request in range(40):
        limit.succeeded(now_s=request + 0.1, started_s=request, size_bytes=1000, used_up=True)
    for request in range(40, 400):
        limit.succeeded(now_s=request + 0.5, started_s=request, size_bytes=1000, used_up=True)
    assert limit.limit == 8


def test_large_requests_are_not_compared_with_small_ones() -> None:
    limit = AdaptiveLimit(8, start=8)
    for request in range(200):
        large = request >= 100
        limit.succeeded(now_s=request + (2.0 if large else 0.1), started_s=request, size_bytes=3_000_000 if large else 10_000, used_up=True)
    assert limit.limit == 8


def test_a_late_answer_halves_the_limit_before_answers_come_too_late() -> None:
    limit = AdaptiveLimit(16, start=16, patience_s=30.0)
    limit.succeeded(now_s=7.0, started_s=0.0, size_bytes=1000, used_up=True)
    assert limit.limit == 16
    limit.succeeded(now_s=8.0, started_s=0.4, size_bytes=1000, used_up=True)
    assert limit.limit == 8


def test_a_destination_that_is_slow_whatever_we_do_is_not_left_at_one_request() -> None:
    limit = AdaptiveLimit(8, start=8, patience_s=30.0)
    for request in range(400):
        limit.succeeded(now_s=10 * request + 9.0, started_s=10 * request, size_bytes=1000, used_up=True)
    assert limit.limit == 8


def test_lost_connections_of_a_restart_leave_a_few_requests_and_the_way_back_is_short() -> None:
    limit = AdaptiveLimit(16, start=4)
    limit.limit = 16
    for _ in range(16):
        limit.lost(now_s=1.0, started_s=0.9)
    for attempt in range(5):
        limit.lost(now_s=2.0 + attempt, started_s=1.9 + attempt)
    assert limit.limit == 4, "a peer that restarts says nothing about capacity"
    for request in range(12):
        limit.succeeded(now_s=10.1 + request, started_s=10.0 + request, size_bytes=1000, used_up=True)
    assert limit.limit == 16


def breaker(random: Random | None = None) -> Breaker:
    return Breaker(Backoff(random or Random(1), initial_s=1.0, most_s=30.0))


def test_the_breaker_opens_after_failures_in_a_row_and_lets_one_probe_through() -> None:
    subject = breaker()
    for _ in range(5):
        assert subject.may_try(0.0)
        subject.failed(now_s=0.0, started_s=0.0, slow=False)
    assert subject.state is BreakerState.OPEN
    later_s = subject.open_until_s + 0.01
    assert not subject.may_try(subject.open_until_s - 1e-6)
    assert subject.may_try(later_s)
    assert not subject.may_try(later_s), "a second probe beside the first"
    subject.succeeded()
    assert subject.may_try(later_s)


def test_a_success_in_between_keeps_the_breaker_closed() -> None:
    subject = breaker()
    for _ in range(50):
        for _ in range(4):
            subject.failed(now_s=0.0, started_s=0.0, slow=False)
        subject.succeeded()
    assert subject.state is BreakerState.CLOSED


def test_a_refused_key_opens_the_breaker_at_once_and_at_the_slow_pace() -> None:
    subject = breaker()
    subject.failed(now_s=10.0, started_s=9.0, slow=True)
    assert subject.open_until_s == 40.0


def test_failed_probes_come_at_growing_waits_up_to_the_cap() -> None:
    waits = []
    for seed in range(200):
        subject, now_s = breaker(Random(seed)), 0.0
        for _ in range(5):
            subject.failed(now_s=now_s, started_s=now_s, slow=False)
        for _ in range(12):
            now_s = subject.open_until_s
            assert subject.may_try(now_s)
            subject.failed(now_s=now_s, started_s=now_s, slow=False)
        waits.append(subject.open_until_s - now_s)
    assert max(waits) <= 30.0
    assert 12.0 < sum(waits) / len(waits) < 18.0, "full jitter: half of the cap on average"


def new_gate(clock: VirtualClock, random: Random, most: int = 16, start: int = 4) -> Gate:
    return Gate(clock, AdaptiveLimit(most, start=start), Breaker(Backoff(random, initial_s=0.5, most_s=30.0)))


def test_a_retry_enters_before_what_is_newer() -> None:
    async def main(clock: VirtualClock, random: Random) -> list[int]:
        gate = new_gate(clock, random, start=1)
        entered: list[int] = []

        async def one(order: int) -> None:
            attempt = await gate.enter(order, attempts=0)
            entered.append(order)
            await clock.sleep(1.0)
            gate.succeeded(attempt, 1000)

        async with asyncio.TaskGroup() as tasks:
            for order in (9, 7, 8, 3):
                tasks.create_task(one(order))
        return entered

    assert run_virtual(main) == [9, 3, 7, 8]


def test_a_cancelled_waiter_takes_no_place() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        gate = new_gate(clock, random, start=1)
        first = await gate.enter(0, 0)
        waiting = [asyncio.ensure_future(gate.enter(order, 0)) for order in (1, 2)]
        await clock.sleep(0)
        gate.succeeded(first, 1000)  # admits 1 ...
        waiting[0].cancel()  # ... which is cancelled before it runs
        await asyncio.wait_for(waiting[1], 1.0)
        assert gate.in_flight == 1

    run_virtual(main)


def test_a_pause_that_the_destination_asked_for_holds_for_everybody() -> None:
    async def main(clock: VirtualClock, random: Random) -> float:
        gate = new_gate(clock, random)
        timer = asyncio.ensure_future(gate.run())
        gate.failed(await gate.enter(0, 0), slow=False, pause_s=20.0)
        await gate.enter(1, 0)
        timer.cancel()
        return clock.monotonic_s()

    assert run_virtual(main) == pytest.approx(20.0)


def test_a_probe_that_is_due_sooner_than_the_pause_before_it_is_not_late() -> None:
    async def main(clock: VirtualClock, random: Random) -> float:
        gate = new_gate(clock, random)
        timer = asyncio.ensure_future(gate.run())
        early, refused = await gate.enter(0, 0), await gate.enter(1, 0)
        gate.failed(refused, slow=True, pause_s=None)  # open for 30 s
        waiting = asyncio.ensure_future(gate.enter(2, 0))
        await clock.sleep(1.0)
        gate.succeeded(early, 1000)  # closed again
        attempt = await waiting
        gate.in_flight += 4  # as if there were five of it
        for _ in range(5):
            gate.failed(attempt, slow=False, pause_s=None)
        started_s = clock.monotonic_s()
        await gate.enter(3, 0)
        timer.cancel()
        return clock.monotonic_s() - started_s

    assert run_virtual(main) <= 0.5


def failing(kind: ErrorKind, **more: object) -> DeliveryError:
    return DeliveryError(kind, place="scripted", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_in_flight_halves_within_five_seconds_when_a_sink_that_refuses_halves_its_capacity(seed: int) -> None:
    in_flight, attempts, blocks = run_virtual(lambda clock, random: sink_that_halves(clock, random, queues=False), seed)
    assert_halved(in_flight, 0.55)
    assert attempts <= 1.2 * blocks


@pytest.mark.parametrize("seed", SEEDS)
def test_in_flight_halves_within_five_seconds_when_a_sink_that_queues_halves_its_capacity(seed: int) -> None:
    in_flight, attempts, blocks = run_virtual(lambda clock, random: sink_that_halves(clock, random, queues=True), seed)
    assert_halved(in_flight, 0.65)
    assert attempts <= 1.2 * blocks


def assert_halved(in_flight: dict[float, int], at_most: float) -> None:
    """The capacity halves at t = 10 s: half by t = 15 s, and about half on the mean after it (both go up and down like a saw)."""
    before = mean(count for at_s, count in in_flight.items() if 4.0 <= at_s < 10.0)
    after = mean(count for at_s, count in in_flight.items() if 15.0 <= at_s < 20.0)
    lowest = min(count for at_s, count in in_flight.items() if 10.0 <= at_s < 15.0)
    assert before >= 5, "the capacity was not used before"
    assert lowest <= before / 2, f"not halved within 5 s: {before:.1f} → {lowest}"
    assert 2 <= after <= at_most * before, f"{before:.1f} → {after:.1f}"


async def sink_that_halves(clock: VirtualClock, random: Random, *, queues: bool) -> tuple[dict[float, int], int, int]:
    """A sink of 8 workers, 4 from t = 10 s on. What is too much it refuses, or lets wait."""
    busy, waiting = 0, asyncio.Condition()

    def capacity() -> int:
        return 8 if clock.monotonic_s() < 10.0 else 4

    async def behave(parcel: Parcel) -> Sent:
        nonlocal busy
        if not queues and busy >= capacity():
            await clock.sleep(0.02)
            raise failing(ErrorKind.THROTTLED)
        async with waiting:
            await waiting.wait_for(lambda: busy < capacity())
            busy += 1
        await clock.sleep(0.1 * random.uniform(0.8, 1.2))
        async with waiting:
            busy -= 1
            waiting.notify_all()
        return Sent()

    exporter = ScriptedExporter(behave, max_concurrency=32, timeout_s=2.0)
    in_flight: dict[float, int] = {}
    async with delivering(exporter, clock=clock, random=random) as subject:
        await subject.append([log_block([f"row {index}"]) for index in range(2000)])
        while clock.monotonic_s() < 20.0:
            in_flight[clock.monotonic_s()] = exporter.in_flight
            await clock.sleep(0.05)
        return in_flight, len(exporter.parcels), len(exporter.delivered) + exporter.in_flight
