"""After trouble: a destination that is back is used within seconds, gets nothing twice, and no more than it can work off in time.

On virtual time, over several seeds. How the limit and the breaker move: `test_delivery_adaptive.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from emp_pipe.component import Parcel, Sent
from emp_pipe.delivery.adaptive import AdaptiveLimit
from emp_pipe.delivery.backoff import Backoff
from emp_pipe.delivery.breaker import Breaker
from emp_pipe.delivery.gate import Gate
from emp_pipe.errors import DeliveryError, ErrorKind
from emp_pipe.exporters.forward import ForwardExporterConfig
from tests.support.delivering import Delivering, ScriptedExporter, bodies_of, delivering
from tests.support.fake_clock import VirtualClock, run_virtual
from tests.support.telemetry import log_block

SEEDS = range(8)


def failing(kind: ErrorKind) -> DeliveryError:
    return DeliveryError(kind, place="scripted")


async def until_nothing_is_held(subject: Delivering, clock: VirtualClock) -> None:
    """Look seldom: hours of virtual time pass."""
    while subject.log.usage().groups[0].held_blocks:
        assert clock.monotonic_s() < 10_000
        await clock.sleep(1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_exporters_to_a_host_that_works_off_one_request_after_another_repeat_nothing_after_an_outage(seed: int) -> None:
    """Also what we have given up it takes in the end, as most servers do; and now and then it stands still for some seconds."""

    async def main(clock: VirtualClock, random: Random) -> None:
        taken: Counter[str] = Counter()
        working = asyncio.Lock()
        tasks: set[asyncio.Task[None]] = set()

        async def work(parcel: Parcel) -> None:
            async with working:
                stands_still = random.random() < 0.005
                await clock.sleep(1.2 * random.uniform(0.5, 1.5) + 12.0 * stands_still)
                taken.update(bodies_of(parcel.block))

        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(0.001)
            if clock.monotonic_s() < 60.0:
                raise failing(ErrorKind.UNREACHABLE)
            tasks.add(task := asyncio.create_task(work(parcel)))
            await asyncio.shield(task)
            return Sent()

        exporters = [ScriptedExporter(behave, max_concurrency=16, timeout_s=30.0) for _ in range(2)]
        async with (
            delivering(exporters[0], clock=clock, random=random) as one,
            delivering(exporters[1], clock=clock, random=random) as other,
        ):
            for subject in (one, other):
                await subject.append([log_block([f"row {index}"]) for index in range(300)])
            await until_nothing_is_held(one, clock)
            await until_nothing_is_held(other, clock)
        assert taken == Counter({f"row {index}": 2 for index in range(300)}), "what timed out was taken all the same, and came again"
        assert min(exporter.most_in_flight for exporter in exporters) >= 3, "one at a time would prove nothing"

    run_virtual(main, seed)


def test_who_waits_for_its_next_try_goes_on_at_once_when_the_destination_has_answered_another() -> None:
    async def main(clock: VirtualClock, random: Random) -> float:
        gate = Gate(clock, AdaptiveLimit(16), Breaker(Backoff(random, initial_s=0.5, most_s=30.0), threshold=1))
        timer = asyncio.ensure_future(gate.run())
        resting = asyncio.ensure_future(gate.rest(30.0))
        gate.failed(await gate.enter(0, 0), slow=False, pause_s=None, lost=True)
        gate.succeeded(await gate.enter(0, 1), 1000)
        await resting
        timer.cancel()
        return clock.monotonic_s()

    assert run_virtual(main) <= 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_peer_that_is_back_is_used_within_seconds_however_long_it_was_away(seed: int) -> None:
    """With what a Forward exporter is told by default: at most `retry_max_s` until the first probe, and then nobody sleeps on."""

    async def main(clock: VirtualClock, random: Random) -> None:
        answered_s: list[float] = []
        back_s = 900.0 + random.uniform(0, 30)

        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(0.01)
            if clock.monotonic_s() < back_s:
                raise failing(random.choice([ErrorKind.UNREACHABLE, ErrorKind.TIMED_OUT]))
            answered_s.append(clock.monotonic_s())
            return Sent()

        defaults = ForwardExporterConfig(endpoint="127.0.0.1:1")
        pace = {"retry_initial_s": defaults.retry_initial_s, "retry_max_s": defaults.retry_max_s}
        async with delivering(ScriptedExporter(behave, **pace), clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {index}"]) for index in range(200)])
            await clock.sleep(back_s)
            await until_nothing_is_held(subject, clock)
        assert answered_s[0] - back_s <= 5.1, "the probe came late"
        assert answered_s[-1] - back_s <= 6.1, "what waited slept on"

    run_virtual(main, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_peers_that_restart_in_turn_hold_nobody_up(seed: int) -> None:
    """Ten restarts of three seconds, ten seconds apart: what is appended meanwhile is delivered within seconds, each time."""

    async def main(clock: VirtualClock, random: Random) -> None:
        lateness_s: list[float] = []
        appended_s: dict[str, float] = {}

        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(random.uniform(0.005, 0.05))
            if clock.monotonic_s() % 10.0 < 3.0:
                raise failing(ErrorKind.UNREACHABLE)
            lateness_s.extend(clock.monotonic_s() - appended_s[body] for body in bodies_of(parcel.block))
            return Sent()

        defaults = ForwardExporterConfig(endpoint="127.0.0.1:1")
        pace = {"retry_initial_s": defaults.retry_initial_s, "retry_max_s": defaults.retry_max_s}
        async with delivering(ScriptedExporter(behave, **pace), clock=clock, random=random) as subject:
            for index in range(1000):
                appended_s[f"row {index}"] = clock.monotonic_s()
                await subject.append([log_block([f"row {index}"])])
                await clock.sleep(0.1)
            await until_nothing_is_held(subject, clock)
        assert len(lateness_s) == 1000
        assert max(lateness_s) <= 3.0 + defaults.retry_max_s + 1.0

    run_virtual(main, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_over_a_thin_line_become_small_enough_to_end_in_time(seed: int) -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        taken: list[str] = []

        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(parcel.block.uncompressed_bytes / 5_000)
            taken.extend(bodies_of(parcel.block))
            return Sent()

        exporter = ScriptedExporter(behave, merges=True, codec="none", timeout_s=30.0, max_request_bytes=1 << 20)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {index} " + "x" * 50_000]) for index in range(40)])
            await until_nothing_is_held(subject, clock)
        assert sorted(taken) == sorted(f"row {index} " + "x" * 50_000 for index in range(40))

    run_virtual(main, seed)
