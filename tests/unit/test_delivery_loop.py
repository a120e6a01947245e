"""What the delivery loop promises whatever the exporter does, on virtual time."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from emp_pipe.component import Parcel, Sent
from emp_pipe.errors import DeliveryError, ErrorKind
from tests.support.delivering import ScriptedExporter, bodies_of, delivering
from tests.support.fake_clock import VirtualClock, run_virtual
from tests.support.telemetry import log_block, span_block

SEEDS = range(6)


def failing(kind: ErrorKind, **more: object) -> DeliveryError:
    return DeliveryError(kind, place="scripted", **more)  # type: ignore[arg-type]


def test_every_block_is_delivered_once_and_acked() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter()
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {index}"]) for index in range(50)])
            await subject.until_done()
            assert (await subject.books()).acked == 50
        assert sorted(exporter.bodies) == sorted(f"row {index}" for index in range(50))
        assert len(exporter.parcels) == 50
        assert (exporter.opened, exporter.closed) == (1, 1)

    run_virtual(main)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_dead_while_the_destination_fails_at_random(seed: int) -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(random.uniform(0.01, 0.2))
            if random.random() < 0.3:
                raise failing(random.choice([ErrorKind.UNREACHABLE, ErrorKind.TIMED_OUT, ErrorKind.SERVER_ERROR, ErrorKind.THROTTLED]))
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {index}"]) for index in range(100)])
            await subject.until_done(3600)
            assert (await subject.books()).acked == 100
            assert subject.metric("exporter_sent_records_total", signal="logs") == 100
        assert Counter(exporter.bodies) == Counter(f"row {index}" for index in range(100))

    run_virtual(main, seed)


def test_a_dead_destination_is_hardly_tried() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            raise failing(ErrorKind.UNREACHABLE)

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {index}"]) for index in range(500)])
            await clock.sleep(3600)
            assert len(exporter.parcels) < 400, "an hour with a cap of 30 s and full jitter is some 240 probes"
            assert len(exporter.parcels) > 120
            assert subject.loop.status().state == "down"
            assert (await subject.books()).held == 500

    run_virtual(main)


def test_a_destination_that_comes_back_gets_everything() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(0.05)
            if clock.monotonic_s() < 600:
                raise failing(ErrorKind.UNREACHABLE)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {index}"]) for index in range(200)])
            await clock.sleep(640)
            await subject.until_done(60)
            assert (await subject.books()).acked == 200
            assert subject.loop.status().state == "idle"

    run_virtual(main)


def test_retry_after_is_obeyed_by_all_requests() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        times: list[float] = []

        async def behave(parcel: Parcel) -> Sent:
            times.append(clock.monotonic_s())
            if len(times) == 1:
                raise failing(ErrorKind.THROTTLED, retry_after_s=25.0)
            return Sent()

        async with delivering(ScriptedExporter(behave, max_concurrency=1), clock=clock, random=random) as subject:
            await subject.append([log_block(["a"]), log_block(["b"])])
            await subject.until_done(100)
        assert len(times) == 3
        assert min(times[1:]) >= 25.0

    run_virtual(main)


def test_a_refused_key_keeps_everything_buffered_at_a_slow_pace() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if clock.monotonic_s() < 300:
                raise failing(ErrorKind.UNAUTHENTICATED)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {index}"]) for index in range(20)])
            await clock.sleep(299)
            assert len(exporter.parcels) <= 14, "at most the first ones at once and then one each 30 s"
            assert subject.loop.status().state == "key_refused"
            assert not await subject.dead()
            await subject.until_done(100)
            assert (await subject.books()).acked == 20

    run_virtual(main)


def test_an_attempt_without_an_answer_ends_at_its_timeout_and_is_repeated() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            assert parcel.deadline_monotonic_s == pytest.approx(clock.monotonic_s() + 5.0)
            if parcel.attempt == 1:
                await clock.sleep(1e6)
            return Sent()

        exporter = ScriptedExporter(behave, timeout_s=5.0)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(1)])
            await subject.until_done(60)
            assert 5.0 <= clock.monotonic_s() < 7.0
            assert subject.metric("exporter_retries_attempts_total", kind="timed_out") == 1

    run_virtual(main)


def test_a_bug_in_an_exporter_loses_nothing_does_not_end_the_loop_and_is_said_once_with_its_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if parcel.attempt < 3:
                raise ZeroDivisionError("a bug")
            return Sent()

        async with delivering(ScriptedExporter(behave), clock=clock, random=random) as subject:
            await subject.append([log_block(1), log_block(1)])
            await subject.until_done(600)
            assert (await subject.books()).acked == 2

    run_virtual(main)
    (said,) = [line for line in caplog.records if "failed unexpectedly" in line.message]
    assert said.exc_info, "it comes with its stack"


@pytest.mark.parametrize("seed", SEEDS)
def test_an_ordered_exporter_sees_the_order_of_the_log_over_retries(seed: int) -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(random.uniform(0.01, 0.1))
            if random.random() < 0.4:
                raise failing(ErrorKind.SERVER_ERROR)
            return Sent()

        exporter = ScriptedExporter(behave, ordered=True, retry_max_s=1.0)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"{index:03}"]) for index in range(40)])
            await subject.until_done(3600)
        assert exporter.bodies == sorted(exporter.bodies)
        assert exporter.most_in_flight == 1

    run_virtual(main, seed)


def test_a_stop_waits_for_answers_up_to_its_deadline_and_defers_the_rest() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(1.0 if bodies_of(parcel.block) == ["quick"] else 100.0)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(["quick"]), log_block(["slow"])])
            await clock.sleep(0.1)
            await subject.loop.stop(clock.monotonic_s() + 3.0)
            assert clock.monotonic_s() == pytest.approx(3.1)
            books = await subject.books()
            assert (books.acked, books.held) == (1, 1)
            (again,) = await subject.log.read("out", 1 << 20)
            assert bodies_of(again.block) == ["slow"]

    run_virtual(main)


def test_a_stop_does_not_wait_for_retries() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            raise failing(ErrorKind.UNREACHABLE)

        async with delivering(ScriptedExporter(behave), clock=clock, random=random) as subject:
            await subject.append([log_block(1) for _ in range(30)])
            await clock.sleep(100.0)
            await subject.loop.stop(clock.monotonic_s() + 60.0)
            assert clock.monotonic_s() == pytest.approx(100.0)
            assert len(await subject.log.read("out", 1 << 20)) == 30

    run_virtual(main)


def test_a_drain_ends_when_all_is_delivered() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(1.0)
            return Sent()

        async with delivering(ScriptedExporter(behave, max_concurrency=4), clock=clock, random=random) as subject:
            await subject.append([log_block(1) for _ in range(8)])
            assert await subject.loop.drain(clock.monotonic_s() + 30.0)
            assert clock.monotonic_s() == pytest.approx(2.0, abs=0.5)

    run_virtual(main)


def test_a_drain_does_not_wait_for_a_dead_destination() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            raise failing(ErrorKind.UNREACHABLE)

        async with delivering(ScriptedExporter(behave), clock=clock, random=random) as subject:
            await subject.append([log_block(1) for _ in range(8)])
            await clock.sleep(300.0)
            assert not await subject.loop.drain(clock.monotonic_s() + 30.0)
            assert clock.monotonic_s() < 301.0

    run_virtual(main)


def test_a_drain_does_not_wait_for_a_destination_that_asked_for_a_longer_pause() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            raise failing(ErrorKind.THROTTLED, retry_after_s=120.0)

        async with delivering(ScriptedExporter(behave), clock=clock, random=random) as subject:
            await subject.append([log_block(1)])
            await clock.sleep(1.0)
            assert not await subject.loop.drain(clock.monotonic_s() + 30.0)
            assert clock.monotonic_s() < 3.0

    run_virtual(main)


def test_a_drain_waits_out_a_pause_that_ends_in_time() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if clock.monotonic_s() < 10.0:
                raise failing(ErrorKind.THROTTLED, retry_after_s=10.0)
            return Sent()

        async with delivering(ScriptedExporter(behave), clock=clock, random=random) as subject:
            await subject.append([log_block(1)])
            await clock.sleep(1.0)
            assert await subject.loop.drain(clock.monotonic_s() + 30.0)

    run_virtual(main)


def test_a_drain_gives_up_after_three_tries_of_a_destination_that_just_went_away() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if clock.monotonic_s() >= 100.0:
                raise failing(ErrorKind.UNREACHABLE)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await clock.sleep(100.0)
            await subject.append([log_block(1)])
            assert not await subject.loop.drain(clock.monotonic_s() + 30.0)
            assert clock.monotonic_s() < 102.0
            assert len(exporter.parcels) == 3

    run_virtual(main)


def test_a_partial_success_is_counted_and_never_repeated() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            return Sent(rejected_records=2, message="two were bad")

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(10)])
            await subject.until_done()
            assert subject.metric("exporter_rejected_records_total", signal="logs") == 2
            assert subject.metric("exporter_sent_records_total", signal="logs") == 8
        assert len(exporter.parcels) == 1

    run_virtual(main)


def test_an_attempt_that_fails_during_the_stop_is_not_repeated() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            await clock.sleep(1.0)
            raise failing(ErrorKind.UNREACHABLE)

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(1)])
            await clock.sleep(0.5)
            await subject.loop.stop(clock.monotonic_s() + 60.0)
            assert clock.monotonic_s() == pytest.approx(1.0)
            assert len(exporter.parcels) == 1
            assert len(await subject.log.read("out", 1 << 20)) == 1

    run_virtual(main)


def test_an_ordered_exporter_gets_no_later_block_merged_before_an_earlier_one() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(ordered=True, merges=True, codec="gzip")
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(["a"]), log_block(["b"]), span_block(), log_block(["c"])])
            await subject.until_done()
        assert [(parcel.block.signal, parcel.block.records) for parcel in exporter.parcels] == [("logs", 2), ("traces", 1), ("logs", 1)]

    run_virtual(main)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_that_never_passes_cannot_keep_a_destination_looking_dead(seed: int) -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if clock.monotonic_s() < 600 or "never" in bodies_of(parcel.block):
                raise failing(ErrorKind.SERVER_ERROR)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(["never"]), *(log_block([f"row {index}"]) for index in range(40))])
            await clock.sleep(640)
            assert len(exporter.bodies) == 40
            assert (await subject.books()).held == 1

    run_virtual(main, seed)


def test_a_trickle_becomes_few_requests_and_no_record_waits_long() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        appended_s: dict[str, float] = {}
        waits_s: list[float] = []

        async def behave(parcel: Parcel) -> Sent:
            waits_s.extend(clock.monotonic_s() - appended_s[body] for body in bodies_of(parcel.block))
            await clock.sleep(0.1)
            return Sent()

        exporter = ScriptedExporter(behave, merges=True, codec="gzip")
        async with delivering(exporter, clock=clock, random=random) as subject:
            for index in range(1000):
                appended_s[f"{index}"] = clock.monotonic_s()
                await subject.append([log_block([f"{index}"])])
                await clock.sleep(0.005)
            await subject.until_done()
        assert len(exporter.parcels) < 80
        assert max(waits_s) < 0.25
        assert len(exporter.bodies) == 1000

    run_virtual(main)


def test_a_lone_small_block_is_sent_at_once() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(merges=True, codec="gzip")
        async with delivering(exporter, clock=clock, random=random) as subject:
            await clock.sleep(10.0)
            await subject.append([log_block(1)])
            while not exporter.parcels:
                await clock.sleep(0)
            assert clock.monotonic_s() == 10.0

    run_virtual(main)
