"""What the delivery loop promises whatever the exporter does, on virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from emp_pipe import _core
from emp_pipe.component import Parcel, Sent
from emp_pipe.errors import DeliveryError, ErrorKind, Retry
from emp_pipe.log.protocol import DeadReason
from tests.support.delivering import ScriptedExporter, bodies_of, delivering
from tests.support.fake_clock import VirtualClock, run_virtual
from tests.support.telemetry import log_batch, log_block

SEEDS = range(6)

pytestmark = pytest.mark.skipif(not hasattr(_core, "merge_blocks"), reason="this core cannot merge blocks yet")


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


@pytest.mark.parametrize("seed", SEEDS)
def test_in_flight_halves_within_five_seconds_when_a_sink_that_refuses_halves_its_capacity(seed: int) -> None:
    in_flight, attempts, blocks = run_virtual(lambda clock, random: sink_that_halves(clock, random, queues=False), seed)
    assert_halved(in_flight)
    assert attempts <= 1.2 * blocks


@pytest.mark.parametrize("seed", SEEDS)
def test_in_flight_halves_within_five_seconds_when_a_sink_that_queues_halves_its_capacity(seed: int) -> None:
    in_flight, attempts, blocks = run_virtual(lambda clock, random: sink_that_halves(clock, random, queues=True), seed)
    assert_halved(in_flight)
    assert attempts <= 1.2 * blocks


def assert_halved(in_flight: dict[float, int]) -> None:
    """The mean over a second, before and five seconds after the capacity halved at t = 10 s."""
    before = [count for at_s, count in in_flight.items() if 8.0 <= at_s < 10.0]
    after = [count for at_s, count in in_flight.items() if 15.0 <= at_s < 17.0]
    assert sum(after) / len(after) <= 0.6 * sum(before) / len(before), f"{before} → {after}"
    assert max(before) >= 6, "the capacity was not used before"
    assert min(after) >= 1


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


@pytest.mark.parametrize("poisoned", [[0], [99], [37], [10, 11, 90]])
def test_a_poisoned_row_is_dead_lettered_and_its_neighbours_are_delivered(poisoned: list[int]) -> None:
    bad = {f"row {index}" for index in poisoned}

    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if bad & set(bodies_of(parcel.block)):
                raise failing(ErrorKind.REFUSED, detail="HTTP 400", retry=Retry.SMALLER)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {index}" for index in range(100)])])
            await subject.until_done()
            books, letters = await subject.books(), await subject.dead()
        assert sorted(exporter.bodies) == sorted({f"row {index}" for index in range(100)} - bad)
        assert (books.acked, books.dead) == (100 - len(bad), len(bad))
        assert [letter.reason for letter in letters] == [DeadReason.REFUSED] * len(bad)
        assert all(letter.header and letter.payload and letter.records == 1 and "HTTP 400" in letter.detail for letter in letters)
        assert len(exporter.parcels) <= 1 + 2 * 7 * len(bad)

    run_virtual(main)


def test_what_is_refused_for_good_becomes_one_dead_letter() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            raise failing(ErrorKind.EXPIRED)

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(5)])
            await subject.until_done()
            assert [(letter.reason, letter.records) for letter in await subject.dead()] == [(DeadReason.EXPIRED, 5)]
            assert subject.metric("exporter_dead_records_total", signal="logs", reason="expired") == 5
        assert len(exporter.parcels) == 1

    run_virtual(main)


def test_a_server_error_is_held_against_the_data_only_while_other_data_passes() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            down = 100 < clock.monotonic_s() < 700
            if down or "poison" in bodies_of(parcel.block):
                raise failing(ErrorKind.SERVER_ERROR, maybe_poisoned=True)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await clock.sleep(101)
            await subject.append([log_block([f"row {index}"]) for index in range(40)])
            await clock.sleep(590)
            assert not await subject.dead(), "an outage makes no dead letters"
            await subject.append([log_block(["good 1", "poison", "good 2"])])
            for index in range(300):
                await subject.append([log_block([f"later {index}"])])
                await clock.sleep(1.0)
            await subject.until_done(600)
            letters, books = await subject.dead(), await subject.books()
        assert [letter.records for letter in letters] == [1]
        assert {"good 1", "good 2"} <= set(exporter.bodies)
        assert (books.acked, books.dead) == (342, 1)

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


def test_a_bug_in_an_exporter_loses_nothing_and_does_not_end_the_loop() -> None:
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


def test_blocks_that_wait_are_merged_and_those_alone_are_not() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(merges=True, codec="gzip")
        async with delivering(exporter, clock=clock, random=random) as subject:
            alone = log_block(["alone"])
            await subject.append([alone])
            await subject.until_done()
            assert exporter.parcels[0].block.block_id == alone.block_id
            await subject.append([log_block([f"row {index}"]) for index in range(30)])
            await subject.until_done()
            assert (await subject.books()).acked == 31
        assert len(exporter.parcels) == 2
        assert exporter.bodies == ["alone", *(f"row {index}" for index in range(30))]

    run_virtual(main)


def test_a_poisoned_row_in_a_merged_request_takes_no_neighbour_along() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if "row 7.1" in bodies_of(parcel.block):
                raise failing(ErrorKind.REFUSED, retry=Retry.SMALLER)
            return Sent()

        exporter = ScriptedExporter(behave, merges=True, codec="gzip")
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {block}.{row}" for row in range(3)]) for block in range(12)])
            await subject.until_done()
            books, letters = await subject.books(), await subject.dead()
        assert (books.acked, books.dead) == (35, 1)
        assert len(set(exporter.bodies)) == len(exporter.bodies) == 35
        assert [letter.records for letter in letters] == [1]

    run_virtual(main)


def test_a_request_that_is_too_large_is_split_and_later_ones_are_merged_less() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if parcel.block.uncompressed_bytes > 400_000:
                raise failing(ErrorKind.TOO_LARGE)
            return Sent()

        exporter = ScriptedExporter(behave, merges=True, codec="none")
        async with delivering(exporter, clock=clock, random=random) as subject:
            for _ in range(2):
                await subject.append([log_block([f"{index} " + "x" * 900 for index in range(100)], codec="none") for _ in range(30)])
                await subject.until_done()
                refused = len(exporter.parcels) - len(exporter.delivered)
            assert (await subject.books()).acked == 6000
            assert refused <= 6, "the limit was not learnt"

    run_virtual(main)


def test_a_block_that_cannot_be_read_becomes_a_dead_letter_with_its_bytes() -> None:
    from emp_pipe._core import Block

    async def main(clock: VirtualClock, random: Random) -> None:
        good = log_batch(3).to_block("gzip", topic="logs", block_id="torn")
        torn = Block(good.header, bytes(memoryview(good))[:-12])
        exporter = ScriptedExporter(merges=True, codec="none")
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(["before"]), torn, log_block(["after"])])
            await subject.until_done()
            letters, books = await subject.dead(), await subject.books()
        assert sorted(exporter.bodies) == ["after", "before"]
        assert [(letter.reason, letter.payload, letter.header) for letter in letters] == [
            (DeadReason.BLOCK_INVALID, bytes(memoryview(torn)), torn.header)
        ]
        assert (books.acked, books.dead) == (2, 3)

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
